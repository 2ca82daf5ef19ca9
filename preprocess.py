"""Turn photographs of American Sign Language letters into .npy files.

Reads asl_data/, which holds one of
    new/A_34.jpg ...                                        the article's flat folder
    [asl_alphabet_train/][asl_alphabet_train/]A/A1.jpg ...  the Kaggle folders
    asl-alphabet.zip                                        the Kaggle archive, read in place
    demo/A_1.jpg ...                                        drawings of asl_data/draw_hands.py
and writes, in Numpy_folder/,
    train_set.npy, validation_set.npy, test_set.npy              uint8 (n, 224, 224, 3), BGR
    train_classes.npy, validation_classes.npy, test_classes.npy  float32 (n, columns), one-hot
    dataset.json                                                 what the later steps must know

    python preprocess.py
    python preprocess.py --data my_photos --classes A B C D
"""

import argparse
import errno
import json
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
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))  # read when cv2 is imported
try:
    import cv2
    import filelock
    import numpy as np
    from tqdm import tqdm
except ImportError as error:
    remedy = "activate the environment in which requirements.txt is installed"
    if "libGL" in str(error):  # a bare server
        remedy = "apt-get install libgl1, or replace opencv-python by opencv-python-headless"
    sys.exit(f"{error}; {remedy}")

HERE = Path(__file__).resolve().parent
IMAGE_SIZE = 224
LETTERS = "ABCDEFGHIKLMNOPQRSTUVWXY"  # the 24 that are still; J and Z are movements
TRAIN, VALIDATION = 2000, 750  # images per class, the rest is for the test
SPLITS = ("train", "validation", "test")


def main(argv=None):
    options = parse_options(argv)
    source, listing = find_source(options.data)  # listing: [(name of an image, its label)]
    classes = choose_classes(options.classes, listing)  # the labels that are taken
    columns = label_columns(classes)  # the network's outputs: all 24 letters, or the classes

    # First shuffle, then choose: the split of a letter is the same whatever --classes says.
    random.Random(options.seed).shuffle(listing)
    listing = [(name, label) for name, label in listing if label in classes]

    with new_dataset(options.numpy_folder) as folder:
        check_room(folder, len(listing) * (IMAGE_SIZE * IMAGE_SIZE * 3 + len(columns) * 4))
        splits, skipped = write_splits(
            folder, source, listing, columns, options.train, options.validation
        )
        counts = {split: Counter(label for _, label in splits[split]) for split in SPLITS}
        write_json(
            folder / "dataset.json",
            {
                "classes": classes,
                "columns": columns,
                "image_size": IMAGE_SIZE,
                "color_order": "BGR",
                "split": "shuffled",
                "seed": options.seed,
                "source": str(source.path),
                "counts": counts,
                "unreadable": skipped,
                "rows": {split: [name for name, _ in splits[split]] for split in SPLITS},
                "files": checksums(folder.glob("*.npy")),
            },
        )
    print_counts(classes, counts)
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
    about = "order of the images (default: 0)"
    add("--seed", type=between(int, 0), default=0, metavar="N", help=about)
    return parser.parse_args(argv)


def print_counts(classes, counts):
    table = [(label, *(counts[split][label] for split in SPLITS)) for label in classes]
    table.append(("total", *(sum(counts[split].values()) for split in SPLITS)))
    width = max(len(label) for label, *_ in table)
    print(f"{'class':{width}}  train  validation   test")
    for label, train, validation, test in table:
        print(f"{label:{width}}  {train:5,}  {validation:10,}  {test:5,}")


# ---- the images: where they are, which class each is of ----

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MAX_BYTES = 2**28  # of an image's file, read or unpacked
# Folders in asl_data/ that are no classes.
NOT_CLASSES = ("asl_alphabet_train", "asl_alphabet_test", "new", "demo")
NOTHING_THERE = f"""no images ({" ".join(SUFFIXES)}) in {{}}; put there
  the Kaggle data set (1 GB)
    curl -L -o asl_data/asl-alphabet.zip \
https://www.kaggle.com/api/v1/datasets/download/grassknoted/asl-alphabet
  or your own photographs, A_1.jpg ..., or, to try the scripts, drawings
    python asl_data/draw_hands.py"""


class Folder:
    """The files in a folder: `names`, relative to it with "/" between the parts, and `read`."""

    def __init__(self, path):
        self.path, self.names = path, []
        for parent, folders, files in os.walk(path, onerror=self.refuse, followlinks=True):
            below = Path(parent).relative_to(path)
            if len(below.parts) == 3:  # as deep as the Kaggle archive goes
                folders.clear()
            self.names += [(below / file).as_posix() for file in files]

    def refuse(self, error):
        raise error  # os.walk would pass over what it may not read

    def read(self, name):
        """The bytes of a file; ValueError if it can't be an image."""
        path = self.path / name
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("no file")  # a pipe would wait for a writer
        if facts.st_size > MAX_BYTES:
            raise ValueError("too large")
        return path.read_bytes()


class Archive:
    """The files in a zip, which is never unpacked: `names` and `read`, as of a Folder."""

    def __init__(self, path):
        self.path = path
        try:
            self.zip = zipfile.ZipFile(path)
        except OSError:
            raise
        except Exception as error:  # zipfile raises some ten kinds
            raise UserError(
                f"{path} is neither a folder nor an intact zip archive ({one_line(error)}); "
                "download it again"
            ) from None
        if any(entry.flag_bits & 1 for entry in self.zip.infolist()):
            raise UserError(f"{path} is encrypted; unpack it and give the folder with --data")
        names = self.zip.namelist()
        self.names = set(names)
        if twice := len(names) - len(self.names):
            print(f"{path} has {number(twice, 'name')} twice: the last entry counts")

    def read(self, name):
        """The bytes of a file; an error of many kinds if the zip is damaged there."""
        entry = self.zip.getinfo(name)
        if entry.file_size > MAX_BYTES:
            raise ValueError("too large")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("compressed in a way that is unpacked at once, however large")
        with self.zip.open(entry) as file:
            return file.read(entry.file_size)  # read() would unpack more, if the size is a lie


def find_source(path):
    """The one source of images, a Folder or an Archive, and its listing [(name, label)], sorted.

    Without a path, the first thing in asl_data/ that has images, in the order of the docstring.
    """
    data = HERE / "asl_data"
    standard = [data / "new", data, *sorted(data.glob("*.zip")), data / "demo"]
    for each in [path] if path else filter(Path.exists, standard):
        source = Folder(each) if each.is_dir() else Archive(each)
        if listing := list_images(source.names):
            print_source(source, listing)
            return source, listing
    raise UserError(NOTHING_THERE.format(path or data))


def list_images(names):
    """[(name, label)] of the images among the files, sorted by name.

    Of the flat layout and the one with a folder per class, the one with more images counts.
    """
    listing = sorted((name, label) for name in names if (label := class_of(name)))
    flat = [image for image in listing if not is_nested(image[0])]
    nested = [image for image in listing if is_nested(image[0])]
    return max(flat, nested, key=len)


def is_nested(name):
    return "/" in name or "\\" in name


def class_of(name):
    """The label of an image file; None if it is not an image or lies elsewhere.

    "A_34.jpg", "A34.jpg", "A (34).jpg" and "asl_alphabet_train/A/A34.jpg" are of class "A".
    """
    name = name.replace("\\", "/")  # in zips of old Windows programs
    path = PurePosixPath(re.sub("^(asl_alphabet_train/){1,2}", "", name))
    if not is_image(path) or len(path.parts) > 2 or path.parts[0] in NOT_CLASSES:
        return None
    if len(path.parts) == 2:
        label = path.parts[0]
    else:
        label = re.split(r"[_\d(]", path.stem)[0].rstrip(" -.")
    if label[:1] in ("", ".", "/") or not label.isprintable():
        return None  # hidden, "..", or from the root
    return label


def is_image(path):
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def print_source(source, listing):
    print(f"source {source.path}: {number(len(listing), 'image')}")
    tests = [name for name in source.names if name.startswith("asl_alphabet_test/")]
    if tests := sum(is_image(PurePosixPath(name)) for name in tests):
        tests = number(tests, "image")
        print(f"left out {tests} of asl_alphabet_test: not part of the 3,000 of a class")
    if source.path.resolve() == HERE / "asl_data" / "demo":
        print("these are drawings: their accuracy says nothing about photographs")


def choose_classes(wanted, listing):
    """The classes to take, sorted: those wanted, or every one found if `all` is wanted."""
    found = sorted({label for _, label in listing})
    classes = found if wanted == ["all"] else sorted(set(wanted))
    for label in classes:
        if label not in found:
            raise UserError(
                f"no image of class {label}; there are {' '.join(found)}: see --classes"
            )
    if len(classes) < 2:
        raise UserError(f"one class ({classes[0]}) leaves nothing to learn; take at least two")
    return classes


def label_columns(classes):
    """Class name of each label column: the article's 24 letters, if these hold all classes."""
    return list(LETTERS) if set(classes) <= set(LETTERS) else classes


# ---- the split ----


def deal(listing, train_count, validation_count):
    """Share out a shuffled listing as the article does: {split: [(name, label)]}.

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
    if train is None:
        train = (total - validation) * 8 // 9 if validation else min(total * 8 // 12, total - 2)
    if validation is None:
        validation = max(1, (total - train) * 3 // 4)
    if train < 1 or train + validation >= total:
        raise UserError(
            f"class {label} has {number(total, 'image')}: too few for {max(train, 1)} to train, "
            f"{validation} to validate and 1 to test"
        )
    return train, validation


# ---- the arrays ----


def write_splits(folder, source, listing, columns, train_count, validation_count):
    """Write the six files; return what went into them, {split: [(name, label)]}, and what could
    not be read, [name]: each such image is skipped and the next one takes its place."""
    classes = {label for _, label in listing}
    skipped = []
    while True:
        if lost := classes - {label for _, label in listing}:
            raise UserError(f"class {min(lost)} has no image that can be read")
        splits = deal(listing, train_count, validation_count)
        bad = write_arrays(folder, source, splits, columns)
        if not bad:
            return splits, skipped
        print(f"skipped {len(bad):,} that can't be read: {shown(bad)}; splitting again")
        skipped += bad
        bad = set(bad)
        listing = [(name, label) for name, label in listing if name not in bad]


def write_arrays(folder, source, splits, columns):
    """Write the six files; return the names of the images that can't be read.

    If there are any, the files must be written again: they are shorter than their headers say.
    """
    names = [name for split in SPLITS for name, _ in splits[split]]
    images = iter(tqdm(read_images(source, names), total=len(names), unit=" images", disable=None))
    bad = []
    for split in SPLITS:
        shape = (len(splits[split]), IMAGE_SIZE, IMAGE_SIZE, 3)
        with open(folder / f"{split}_set.npy", "wb") as file:
            write_header(file, "|u1", shape)
            # zip asks `images` last: the other way round it would take one too many at the end.
            for (name, _), image in zip(splits[split], images):
                if image is None:
                    bad.append(name)
                else:
                    file.write(image)
        indices = [columns.index(label) for _, label in splits[split]]
        with open(folder / f"{split}_classes.npy", "wb") as file:
            write_header(file, "<f4", (len(indices), len(columns)))
            file.write(np.eye(len(columns), dtype="<f4")[indices])
    return bad


def write_header(file, dtype, shape):
    """Begin a .npy file; np.save would not say why it fails on a full disk."""
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def read_images(source, names):
    """Yield the images in order, read by all cores, a few ahead: memory does not grow."""
    cores = os.cpu_count() or 1
    waiting = deque()
    with ThreadPoolExecutor(cores) as pool:
        for start in range(0, len(names), 16):  # handing over images one at a time takes 1/5 more
            waiting.append(pool.submit(read_block, source, names[start : start + 16]))
            if len(waiting) > 2 * cores:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def read_block(source, names):
    return [read_image(source, name) for name in names]


def read_image(source, name):
    """An image as the network gets it, uint8 (224, 224, 3), BGR; None if it can't be read."""
    try:
        data = np.frombuffer(source.read(name), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        return cv2.resize(image, (IMAGE_SIZE, IMAGE_SIZE))
    except Exception:  # foreign bytes: cv2, zipfile and zlib have some ten kinds of error
        return None


# ---- the data set, as the later steps read it ----


def load_dataset(folder):
    """dataset.json of a folder that preprocess.py wrote, as a dict; see `main` for its keys."""
    if (folder / ".whole").exists():  # of a run that was killed in the middle of the move
        with locked(folder):
            finish_move(folder)
    return read_json(folder / "dataset.json", "rows columns classes files", "preprocess.py")


def load_split(folder, split, dataset):
    """(images, labels) of one split, checked against what `load_dataset` gave.

    images: uint8 (n, 224, 224, 3), BGR, 0 to 255, a memory map: reading rows costs no memory.
    labels: float32 (n, columns), one-hot.
    """
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
        raise UserError(f"{path} is of another data set or damaged: run preprocess.py again")
    return array


# ---- files that survive a kill: one rule for each folder that a step writes ----
#
# The folder's JSON file lists the folder's files with their CRC-32. It is written last, under
# another name first, and only a run that holds the folder's lock writes there. So what the JSON
# lists is intact, whenever the run is killed. training.py and test.py import this; nothing here
# is about hands.

REMEDIES = {
    errno.EACCES: "; change its permissions, or name another place",
    errno.ENOSPC: "; make room and run the same command again",
    errno.EDQUOT: "; make room and run the same command again",
    errno.EFBIG: "; raise the limit of file sizes and run the same command again",
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
    lock = filelock.FileLock(path, timeout=0, is_singleton=True, fallback_to_soft=False)
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
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{folder} has {free / 1e9:.3f} GB free, {size / 1e9:.3f} GB are to come: {remedy}"
        )


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
    """Around the reading of a file that a step wrote: what is wrong with it becomes a UserError."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run {step} first") from None
    except (PermissionError, UserError):
        raise  # the file may be intact
    except Exception as error:  # whatever a parser makes of foreign bytes
        raise UserError(
            f"{path} is damaged or foreign ({one_line(error)}): run {step} again"
        ) from None


def between(kind, low, high=2**31 - 1):
    """A type for argparse: an int or float from low to high."""

    def parse(text):
        if not low <= (value := kind(text)) <= high:  # nan is not either
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    return parse


def number(count, what):
    """A count in words: "1 image", "2,000 images"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def shown(names):
    """Names in one line, what can't be printed in them escaped."""
    return ", ".join(name if name.isprintable() else repr(name) for name in names)


def one_line(error):
    return " ".join(str(error).split())[:200]


def run_main(main):
    """Run a script's main; a mistake that can be foreseen ends in a message and exit status 1."""
    name = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # file names need not be text
    try:
        main()
    except UserError as error:
        sys.exit(f"{name}: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        sys.exit(f"{name}: {where}{reason}{REMEDIES.get(error.errno, '')}")
    except KeyboardInterrupt as error:
        print(f"{name}: stopped{error}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run_main(main)
