"""preprocess.py, run as users run it, and at its seams."""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import cv2
import numpy as np
import pytest
from conftest import ROOT, SHARED, load, replace, script, stop
from harms import (
    encoded,
    lie_about_size,
    png_bomb,
    refused_images,
    turned,
    used_images,
)

import preprocess

ARRAYS = [f"{split}_{kind}.npy" for split in preprocess.SPLITS for kind in ("set", "classes")]
REAL = SHARED / "data" / "asl-alphabet-abc.zip"


def make(folder, *arguments):
    """Run preprocess.main into a folder; return {name: array} and dataset.json."""
    preprocess.main([*map(str, arguments), "--numpy-folder", str(folder)])
    arrays = {name: np.load(folder / name) for name in ARRAYS}
    return arrays, json.loads((folder / "dataset.json").read_text())


def equal(some, others):
    return all(np.array_equal(some[name], others[name]) for name in ARRAYS)


def contents(folder):
    """{name: bytes} of all files below a folder, but the empty file of the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def copy_images(drawings, folder, name):
    """Copy the drawings, each under name(letter, number)."""
    for path in drawings.iterdir():
        target = folder / name(*path.stem.split("_"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


# ---- what it writes ----


def test_shapes_and_types(dataset):
    for split, rows in (("train", 24), ("validation", 9), ("test", 3)):
        images, labels = load(dataset, split)
        assert images.shape == (rows, 224, 224, 3) and images.dtype == np.uint8
        assert labels.shape == (rows, 24) and labels.dtype == np.float32
        assert np.array_equal(labels.sum(axis=1), np.ones(rows))
        assert labels[:, :3].sum(axis=0).tolist() == [rows / 3] * 3  # A, B, C are 0, 1, 2


def test_rows_are_what_the_article_reads(drawings, dataset):
    """Each row equals cv2.imread and cv2.resize of the file that dataset.json names for it."""
    facts = preprocess.load_dataset(dataset)
    seen = set()
    for split in preprocess.SPLITS:
        images, labels = load(dataset, split)
        for image, label, name in zip(images, labels, facts["rows"][split], strict=True):
            article = cv2.resize(cv2.imread(str(drawings / name)), (224, 224))
            assert np.array_equal(image, article)
            assert "ABC"[label.argmax()] == name[0]
            seen.add(name)
    assert seen == {path.name for path in drawings.iterdir()}


def test_dealt_as_in_the_article():
    """The article's own loop, over the same order, deals the same images."""
    listing = [(f"{label}_{i}.jpg", label) for label in "ABC" for i in range(3000)]
    random.Random(5).shuffle(listing)
    train, validation, test = [], [], []
    class_count = {"A": 0, "B": 0, "C": 0}
    for image in listing:
        label = image[0][0]
        if class_count[label] < 2000:
            class_count[label] += 1
            train.append(image)
        elif class_count[label] >= 2000 and class_count[label] < 2750:
            class_count[label] += 1
            validation.append(image)
        else:
            test.append(image)
    splits = preprocess.deal(listing, None, None)
    assert splits == {"train": train, "validation": validation, "test": test}


def test_rows_are_mixed_and_follow_the_seed(drawings, tmp_path):
    first, _ = make(tmp_path / "1", "--data", drawings)
    again, _ = make(tmp_path / "2", "--data", drawings)
    other, _ = make(tmp_path / "3", "--data", drawings, "--seed", "1")
    assert equal(first, again) and not equal(first, other)
    letters = first["train_classes.npy"].argmax(axis=1)
    assert (np.diff(letters) != 0).sum() > 8  # in blocks of one class it would be 2


def test_output_ends_with_the_counts(drawings, tmp_path):
    done = script("preprocess.py", "--data", drawings, "--numpy-folder", tmp_path, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == (
        f"source {drawings}: 36 images\n"
        "too few images for 2,000 + 750 + 1: A B C, "
        "dealt in the article's proportions (8 : 3 : 1)\n"
        "class  train  validation   test\n"
        "A          8           3      1\n"
        "B          8           3      1\n"
        "C          8           3      1\n"
        "total     24           9      3\n"
        "Data preprocessing success!\n"
    )


def test_needs_no_keras():
    code = "import preprocess, sys; sys.exit({'keras', 'tensorflow'} & set(sys.modules) != set())"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ---- where the images are ----


@pytest.fixture
def kaggle(drawings, tmp_path):
    """The Kaggle folders, with images and files that are not part of them."""
    folder = tmp_path / "kaggle"
    train = "asl_alphabet_train/asl_alphabet_train"
    copy_images(drawings, folder, lambda label, number: f"{train}/{label}/{label}{number}.jpg")
    test = folder / "asl_alphabet_test/asl_alphabet_test/A_test.jpg"
    test.parent.mkdir(parents=True)
    shutil.copy(drawings / "A_1.jpg", test)
    (folder / train / "A" / "notes.txt").write_text("not an image")
    (folder / train / "A" / "._A1.jpg").write_text("a leftover of macOS")
    return folder


def test_kaggle_folders_and_zip(kaggle, tmp_path, capsys):
    folders, facts = make(tmp_path / "1", "--data", kaggle)
    assert "left out 1 images of asl_alphabet_test" in capsys.readouterr().out
    assert sum(len(names) for names in facts["rows"].values()) == 36
    archive = shutil.make_archive(tmp_path / "asl-alphabet", "zip", kaggle)
    before = contents(tmp_path)
    zipped, _ = make(tmp_path / "2", "--data", archive)
    assert equal(folders, zipped)
    new = contents(tmp_path).keys() - before.keys()
    assert new == {f"2/{name}" for name in [*ARRAYS, "dataset.json"]}  # nothing was extracted


@pytest.mark.parametrize("inner", ["asl_alphabet_train", "asl_alphabet_train/asl_alphabet_train"])
def test_kaggle_folders_at_any_of_their_levels(kaggle, tmp_path, inner):
    whole, _ = make(tmp_path / "1", "--data", kaggle)
    part, _ = make(tmp_path / "2", "--data", kaggle / inner)
    assert equal(whole, part)


@pytest.mark.parametrize(
    "name, label",
    [
        ("A_34.jpg", "A"),
        ("A34.JPG", "A"),
        ("space_7.png", "space"),
        ("del12.jpeg", "del"),
        ("B/B1.jpg", "B"),
        ("asl_alphabet_train/C/anything.jpg", "C"),
        ("asl_alphabet_train/asl_alphabet_train/nothing/n1.jpg", "nothing"),
        ("asl_alphabet_test/asl_alphabet_test/A_test.jpg", None),
        ("asl_alphabet_test/A_test.jpg", None),
        ("__MACOSX/asl_alphabet_train/A/._A1.jpg", None),
        ("A/._A1.jpg", None),
        ("A/A1.txt", None),
        ("_1.jpg", None),
        ("some/where/else/A1.jpg", None),
    ],
)
def test_class_of(name, label):
    assert preprocess.class_of(name) == label


def test_default_source(drawings, kaggle, tmp_path):
    """Of all that asl_data/ beside the script holds one thing is read, whatever the folder."""
    project = tmp_path / "project"
    data = project / "asl_data"
    data.mkdir(parents=True)
    shutil.copy(ROOT / "preprocess.py", project)

    def source():
        command = [sys.executable, project / "preprocess.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (project / "Numpy_folder" / "dataset.json").exists() == (done.returncode == 0)
        return (done.stdout or done.stderr).splitlines()[0]

    assert source() == (
        f"preprocess.py: no images (.jpg .jpeg .png .bmp .webp .tif .tiff) in {data}; put there"
    )
    copy_images(drawings, data / "demo", "{}_{}.jpg".format)
    assert source() == f"source {data / 'demo'}: 36 images"
    shutil.make_archive(data / "archive", "zip", kaggle)
    assert source() == f"source {data / 'archive.zip'}: 36 images"
    copy_images(drawings, data, "{0}/{0}{1}.jpg".format)
    assert source() == f"source {data}: 36 images"
    copy_images(drawings, data / "new", "{}_{}.jpg".format)
    assert source() == f"source {data / 'new'}: 36 images"


def test_nothing_there_names_both_cures(tmp_path):
    done = script("preprocess.py", "--data", tmp_path, "--numpy-folder", tmp_path / "out")
    assert done.returncode == 1 and done.stdout == ""
    assert "curl -L -o asl_data/asl-alphabet.zip https://www.kaggle.com/" in done.stderr
    assert "python asl_data/draw_hands.py" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_picture_beside_the_folders_does_not_count(kaggle, drawings, tmp_path):
    whole, _ = make(tmp_path / "1", "--data", kaggle)
    shutil.copy(drawings / "A_1.jpg", kaggle / "cover.jpg")
    again, _ = make(tmp_path / "2", "--data", kaggle)
    assert equal(whole, again)


# ---- classes and counts ----


def test_other_classes(drawings, tmp_path):
    names = {"A": "J", "B": "nothing", "C": "B"}
    copy_images(drawings, tmp_path / "data", lambda x, i: f"{names[x]}/{i}.jpg")
    found, facts = make(tmp_path / "1", "--data", tmp_path / "data", "--classes", "all")
    assert facts["columns"] == facts["classes"] == ["B", "J", "nothing"]
    assert found["train_classes.npy"].shape == (24, 3)
    chosen, facts = make(tmp_path / "2", "--data", tmp_path / "data", "--classes", "nothing", "B")
    assert facts["columns"] == facts["classes"] == ["B", "nothing"]
    assert chosen["train_classes.npy"].shape == (16, 2)


def test_letters_keep_their_column(drawings, tmp_path):
    copy_images(drawings, tmp_path / "data", lambda x, i: f"{'BKY'['ABC'.index(x)]}_{i}.jpg")
    arrays, facts = make(tmp_path / "1", "--data", tmp_path / "data", "--classes", "Y", "K", "B")
    assert "".join(facts["columns"]) == "ABCDEFGHIKLMNOPQRSTUVWXY"
    assert set(arrays["train_classes.npy"].argmax(axis=1)) == {1, 9, 23}


@pytest.mark.parametrize(
    "number, train, validation, counts",
    [
        (3000, None, None, (2000, 750)),
        (3004, None, None, (2000, 750)),
        (2751, None, None, (2000, 750)),
        (2750, None, None, (1833, 687)),
        (750, None, None, (500, 187)),
        (12, None, None, (8, 3)),
        (4, None, None, (2, 1)),
        (3, None, None, (1, 1)),
        (200, 100, None, (100, 75)),
        (200, None, 20, (160, 20)),
        (200, 100, 99, (100, 99)),
    ],
)
def test_split_counts(number, train, validation, counts):
    assert preprocess.split_counts("A", number, train, validation) == counts


@pytest.mark.parametrize(
    "number, train, validation",
    [(2, None, None), (1, None, None), (200, 100, 100), (200, 199, None), (10, None, 9)],
)
def test_split_counts_that_do_not_fit(number, train, validation):
    with pytest.raises(preprocess.UserError, match=f"^class Q has {number} images: too few for"):
        preprocess.split_counts("Q", number, train, validation)


def test_every_number_of_images_fills_every_split():
    for number in range(3, 3001):
        train, validation = preprocess.split_counts("A", number, None, None)
        assert train >= 1 and validation >= 1 and number - train - validation >= 1


# ---- images that can't be read ----


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
    assert "skipped 2 that can't be read: " in capsys.readouterr().out
    assert sorted(facts["unreadable"]) == bad
    assert {label: facts["counts"]["train"][label] for label in "ABC"} == {"A": 7, "B": 7, "C": 8}
    rows = [name for split in preprocess.SPLITS for name in facts["rows"][split]]
    assert sorted(rows) == sorted(path.name for path in (tmp_path / "without").iterdir())
    for split in preprocess.SPLITS:
        for image, name in zip(arrays[f"{split}_set.npy"], facts["rows"][split], strict=True):
            article = cv2.resize(cv2.imread(str(drawings / name)), (224, 224))
            assert np.array_equal(image, article)


def test_names_that_are_not_text(drawings, tmp_path):
    """A name in another encoding than the terminal's is no reason to fail."""
    copy_images(drawings, tmp_path / "data", "{}_{}.jpg".format)
    (tmp_path / "data" / os.fsdecode(b"A_\xff.jpg")).write_bytes(b"")
    options = ("--data", tmp_path / "data", "--numpy-folder", tmp_path / "out")
    done = script("preprocess.py", *options, check=True)
    assert "skipped 1 that can't be read: 'A_\\udcff.jpg'; dealing again\n" in done.stdout


def test_zip_member_that_is_damaged(kaggle, tmp_path):
    archive = shutil.make_archive(tmp_path / "asl-alphabet", "zip", kaggle)
    with zipfile.ZipFile(archive) as file:
        entry = next(entry for entry in file.infolist() if entry.filename.endswith("A/A5.jpg"))
    with open(archive, "rb+") as file:
        file.seek(entry.header_offset + 500)
        file.write(b"damaged" * 20)
    _, facts = make(tmp_path / "1", "--data", archive)
    assert facts["unreadable"] == [entry.filename]


def test_a_class_without_readable_images(drawings, tmp_path):
    copy_images(drawings, tmp_path / "data", "{}_{}.jpg".format)
    for path in (tmp_path / "data").glob("B_*.jpg"):
        path.write_text("not an image")
    with pytest.raises(preprocess.UserError, match="class B has no image that can be read"):
        make(tmp_path / "1", "--data", tmp_path / "data")


# ---- mistakes ----


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--classes", "A", "Q"), "no image of class Q; there are A B C: see --classes"),
        (("--classes", "A"), "one class (A) leaves nothing to learn; take at least two"),
        (("--train", "11"), "class A has 12 images: too few for 11 to train"),
    ],
)
def test_mistakes_end_in_one_line(drawings, tmp_path, arguments, message):
    done = script("preprocess.py", "--data", drawings, "--numpy-folder", tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"preprocess.py: {message}") and done.stderr.count("\n") == 1
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "arguments", [("--train", "0"), ("--train", "x"), ("--seed", "-1"), ("--color", "RGB")]
)
def test_wrong_usage(arguments):
    assert script("preprocess.py", *arguments).returncode == 2


def test_sources_that_are_none(drawings, tmp_path):
    html, cut, encrypted = (tmp_path / name for name in ("page.zip", "cut.zip", "secret.zip"))
    html.write_text("<html>sign in</html>")
    whole = shutil.make_archive(tmp_path / "whole", "zip", drawings)
    cut.write_bytes(open(whole, "rb").read()[:-1000])
    data = bytearray(open(whole, "rb").read())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of the central directory's first entry
    encrypted.write_bytes(data)
    for path, message in [
        (html, "is neither a folder nor a whole zip archive (File is not a zip file); download"),
        (cut, "is neither a folder nor a whole zip archive"),
        (encrypted, "is encrypted; unpack it and give the folder with --data"),
        (tmp_path / "absent", "No such file or directory; check the path"),
    ]:
        done = script("preprocess.py", "--data", path, "--numpy-folder", tmp_path / "out")
        assert done.returncode == 1 and message in done.stderr and str(path) in done.stderr
        assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_folder_that_may_not_be_read(kaggle, tmp_path, monkeypatch):
    """Not taken for a class without images. (Root may read all, so the refusal is made here.)"""
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/B"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        make(tmp_path / "1", "--data", kaggle)


def test_file_size_limit(drawings, tmp_path):
    """A disk that is full: one line, no rubbish, and the old set as it was."""
    make(tmp_path, "--data", drawings)
    before = contents(tmp_path)
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))}
    options = ("--data", drawings, "--numpy-folder", tmp_path, "--seed", "1")
    done = script("preprocess.py", *options, **limit)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "File too large" in done.stderr
    assert contents(tmp_path) == before


def test_folder_that_cannot_be_written(drawings, tmp_path):
    (tmp_path / "file").write_text("")
    done = script("preprocess.py", "--data", drawings, "--numpy-folder", tmp_path / "file" / "out")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "Not a directory" in done.stderr


# ---- all or nothing ----


def test_a_run_that_fails_leaves_what_was_there(drawings, tmp_path, monkeypatch):
    make(tmp_path, "--data", drawings)
    before = contents(tmp_path)

    def full(*arguments, **facts):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preprocess, "describe_dataset", full)
    with pytest.raises(OSError):
        preprocess.main(["--data", str(drawings), "--seed", "1", "--numpy-folder", str(tmp_path)])
    assert contents(tmp_path) == before


def test_killed_runs_leave_a_whole_set(tmp_path, request):
    """kill -9 at moments drawn over a run: what stands is the old set or the new one, and the
    same command completes."""
    images, out = tmp_path / "images", tmp_path / "out"
    script("asl_data/draw_hands.py", "--output", images, "--count", "150", check=True)
    sets = []
    for seed in ("1", "0"):
        make(out, "--data", images, "--seed", seed)
        sets.append({name: (out / name).read_bytes() for name in ARRAYS})

    command = [sys.executable, ROOT / "preprocess.py", "--data", images, "--numpy-folder", out]
    begin = time.perf_counter()
    subprocess.run([*command[:-1], tmp_path / "timed"], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    draw = random.Random(0)
    for kill in range(request.config.getoption("--kills")):
        make(out, "--data", images, "--seed", "1")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        if kill == 0:
            while not (out / ".partial" / "train_set.npy").exists():
                assert process.poll() is None
        else:
            time.sleep(draw.uniform(0.3, 1) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert kill or (out / ".partial").exists()
        for split in preprocess.SPLITS:
            load(out, split)
        assert {name: (out / name).read_bytes() for name in ARRAYS} in sets
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        assert {name: (out / name).read_bytes() for name in ARRAYS} == sets[1]
        assert {path.name for path in out.iterdir()} == {*ARRAYS, "dataset.json", ".lock"}


def test_killed_between_the_moves(drawings, tmp_path, monkeypatch):
    """A run that dies while its files take their places has won: the next reader moves the rest."""
    make(tmp_path / "out", "--data", drawings)
    new, _ = make(tmp_path / "new", "--data", drawings, "--seed", "1")
    (tmp_path / "out" / ".whole").mkdir()
    for name in sorted([*ARRAYS, "dataset.json"])[:4]:
        shutil.copy(tmp_path / "new" / name, tmp_path / "out" / name)
    for name in sorted([*ARRAYS, "dataset.json"])[4:]:
        shutil.copy(tmp_path / "new" / name, tmp_path / "out" / ".whole" / name)
    load(tmp_path / "out", "train")
    assert equal(new, {name: np.load(tmp_path / "out" / name) for name in ARRAYS})
    assert not (tmp_path / "out" / ".whole").exists()


def harm(path, kind):
    """Damage a file of Numpy_folder/ in one of the ways that happen."""
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "zip":
        replace(path, b"PK\x03\x04" + data[4:])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "header":
        replace(path, data.replace(b"}", b"\x00", 1))
    elif kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "one bit":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif kind == "pickle":
        np.save(path, np.array([print, {}], dtype=object), allow_pickle=True)
    elif kind == "shape":
        np.save(path, np.load(path)[1:])
    elif kind == "dtype":
        np.save(path, np.load(path).astype("float64"))


@pytest.mark.parametrize(
    "kind", "missing zip empty header truncated pickle shape dtype".split() + ["one bit"]
)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_damaged(dataset, tmp_path, name, kind):
    shutil.copytree(dataset, tmp_path / "out")
    harm(tmp_path / "out" / name, kind)
    reason = "holds .*, not" if kind in ("shape", "dtype") else ""
    with pytest.raises(preprocess.UserError, match=f"{name} {reason}.*run preprocess.py"):
        load(tmp_path / "out", name.partition("_")[0])


def test_arrays_of_another_run(drawings, dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "out")
    make(tmp_path / "new", "--data", drawings, "--seed", "1")
    shutil.copy(tmp_path / "new" / "train_set.npy", tmp_path / "out" / "train_set.npy")
    with pytest.raises(preprocess.UserError, match="train_set.npy is of another data set"):
        load(tmp_path / "out", "train")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "7", '{"rows": {}}'])
def test_dataset_json_that_is_damaged(dataset, tmp_path, text):
    shutil.copytree(dataset, tmp_path / "out")
    (tmp_path / "out" / "dataset.json").write_text(text)
    with pytest.raises(preprocess.UserError, match="dataset.json is damaged"):
        load(tmp_path / "out", "train")


def test_labels_that_were_changed(dataset, tmp_path):
    """JSON that is whole but not as it was written: A and B have changed places."""
    shutil.copytree(dataset, tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "dataset.json").read_text())
    facts["columns"][:2] = "BA"
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(preprocess.UserError, match="dataset.json is damaged .*CRC-32 does not fit"):
        load(tmp_path / "out", "train")


# ---- bad images and archives: harms.py makes them ----


def test_odd_images(drawings, tmp_path, capsys):
    """What OpenCV reads is used, under any suffix; what it refuses is skipped and named."""
    copy_images(drawings, tmp_path / "data", "{}_{}.jpg".format)
    used, refused = used_images(), refused_images()
    names = {}
    for number, (what, data) in enumerate((used | refused).items()):
        names[what] = f"A_x{number}{['.jpg', '.png'][number % 2]}"
        (tmp_path / "data" / names[what]).write_bytes(data)
    arrays, facts = make(tmp_path / "1", "--data", tmp_path / "data")
    assert sorted(facts["unreadable"]) == sorted(names[what] for what in refused)
    output = capsys.readouterr().out
    assert all(names[what] in output for what in refused)
    rows = [(split, row) for split in preprocess.SPLITS for row in facts["rows"][split]]
    assert {names[what] for what in used} < {name for _, name in rows}
    for split, name in rows:
        image = arrays[f"{split}_set.npy"][facts["rows"][split].index(name)]
        article = cv2.resize(cv2.imread(str(tmp_path / "data" / name)), (224, 224))
        assert np.array_equal(image, article)


def test_exif_turns_the_image():
    """A telephone writes the sensor's rows and how to turn them; people sign upright."""
    stored = preprocess.read_image(lambda name: encoded(".jpg"), "A_1.jpg").astype(int)
    upright = preprocess.read_image(lambda name: turned(), "A_1.jpg").astype(int)
    assert abs(upright - np.rot90(stored, -1)).mean() < 3 < abs(upright - stored).mean()


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
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stderr.split("anonymous memory ")[1].split()[0]) < 200, done.stderr
        said.append(re.search("skipped (.*); dealing again", done.stdout)[1])
    folder, archive = (sorted(names.split(": ")[1].split(", ")) for names in said)
    assert folder == ["A_pixels.png", "A_sparse.jpg"]
    assert archive == ["A_bzip2.jpg", "A_large.jpg", "A_liar.jpg"]


def test_odd_names(drawings, tmp_path):
    """Spaces, Unicode and newlines are names like others; leftovers are none; what is no file
    is skipped and named, and not waited for."""
    data = copy_images(drawings, tmp_path / "data", "{}_{}.jpg".format)
    good = ["A_my hand.jpg", "A (2).jpg", "B-3 héllo 手.jpg", "C_1\n2.jpg"]
    for name in good:
        shutil.copy(drawings / "A_1.jpg", data / name)
    for name in (".DS_Store", "._A_1.jpg", "Thumbs.db", "__MACOSX/._A_1.jpg"):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_bytes(b"leftover")
    (data / "A_dangling.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(data / "B_pipe\n.jpg")
    options = ("--data", data, "--numpy-folder", tmp_path / "out")
    done = script("preprocess.py", *options, check=True, timeout=60)
    skipped = re.search("skipped 2 that can't be read: (.*); dealing again", done.stdout)[1]
    assert sorted(skipped.split(", ")) == ["'B_pipe\\n.jpg'", "A_dangling.jpg"]
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
        file.write(drawings / "B_1.jpg", "asl_alphabet_train\\A\\A_1.jpg")
    before = contents(tmp_path)
    arrays, facts = make(tmp_path / "out", "--data", archive, "--classes", "all")
    assert "1 names occur again in " in capsys.readouterr().out
    assert facts["classes"] == ["A", "B", "C"]
    rows = {name: split for split in preprocess.SPLITS for name in facts["rows"][split]}
    assert len(rows) == sum(len(names) for names in facts["rows"].values()) == 36
    again = "asl_alphabet_train\\A\\A_1.jpg"
    image = arrays[f"{rows[again]}_set.npy"][facts["rows"][rows[again]].index(again)]
    article = cv2.resize(cv2.imread(str(drawings / "B_1.jpg")), (224, 224))
    assert np.array_equal(image, article)
    assert {n: b for n, b in contents(tmp_path).items() if not n.startswith("out/")} == before


def test_opencv_that_lacks_a_library(tmp_path):
    """A bare server: one line, both cures. The module stands in for OpenCV, its words are those
    of the real one without libGL."""
    (tmp_path / "cv2.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, ROOT / "preprocess.py"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    for words in ("libGL.so.1: cannot", "apt-get install libgl1", "opencv-python-headless"):
        assert words in done.stderr


# ---- two runs at once, full disks ----


def start_stopped(command, path):
    """Start a command and stop it in its tracks when a path exists."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not path.exists():
        assert process.poll() is None
    stop(process)
    return process


def test_two_runs_at_once(drawings, tmp_path):
    """The second is told so; the lock of a killed run is free."""
    images, out = tmp_path / "images", tmp_path / "out"
    script("asl_data/draw_hands.py", "--output", images, "--count", "150", check=True)
    options = ["--data", drawings, "--numpy-folder", out]
    first = [sys.executable, ROOT / "preprocess.py", "--data", images, "--numpy-folder", out]
    process = start_stopped(first, out / ".partial" / "train_set.npy")
    before = contents(out)
    second = script("preprocess.py", *options)
    assert second.returncode == 1
    assert second.stderr == f"preprocess.py: another run is at work in {out}: let it end first\n"
    assert contents(out) == before
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 0
    assert len(preprocess.load_dataset(out)["rows"]["train"]) == 300
    process = start_stopped(first, out / ".partial" / "train_set.npy")
    process.kill()
    process.wait()
    assert script("preprocess.py", *options).returncode == 0


def test_a_disk_without_locks(drawings, tmp_path, monkeypatch, capsys):
    """Some network disks have none; better a warning than no run, or a lock that outlives it."""

    def refuse(lock):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(preprocess.filelock.FileLock, "acquire", refuse)
    make(tmp_path, "--data", drawings)
    said = f"{tmp_path} can't be locked (Function not implemented): start no second run in it\n"
    assert said in capsys.readouterr().out


def test_no_room(drawings, tmp_path, small_disk):
    """36 images take 5.4 MB: refused before the first byte, and again while the disk fills up."""
    disk = small_disk("4m")
    options = ["--data", drawings, "--numpy-folder", disk / "out"]
    done = script("preprocess.py", *options)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert " has 0.004 GB free, 0.005 GB are to come: make room" in done.stderr
    assert {path.name for path in (disk / "out").iterdir()} == {".lock"}

    small_disk("100m")
    assert script("preprocess.py", *options).returncode == 0
    before = contents(disk / "out")
    images = tmp_path / "images"
    script("asl_data/draw_hands.py", "--output", images, "--count", "150", check=True)
    command = [sys.executable, ROOT / "preprocess.py", "--data", images, *options[2:]]
    with open(tmp_path / "stderr", "w+") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
        while not (disk / "out" / ".partial" / "train_set.npy").exists():
            assert process.poll() is None
        stop(process)
        subprocess.run(["fallocate", "-l", "80m", disk / "filler"], check=True)
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 1
        stderr.seek(0)
        said = stderr.read()
    assert said == (
        "preprocess.py: No space left on device; make room and run the same command again\n"
    )
    assert contents(disk / "out") == before
    (disk / "filler").unlink()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def test_read_only(drawings, small_disk):
    disk = small_disk("4m")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    done = script("preprocess.py", "--data", drawings, "--numpy-folder", disk / "out")
    assert done.returncode == 1
    message = f"preprocess.py: {disk / 'out'}: Read-only file system; name another place\n"
    assert done.stderr == message


# ---- the real photographs ----


@pytest.mark.skipif(not REAL.exists(), reason="the photographs are not on this machine")
def test_real_photographs(tmp_path):
    """Both halves of the promise at full size: the counts, and memory that does not grow."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "measure.py", sys.executable, ROOT / "preprocess.py"]
        + ["--data", REAL, "--numpy-folder", tmp_path],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0
    assert "left out 3 images of asl_alphabet_test" in done.stdout
    assert "total  6,000       2,250    750\n" in done.stdout
    megabytes = int(done.stderr.split("anonymous memory ")[1].split()[0])
    assert megabytes < 300, done.stderr  # the article's script takes 2,900
    images, labels = load(tmp_path, "train")
    assert images.shape == (6000, 224, 224, 3) and labels.sum(axis=0)[:3].tolist() == [2000] * 3
