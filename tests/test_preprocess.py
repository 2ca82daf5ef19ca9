"""preprocess.py: what it writes, where it looks, what it leaves out and what it refuses."""

import os
import random
import resource
import shutil
import zipfile
from argparse import Namespace

import cv2
import numpy as np
import pytest
from conftest import ARRAYS, SHARED, copy_images, equal, last_line, load, make, script, wait_until

import preprocess
from asl_data import find_images
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
            assert label.tolist() == [letter == name[0] for letter in preprocess.LETTERS]
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
    dealt = preprocess.deal_images(listing, ["A", "B", "C"], Namespace(train=2000, validation=750))
    for split, rows in (("train", train), ("validation", validation), ("test", test)):
        assert [row for row in listing if dealt[row[0]] == split] == rows


def counts(total, train=2000, validation=750):
    listing = [(f"{i}", "A") for i in range(total)]
    options = Namespace(train=train, validation=validation)
    dealt = list(preprocess.deal_images(listing, ["A"], options).values())
    return tuple(dealt.count(split) for split in preprocess.SPLITS)


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
    copy_images(drawings, tmp_path / "still", FLAT, "YKB")
    found, facts = make(tmp_path / "1", "--data", tmp_path / "still", "--classes", "Y", "K", "B")
    assert "".join(facts["columns"]) == "ABCDEFGHIKLMNOPQRSTUVWXY"
    assert set(found["train_classes.npy"].argmax(axis=1)) == {1, 9, 23}
    copy_images(drawings, tmp_path / "moving", "{}/{}.jpg".format, ["J", "nothing", "B"])
    _, facts = make(tmp_path / "2", "--data", tmp_path / "moving", "--classes", "all")
    assert facts["columns"] == facts["classes"] == ["B", "J", "nothing"]


def test_samples(dataset):
    sheet = cv2.imread(str(dataset / "samples.jpg"))
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


LAYOUTS = {  # {layout: (--classes, {file name: its class, or None if it is left out})}
    "flat, as in the article": ("ABC", {"A_34.jpg": "A", "B34.JPG": "B", "C (34).jfif": "C"}),
    "folders": ("ABC", {"A/1.jpg": "A", "B/C0001.jpg": "B", "C/A_1.jpg": "C", "D/C0001.jpg": None}),
    "a word in a name": (["A", "space"], {"A/space_1.jpg": "A", "space/anything.jpg": "space"}),
    "a folder of no class": (["A", "space"], {"my photos/A_34.jpg": "A", "space_7.png": "space"}),
    "names of hashes": ("AB", {"A/3b4.jpg": "A", "B/1a2.jpg": "B", "hello/3a4.jpg": None}),
    "people, letters in names": ("all", {"user_3/A0.jpg": "A", "user_9/Y9.jpg": "Y"}),
    "people, then letters": ("all", {"user_3/A/0.jpg": "A", "user_9/Y/0.jpg": "Y"}),
    "both": ("AB", {"user_3/A0.jpg": "A", "user_4/B0.jpg": "B", "B_7.jpg": "B", "7.jpg": None}),
    "unlike depths": (
        "AB",
        {"user_3/A0.jpg": "A", "user_4/B/0.jpg": "B", "user_4/hello/3a4.jpg": None},
    ),
    "people A and D": (
        "ABC",
        {"A/y/0.jpg": None, "D/a/0.jpg": "A", "A/b/0.jpg": "B", "c1.jpg": "C"},
    ),
    "36 folders": (
        "all",
        {"0/hand1_0_bot.jpg": "0", "a/hand1_a_bot.jpg": "A", "b/hand1_b_bot.jpg": "B"},
    ),
    "takes below letters": ("all", {"A/30/0.jpg": "A", "B/31/0.jpg": "B"}),
    "splits": ("all", {"train/A/1.jpg": "A", "valid/B/1.jpg": "B", "test/A/2.jpg": "A"}),
    "small letters": ("ABC", {"a/1.jpg": "A", "b /1.jpg": "B", "C/1.jpg": "C", "0/a1.jpg": None}),
    "digits and letters": ("all", {"0/1.jpg": "0", "a/1.jpg": "A", "b/1.jpg": "B"}),
    "accents": (
        ["N\u0303", "A"],
        {"\u00d1/1.jpg": "\u00d1", "n\u0303_1.jpg": "\u00d1", "A/2.jpg": "A"},
    ),
    "the person before": ("all", {"10_A_1.jpg": "A", "3_C_2.jpg": "C"}),
    "within a name": ("all", {"hand1_a_bot_seg_1.jpeg": "A", "hand2_b_top_seg_4.jpeg": "B"}),
    "words": ("all", {"hello/1.jpg": "hello", "Bye/3.jpg": "bye", "bye/2.jpg": "bye"}),
    "words in names": ("all", {"space_1.jpg": "space", "nothing7.jpg": "nothing"}),
    "kaggle": ("all", {"x/x/A/A1.jpg": "A", "x/x/B/B1.jpg": "B", "x/x/del/del1.jpg": "del"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_class_of_each_image(layout):
    classes, labels = LAYOUTS[layout]
    wanted = ["all"] if classes == "all" else [*classes]
    assert find_images.choose_classes(wanted, sorted(labels))[1] == labels


def test_the_class_of_a_picture():
    """As test.py asks: a folder of another Kaggle class is another class."""
    for name, found in (
        ("D/C0001.jpg", []),
        ("space/A_1.jpg", []),
        ("me/hand_a.jpg", ["A"]),
        ("a-c.jpg", ["A", "C"]),
    ):
        assert find_images.possible_classes(name, ["A", "C"]) == found


@pytest.mark.parametrize(
    "wanted, names, message",
    [
        (["A", "B"], ["A_B_1.jpg", "B_1.jpg"], "is A_B_1.jpg A or B. Put it in a folder"),
        (["all"], ["A/B/1.jpg", "B/A/1.jpg"], "all: is A/B/1.jpg B or A. Name the --classes"),
        (["all"], [f"{p}/{x}_1.jpg" for p in "AB" for x in "ABC"], "all: is A/B_1.jpg A or B"),
    ],
)
def test_unsure_classes_are_refused(wanted, names, message):
    with pytest.raises(UserError, match=message):
        find_images.choose_classes(wanted, names)


def by_folder(names, seed=0):
    """{split: the folders in it} of --split by-folder."""
    classes, labels = find_images.choose_classes(["all"], names)
    listing = list(labels.items())
    dealt = preprocess.deal_folders(listing, classes, Namespace(seed=seed))
    tops = find_images.top_folders(listing)
    return {
        split: {top for top, (name, _) in zip(tops, listing) if dealt[name] == split}
        for split in preprocess.SPLITS
    }


def test_split_by_folder(capsys):
    """Folders of splits are the splits; of people, takes and persons in names none is divided."""
    for three in (("train", "valid", "test"), ("training", "validation", "testing")):
        named = dict(zip(preprocess.SPLITS, ({name} for name in three)))
        assert by_folder([f"x/{s}/{x}/1.jpg" for s in three for x in "AB"]) == named
        assert by_folder([f"{s}/{x}1.jpg" for s in three for x in "AB"]) == named
    with pytest.raises(UserError, match="by-folder: no validation image of class A"):
        by_folder([f"{s}/{x}/1.jpg" for s in ("train", "test") for x in "AB"])
    people = [(p, x, i) for p in range(12) for x in "ABC" for i in range(3)]
    for name in (
        "user_{}/{}_{}.jpg",
        "all/user_{}/{}/{}.jpg",
        "{}_{}_{}.jpg",
        "hand{}_{}_bot_{}.jpg",
        "{1}/{0}_{1}_{2}.jpg",
    ):
        dealt = by_folder([name.format(*person) for person in people])
        assert [len(dealt[split]) for split in preprocess.SPLITS] == [8, 3, 1]
    tops = find_images.top_folders([("A/a/0.jpg", "A"), ("a/B/1.jpg", "B"), ("E/a/2.jpg", "A")])
    assert tops == ["A", "A", "E"]  # people called A and E
    assert find_images.top_folders([("anna_A.jpg", "A"), ("ben_a.jpg", "A")]) == ["anna", "ben"]
    takes = by_folder([f"{x}/{10 * p + i}/0.jpg" for p, x in enumerate("ABC") for i in range(3)])
    for p in range(3):  # each letter in each split
        assert all(any(int(take) // 10 == p for take in takes[split]) for split in takes)
    names = [f"{p}_{x}_1.jpg" for p in range(12) for x in "AB"]
    assert by_folder(names) == by_folder(names) != by_folder(names, seed=1)
    assert "test: " in capsys.readouterr().out


def test_by_folder_as_users_run_it(drawings, tmp_path, capsys):
    data = copy_images(drawings, tmp_path / "data", lambda x, i: f"user_{int(i) % 4}/{x}{i}.jpg")
    make(tmp_path / "1", "--data", data)
    output = capsys.readouterr().out
    assert "taken: 36 images; folders: 4 (such as user_0/A12.jpg)" in output
    assert "training and test share folders (such as user_3): see --split by-folder" in output
    _, facts = make(tmp_path / "2", "--data", data, "--split", "by-folder")
    people = [{name.split("/")[0] for name in facts["rows"][s]} for s in preprocess.SPLITS]
    assert facts["split"] == "by-folder" and sum(map(len, people)) == len(set().union(*people)) == 4
    done = script("asl_data/find_images.py", data, check=True)
    assert "A          12 images, such as user_0/A12.jpg" in done.stdout


def test_images_of_12_bits(drawings, tmp_path, capsys):
    data = copy_images(drawings, tmp_path / "data", FLAT)
    image = cv2.imread(str(data / "A_1.jpg")).astype(np.uint16) * 16  # as PNG of 16 bits
    (data / "A_1.jpg").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    images = find_images.Images(data)
    found, _ = (images.read("A_1.jpg") for _ in range(2))
    assert found.dtype == np.uint8 and np.abs(found - 255.0 * image / image.max()).max() <= 1
    assert capsys.readouterr().out.count("16-bit images: the brightest value of each") == 1


def test_one_letter_with_many_images(capsys):
    splits = dict.fromkeys(preprocess.SPLITS, [("", "A")] * 6 + [("", "B")])
    preprocess.print_counts(splits, ["A", "B"])
    assert "A has 6 times the images of B: look at balanced accuracy" in capsys.readouterr().out


def test_the_first_place_that_has_images(drawings, tmp_path, monkeypatch):
    """Of asl_data/: new/, other folders, a zip, the drawings; never two of them at once."""
    data = tmp_path / "asl_data"
    monkeypatch.setattr(find_images, "ASL_DATA", data)
    data.mkdir()
    with pytest.raises(UserError, match="no images in .*asl_data. Put there") as error:
        preprocess.find_images(None)
    assert "curl -L -o asl_data/asl-alphabet.zip https://www.kaggle.com/" in str(error.value)
    assert "python asl_data/draw_hands.py" in str(error.value)
    copy_images(drawings, data / "demo", FLAT)
    assert preprocess.find_images(None).path == data / "demo"
    (data / "archive.zip").write_bytes(b"PK, the download broke off")
    with pytest.raises(UserError, match="archive.zip is no image and no complete zip"):
        preprocess.find_images(None)
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
    """With files that cannot be used, the arrays are as large, and of the same files."""
    for folder in ("without", "with"):
        copy_images(drawings, tmp_path / folder, FLAT)
    for name in ("A_3.jpg", "B_7.jpg"):
        (tmp_path / "without" / name).unlink()
    (tmp_path / "with" / "A_3.jpg").write_bytes(b"")
    (tmp_path / "with" / "B_7.jpg").write_text("<html>404 Not Found</html>")
    shutil.copy(tmp_path / "with" / "C_2.jpg", tmp_path / "with" / "C_30.jpg")
    (tmp_path / "with" / "C_31.HEIC").write_bytes(b"of a telephone")
    shutil.copy(tmp_path / "with" / "C_3.jpg", tmp_path / "with" / "D_1.jpg")
    there, facts = make(tmp_path / "1", "--data", tmp_path / "with")
    without, _ = make(tmp_path / "2", "--data", tmp_path / "without")
    assert [each.shape for each in there.values()] == [each.shape for each in without.values()]
    rows = sorted(name for split in preprocess.SPLITS for name in facts["rows"][split])
    assert rows == sorted(path.name for path in (tmp_path / "without").iterdir())
    output = capsys.readouterr().out
    for line in (
        "left out 3: damaged, or no image that OpenCV can read: convert HEIC to .jpg (such as A_3",
        "left out 1: copies of other images, which might be trained on and tested (such",
        "left out 1: of other classes, see --classes (such as D_1.jpg)",
        "the others are split again\n",
    ):
        assert line in output


def test_damaged_bytes_in_a_zip(drawings, tmp_path):
    with zipfile.ZipFile(tmp_path / "1.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(drawings / "A_1.jpg", "A_1.jpg")
    data = (tmp_path / "1.zip").read_bytes()
    assert find_images.Images(tmp_path / "1.zip").read("A_1.jpg") is not None
    for place in range(100, len(data) - 200, 100):
        damaged = data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]
        (tmp_path / "2.zip").write_bytes(damaged)
        assert find_images.Images(tmp_path / "2.zip").read("A_1.jpg") is None


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
        (("--data", "broken.zip"), "broken.zip is no image and no complete zip: unpack"),
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
    for name in ("train_classes.npy", "train_set.npy"):  # the second is read first
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
