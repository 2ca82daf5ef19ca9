"""Bad images, odd names, damaged archives: what preprocess.py uses, skips and refuses."""

import errno
import os
import re
import shutil
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest
from conftest import ROOT, contents, copy_images, load, make, script
from harms import encoded, lie_about_size, png_bomb, refused_images, turned, used_images

import preprocess


# ---- images ----


def test_the_next_image_takes_the_place(drawings, tmp_path, capsys):
    """With unreadable images in it, the data set is that of a folder without them."""
    bad = ["A_3.jpg", "B_7.jpg"]
    for folder in ("without", "with"):
        copy_images(drawings, tmp_path / folder, "{}_{}.jpg".format)
    for name in bad:
        (tmp_path / "without" / name).unlink()
    (tmp_path / "with" / bad[0]).write_bytes(b"")
    (tmp_path / "with" / bad[1]).write_text("<html>404 Not Found</html>")
    arrays, facts = make(tmp_path / "1", "--data", tmp_path / "with")
    assert (
        "skipped 2 images; the others are split again\n"
        "  A_3.jpg: empty\n"
        "  B_7.jpg: damaged, no image, or over 134 million pixels\n"
    ) in capsys.readouterr().out
    assert sorted(facts["skipped"]) == bad
    assert {label: facts["counts"]["train"][label] for label in "ABC"} == {"A": 7, "B": 7, "C": 8}
    rows = [name for split in preprocess.SPLITS for name in facts["rows"][split]]
    assert sorted(rows) == sorted(path.name for path in (tmp_path / "without").iterdir())
    for split in preprocess.SPLITS:
        for image, name in zip(arrays[f"{split}_set.npy"], facts["rows"][split], strict=True):
            article = cv2.resize(cv2.imread(str(drawings / name)), (224, 224))
            assert np.array_equal(image, article)


def test_odd_images(drawings, tmp_path, capsys):
    """What OpenCV reads is used, under any suffix; what it refuses is skipped and named."""
    copy_images(drawings, tmp_path / "data", "{}_{}.jpg".format)
    used, refused = used_images(), refused_images()
    names = {}
    for number, (what, data) in enumerate((used | refused).items()):
        names[what] = f"A_x{number}{['.jpg', '.png'][number % 2]}"
        (tmp_path / "data" / names[what]).write_bytes(data)
    arrays, facts = make(tmp_path / "1", "--data", tmp_path / "data")
    assert sorted(facts["skipped"]) == sorted(names[what] for what in refused)
    assert skipped_names(capsys.readouterr().out) <= {names[what] for what in refused}
    rows = [(split, row) for split in preprocess.SPLITS for row in facts["rows"][split]]
    assert {names[what] for what in used} < {name for _, name in rows}
    for split, name in rows:
        image = arrays[f"{split}_set.npy"][facts["rows"][split].index(name)]
        article = cv2.resize(cv2.imread(str(tmp_path / "data" / name)), (224, 224))
        assert np.array_equal(image, article)


def skipped_names(output):
    """The names of what was skipped, ten at most, each with a reason."""
    lines = re.search(r"skipped \d+ images?; the others .*\n((?:  .*: .*\n)+)", output)[1]
    assert lines.count("\n") <= 10
    return {line.strip().rpartition(": ")[0] for line in lines.splitlines()}


def test_exif_turns_the_image():
    """A telephone writes the sensor's rows and how to turn them; people sign upright."""
    stored, upright = (preprocess.decode(data).astype(int) for data in (encoded(".jpg"), turned()))
    assert abs(upright - np.rot90(stored, -1)).mean() < 3 < abs(upright - stored).mean()


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ENOENT])
@pytest.mark.parametrize("where", ["folder", "zip"])
def test_what_the_system_refuses_is_no_bad_image(drawings, tmp_path, monkeypatch, number, where):
    """An image that can't be read now is not skipped: the set would be smaller without a word."""
    data = drawings
    if where == "zip":
        data = shutil.make_archive(tmp_path / "data", "zip", drawings)
    read = {"folder": (preprocess.Path, "read_bytes"), "zip": (zipfile.ZipFile, "open")}[where]
    original, calls = getattr(*read), []

    def refuse(*arguments):
        calls.append(1)
        if len(calls) == 20:
            raise OSError(number, os.strerror(number), "A_1.jpg")
        return original(*arguments)

    monkeypatch.setattr(*read, refuse)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        make(tmp_path / "out", "--data", data)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock"}


def test_no_memory_for_an_image_is_no_bad_image(drawings, tmp_path, monkeypatch):
    def refuse(*arguments):
        error = cv2.error("Insufficient memory")
        error.code = cv2.Error.StsNoMem
        raise error

    monkeypatch.setattr(preprocess.cv2, "imdecode", refuse)
    with pytest.raises(MemoryError):
        make(tmp_path / "out", "--data", drawings)


def test_ten_of_many_skipped_images_are_named(drawings, tmp_path, capsys):
    data = copy_images(drawings, tmp_path / "data", "{}_{}.jpg".format)
    for number in range(25):
        (data / f"A_x{number:02}.jpg").write_bytes(b"no image")
    make(tmp_path / "out", "--data", data)
    output = capsys.readouterr().out
    assert "skipped 25 images;" in output
    assert skipped_names(output) == {f"A_x{number:02}.jpg" for number in range(10)}


def test_a_class_without_readable_images(drawings, tmp_path):
    copy_images(drawings, tmp_path / "data", "{}_{}.jpg".format)
    for path in (tmp_path / "data").glob("B_*.jpg"):
        path.write_text("not an image")
    with pytest.raises(preprocess.UserError, match="class B has no image that can be used"):
        make(tmp_path / "1", "--data", tmp_path / "data")


# ---- names ----


def test_names_that_are_not_text(drawings, tmp_path):
    """A name in another encoding than the terminal's is no reason to fail."""
    copy_images(drawings, tmp_path / "data", "{}_{}.jpg".format)
    (tmp_path / "data" / os.fsdecode(b"A_\xff.jpg")).write_bytes(b"")
    options = ("--data", tmp_path / "data", "--numpy-folder", tmp_path / "out")
    done = script("preprocess.py", *options, check=True)
    assert skipped_names(done.stdout) == {"'A_\\udcff.jpg'"}


def test_odd_names(drawings, tmp_path):
    """Spaces, Unicode and newlines are names like others; leftovers are none; what is no file
    is skipped and named, and not waited for."""
    data = copy_images(drawings, tmp_path / "data", "{}_{}.jpg".format)
    good = ["A_my hand.jpg", "A (2).jpg", "B-3 héllo 手.jpg", "C_1\n2.jpg"]
    for number, name in enumerate(good):
        picture = (drawings / "A_1.jpg").read_bytes() + b"%d" % number  # no two are the same file
        (data / name).write_bytes(picture)
    for name in (".DS_Store", "._A_1.jpg", "Thumbs.db", "__MACOSX/._A_1.jpg"):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_bytes(b"leftover")
    (data / "A_dangling.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(data / "B_pipe\n.jpg")
    options = ("--data", data, "--numpy-folder", tmp_path / "out")
    done = script("preprocess.py", *options, check=True, timeout=60)
    assert skipped_names(done.stdout) == {"'B_pipe\\n.jpg'", "A_dangling.jpg"}
    facts = preprocess.load_dataset(tmp_path / "out")
    rows = {name: split for split in preprocess.SPLITS for name in facts["rows"][split]}
    assert rows.keys() == {*good, *(path.name for path in drawings.iterdir())}
    for name in good:
        _, labels = load(tmp_path / "out", rows[name])
        index = facts["rows"][rows[name]].index(name)
        assert "ABC"[labels[index].argmax()] == name[0]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_in_archives(drawings, tmp_path, capsys):
    """Absolute names and `..` are no class and are written nowhere, a backslash parts folders,
    and of two entries of one name the last counts, once."""
    archive = tmp_path / "data" / "names.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for path in drawings.iterdir():
            file.write(path, f"asl_alphabet_train\\{path.stem[0]}\\{path.name}")
        for name in ("../A_x.jpg", "/A_x.jpg", "../../A_x.jpg", "/tmp/A_x.jpg", "../A/x.jpg"):
            file.writestr(name, (drawings / "A_1.jpg").read_bytes())
        last = (drawings / "B_1.jpg").read_bytes() + b"another file"
        file.writestr("asl_alphabet_train\\A\\A_1.jpg", last)
        file.writestr("asl_alphabet_train/A/A_9.jpg/", b"")  # a folder
    before = contents(tmp_path)
    arrays, facts = make(tmp_path / "out", "--data", archive, "--classes", "all")
    assert f"{archive} has 1 name twice: the last entry counts\n" in capsys.readouterr().out
    assert facts["classes"] == ["A", "B", "C"]
    rows = {name: split for split in preprocess.SPLITS for name in facts["rows"][split]}
    assert len(rows) == sum(len(names) for names in facts["rows"].values()) == 36
    again = "asl_alphabet_train/A/A_1.jpg"
    image = arrays[f"{rows[again]}_set.npy"][facts["rows"][rows[again]].index(again)]
    article = cv2.resize(cv2.imread(str(drawings / "B_1.jpg")), (224, 224))
    assert np.array_equal(image, article)
    assert {n: b for n, b in contents(tmp_path).items() if not n.startswith("out/")} == before


# ---- archives ----


def test_sources_that_are_none(drawings, tmp_path):
    html, cut, encrypted = (tmp_path / name for name in ("page.zip", "cut.zip", "secret.zip"))
    html.write_text("<html>sign in</html>")
    intact = shutil.make_archive(tmp_path / "intact", "zip", drawings)
    cut.write_bytes(open(intact, "rb").read()[:-1000])
    data = bytearray(open(intact, "rb").read())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of the central directory's first entry
    encrypted.write_bytes(data)
    for path, message in [
        (html, "is neither a folder nor an intact zip archive (File is not a zip file); download"),
        (cut, "is neither a folder nor an intact zip archive"),
        (encrypted, "is encrypted; unpack it and give the folder with --data"),
        (tmp_path / "absent", "absent: No such file or directory\n"),
    ]:
        done = script("preprocess.py", "--data", path, "--numpy-folder", tmp_path / "out")
        assert done.returncode == 1 and message in done.stderr and str(path) in done.stderr
        assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_zip_member_that_is_damaged(kaggle, tmp_path):
    archive = shutil.make_archive(tmp_path / "asl-alphabet", "zip", kaggle)
    with zipfile.ZipFile(archive) as file:
        entry = next(entry for entry in file.infolist() if entry.filename.endswith("A/A5.jpg"))
    with open(archive, "rb+") as file:
        file.seek(entry.header_offset + 500)
        file.write(b"damaged" * 20)
    _, facts = make(tmp_path / "1", "--data", archive)
    assert facts["skipped"].keys() == {entry.filename}
    assert "damaged in the archive" in facts["skipped"][entry.filename]


# ---- bombs ----


@pytest.fixture
def bombs(drawings, tmp_path):
    """A folder and a zip of drawings with what would take all memory."""
    folder = copy_images(drawings, tmp_path / "folder", "{}_{}.jpg".format)
    (folder / "A_pixels.png").write_bytes(png_bomb(20000))
    with open(folder / "A_sparse.jpg", "wb") as file:
        file.truncate(10**9)
    archive = tmp_path / "bombs.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in drawings.iterdir():
            file.write(path, path.name)
        large = b"\xff\xd8" + bytes(280_000_000)
        file.writestr("A_large.jpg", large)
        file.writestr("A_liar.jpg", large)
        file.writestr("A_bzip2.jpg", large, zipfile.ZIP_BZIP2)
    for name in ("A_liar.jpg", "A_bzip2.jpg"):
        lie_about_size(archive, name, 1000)
    return folder, archive


def test_bombs_are_refused_before_the_memory_is_taken(bombs, tmp_path):
    said = []
    for source in bombs:
        done = subprocess.run(
            [sys.executable, ROOT / "tests" / "measure.py", sys.executable, ROOT / "preprocess.py"]
            + ["--data", source, "--numpy-folder", tmp_path / "out"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stderr.split("anonymous memory ")[1].split()[0]) < 200, done.stderr
        said.append(sorted(skipped_names(done.stdout)))
    folder, archive = said
    assert folder == ["A_pixels.png", "A_sparse.jpg"]
    assert archive == ["A_bzip2.jpg", "A_large.jpg", "A_liar.jpg"]


# ---- OpenCV ----


@pytest.mark.parametrize(
    "why, remedies",
    [
        (
            "libGL.so.1: cannot open shared object file: No such file or directory",
            ("apt-get install libgl1", "opencv-python-headless"),
        ),
        ("libQt5.so.5: failed to map segment from shared object", ("not enough memory",)),
        ("No module named 'cv2'", ("activate the environment in which requirements.txt",)),
    ],
)
def test_opencv_that_does_not_load(tmp_path, why, remedies):
    """One line with the remedy. The module stands in for OpenCV, its words are those of the real
    one without libGL, under ulimit -v, and outside the environment."""
    (tmp_path / "cv2.py").write_text(f"raise ImportError({why!r})")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, ROOT / "preprocess.py"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert why in done.stderr and all(words in done.stderr for words in remedies)
