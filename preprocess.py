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
import sys
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

HERE = Path(__file__).resolve().parent
IMAGE_SIZE = 224
LETTERS = "ABCDEFGHIKLMNOPQRSTUVWXY"  # the article's 24 outputs; J and Z are movements
KAGGLE_CLASSES = {*LETTERS, "J", "Z", "del", "nothing", "space"}
SPLITS = ("train", "validation", "test")


def main(argv=None):
    options = parse_options(argv)
    images = find_images(options.data)
    classes = choose_classes(options.classes, images.names)
    # The article's network has 24 outputs, also for 3 classes. With a class outside LETTERS, it
    # has one output per class.
    columns = list(LETTERS) if set(classes) <= set(LETTERS) else classes
    listing = list_images(images, classes, options)  # [(file name, class)]

    # Write beside the old files, then replace them: a killed run leaves the old ones complete.
    partial = options.numpy_folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    splits, digests = write_splits(partial, images, listing, classes, columns, options)
    write_samples(partial, splits, classes)
    dataset = {
        "classes": classes,
        "columns": columns,
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
    add(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder or zip of images (default: search asl_data)",
    )
    add("--classes", nargs="+", default=["A", "B", "C"], help="or the word all (default: A B C)")
    about = "training images per class (default: 2000, or two thirds of a smaller class)"
    add("--train", type=positive, default=2000, metavar="N", help=about)
    about = "validation images per class (default: 750, or a quarter of a smaller class)"
    add("--validation", type=positive, default=750, metavar="N", help=about)
    about = "in-order: the first frames to train, the last to test (default: random)"
    add("--split", choices=["random", "in-order"], default="random", help=about)
    add("--seed", type=int, default=0, metavar="N", help="of the random split (default: 0)")
    about = "where the .npy files go (default: Numpy_folder beside this script)"
    add("--numpy-folder", type=Path, default=HERE / "Numpy_folder", metavar="DIR", help=about)
    return parser.parse_args(argv)


def positive(text):
    """For argparse: a whole number from 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


# ---- the images: where they are, and the class of each ----

SUFFIXES = tuple(".jpg .jpeg .jpe .jfif .png .bmp .webp .tif .tiff .gif .avif".split())
UNREADABLE = (".heic", ".heif", ".dng", ".cr2", ".nef", ".arw", ".mov", ".mp4")
NO_IMAGES = """no images in {}. Put there
  the Kaggle data set (1 GB)
    curl -L -o asl_data/asl-alphabet.zip \
https://www.kaggle.com/api/v1/datasets/download/grassknoted/asl-alphabet
  or your own photographs, A_1.jpg ... or A/1.jpg ..., or, to try the scripts, drawings
    python asl_data/draw_hands.py"""


class Images:
    """The images of a folder, of a zip, which is read in place, or of a single file.

    names: their paths in the folder or zip, sorted.
    """

    def __init__(self, path):
        self.path, self.zip = path, None
        if path.is_dir():
            found = glob("**", root_dir=path, recursive=True)  # also behind links to folders
            found = [Path(name).as_posix() for name in found]
        elif zipfile.is_zipfile(path):
            self.zip = zipfile.ZipFile(path)
            found = self.zip.namelist()
        elif path.is_file() and path.suffix.lower() in SUFFIXES + UNREADABLE:
            self.path, found = path.parent, [path.name]
        elif not path.exists():
            raise UserError(f"{path} is not there")
        else:
            raise UserError(f"{path} is no folder, no image and no complete zip")
        # Names that begin with a dot, as ._A1.jpg, are what macOS leaves in a zip.
        found = [name for name in sorted(found) if not PurePosixPath(name).name.startswith(".")]
        self.names = [name for name in found if name.lower().endswith(SUFFIXES + UNREADABLE)]
        unreadable = [name for name in self.names if name.lower().endswith(UNREADABLE)]
        self.leave_out(unreadable, "OpenCV cannot read them, convert to .jpg")

    def leave_out(self, names, why):
        if names:
            print(f"left out {len(names):,}: {why} (such as {names[0]})")
            self.names = sorted(set(self.names) - set(names))

    def read(self, name):
        """The image as the network gets it, uint8 (224, 224, 3), BGR; None if it is no image."""
        data = self.zip.read(name) if self.zip else (self.path / name).read_bytes()
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:  # an empty file, or more than 2**30 pixels
            image = None
        return None if image is None else resize(image)


def resize(image):
    """Resize to 224x224, ignoring the aspect ratio."""
    return cv2.resize(image, (IMAGE_SIZE, IMAGE_SIZE))


def find_images(path):
    """The Images of --data or, without it, of the first place in asl_data/ that has any."""
    data = HERE / "asl_data"
    places = [data / "new", data, *sorted(data.glob("*.zip")), data / "demo"]
    places = [path] if path else list(filter(Path.exists, places))
    for place in places:
        images = Images(place)
        others = [name for name in images.names if "asl_alphabet_test/" in name]
        images.leave_out(others, "test images of the archive, which the article does not use")
        if place.resolve() == data.resolve():  # the drawings count only where nothing else is
            images.names = [name for name in images.names if not name.startswith("demo/")]
        if images.names:
            print(f"source {place}: {len(images.names):,} images")
            return images
    raise UserError(f"no images in {path}" if path else NO_IMAGES.format(data))


def label_of(name, classes):
    """The class of an image: its folder, as in A/1.jpg, if that is one of the classes or of
    Kaggle's; else the start of its name, as in A_34.jpg, A34.jpg and "A (34).jpg"."""
    path = PurePosixPath(name)
    folder = path.parent.name
    if folder in classes or folder in KAGGLE_CLASSES:
        return folder
    return re.match(r"[^_\d(.]*", path.name)[0].rstrip(" -")  # up to the first _, digit, ( or .


def choose_classes(wanted, names):
    """The wanted classes, sorted. `all` takes every folder or, if there are fewer than two
    folders, every start of a name."""
    all_classes = {PurePosixPath(name).parent.name for name in names} - {""}
    if len(all_classes) < 2:
        all_classes = {label_of(name, ()) for name in names} - {""}
    classes = sorted(all_classes if wanted == ["all"] else set(wanted))
    not_empty = {label_of(name, classes) for name in names}
    for label in classes:
        if label not in not_empty:
            examples = " ".join(sorted(all_classes)[:40])
            raise UserError(f"no image of class {label}; there are {examples}")
    if len(classes) < 2:
        raise UserError("one class leaves nothing to learn: see --classes")
    return classes


# ---- the split and the arrays ----


def list_images(images, classes, options):
    """[(file name, class)] in the order in which they are split.

    All images are ordered before some are chosen: so the split of a letter does not depend on
    --classes.
    """
    names = list(images.names)
    if options.split == "random":
        random.Random(options.seed).shuffle(names)
    else:
        names.sort(key=frame_number)
    listing = [(name, label_of(name, classes)) for name in names]
    others = [name for name, label in listing if label not in classes]
    images.leave_out(others, "of other classes, see --classes")
    return [(name, label) for name, label in listing if label in classes]


def frame_number(name):
    """Sort key that puts A2.jpg before A10.jpg."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def split_listing(listing, classes, train, validation):
    """Split an ordered listing as the article does: {split: [(file name, class)]}.

    The first images of each class go to training, the next to validation, the rest to test. A
    class that is too small for this is split 8 : 3 : 1, the article's proportions.
    """
    totals, counts = Counter(label for _, label in listing), {}
    for label in classes:
        total = totals[label]
        if total < 3:
            raise UserError(f"class {label} has {total} images that can be used: 3 are the fewest")
        counts[label] = train, validation
        if total <= train + validation:
            two_thirds = min(total * 8 // 12, total - 2)
            counts[label] = two_thirds, max(1, (total - two_thirds) * 3 // 4)

    splits, seen = {split: [] for split in SPLITS}, Counter()
    for name, label in listing:
        to_train, to_validate = counts[label]
        place = seen[label]
        seen[label] += 1
        if place < to_train:
            splits["train"].append((name, label))
        elif place < to_train + to_validate:
            splits["validation"].append((name, label))
        else:
            splits["test"].append((name, label))
    return splits


def write_splits(folder, images, listing, classes, columns, options):
    """Write the six arrays; return {split: [(file name, class)]} and {file name: SHA-256}.

    If there are damaged images or copies, they are left out, and the others are split and written
    again.
    """
    while True:  # at most twice, as the first time reads every image
        splits = split_listing(listing, classes, options.train, options.validation)
        digests = {}
        for split, rows in splits.items():
            names = [name for name, _ in rows]
            hashes = write_images(folder / f"{split}_set.npy", images, names)
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
        images.leave_out(damaged, "no image, or damaged")
        images.leave_out(copies, "copies of other images, which might be trained on and tested")
        unusable = {*damaged, *copies}
        listing = [(name, label) for name, label in listing if name not in unusable]


def write_images(path, images, names):
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


# ---- the data set, as the later steps read it ----


def replace_dataset(folder, partial):
    """Move new files to their folder. While dataset.json is missing, no step reads the others."""
    (folder / "dataset.json").unlink(missing_ok=True)
    names = sorted(path.name for path in partial.iterdir() if path.name != "dataset.json")
    for name in [*names, "dataset.json"]:
        (partial / name).replace(folder / name)
    partial.rmdir()


def load_dataset(folder):
    """dataset.json: {"classes", "columns", "split", "seed", "source"; "rows": {split: the file of
    each row}; "id": a fingerprint, by which the later steps know whether they have the same data}.
    """
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


# ---- errors in one line ----


class UserError(Exception):
    """An error that the user can mend. Others end in Python's own traceback."""


def run_main(main):
    """Run the main function of this script, or of a later one."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except UserError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        goes_on = "; the same command, without --fresh, goes on" if name == "training.py" else ""
        sys.exit(f"{name}: stopped{goes_on}")
    except Exception as error:  # of TensorFlow, JAX
        if not re.search(r"\bOOM\b|RESOURCE_EXHAUSTED", str(error)):
            raise
        sys.exit(f"{name}: out of memory: training.py needs less with a smaller --batch-size")


if __name__ == "__main__":
    run_main(main)
