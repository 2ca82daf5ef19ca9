"""preprocess.py: what it writes, where it looks, what it leaves out and what it refuses."""

import os
import random
import resource
import shutil

import cv2
import numpy as np
import pytest
from conftest import ARRAYS, SHARED, copy_images, equal, last_line, load, make, script, wait_until

import preprocess
from preprocess import UserError

REAL = SHARED / "data" / "asl-alphabet-abc.zip"
FLAT = "{}_{}.jpg".format


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
    rows, seen = preprocess.load_dataset(dataset)["rows"], set()
    for split in preprocess.SPLITS:
        images, labels = load(dataset, split)
        for image, label, name in zip(images, labels, rows[split], strict=True):
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
    splits = preprocess.split_listing(listing, ["A", "B", "C"], 2000, 750)
    assert splits == {"train": train, "validation": validation, "test": test}


def counts(total, train=2000, validation=750):
    splits = preprocess.split_listing(
        [(f"{i}", "A") for i in range(total)], ["A"], train, validation
    )
    return tuple(len(splits[split]) for split in preprocess.SPLITS)


def test_counts_of_small_classes():
    """8 : 3 : 1, and at least one image in each split."""
    assert counts(3000) == (2000, 750, 250) and counts(2751) == (2000, 750, 1)
    assert counts(2750) == (1833, 687, 230) and counts(12) == (8, 3, 1) and counts(3) == (1, 1, 1)
    assert counts(200, 100, 60) == (100, 60, 40) and counts(200, 100, 100) == (133, 50, 17)
    assert min(min(counts(total)) for total in range(3, 500)) == 1


def test_the_split_depends_on_the_seed_only(drawings, tmp_path):
    first, facts = make(tmp_path / "1", "--data", drawings)
    again, same = make(tmp_path / "2", "--data", drawings)
    other, different = make(tmp_path / "3", "--data", drawings, "--seed", "1")
    assert equal(first, again) and not equal(first, other)
    assert facts["id"] == same["id"] != different["id"]
    _, two = make(tmp_path / "4", "--data", drawings, "--classes", "A", "C")
    for split in preprocess.SPLITS:  # of a letter it is the same beside any others
        both = [[x for x in rows[split] if x[0] != "B"] for rows in (facts["rows"], two["rows"])]
        assert both[0] == both[1]


def test_the_id_changes_with_the_pixels(drawings, tmp_path):
    _, facts = make(tmp_path / "1", "--data", drawings)
    copy_images(drawings, tmp_path / "data", FLAT)
    image = cv2.imread(str(drawings / "A_1.jpg"))
    cv2.imwrite(str(tmp_path / "data" / "A_1.jpg"), 255 - image)
    _, other = make(tmp_path / "2", "--data", tmp_path / "data")
    assert facts["rows"] == other["rows"] and facts["id"] != other["id"]


def test_split_in_order(drawings, tmp_path):
    """By the numbers in the names: A_2 before A_10."""
    _, facts = make(tmp_path, "--data", drawings, "--split", "in-order", "--classes", "A", "C")
    rows = facts["rows"]
    assert rows["train"] == [f"{x}_{i}.jpg" for x in "AC" for i in range(1, 9)]
    assert rows["validation"] == [f"{x}_{i}.jpg" for x in "AC" for i in (9, 10, 11)]
    assert rows["test"] == ["A_12.jpg", "C_12.jpg"]


def test_columns(drawings, tmp_path):
    """Still letters keep the article's columns; with others the columns are the classes."""
    names = {"A": "Y", "B": "K", "C": "B"}
    copy_images(drawings, tmp_path / "still", lambda x, i: f"{names[x]}_{i}.jpg")
    found, facts = make(tmp_path / "1", "--data", tmp_path / "still", "--classes", "Y", "K", "B")
    assert "".join(facts["columns"]) == "ABCDEFGHIKLMNOPQRSTUVWXY"
    assert set(found["train_classes.npy"].argmax(axis=1)) == {1, 9, 23}
    names = {"A": "J", "B": "nothing", "C": "B"}
    copy_images(drawings, tmp_path / "moving", lambda x, i: f"{names[x]}/{i}.jpg")
    _, facts = make(tmp_path / "2", "--data", tmp_path / "moving", "--classes", "all")
    assert facts["columns"] == facts["classes"] == ["B", "J", "nothing"]


def test_samples(drawings, tmp_path):
    make(tmp_path, "--data", drawings)
    sheet = cv2.imread(str(tmp_path / "samples.jpg"))
    assert sheet.shape == (3 * 112, 9 * 112, 3) and sheet.std() > 20


# ---- where it looks ----


def kaggle(drawings, folder):
    """The Kaggle folders, with images and files that are no part of them."""
    train = "asl_alphabet_train/asl_alphabet_train"
    copy_images(drawings, folder, lambda x, i: f"{train}/{x}/{x}{i}.jpg")
    (folder / "asl_alphabet_test").mkdir()
    shutil.copy(drawings / "A_1.jpg", folder / "asl_alphabet_test" / "A_test.jpg")
    (folder / train / "A" / "notes.txt").write_text("not an image")
    (folder / train / "A" / "._A1.jpg").write_text("a leftover of macOS")
    return folder


def test_kaggle_folders_and_the_zip(drawings, tmp_path, capsys):
    data = kaggle(drawings, tmp_path / "data")
    folder, _ = make(tmp_path / "1", "--data", data)
    assert "left out 1: test images of the archive" in capsys.readouterr().out
    zipped = shutil.make_archive(tmp_path / "archive", "zip", data)
    assert equal(folder, make(tmp_path / "2", "--data", zipped)[0])
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "kaggle").symlink_to(data)
    assert equal(folder, make(tmp_path / "4", "--data", tmp_path / "links")[0])
    inner = data / "asl_alphabet_train" / "asl_alphabet_train"
    assert equal(folder, make(tmp_path / "3", "--data", inner)[0])


@pytest.mark.parametrize(
    "name, label",
    [
        ("A_34.jpg", "A"),
        ("A34.JPG", "A"),
        ("A (34).jfif", "A"),
        ("my photos/A_34.jpg", "A"),
        ("space_7.png", "space"),
        ("asl_alphabet_train/asl_alphabet_train/A/A1.jpg", "A"),
        ("space/anything.jpg", "space"),
        ("A/space_1.jpg", "A"),
        ("D/C0001.jpg", "D"),  # a camera's name, in a folder of another letter
        ("1_A.jpg", ""),
    ],
)
def test_the_class_of_a_name(name, label):
    assert preprocess.label_of(name, ["A", "space"]) == label


def test_the_first_place_that_has_images(drawings, tmp_path, monkeypatch):
    """Of asl_data/: new/, other folders, a zip, the drawings; never two of them at once."""
    monkeypatch.setattr(preprocess, "HERE", tmp_path)
    data = tmp_path / "asl_data"
    data.mkdir()
    with pytest.raises(UserError, match="no images in .*asl_data. Put there") as error:
        preprocess.find_images(None)
    assert "curl -L -o asl_data/asl-alphabet.zip https://www.kaggle.com/" in str(error.value)
    assert "python asl_data/draw_hands.py" in str(error.value)
    copy_images(drawings, data / "demo", FLAT)
    assert preprocess.find_images(None).path == data / "demo"
    shutil.make_archive(data / "archive", "zip", drawings)
    assert preprocess.find_images(None).path == data / "archive.zip"
    copy_images(drawings, data, "{0}/{0}{1}.jpg".format)
    images = preprocess.find_images(None)
    assert images.path == data and len(images.names) == 36
    assert preprocess.find_images(data).names == images.names  # the same without the drawings
    copy_images(drawings, data / "new", FLAT)
    assert preprocess.find_images(None).path == data / "new"


# ---- what it leaves out ----


def test_the_next_image_takes_the_place(drawings, tmp_path, capsys):
    """With files in it that cannot be used, the data set is that of a folder without them."""
    for folder in ("without", "with"):
        copy_images(drawings, tmp_path / folder, FLAT)
    for name in ("A_3.jpg", "B_7.jpg"):
        (tmp_path / "without" / name).unlink()
    (tmp_path / "with" / "A_3.jpg").write_bytes(b"")
    (tmp_path / "with" / "B_7.jpg").write_text("<html>404 Not Found</html>")
    shutil.copy(tmp_path / "with" / "C_2.jpg", tmp_path / "with" / "C_30.jpg")
    (tmp_path / "with" / "IMG_1.HEIC").write_bytes(b"of a telephone")
    shutil.copy(tmp_path / "with" / "C_3.jpg", tmp_path / "with" / "D_1.jpg")
    there, facts = make(tmp_path / "1", "--data", tmp_path / "with")
    without, _ = make(tmp_path / "2", "--data", tmp_path / "without")
    for split in preprocess.SPLITS:  # the order differs, as more names were shuffled
        images = [sorted(map(bytes, each[f"{split}_set.npy"])) for each in (there, without)]
        assert len(images[0]) == len(images[1])
    rows = sorted(name for split in preprocess.SPLITS for name in facts["rows"][split])
    assert rows == sorted(path.name for path in (tmp_path / "without").iterdir())
    output = capsys.readouterr().out
    for line in (
        "left out 2: no image, or damaged (such as A_3.jpg)",
        "left out 1: copies of other images, which might be trained on and tested (such",
        "left out 1: OpenCV cannot read them, convert to .jpg (such as IMG_1.HEIC)",
        "left out 1: of other classes, see --classes (such as D_1.jpg)",
    ):
        assert line in output


def test_a_class_without_images_that_can_be_used(drawings, tmp_path):
    copy_images(drawings, tmp_path / "data", FLAT)
    for path in (tmp_path / "data").glob("B_*.jpg"):
        path.write_text("not an image")
    with pytest.raises(UserError, match="class B has 0 images that can be used"):
        make(tmp_path / "1", "--data", tmp_path / "data")


# ---- what a killed or failed run leaves ----


def test_a_killed_run_leaves_the_old_set(drawings, tmp_path, start):
    """Killed while it writes the new arrays; the same command then completes."""
    before, _ = make(tmp_path / "out", "--data", drawings)
    script("asl_data/draw_hands.py", "--output", tmp_path / "many", "--count", "200", check=True)
    options = ("--data", tmp_path / "many", "--numpy-folder", tmp_path / "out")
    process = start("preprocess.py", *options)
    wait_until((tmp_path / "out" / ".partial" / "train_set.npy").exists, process)
    process.kill()
    process.wait()
    assert (tmp_path / "out" / ".partial").exists()
    assert equal(before, {name: np.load(tmp_path / "out" / name) for name in ARRAYS})
    load(tmp_path / "out", "train")
    script("preprocess.py", *options, check=True)
    assert len(load(tmp_path / "out", "train")[0]) == 399
    assert not (tmp_path / "out" / ".partial").exists()


def test_killed_between_the_moves(drawings, tmp_path, monkeypatch):
    """A mixture of two sets has no dataset.json, so no later step reads it."""
    make(tmp_path, "--data", drawings)
    moved, replace = [], preprocess.Path.replace

    def stop_at_third(path, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(target)
        return replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preprocess.Path, "replace", stop_at_third)
        make(tmp_path, "--data", drawings, "--seed", "1")
    with pytest.raises(UserError, match="dataset.json is missing: run preprocess.py first"):
        preprocess.load_dataset(tmp_path)
    make(tmp_path, "--data", drawings, "--seed", "1")


def test_a_set_in_use_is_never_written_over(drawings, tmp_path):
    """A training that has mapped the arrays keeps them."""
    make(tmp_path, "--data", drawings)
    images, _ = load(tmp_path, "train")
    before = images.copy()
    make(tmp_path, "--data", drawings, "--seed", "1")
    assert np.array_equal(images, before) and not np.array_equal(load(tmp_path, "train")[0], before)


# ---- mistakes ----


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--data", "{drawings}", "--classes", "A", "Q"), "no image of class Q; there are A B C"),
        (("--data", "{drawings}", "--classes", "A"), "one class leaves nothing to learn"),
        (("--data", "nowhere"), "nowhere is not there"),
        (("--data", "empty"), "no images in empty"),
        (("--data", "broken.zip"), "broken.zip is no folder, no image and no complete zip"),
        (("--data", "few"), "class A has 2 images that can be used: 3 are the fewest"),
    ],
)
def test_mistakes_end_in_one_line(drawings, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 the first half of a download")
    for name in ("A_1.jpg", "A_2.jpg", "B_1.jpg", "B_2.jpg", "B_3.jpg", "C_1.jpg"):
        (tmp_path / "few").mkdir(exist_ok=True)
        shutil.copy(drawings / name, tmp_path / "few" / name)
    arguments = [str(argument).format(drawings=drawings) for argument in arguments]
    said = last_line("preprocess.py", *arguments, "--numpy-folder", tmp_path / "out")
    assert said.startswith(f"preprocess.py: {message}")


@pytest.mark.parametrize("option", ["--train", "--validation"])
def test_counts_begin_at_1(option, capsys):
    with pytest.raises(SystemExit):
        preprocess.main([option, "0"])
    assert f"argument {option}: invalid positive value: '0'" in capsys.readouterr().err


def test_arrays_that_do_not_fit(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "out")
    np.save(tmp_path / "out" / "train_set.npy", load(dataset, "train")[0][1:])
    with pytest.raises(UserError, match="train_.*.npy do not fit .*dataset.json: run preprocess"):
        load(tmp_path / "out", "train")


def test_nothing_in_an_array_is_executed(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "out")

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    array = np.array([Harm()] * 24, dtype=object)
    for name in ("train_set.npy", "train_classes.npy"):
        np.save(tmp_path / "out" / name, array, allow_pickle=True)
        with pytest.raises(ValueError):
            load(tmp_path / "out", "train")
    assert not (tmp_path / "harm").exists()


# ---- the real photographs ----


@pytest.mark.skipif(not REAL.exists(), reason="the photographs are not on this machine")
def test_real_photographs(tmp_path):
    """At full size: the counts, and memory that does not grow with the images: the article's
    script takes 2.9 GB."""
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_DATA, (10**9, 10**9))}
    done = script("preprocess.py", "--data", REAL, "--numpy-folder", tmp_path, check=True, **limit)
    assert "left out 3: test images of the archive" in done.stdout
    assert "total       6,000       2,250      750\n" in done.stdout
    images, labels = load(tmp_path, "train")
    assert images.shape == (6000, 224, 224, 3) and labels.sum(axis=0)[:3].tolist() == [2000] * 3
