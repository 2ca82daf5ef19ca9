"""Turn photographs of American Sign Language letters into .npy files.

Reads asl_data/, which holds one of
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
import errno
import hashlib
import io
import json
import logging
import os
import random
import re
import shutil
import stat
import sys
import zipfile
import zlib
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))  # read when cv2 is imported
try:
    import cv2
    import filelock
    import numpy as np
    from tqdm import tqdm
except (ImportError, MemoryError, OSError) as error:
    remedy = "activate the environment in which requirements.txt is installed"
    if "cannot open shared object" in str(error):  # libGL, on a bare server
        remedy = "apt-get install libgl1, or replace opencv-python by opencv-python-headless"
    if "failed to map" in str(error) or isinstance(error, MemoryError):
        remedy = "not enough memory to load it"
    sys.exit(f"{type(error).__name__}: {error}; {remedy}")
except KeyboardInterrupt:
    sys.exit(130)

HERE = Path(__file__).resolve().parent
IMAGE_SIZE = 224
LETTERS = "ABCDEFGHIKLMNOPQRSTUVWXY"  # the 24 that are still; J and Z are movements
TRAIN, VALIDATION = 2000, 750  # images per class, the rest is for the test
SPLITS = ("train", "validation", "test")


def main(argv=None):
    options = parse_options(argv)
    source, listing = find_source(options.data, options.classes)  # listing: [(name, label)]
    classes = choose_classes(options.classes, listing)  # the labels that are taken
    columns = label_columns(classes)  # the network's outputs: all 24 letters, or the classes

    # First order, then choose: the split of a letter is the same whatever --classes says.
    if options.split == "random":
        random.Random(options.seed).shuffle(listing)
    else:
        listing.sort(key=frame)
    listing = [(name, label) for name, label in listing if label in classes]

    with new_dataset(options.numpy_folder) as folder:  # which moves there when the block ends
        size = len(listing) * (IMAGE_SIZE * IMAGE_SIZE * 3 + len(columns) * 4)
        check_room(options.numpy_folder, size)
        splits, skipped = write_splits(
            folder, source, listing, columns, options.train, options.validation
        )
        counts = {split: Counter(label for _, label in splits[split]) for split in SPLITS}
        with picture(folder / "samples.jpg") as path:
            write_samples(path, splits, classes)
        write_json(
            folder / "dataset.json",
            {
                "classes": classes,
                "columns": columns,
                "image_size": IMAGE_SIZE,
                "color_order": "BGR",
                "split": options.split,
                "seed": options.seed,
                "source": str(source.path),
                "counts": counts,
                "skipped": skipped,
                "rows": {split: [name for name, _ in splits[split]] for split in SPLITS},
                "files": checksums(folder.glob("*.npy")),
            },
        )
    print_counts(classes, counts)
    if (samples := options.numpy_folder / "samples.jpg").exists():
        print(f"look at {samples} before you train")
    print("Data preprocessing success!")


def parse_options(argv):
    parser = argparse.ArgumentParser(
        description="Turn photographs of ASL letters into .npy files.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="PATH", help="folder or zip of images (default: asl_data)")
    about = "where the .npy files go (default: Numpy_folder beside this script)"
    add("--numpy-folder", type=Path, default=HERE / "Numpy_folder", metavar="DIR", help=about)
    about = "classes to take, or all (default: A B C)"
    add("--classes", nargs="+", default=["A", "B", "C"], metavar="CLASS", help=about)
    about = f"training images per class (default: {TRAIN}, or 8 of 12 where these are too many)"
    add("--train", type=between(int, 1), metavar="N", help=about)
    about = f"validation images per class (default: {VALIDATION}, or 3 of 12 likewise)"
    add("--validation", type=between(int, 1), metavar="N", help=about)
    about = "in-order: by the frames' numbers, to test on scenes not trained on (default: random)"
    add("--split", choices=["random", "in-order"], default="random", help=about)
    about = "order of the images, of --split random (default: 0)"
    add("--seed", type=between(int, 0), default=0, metavar="N", help=about)
    return parser.parse_args(argv)


def print_counts(classes, counts):
    table = [(label, *(counts[split][label] for split in SPLITS)) for label in classes]
    table.append(("total", *(sum(counts[split].values()) for split in SPLITS)))
    width = max(len(label) for label, *_ in table)
    print(f"{'class':{width}}    train  validation     test")
    for label, train, validation, test in table:
        print(f"{label:{width}}  {train:7,}  {validation:10,}  {test:7,}")


# ---- the images: where they are, which class each is of ----

SUFFIXES = tuple(".jpg .jpeg .jpe .jfif .png .bmp .webp .tif .tiff .gif .avif".split())
UNREAD = (".heic", ".heif", ".dng", ".mov", ".mp4")  # a telephone's, which OpenCV does not read
MAX_BYTES = 2**28  # of an image's file, read or unpacked
NOTHING_THERE = f"""no images ({" ".join(SUFFIXES)}) in {{}}{{}}; put there
  the Kaggle data set (1 GB)
    curl -L -o asl_data/asl-alphabet.zip \
https://www.kaggle.com/api/v1/datasets/download/grassknoted/asl-alphabet
  or your own photographs, A_1.jpg ... or A/1.jpg ..., or, to try the scripts, drawings
    python asl_data/draw_hands.py"""


class NoImage(ValueError):
    """Why a file is no image that can be used."""


class Folder:
    """The files in a folder: `names`, relative to it with "/" between the parts, and `read`."""

    def __init__(self, path, but=()):
        """but: what does not count at its top. A folder that is not there is empty."""
        self.path, self.names = path, []
        if not path.exists():
            return
        seen = set()
        for parent, folders, files in os.walk(path, onerror=self.refuse, followlinks=True):
            below = Path(parent).relative_to(path)
            if not below.parts:
                folders[:] = [folder for folder in folders if folder not in but]
                files = [file for file in files if file not in but]
            if (real := os.path.realpath(parent)) in seen:
                folders.clear()  # by a link, which may lead round in circles
                continue
            folders.sort(key=lambda name: (Path(parent, name).is_symlink(), name))  # links last
            seen.add(real)
            self.names += [(below / file).as_posix() for file in files]

    def refuse(self, error):
        raise error  # os.walk would pass over what it may not read

    def read(self, name):
        """The bytes of a file; NoImage if it can't be an image."""
        path = self.path / name
        if path.is_symlink() and not path.exists():
            raise NoImage("a link to nothing")
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise NoImage("no file")  # a pipe would wait for a writer
        if facts.st_size > MAX_BYTES:
            raise NoImage("over 256 MB")
        return path.read_bytes()


class Archive:
    """The files in a zip, which is never unpacked: `names` and `read`, as of a Folder."""

    def __init__(self, path):
        self.path = path
        try:
            self.zip = zipfile.ZipFile(path)
        except Exception as error:  # zipfile raises some ten kinds
            if is_of_the_system(error):
                raise
            raise UserError(
                f"{path} is neither a folder nor an intact zip archive ({one_line(error)}); "
                "download it again"
            ) from None
        entries = [entry for entry in self.zip.infolist() if not entry.filename.endswith("/")]
        if any(entry.flag_bits & 1 for entry in entries):
            raise UserError(f"{path} is encrypted; unpack it and give the folder with --data")
        # Old Windows programs write "\\" between the parts.
        named = {entry.filename.replace("\\", "/"): entry for entry in entries}
        if twice := len(entries) - len(named):
            print(f"{path} has {number(twice, 'name')} twice: the last entry counts")
        outside = {name for name in named if name.startswith("/") or ".." in name.split("/")}
        self.names = {name: entry for name, entry in named.items() if name not in outside}

    def read(self, name):
        """The bytes of a file; NoImage if it can't be an image or the zip is damaged there."""
        entry = self.names[name]
        if entry.file_size > MAX_BYTES:
            raise NoImage("over 256 MB")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise NoImage("compressed in a way that is unpacked at once, however large")
        try:
            with self.zip.open(entry) as file:
                return file.read(entry.file_size)  # read() would unpack more, if the size is a lie
        except Exception as error:  # zipfile and zlib raise some ten kinds
            if is_of_the_system(error):
                raise
            raise NoImage(f"damaged in the archive ({one_line(error)})") from None


def find_source(path, wanted):
    """The one source of images, a Folder or an Archive, and its listing [(name, label)], sorted.

    It is the first that has the wanted classes, or else the first that has images.
    """
    found, names = [], []
    for source in sources(path):
        listing = list_images(source.names, wanted)
        labels = {label for _, label in listing}
        has_all_wanted = len(labels) > 1 if wanted == ["all"] else labels >= set(wanted)
        if has_all_wanted:
            found = [(source, listing)]
            break
        if listing:
            found.append((source, listing))
        names += source.names
    if not found:
        example = f" ({number(len(names), 'file')}, such as {shown(names[:1])})" if names else ""
        raise UserError(NOTHING_THERE.format(path or HERE / "asl_data", example))
    print_source(*found[0])
    return found[0]


def sources(path):
    """Where images may lie: `path`, or what asl_data/ holds in the order of the docstring."""
    folder = path or HERE / "asl_data"
    zips = sorted(each for each in folder.glob("*") if each.suffix.lower() == ".zip")
    if path:
        yield Folder(path) if path.is_dir() else Archive(path)
        yield from map(Archive, zips if len(zips) == 1 else [])  # which one is meant is plain
    else:
        yield Folder(folder / "new")
        yield Folder(folder, but=("new", "demo", "varied.jpg"))
        yield from map(Archive, zips)
        yield Folder(folder / "demo")


def list_images(names, wanted=()):
    """[(name, label)] of the images among the files, sorted by name.

    The class is the folder, as in A/1.jpg, or else the start of the name, as in A_1.jpg. Of all
    such layouts, wherever they lie, that with the most wanted classes counts; of several that
    with two classes or more, and of these that with the most images.
    """
    layouts = {}
    for name in sorted(names):
        if is_image(name):
            folder, _, file = name.rpartition("/")
            above, _, label = folder.rpartition("/")
            if label.isprintable() and label[:1] not in ("", "."):
                layouts.setdefault((above, "folders"), []).append((name, label))
            if label := name_label(file):
                layouts.setdefault((folder, "flat"), []).append((name, label))

    def merit(images):
        labels = {label for _, label in images}
        return len(labels & set(wanted)), len(labels) > 1, len(images)

    return max(layouts.values(), key=merit, default=[])


def name_label(file):
    """The class of an image by its name: A of A_34.jpg, A34.jpg and "A (34).jpg", "" of 34.jpg."""
    stem = file.rpartition(".")[0]
    label = re.split(r"[_\d(]", stem)[0].rstrip(" -.")
    return label if label.isprintable() else ""


def is_image(name, suffixes=SUFFIXES):
    """Whether a name is one of an image, and not a leftover of macOS."""
    file = name.rpartition("/")[2]
    leftover = file.startswith(".") or "__MACOSX/" in name
    return file.lower().endswith(suffixes) and not leftover


def print_source(source, listing):
    """Say where the images are, and what lies there and is not taken."""
    print(f"source {source.path}: {number(len(listing), 'image')}")
    left_out = {}
    for name in sorted(set(source.names) - {name for name, _ in listing}):
        if "asl_alphabet_test/" in name and is_image(name):
            why = "of asl_alphabet_test: not part of the 3,000 of a class"
        elif is_image(name):
            why = "not beside the others"
        elif is_image(name, UNREAD):
            why = "that OpenCV does not read: convert to .jpg"
        else:
            continue
        left_out.setdefault(why, []).append(name)
    for why, names in left_out.items():
        print(f"left out {number(len(names), 'image')} {why} ({shown(names[:1])})")
    if source.path.resolve() == HERE / "asl_data" / "demo":
        print("these are drawings: their accuracy says nothing about photographs")


def choose_classes(wanted, listing):
    """The classes to take, sorted: those wanted, or every one found if `all` is wanted."""
    numbers = Counter(label for _, label in listing)
    found = sorted(numbers)
    classes = found if wanted == ["all"] else sorted(set(wanted))
    for label in classes:
        if label not in found:
            raise UserError(
                f"no image of class {label}; there are {shown(found, 40, ' ')}: see --classes"
            )
    if len(classes) < 2:
        raise UserError(f"one class ({classes[0]}) leaves nothing to learn; take at least two")
    if others := [label for label in found if label not in classes]:
        images = number(sum(numbers[label] for label in others), "image")
        print(f"left out {images} of other classes ({shown(others, 30, ' ')}): see --classes")
    return classes


def label_columns(classes):
    """Class name of each label column: the article's 24 letters, if these hold all classes."""
    return list(LETTERS) if set(classes) <= set(LETTERS) else classes


# ---- the split ----


def frame(row):
    """The place of a (name, label) in the video that it is of: A2.jpg stands before A10.jpg."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d{1,18})", row[0])]


def deal(listing, train_count, validation_count):
    """Share out an ordered listing as the article does: {split: [(name, label)]}.

    The first images of each class go to training, the next to validation, the rest to test.
    """
    numbers = Counter(label for _, label in listing)
    counts = {
        label: split_counts(label, numbers[label], train_count, validation_count)
        for label in numbers
    }
    seen = Counter()
    splits = {split: [] for split in SPLITS}
    for name, label in listing:
        train, validation = counts[label]
        if seen[label] < train:
            splits["train"].append((name, label))
        elif seen[label] < train + validation:
            splits["validation"].append((name, label))
        else:
            splits["test"].append((name, label))
        seen[label] += 1
    return splits


def split_counts(label, total, train, validation):
    """(training images, validation images) of a class of `total`; one or more are left for test.

    Counts that are None are the article's or, in a class too small for these, in the article's
    proportions, 8 : 3 : 1.
    """
    if total > (train or TRAIN) + (validation or VALIDATION):
        return train or TRAIN, validation or VALIDATION
    if not train:  # 8 of 12, or 8 of the 9 that are left for training and test
        train = (total - validation) * 8 // 9 if validation else min(total * 8 // 12, total - 2)
    if not validation:
        validation = max(1, (total - train) * 3 // 4)
    if train < 1 or train + validation >= total:
        raise UserError(
            f"class {label} has {number(total, 'image')}: too few for {max(train, 1)} to train, "
            f"{validation} to validate and 1 to test"
        )
    return train, validation


# ---- the arrays ----


def write_splits(folder, source, listing, columns, train_count, validation_count):
    """Write the six files; return what went into them, {split: [(name, label)]}, and what was
    skipped, {name: why}: the next image takes the place of each."""
    classes = {label for _, label in listing}
    skipped = {}
    while True:  # at most twice: the first time reads every image, so it finds all bad ones
        if lost := classes - {label for _, label in listing}:
            raise UserError(f"class {min(lost)} has no image that can be used")
        splits = deal(listing, train_count, validation_count)
        bad = write_arrays(folder, source, splits, columns)
        if not bad:
            return splits, skipped
        print(f"skipped {number(len(bad), 'image')}; the others are split again")
        for name, why in sorted(bad.items())[:10]:
            print(f"  {shown([name])}: {why}")
        skipped |= bad
        listing = [(name, label) for name, label in listing if name not in bad]


def write_arrays(folder, source, splits, columns):
    """Write the six files; return the images that can't be used, {name: why}.

    If there are any, the files must be written again: for an image that can't be read there is no
    row. One that is there twice, under two names, is used once, or it might be trained and tested.
    """
    names = [name for split in SPLITS for name, _ in splits[split]]
    images = iter(tqdm(read_images(source, names), total=len(names), unit=" images", disable=None))
    bad, seen = {}, {}
    for split in SPLITS:
        shape = (len(splits[split]), IMAGE_SIZE, IMAGE_SIZE, 3)
        with open(folder / f"{split}_set.npy", "wb") as file:
            write_header(file, "|u1", shape)
            # zip asks `images` last: the other way round it would take one too many at the end.
            for (name, _), (image, checksum_or_why) in zip(splits[split], images):
                if image is None:
                    bad[name] = checksum_or_why
                else:
                    file.write(image)
                    seen.setdefault(checksum_or_why, []).append(name)
        indices = [columns.index(label) for _, label in splits[split]]
        with open(folder / f"{split}_classes.npy", "wb") as file:
            write_header(file, "<f4", (len(indices), len(columns)))
            file.write(np.eye(len(columns), dtype="<f4")[indices])
    next(images, None)  # the end, or the bar stops one image short of it
    for names in seen.values():
        first, *copies = sorted(names, key=lambda name: frame((name, None)))
        bad |= {copy: f"the same picture as {shown([first])}" for copy in copies}
    return bad


def write_header(file, dtype, shape):
    """Begin a .npy file; np.save would not say why it fails on a full disk."""
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def read_images(source, names, skip=NoImage):
    """Yield (image, checksum of its file) in order, or (None, why) where an error in `skip` says
    why there is none.

    image: uint8 (224, 224, 3), BGR. Read by all cores, a few ahead: memory does not grow.
    """
    cores = cores_of_this_process()
    waiting = deque()
    with ThreadPoolExecutor(cores) as pool:
        for start in range(0, len(names), 16):  # handing over images one at a time takes 1/5 more
            waiting.append(pool.submit(read_block, source, names[start : start + 16], skip))
            if len(waiting) > 2 * cores:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def cores_of_this_process():
    if hasattr(os, "sched_getaffinity"):  # fewer than there are, where a task got a part of them
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_block(source, names, skip=NoImage):
    block = []
    for name in names:
        try:
            data = source.read(name)
            block.append((decode(data), hashlib.sha256(data).digest()))
        except skip as error:
            block.append((None, one_line(error)))
    return block


def decode(data):
    """The bytes of an image's file as the network gets it, uint8 (224, 224, 3), BGR."""
    if not data:
        raise NoImage("empty")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        image = None
    if image is None and data[4:11] in (b"ftyphei", b"ftypmif"):
        raise NoImage("HEIC, which OpenCV does not read: convert to .jpg")
    if image is None:
        raise NoImage("damaged, no image, or over 134 million pixels")
    return fit(image)


def fit(image):
    """An image of any size, uint8 (height, width, 3), squeezed to that which the network gets."""
    return cv2.resize(image, (IMAGE_SIZE, IMAGE_SIZE))


def write_samples(path, splits, classes):
    """Write some images of each class and split, from the first to the last, one class a row."""
    side, head, left = IMAGE_SIZE // 2, 40, 120
    sheet = np.full((head + side * len(classes), left + side * 8 + 40, 3), 255, np.uint8)
    font = cv2.FontFace("sans")
    for row, label in enumerate(classes):
        cv2.putText(sheet, label[:8], (8, head + side * row + 66), (0, 0, 0), font, 26, 600)
    for split, count in zip(SPLITS, (4, 2, 2)):
        images = np.load(path.parent / f"{split}_set.npy", mmap_mode="r")
        labels = np.array([label for _, label in splits[split]])
        cv2.putText(sheet, split, (left, 28), (0, 0, 0), font, 22, 600)
        for row, label in enumerate(classes):
            rows = np.flatnonzero(labels == label)
            for place, index in enumerate(spread(rows, count)):
                top, x = head + side * row, left + side * place
                small = cv2.resize(images[index], (side - 4,) * 2, interpolation=cv2.INTER_AREA)
                sheet[top : top + side - 4, x : x + side - 4] = small
        left += side * count + 20
    path.write_bytes(cv2.imencode(".jpg", sheet)[1])


def spread(rows, count):
    """`count` of the rows, an array, from the first to the last, or all if there are fewer."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]


# ---- the data set, as the later steps read it ----


def load_dataset(folder):
    """dataset.json of a folder that preprocess.py wrote, as a dict; see `main` for its keys."""
    folder = Path(folder)
    if any((folder / name).exists() for name in (".partial", ".whole")):
        with locked(folder):  # says so if preprocess.py is at work; if it was killed, tidies up
            finish_move(folder)
    keys = "classes columns split seed source counts rows files"
    return read_json(folder / "dataset.json", keys, "preprocess.py")


def load_split(folder, split, dataset):
    """(images, labels) of one split, checked against what `load_dataset` gave.

    images: uint8 (n, 224, 224, 3), BGR, 0 to 255, a memory map: reading rows costs no memory.
    labels: float32 (n, columns), one-hot.
    """
    folder = Path(folder)
    rows, columns = len(dataset["rows"][split]), len(dataset["columns"])
    image_shape = (rows, IMAGE_SIZE, IMAGE_SIZE, 3)
    images = load_array(folder / f"{split}_set.npy", image_shape, "uint8", dataset)
    labels = load_array(folder / f"{split}_classes.npy", (rows, columns), "float32", dataset)
    return images, labels


def load_array(path, shape, dtype, dataset):
    with reading(path, "preprocess.py"):
        array = np.lib.format.open_memmap(path, mode="r")  # np.load would also open zips
    if array.shape != shape or array.dtype != dtype:
        raise UserError(
            f"{path} holds {array.dtype} {array.shape}, not {dtype} {shape}: "
            "run preprocess.py again"
        )
    if crc32(path) != dataset["files"].get(path.name):
        raise UserError(
            f"{path} is of another data set or damaged: run preprocess.py again, "
            "or let it end if it is at work there"
        )
    return array


# ---- files that survive a kill: one rule for each folder that a step writes ----
#
# The folder's JSON file lists the folder's files with their CRC-32. It is written last, under
# another name first, and only a run that holds the folder's lock writes it and what it lists. So
# what the JSON lists is intact, whenever the run is killed. training.py and test.py import this;
# nothing here is about hands.

REMEDIES = {
    errno.EACCES: "; change its permissions, or name another place",
    errno.EAGAIN: "; another program has it open: close it there",
    errno.EDQUOT: "; make room and run {} again",
    errno.EFBIG: "; raise the limit of file sizes and run {} again",
    errno.EMFILE: "; raise the limit with ulimit -n",
    errno.ENOSPC: "; make room and run {} again",
    errno.EROFS: "; name another place",
}


class UserError(Exception):
    """A mistake that the user can mend; `run_main` prints it in place of a traceback."""


@contextmanager
def locked(folder):
    """Keep other runs out of a folder until the block ends or the process does; remove what a
    killed run left there under a temporary name."""
    folder.mkdir(parents=True, exist_ok=True)
    # A singleton, as one run may lock a folder twice: --checkpoint and --weights-full may be one.
    # A soft lock would be a file that outlives a killed run.
    path = folder.resolve() / ".lock"
    # Its mode lets others of a shared folder lock it too.
    lock = filelock.FileLock(path, 0, 0o666, is_singleton=True, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(f"another run is at work in {folder}: let it end first") from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        print(f"{folder} can't be locked ({error.strerror}): start no second run in it")
    try:
        for rubbish in folder.glob(".partial*"):
            shutil.rmtree(rubbish) if rubbish.is_dir() else rubbish.unlink()
        yield
    finally:
        lock.release()


def check_room(folder, size, remedy="make room"):
    """Refuse to write `size` bytes in a folder that has no room for them."""
    free = shutil.disk_usage(existing(folder)).free
    if size > free:
        raise UserError(
            f"{folder} has {free / 1e9:.3f} GB free, {size / 1e9:.3f} GB are to come: {remedy}"
        )


def existing(folder):
    """The folder, or the nearest one above it that is there."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


@contextmanager
def new_dataset(folder):
    """Give a folder to write a data set in.

    Its files move to `folder` when the block ends without an error; else they are removed, and
    what `folder` held stays.
    """
    with locked(folder):
        finish_move(folder)
        partial = folder / ".partial"
        partial.mkdir()
        try:
            yield partial
            partial.rename(folder / ".whole")  # from here on the new data set counts
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        finish_move(folder)


def finish_move(folder):
    """Move an intact new data set to its place, also where a killed run left off."""
    new = folder / ".whole"
    if new.exists():
        (folder / "samples.jpg").unlink(missing_ok=True)  # of the old set; the new may have none
        for file in new.iterdir():
            # Removed first: ext4 flushes a file that replaces another, which takes seconds.
            (folder / file.name).unlink(missing_ok=True)
            file.rename(folder / file.name)
        new.rmdir()


@contextmanager
def replacing(path):
    """Give the name of a file to write, which replaces `path` when the block ends without error."""
    partial = path.with_name(f".partial-{path.name}")  # keras goes by the suffix
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # h5py names none
        raise
    except RuntimeError as error:  # of h5py, where the disk is full
        reason = one_line(error)
        raise UserError(f"{path} can't be written ({reason}); make room and run again") from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def picture(path):
    """As `replacing`, for what is made to be looked at: to fail in it costs a line, not the run."""
    os.environ["MPLBACKEND"] = "agg"  # matplotlib's without a display, whatever Jupyter says
    try:
        with replacing(path) as partial:
            yield partial
    except Exception as error:  # whatever the drawing libraries or the disk say
        print(f"warning: {path} can't be written ({one_line(error) or type(error).__name__})")
        with suppress(OSError):
            path.unlink()  # of an earlier run


def write_json(path, facts):
    """Write a dict as JSON, with the CRC-32 that `read_json` checks."""
    facts = {**facts, "crc32": zlib.crc32(json.dumps(facts).encode())}
    with replacing(path) as partial:
        partial.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def read_json(path, keys, step):
    """The dict that `write_json` wrote, with at least these keys; step: the script that did."""
    with reading(path, step):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts.pop("crc32") != zlib.crc32(json.dumps(facts).encode()):
            raise ValueError("CRC-32 does not fit")
        if missing := set(keys.split()) - set(facts):
            raise ValueError(f"no {min(missing)}")
    return facts


def checksums(paths):
    """{name: CRC-32} of files."""
    paths = sorted(paths)
    with ThreadPoolExecutor() as pool:
        return {path.name: value for path, value in zip(paths, pool.map(crc32, paths))}


def crc32(path):
    """Enough to tell damage and mistakes, at a third of the time of SHA-256."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


@contextmanager
def reading(path, step):
    """Around the reading of a file that a step wrote: what is wrong with it becomes a UserError.

    step: the script that writes the file anew, with its option if that takes one.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file")  # a pipe would wait for a writer
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run {step} first") from None
    except UserError:
        raise
    except Exception as error:  # whatever a parser makes of foreign bytes
        if is_of_the_system(error):  # the file may be intact
            if isinstance(error, OSError):
                error.filename = error.filename or str(path)  # h5py names none
            raise
        raise UserError(
            f"{path} is damaged or foreign ({one_line(error)}): run {step} again"
        ) from None


def is_of_the_system(error):
    """Whether the system refused something, as memory or a permission: no file is to blame."""
    if isinstance(error, OSError):
        return error.errno not in (None, errno.EINVAL)  # which damage in a zip or HDF5 leads to
    return is_memory(error)


def is_memory(error):
    """Whether memory was refused, in the words of Python, TensorFlow, JAX or Torch."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = "OOM when|RESOURCE_EXHAUSTED|out of memory|bad_alloc|start new thread|failed to map"
    return isinstance(error, MemoryError) or bool(re.search(words, str(error)))


def between(kind, low, high=2**31 - 1):
    """A type for argparse: an int or float from low to high."""

    def parse(text):
        if not low <= (value := kind(text)) <= high:  # nan is not either
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    parse.__name__ = kind.__name__  # as argparse names it
    return parse


def number(count, what):
    """A count in words: "1 image", "2,000 images"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def shown(names, most=10, separator=", "):
    """Names in one line, what can't be printed in them escaped."""
    more = f"{separator}... {len(names) - most:,} more" if len(names) > most else ""
    names = [name if name.isprintable() else repr(name) for name in names[:most]]
    return separator.join(names) + more


def one_line(error):
    """What an error says; of one of the system, the reason alone."""
    text = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return " ".join(text.split())[:200]


def same_command():
    """How to name the command that goes on where this one ended."""
    return "the same command" + (" without --fresh" if "--fresh" in sys.argv else "")


def run_main(main):
    """Run a script's main; a mistake that can be foreseen ends in a message and exit status 1."""
    sys.stdout, sys.stderr = Output.as_text(1, sys.stdout), Output.as_text(2, sys.stderr)
    with ending_in_one_line():
        main()


@contextmanager
def ending_in_one_line():
    """Around a script, or its imports: an error that can be foreseen ends it in one line."""
    name = Path(sys.argv[0]).name
    try:
        yield
    except UserError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt as error:
        print(f"{name}: stopped{error}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if is_memory(error):
            sys.exit(f"{name}: not enough memory ({one_line(error)})")
        if not isinstance(error, OSError):
            raise
        where = f"{error.filename}: " if error.filename else ""
        remedy = REMEDIES.get(error.errno, "").format(same_command())
        sys.exit(f"{name}: {where}{one_line(error)}{remedy}")


@contextmanager
def importing_keras():
    """Around the imports of keras: quickly, quietly, and set as the network needs it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # or TensorFlow logs eight lines
    # Keras imports these where they are installed; that takes a second, and is for pictures alone.
    later = {"matplotlib", "pandas", "sklearn"} - sys.modules.keys()
    sys.modules.update(dict.fromkeys(later))  # None: can't be imported now
    with ending_in_one_line():
        try:
            yield
            config = sys.modules["keras"].config
            config.set_image_data_format("channels_last")  # whatever ~/.keras/keras.json says
            config.set_floatx("float32")
            config.set_epsilon(1e-7)
        except Exception as error:  # whatever the settings of another project lead to
            if is_memory(error):
                raise
            settings = Path(os.environ.get("KERAS_HOME", "~/.keras")) / "keras.json"
            raise UserError(
                f"{type(error).__name__}: {one_line(error)}; see KERAS_BACKEND and {settings}, "
                "and whether the environment is active in which requirements.txt is installed"
            ) from None
    for name in later:
        del sys.modules[name]
    logging.getLogger("absl").setLevel(logging.ERROR)  # keras warns at each .hdf5


class Output(io.FileIO):
    """Standard output or error: one whose reader went away is written on to nowhere."""

    @classmethod
    def as_text(cls, number, old):
        """In place of sys.stdout or sys.stderr; old is None if it was closed from the start."""
        file = io.BufferedWriter(cls(number, "w", closefd=False))
        encoding = old.encoding if old else "utf-8"
        # File names need not be text.
        return io.TextIOWrapper(file, encoding, errors="backslashreplace", line_buffering=True)

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


# Streams that were closed, as by cron: else files of ours would get their numbers.
for standard in range(3):
    try:
        os.fstat(standard)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


if __name__ == "__main__":
    run_main(main)
