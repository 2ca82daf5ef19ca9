"""preprocess.py, run as users run it, and at its seams: what it writes and where it looks."""

import errno
import os
import random
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, SHARED, WRITTEN, contents, copy_images, equal, load, make, script

import preprocess

REAL = SHARED / "data" / "asl-alphabet-abc.zip"


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


def test_split_in_order(drawings, tmp_path):
    """By the numbers in the names; the split of a letter is the same with any others."""
    for classes in (("A", "B", "C"), ("A", "C")):
        options = ("--data", drawings, "--split", "in-order", "--classes", *classes)
        _, dataset = make(tmp_path, *options)
        assert dataset["split"] == "in-order"
        for split, numbers in (("train", range(1, 9)), ("validation", (9, 10, 11)), ("test", [12])):
            rows = [f"{label}_{number}.jpg" for label in classes for number in numbers]
            assert sorted(dataset["rows"][split]) == sorted(rows)
    _, dataset = make(tmp_path, "--data", drawings)
    assert dataset["split"] == "random"


@pytest.mark.parametrize(
    "names", [["A2.jpg", "A10.jpg", "A10b.jpg"], ["9.jpg", "a.jpg"], ["A" + "9" * 5000 + ".jpg"]]
)
def test_order_of_frames(names):
    assert sorted([(name, "A") for name in names[::-1]], key=preprocess.frame) == [
        (name, "A") for name in names
    ]


def test_output_ends_with_the_counts(drawings, tmp_path):
    done = script("preprocess.py", "--data", drawings, "--numpy-folder", tmp_path, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == (
        f"source {drawings}: 36 images\n"
        "class    train  validation     test\n"
        "A            8           3        1\n"
        "B            8           3        1\n"
        "C            8           3        1\n"
        "total       24           9        3\n"
        f"look at {tmp_path / 'samples.jpg'} before you train\n"
        "Data preprocessing success!\n"
    )


def test_starts_without_what_only_later_steps_need():
    """Each costs seconds at the start."""
    heavy = {"keras", "tensorflow", "matplotlib", "sklearn", "gradio"}
    code = f"import preprocess, sys; sys.exit({heavy} & set(sys.modules) != set())"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_samples_are_what_the_network_gets(dataset):
    """The first and the fourth thumbnail of each class are its first and last training images."""
    sheet = cv2.imread(str(dataset / "samples.jpg"))
    assert sheet.shape == (40 + 3 * 112, 120 + 8 * 112 + 40, 3)
    images, labels = load(dataset, "train")
    for row in range(3):
        rows, top = np.flatnonzero(labels.argmax(axis=1) == row), 40 + 112 * row
        for left, image in ((120, images[rows[0]]), (120 + 3 * 112, images[rows[-1]])):
            cell = sheet[top : top + 108, left : left + 108].astype(int)
            small = cv2.resize(image, (108, 108), interpolation=cv2.INTER_AREA)
            assert abs(cell - small).mean() < 4


def test_samples_of_classes_with_few_images_and_long_names(drawings, tmp_path):
    names = {"A": "a very long name", "B": "手", "C": "C"}
    copy_images(drawings, tmp_path / "data", lambda x, i: f"{names[x]}/{i}.jpg")
    for path in (tmp_path / "data").glob("C/*[4-9].jpg"):
        path.unlink()
    options = ("--data", tmp_path / "data", "--classes", "all")
    make(tmp_path / "1", *options)
    assert cv2.imread(str(tmp_path / "1" / "samples.jpg")).shape[0] == 40 + 3 * 112


def test_samples_that_cannot_be_written_cost_a_line(drawings, tmp_path, monkeypatch, capsys):
    def refuse(*arguments):
        raise cv2.error("no font")

    monkeypatch.setattr(preprocess.cv2, "FontFace", refuse)
    make(tmp_path, "--data", drawings)
    assert "samples.jpg can't be written (no font)\n" in capsys.readouterr().out
    assert not (tmp_path / "samples.jpg").exists() and not list(tmp_path.glob(".partial*"))


# ---- where the images are ----


def test_kaggle_folders_and_zip(kaggle, tmp_path, capsys):
    folders, facts = make(tmp_path / "1", "--data", kaggle)
    assert "left out 1 image of asl_alphabet_test:" in capsys.readouterr().out
    assert sum(len(names) for names in facts["rows"].values()) == 36
    archive = shutil.make_archive(tmp_path / "asl-alphabet", "zip", kaggle)
    before = contents(tmp_path)
    zipped, _ = make(tmp_path / "2", "--data", archive)
    assert equal(folders, zipped)
    new = contents(tmp_path).keys() - before.keys()
    assert new == {f"2/{name}" for name in WRITTEN}  # nothing was extracted


@pytest.mark.parametrize("inner", ["asl_alphabet_train", "asl_alphabet_train/asl_alphabet_train"])
def test_kaggle_folders_at_any_of_their_levels(kaggle, tmp_path, inner):
    outer, _ = make(tmp_path / "1", "--data", kaggle)
    again, _ = make(tmp_path / "2", "--data", kaggle / inner)
    assert equal(outer, again)


@pytest.mark.parametrize(
    "name, label",
    [
        ("A_34.jpg", "A"),
        ("A34.JPG", "A"),
        ("A (34).jfif", "A"),
        ("space_7.png", "space"),
        ("del12.jpeg", "del"),
        ("B/B1.jpg", "B"),
        ("new/1.jpg", "new"),
        ("asl_alphabet_train/C/anything.jpg", "C"),
        ("asl_alphabet_train/asl_alphabet_train/nothing/n1.jpg", "nothing"),
        ("__MACOSX/asl_alphabet_train/A/._A1.jpg", None),
        ("__MACOSX/A/A1.jpg", None),
        ("A/._A1.jpg", None),
        ("A/A1.txt", None),
        ("A/A1.heic", None),
        ("_1.jpg", None),
        ("1_A.jpg", None),
    ],
)
def test_the_class_of_a_name(name, label):
    assert preprocess.list_images([name]) == ([(name, label)] if label else [])


ALIKE = [f"{label}/{number}.jpg" for label in "ABC" for number in range(3)]
FLAT = [f"{label}_{number}.jpg" for label in "ABC" for number in range(3)]


@pytest.mark.parametrize(
    "taken, others",
    [
        (ALIKE, ["A/extra/1.jpg", "cover_1.jpg", "B_7.jpg"]),
        (FLAT, ["old/A_1.jpg", "old/B_1.jpg"]),
        ([f"photos/mine/{name}" for name in ALIKE], ["photos/yours/A/1.jpg", "photos/me.jpg"]),
        ([f"my photos/{name}" for name in FLAT], ["__MACOSX/my photos/._A_1.jpg"]),
        (
            [f"asl-alphabet/asl_alphabet_train/asl_alphabet_train/{name}" for name in ALIKE],
            ["asl-alphabet/asl_alphabet_test/asl_alphabet_test/A_test.jpg"],
        ),
    ],
)
def test_the_layout_with_the_most_images_counts(taken, others):
    found = preprocess.list_images([*others, *taken])
    assert [name for name, _ in found] == sorted(taken)
    assert {label for _, label in found} == set("ABC")


def test_default_source(drawings, kaggle, tmp_path):
    """Of all that asl_data/ beside the script holds one thing is read, whatever the folder."""
    project = tmp_path / "project"
    data = project / "asl_data"
    data.mkdir(parents=True)
    shutil.copy(ROOT / "preprocess.py", project)

    def source():
        command = [sys.executable, project / "preprocess.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (project / "Numpy_folder" / "dataset.json").exists() == (done.returncode == 0)
        return (done.stdout or done.stderr).splitlines()[0]

    assert source() == (
        f"preprocess.py: no images ({' '.join(preprocess.SUFFIXES)}) in {data}; put there"
    )
    shutil.copy(drawings / "A_1.jpg", data / "varied.jpg")  # of vary_hands.py
    copy_images(drawings, data / "demo", "{}_{}.jpg".format)
    assert source() == f"source {data / 'demo'}: 36 images"
    shutil.move(shutil.make_archive(tmp_path / "archive", "zip", kaggle), data / "ASL.ZIP")
    assert source() == f"source {data / 'ASL.ZIP'}: 36 images"
    copy_images(drawings, data, lambda label, number: f"mine/{label}x/{number}.jpg")
    shutil.copy(drawings / "A_1.jpg", data / "A_photo.jpg")
    assert source() == f"source {data / 'ASL.ZIP'}: 36 images"  # there are no A, B, C but in it
    shutil.rmtree(data / "mine")
    shutil.copytree(kaggle, data / "asl-alphabet")  # as browsers unpack it
    assert source() == f"source {data}: 36 images"
    shutil.rmtree(data / "asl-alphabet")
    copy_images(drawings, data, "{0}/{0}{1}.jpg".format)
    assert source() == f"source {data}: 36 images"
    copy_images(drawings, data / "new", "{}_{}.jpg".format)
    assert source() == f"source {data / 'new'}: 36 images"


def test_nothing_there_names_both_remedies(tmp_path):
    done = script("preprocess.py", "--data", tmp_path, "--numpy-folder", tmp_path / "out")
    assert done.returncode == 1 and done.stdout == ""
    assert "curl -L -o asl_data/asl-alphabet.zip https://www.kaggle.com/" in done.stderr
    assert "python asl_data/draw_hands.py" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_not_taken_is_said(kaggle, drawings, tmp_path, capsys):
    """A line for each reason, with one name; leftovers and what is no picture are not worth one."""
    train = kaggle / "asl_alphabet_train" / "asl_alphabet_train"
    copy_images(drawings, train / "a", "{}{}.jpg".format)
    alone, _ = make(tmp_path / "1", "--data", kaggle)
    shutil.copy(drawings / "A_1.jpg", kaggle / "cover.jpg")
    (train / "A" / "extra").mkdir()
    shutil.copy(drawings / "A_2.jpg", train / "A" / "extra")
    for number in range(12):
        (train / "B" / f"IMG_{number:02}.HEIC").write_bytes(b"of a telephone")
    capsys.readouterr()
    again, _ = make(tmp_path / "2", "--data", kaggle)
    assert equal(alone, again)
    inner = "asl_alphabet_train/asl_alphabet_train"
    assert capsys.readouterr().out.splitlines()[:5] == [
        f"source {kaggle}: 72 images",
        "left out 1 image of asl_alphabet_test: not part of the 3,000 of a class "
        "(asl_alphabet_test/asl_alphabet_test/A_test.jpg)",
        f"left out 2 images not beside the others ({inner}/A/extra/A_2.jpg)",
        f"left out 12 images that OpenCV does not read: convert to .jpg ({inner}/B/IMG_00.HEIC)",
        "left out 36 images of other classes (a): see --classes",
    ]


def test_the_wanted_classes_decide_between_layouts():
    """Folders of persons are no classes, and a picture more elsewhere is no better layout."""
    persons = [f"{person}/{name}" for person in ("me", "friend") for name in FLAT]
    found = preprocess.list_images(persons, ["A", "B", "C"])
    assert [name for name, _ in found] == [f"friend/{name}" for name in sorted(FLAT)]
    photos = ["IMG_1.jpg", "VID_2.jpg", "VID_3.jpg", "A/1.jpg", "B/1.jpg"]
    assert preprocess.list_images(photos, ["A", "B", "C"]) == [("A/1.jpg", "A"), ("B/1.jpg", "B")]


def test_a_folder_that_holds_only_a_zip(kaggle, drawings, tmp_path):
    direct, _ = make(tmp_path / "1", "--data", kaggle)
    (tmp_path / "downloads").mkdir()
    shutil.make_archive(tmp_path / "downloads" / "archive", "zip", tmp_path, "kaggle")
    inside, facts = make(tmp_path / "2", "--data", tmp_path / "downloads")
    assert equal(direct, inside)
    assert facts["rows"]["train"][0].startswith("kaggle/asl_alphabet_train/")  # a top folder


def test_a_link_round_in_circles_is_walked_once(kaggle, tmp_path):
    (kaggle / "round").symlink_to(kaggle)
    names = preprocess.Folder(kaggle).names
    assert len(names) == 36 + 3 and not any("round" in name for name in names)


def test_folders_lie_deep_and_have_their_own_names(drawings, tmp_path):
    data = copy_images(drawings, tmp_path / "1/2/3/4/5/6/7/8", "{}/{}.jpg".format)
    for number in range(8):  # whatever the order in which the disk names them
        (data / f"newest_{number}").symlink_to("A")
    names = preprocess.Folder(tmp_path).names
    assert len(names) == 36 and not any("newest" in name for name in names)


def test_the_bar_of_the_images_ends(drawings, tmp_path, monkeypatch, capsys):
    bar = preprocess.tqdm
    monkeypatch.setattr(preprocess, "tqdm", lambda *a, **k: bar(*a, **k | {"disable": False}))
    make(tmp_path, "--data", drawings)
    assert "100%" in capsys.readouterr().err


def test_classes_named_as_folders_of_asl_data(drawings, tmp_path):
    names = {"A": "new", "B": "demo", "C": "C"}
    copy_images(drawings, tmp_path / "data", lambda x, i: f"{names[x]}/{i}.jpg")
    _, facts = make(tmp_path / "1", "--data", tmp_path / "data", "--classes", "all")
    assert facts["classes"] == ["C", "demo", "new"]


def test_no_picture_is_twice_there(drawings, tmp_path, capsys):
    """Else one might be trained and tested. The one that is used does not follow from the seed."""
    data = copy_images(drawings, tmp_path / "data", "{}_{}.jpg".format)
    for copy in ("A_1 (1).jpg", "A_1 - copy.jpg", "B_5x.jpg"):
        shutil.copy(data / f"{copy[:3]}.jpg", data / copy)
    shutil.copy(data / "C_7.jpg", data / "C_20.jpg")
    for seed in ("0", "1"):
        _, facts = make(tmp_path / seed, "--data", data, "--seed", seed)
        assert facts["skipped"] == {
            "A_1 - copy.jpg": "the same picture as A_1 (1).jpg",
            "A_1.jpg": "the same picture as A_1 (1).jpg",
            "B_5x.jpg": "the same picture as B_5.jpg",
            "C_20.jpg": "the same picture as C_7.jpg",
        }
        assert sum(len(names) for names in facts["rows"].values()) == 36
    said = "skipped 4 images; the others are split again\n  A_1 - copy.jpg: the same picture as "
    assert said in capsys.readouterr().out


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
    images = "1 image" if number == 1 else f"{number} images"
    with pytest.raises(preprocess.UserError, match=f"^class Q has {images}: too few for"):
        preprocess.split_counts("Q", number, train, validation)


def test_every_number_of_images_fills_every_split():
    for number in range(3, 3001):
        train, validation = preprocess.split_counts("A", number, None, None)
        assert train >= 1 and validation >= 1 and number - train - validation >= 1


# ---- mistakes ----


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--classes", "A", "Q"), "no image of class Q; there are A B C: see --classes"),
        (("--classes", "A"), "one class (A) leaves nothing to learn; take at least two"),
        (("--train", "11"), "class A has 12 images: too few for 11 to train"),
        (
            ("--data", "numbered"),
            "no images (.jpg .jpeg .jpe .jfif .png .bmp .webp .tif .tiff .gif "
            ".avif) in numbered (1 file, such as 1_A.jpg); put there",
        ),
    ],
)
def test_mistakes_end_in_one_line(drawings, tmp_path, arguments, message):
    (tmp_path / "numbered").mkdir()
    shutil.copy(drawings / "A_1.jpg", tmp_path / "numbered" / "1_A.jpg")
    options = ("--data", drawings, "--numpy-folder", tmp_path / "out", *arguments)
    done = script("preprocess.py", *options, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"preprocess.py: {message}")
    assert done.stderr.count("\n") == 1 or "put there" in message
    assert not (tmp_path / "out").exists() or contents(tmp_path / "out") == {}


def test_thousands_of_classes_are_not_all_named():
    listing = [(f"{label}/1.jpg", f"{label}") for label in range(3000)]
    with pytest.raises(preprocess.UserError) as error:
        preprocess.choose_classes(["A", "B"], listing)
    assert str(error.value).endswith("1032 ... 2,960 more: see --classes")


def test_the_table_of_counts_stays_a_table(capsys):
    counts = {split: {"A": 58_000, "space": 9} for split in preprocess.SPLITS}
    preprocess.print_counts(["A", "space"], counts)
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    "arguments", [("--train", "0"), ("--train", "x"), ("--seed", "-1"), ("--color", "RGB")]
)
def test_wrong_usage(arguments):
    assert script("preprocess.py", *arguments).returncode == 2


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


def test_folder_that_cannot_be_written(drawings, tmp_path):
    (tmp_path / "file").write_text("")
    done = script("preprocess.py", "--data", drawings, "--numpy-folder", tmp_path / "file" / "out")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "Not a directory" in done.stderr


# ---- the real photographs ----


@pytest.mark.skipif(not REAL.exists(), reason="the photographs are not on this machine")
def test_real_photographs(tmp_path):
    """Both halves of the promise at full size: the counts, and memory that does not grow."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "measure.py", sys.executable, ROOT / "preprocess.py"]
        + ["--data", REAL, "--numpy-folder", tmp_path],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0
    assert "left out 3 images of asl_alphabet_test" in done.stdout
    assert "total    6,000       2,250      750\n" in done.stdout
    megabytes = int(done.stderr.split("anonymous memory ")[1].split()[0])
    assert megabytes < 300, done.stderr  # the article's script takes 2,900
    images, labels = load(tmp_path, "train")
    assert images.shape == (6000, 224, 224, 3) and labels.sum(axis=0)[:3].tolist() == [2000] * 3
