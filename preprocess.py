"""Turn photographs of American Sign Language letters into .npy files.

Reads the first of these in asl_data/ that has images,
    new/A_34.jpg ...                                        the article's flat folder
    [asl_alphabet_train/][asl_alphabet_train/]A/A1.jpg ...  the Kaggle folders
    asl-alphabet.zip                                        the Kaggle archive, read in place
    demo/A_1.jpg ...                                        drawings of asl_data/draw_hands.py
and writes, in Numpy_folder/,
    train_set.npy, validation_set.npy, test_set.npy              uint8 (n, 224, 224, 3), BGR
    train_classes.npy, validation_classes.npy, test_classes.npy  float32 (n, columns), one-hot
    samples.jpg                                                  some of each class, to look at
    dataset.json                                                 what the later steps must know

    python preprocess.py
    python preprocess.py --data my_photos --classes A B C D
"""

import argparse
import hashlib
import json
import random
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from asl_data.find_hand import crop_hand
from asl_data.find_images import UNREADABLE, UserError, choose_classes, find_images, plain
from asl_data.find_images import run_main, top_folders

HERE = Path(__file__).resolve().parent
IMAGE_SIZE = 224
LETTERS = "ABCDEFGHIKLMNOPQRSTUVWXY"  # the article's 24 outputs; J and Z are movements
SPLITS = ("train", "validation", "test")


def main(argv=None):
    options = parse_options(argv)
    images = find_images(options.data)
    classes, labels = choose_classes(options.classes, images.names)
    # The article's network has 24 outputs, also for 3 classes. With a class outside LETTERS, it
    # has one output per class.
    columns = list(LETTERS) if set(classes) <= set(LETTERS) else classes
    listing = list_images(images, labels, options)  # [(file name, class)]

    # Write beside the old files, then replace them: a killed run leaves the old ones complete.
    partial = options.numpy_folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    splits, digests = write_splits(partial, images, listing, classes, columns, options)
    write_samples(partial, splits, classes)
    dataset = {
        "classes": classes,
        "columns": columns,
        "find_hand": options.find_hand,
        "split": options.split,
        "seed": options.seed,
        "source": str(images.path),
        "rows": {split: [name for name, _ in splits[split]] for split in SPLITS},
        # A fingerprint, which changes with the images, their classes and their order.
        "id": hashlib.sha256(json.dumps([columns, splits, digests]).encode()).hexdigest()[:16],
    }
    (partial / "dataset.json").write_text(json.dumps(dataset, indent=1), encoding="utf-8")
    replace_dataset(options.numpy_folder, partial)

    print_counts(splits, classes)
    print(f"look at {options.numpy_folder / 'samples.jpg'} before you train")
    print("Data preprocessing success!")


def parse_options(argv):
    parser = argparse.ArgumentParser(description="Turn photographs of ASL letters into .npy files.")
    add = parser.add_argument
    about = "folder or zip of images (default: search asl_data)"
    add("--data", type=Path, metavar="PATH", help=about)
    add("--classes", nargs="+", default=["A", "B", "C"], help="names, or all (default: A B C)")
    about = "training images per class (default: 2000); smaller classes are split 8 : 3 : 1"
    add("--train", type=positive, default=2000, metavar="N", help=about)
    about = "validation images per class (default: 750)"
    add("--validation", type=positive, default=750, metavar="N", help=about)
    about = "in-order: the first frames to train, the last to test; by-folder: train/, valid/ and "
    about += "test/, or whole folders of people; ignores --train, --validation (default: random)"
    add("--split", choices=["random", "in-order", "by-folder"], default="random", help=about)
    about = "cut each image to a square around its hand, else to its middle (default: squeeze it)"
    add("--find-hand", action="store_true", help=about)
    add("--seed", type=int, default=0, metavar="N", help="of the split (default: 0)")
    about = "where the .npy files go (default: Numpy_folder beside this script)"
    add("--numpy-folder", type=Path, default=HERE / "Numpy_folder", metavar="DIR", help=about)
    return parser.parse_args(argv)


def positive(text):
    """For argparse: a whole number from 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


# ---- the split and the arrays ----


def resize(image, find_hand=False):
    """Resize to 224x224, ignoring the aspect ratio; with find_hand only the square of the hand."""
    return cv2.resize(crop_hand(image) if find_hand else image, (IMAGE_SIZE, IMAGE_SIZE))


def list_images(images, labels, options):
    """[(file name, class)] in the order in which they are split; prints what is left out.

    All images are ordered first, then those of --classes are taken: so the split of a letter does
    not depend on --classes.
    """
    names = list(images.names)
    if options.split == "in-order":
        names.sort(key=frame_number)
    else:
        random.Random(options.seed).shuffle(names)
    listing = [(name, labels[name]) for name in names if labels[name]]
    folders = {name.rpartition("/")[0] for name, _ in listing}
    print(f"taken: {len(listing):,} images; folders: {len(folders):,} (such as {min(listing)[0]})")
    others = [name for name in images.names if not labels[name]]
    images.leave_out(others, "of other classes, see --classes")
    if options.split == "random":
        tops = set(top_folders(listing))
        if 1 < len(tops) < len(listing):
            print(f"training and test share folders (such as {max(tops)}): see --split by-folder")
    return listing


def frame_number(name):
    """Sort key that puts A2.jpg before A10.jpg."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def deal_images(listing, classes, options):
    """Split an ordered listing as the article does: {file name: split}.

    The first images of each class go to training, the next to validation, the rest to test. A
    class that is too small for this is split 8 : 3 : 1, the article's proportions.
    """
    dealt = {}
    for label in classes:
        names = [name for name, other in listing if other == label]
        train, validation, total = options.train, options.validation, len(names)
        if total < 3:
            raise UserError(f"class {label} has {total} images that can be used: 3 are the fewest")
        if total <= train + validation:
            train = min(total * 8 // 12, total - 2)
            validation = max(1, (total - train) * 3 // 4)
        dealt |= dict.fromkeys(names, "test")
        dealt |= dict.fromkeys(names[: train + validation], "validation")
        dealt |= dict.fromkeys(names[:train], "train")
    return dealt


SPLIT_FOLDERS = dict.fromkeys(("train", "training"), "train")
SPLIT_FOLDERS |= dict.fromkeys(("val", "valid", "validation"), "validation")
SPLIT_FOLDERS |= dict.fromkeys(("test", "testing"), "test")


def deal_folders(listing, classes, options):
    """For --split by-folder: {file name: split}; "" for folders beside train, valid and test.

    Where there are no such folders, the top folders are dealt in 20 random orders, each to the
    split that lacks its classes most. The deal that is nearest to 8 : 3 : 1 is taken.
    """
    folders, folder_of = np.unique(top_folders(listing), return_inverse=True)
    counts = np.zeros((len(folders), len(classes)), int)
    np.add.at(counts, (folder_of, [classes.index(label) for _, label in listing]), 1)
    wanted = np.outer([8, 3, 1], counts.sum(axis=0)) / 12  # of each class in each split
    deal = np.array([SPLIT_FOLDERS.get(plain(folder), "") for folder in folders])
    if "train" not in deal:
        rng, least = np.random.default_rng(options.seed), np.inf
        for _ in range(20):
            given, choice = np.zeros_like(wanted), np.empty(len(folders), int)
            for folder in rng.permutation(len(folders)):
                choice[folder] = np.argmin((given / wanted) @ counts[folder])
                given[choice[folder]] += counts[folder]
            missing = np.sum(given == 0)  # a class that a split has no image of
            error = np.abs(given - wanted).sum() + len(listing) * missing
            if error < least:
                least, deal = error, np.array(SPLITS)[choice]
    for split in (*SPLITS, ""):
        if split in deal:
            print(f"{split or 'left out'}: {' '.join(folders[deal == split])}")
    for split in SPLITS:
        for label, number in zip(classes, counts[deal == split].sum(axis=0)):
            if number == 0:
                raise UserError(f"by-folder: no {split} image of class {label}: see README.md")
    return {name: split for (name, _), split in zip(listing, deal[folder_of])}


def write_splits(folder, images, listing, classes, columns, options):
    """Write the six arrays; return {split: [(file name, class)]} and {file name: SHA-256}.

    If there are damaged images or copies, they are left out, and the others are split and written
    again.
    """
    while True:  # at most twice, as the first time reads every image
        deal = deal_folders if options.split == "by-folder" else deal_images
        dealt = deal(listing, classes, options)
        splits = {split: [x for x in listing if dealt[x[0]] == split] for split in SPLITS}
        digests = {}
        for split, rows in splits.items():
            names = [name for name, _ in rows]
            path = folder / f"{split}_set.npy"
            hashes = write_images(path, images, names, options.find_hand)
            digests.update(zip(names, hashes))
            one_hot = np.eye(len(columns), dtype="float32")
            indices = [columns.index(label) for _, label in rows]
            np.save(folder / f"{split}_classes.npy", one_hot[indices])
        damaged = [name for name, digest in digests.items() if digest is None]
        first = {}  # {SHA-256: the first file of this picture}
        for name in sorted(digests, key=frame_number):
            first.setdefault(digests[name], name)
        copies = [name for name, digest in digests.items() if digest and first[digest] != name]
        if not damaged + copies:
            return splits, digests
        images.leave_out(damaged, UNREADABLE)
        images.leave_out(copies, "copies of other images, which might be trained on and tested")
        print("the others are split again")
        unusable = {*damaged, *copies}
        listing = [(name, label) for name, label in listing if name not in unusable]


def write_images(path, images, names, find_hand):
    """Write the images as one array; return the SHA-256 of each, None for one that is no image.

    The array is a memory map: it lies in the file, so memory does not grow. Threads write its
    rows.
    """
    shape = (len(names), IMAGE_SIZE, IMAGE_SIZE, 3)
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)

    def write_row(row):
        image = images.read(names[row])
        if image is None:
            return None
        image = resize(image, find_hand)
        array[row] = image
        return hashlib.sha256(image).hexdigest()

    with ThreadPoolExecutor() as pool:
        return list(pool.map(write_row, range(len(names))))


def write_samples(folder, splits, classes):
    """samples.jpg: one row per class; four images to train, two to validate, two to test."""
    sheet, side, font = [], IMAGE_SIZE // 2, cv2.FontFace("sans")
    for label in classes:
        title = np.full((side, side, 3), 255, np.uint8)
        cv2.putText(title, label[:8], (8, 66), (0, 0, 0), font, 26, 600)  # 26 pixels high, bold
        line = [title]
        for split, count in zip(SPLITS, (4, 2, 2)):
            images = np.load(folder / f"{split}_set.npy", mmap_mode="r")
            rows = [index for index, (_, other) in enumerate(splits[split]) if other == label]
            for number in range(count):
                image = images[rows[number * len(rows) // count]]
                line.append(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA))
        sheet.append(np.hstack(line))
    cv2.imwrite(str(folder / "samples.jpg"), np.vstack(sheet))


def print_counts(splits, classes):
    print("class       train  validation     test")
    line = "{:10} {:6,}  {:10,}  {:7,}"
    for label in classes:
        counts = [sum(other == label for _, other in splits[split]) for split in SPLITS]
        print(line.format(label, *counts))
    print(line.format("total", *(len(splits[split]) for split in SPLITS)))
    totals = Counter(label for split in SPLITS for _, label in splits[split]).most_common()
    (most, many), (least, few) = totals[0], totals[-1]
    if many > 5 * few:
        print(f"{most} has {many // few} times the images of {least}: look at balanced accuracy")


# ---- the data set, as the later steps read it ----


def replace_dataset(folder, partial):
    """Move new files to their folder. While dataset.json is missing, no step reads the others."""
    (folder / "dataset.json").unlink(missing_ok=True)
    names = sorted(path.name for path in partial.iterdir() if path.name != "dataset.json")
    for name in [*names, "dataset.json"]:
        (partial / name).replace(folder / name)
    partial.rmdir()


def load_dataset(folder):
    """dataset.json, as `main` writes it; "rows": {split: the file of each row}."""
    path = folder / "dataset.json"
    if not path.exists():
        raise UserError(f"{path} is missing: run preprocess.py first")
    return json.loads(path.read_text(encoding="utf-8"))


def load_split(folder, split, dataset):
    """(images, labels) of one split; dataset: what `load_dataset` returned.

    images: uint8 (n, 224, 224, 3), BGR, 0 to 255, a memory map: only the rows that are used are
    read. labels: float32 (n, columns), one-hot.
    """
    images = np.load(folder / f"{split}_set.npy", mmap_mode="r")
    labels = np.load(folder / f"{split}_classes.npy")
    rows = len(dataset["rows"][split])
    if len(images) != rows or labels.shape != (rows, len(dataset["columns"])):
        raise UserError(f"{split}_*.npy do not fit {folder / 'dataset.json'}: run preprocess.py")
    return images, labels


if __name__ == "__main__":
    run_main(main)
