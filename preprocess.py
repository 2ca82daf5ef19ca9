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

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))  # ahead of cv2; 400 MB an image
try:
    import cv2
except ModuleNotFoundError:
    raise
except ImportError as error:
    sys.exit(
        f"import cv2: {error}; on a server without libGL, either apt-get install libgl1, "
        "or pip uninstall opencv-python and pip install opencv-python-headless"
    )
import filelock
import numpy as np
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
IMAGE_SIZE = 224
LETTERS = "ABCDEFGHIKLMNOPQRSTUVWXY"  # the 24 that are still; J and Z are movements
TRAIN, VALIDATION = 2000, 750  # images per class, the rest is for the test
SPLITS = ("train", "validation", "test")
MAX_BYTES = 2**28  # of an image's file, read or unpacked
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
NOT_CLASSES = ("asl_alphabet_train", "asl_alphabet_test", "new", "demo")  # folders in asl_data/
NOTHING_THERE = f"""no images ({" ".join(SUFFIXES)}) in {{}}; put there
  the Kaggle data set (1 GB)
    curl -L -o asl_data/asl-alphabet.zip \
https://www.kaggle.com/api/v1/datasets/download/grassknoted/asl-alphabet
  or your own photographs, A_1.jpg ..., or, to try the scripts, drawings
    python asl_data/draw_hands.py"""

CURES = {
    errno.EACCES: "change its permissions, or name another place",
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "make room and run the same command again",
    errno.EFBIG: "raise the limit of file sizes and run the same command again",
    errno.EROFS: "name another place",
}


class UserError(Exception):
    """A mistake that the user can mend; `run_main` prints it in place of a traceback."""


def main(argv=None):
    options = parse_options(argv)
    source, listing = find_source(options.data)
    classes = choose_classes(options.classes, listing)
    columns = label_columns(classes)

    random.Random(options.seed).shuffle(listing)
    chosen = [image for image in listing if image[1] in classes]

    folder = options.numpy_folder
    with open_source(source) as read_bytes, new_dataset(folder) as new:
        check_room(folder, len(chosen) * (IMAGE_SIZE * IMAGE_SIZE * 3 + len(columns) * 4))
        splits, unreadable = write_splits(
            new, chosen, columns, read_bytes, options.train, options.validation
        )
        counts = {split: Counter(label for _, label in splits[split]) for split in SPLITS}
        describe_dataset(
            new,
            classes=classes,
            columns=columns,
            image_size=IMAGE_SIZE,
            color_order="BGR",
            split="shuffled",
            seed=options.seed,
            source=str(source),
            counts=counts,
            unreadable=unreadable,
            rows={split: [name for name, _ in splits[split]] for split in SPLITS},
        )
    print_proportions(classes, counts, options.train or TRAIN, options.validation or VALIDATION)
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
    add(
        "--seed",
        type=between(int, 0),
        default=0,
        metavar="N",
        help="order of the images (default: 0)",
    )
    return parser.parse_args(argv)


def between(kind, low, high=2**31 - 1):
    """A type for argparse: an int or float from low to high."""

    def number(text):
        if not low <= (value := kind(text)) <= high:  # nan is not either
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    return number


# ---- the images: where they are, which class each is of ----


def find_source(path):
    """The one source of images, a folder or a zip, and its listing [(name, class)], sorted.

    Without a path, the first thing in asl_data/ that has images, in the order of the docstring.
    """
    data = HERE / "asl_data"
    standard = [data / "new", data, *sorted(data.glob("*.zip")), data / "demo"]
    for source in [path] if path else filter(Path.exists, standard):
        names = list(folder_files(source)) if source.is_dir() else zip_files(source)
        if listing := list_images(names):
            print_source(source, names, listing)
            return source, listing
    raise UserError(NOTHING_THERE.format(path or data))


def folder_files(folder):
    """Names of the files in a folder, relative to it, with "/" between their parts."""

    def refuse(error):
        raise error  # os.walk would pass over what it may not read

    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        below = Path(parent).relative_to(folder)
        if len(below.parts) == 3:  # as deep as the Kaggle archive goes
            folders.clear()
        yield from ((below / file).as_posix() for file in files)


def zip_files(path):
    """Names of the files in a zip."""
    with open_zip(path) as archive:
        names = archive.namelist()
    if twice := len(names) - len(set(names)):
        print(f"{twice:,} names occur again in {path}: the last entry counts")
    return set(names)


def open_zip(path):
    try:
        archive = zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # zipfile raises some ten kinds
        raise UserError(
            f"{path} is neither a folder nor a whole zip archive ({one_line(error)}); "
            "download it again"
        ) from None
    if any(entry.flag_bits & 1 for entry in archive.infolist()):
        raise UserError(f"{path} is encrypted; unpack it and give the folder with --data")
    return archive


def list_images(names):
    """[(name, class)] of the images among the files, sorted by name.

    Of the flat layout and the one with a folder per class, the one with more images counts.
    """
    listing = sorted((name, label) for name in names if (label := class_of(name)))
    flat = [image for image in listing if not set("/\\") & set(image[0])]
    nested = [image for image in listing if set("/\\") & set(image[0])]
    return max(flat, nested, key=len)


def class_of(name):
    """Class of an image file; None if it is not an image or lies elsewhere.

    "A_34.jpg", "A34.jpg", "A (34).jpg" and "asl_alphabet_train/A/A34.jpg" are of class "A".
    """
    name = name.replace("\\", "/")  # in zips of old Windows programs
    path = PurePosixPath(re.sub("^(asl_alphabet_train/){1,2}", "", name))
    if not is_image(path) or len(path.parts) > 2 or path.parts[0] in NOT_CLASSES:
        return None
    nested = len(path.parts) == 2
    label = path.parts[0] if nested else re.split(r"[_\d(]", path.stem)[0].rstrip(" -.")
    if label[:1] in ("", ".", "/") or not label.isprintable():
        return None  # hidden, "..", or from the root
    return label


def is_image(path):
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def print_source(source, names, listing):
    print(f"source {source}: {len(listing):,} images")
    tests = [name for name in names if name.startswith("asl_alphabet_test/")]
    if tests := sum(is_image(PurePosixPath(name)) for name in tests):
        print(f"left out {tests:,} images of asl_alphabet_test: not part of the 3,000 of a class")
    if source.resolve() == HERE / "asl_data" / "demo":
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


@contextmanager
def open_source(source):
    """Give a function from the name of a file in a folder or a zip to its bytes."""
    if source.is_dir():
        yield lambda name: read_file(source / name)
    else:
        with open_zip(source) as archive:
            yield lambda name: read_entry(archive, name)


def read_file(path):
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise OSError("no file")  # a pipe would wait for a writer
    if facts.st_size > MAX_BYTES:
        raise OSError("too large")
    return path.read_bytes()


def read_entry(archive, name):
    entry = archive.getinfo(name)
    if entry.file_size > MAX_BYTES:
        raise OSError("too large")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NotImplementedError("zipfile unpacks it whole, however large")
    with archive.open(entry) as file:
        return file.read(entry.file_size)  # read() would unpack more, if the size is a lie


# ---- the .npy files ----


def deal(listing, train, validation):
    """Share out a shuffled listing as the article does: {split: [(name, class)]}.

    The first images of each class go to training, the next to validation, the rest to test.
    """
    numbers = Counter(label for _, label in listing)
    counts = {label: split_counts(label, numbers[label], train, validation) for label in numbers}
    seen = Counter()
    splits = {split: [] for split in SPLITS}
    for name, label in listing:
        train_count, validation_count = counts[label]
        if seen[label] < train_count:
            splits["train"].append((name, label))
        elif seen[label] < train_count + validation_count:
            splits["validation"].append((name, label))
        else:
            splits["test"].append((name, label))
        seen[label] += 1
    return splits


def split_counts(label, number, train, validation):
    """(training images, validation images) out of a class's number, at least one left for test.

    Counts that are not given are the article's, or its proportions where these do not fit.
    """
    if number > (train or TRAIN) + (validation or VALIDATION):
        return train or TRAIN, validation or VALIDATION
    if train is None and validation is None:
        train = min(number * 8 // 12, number - 2)
    elif train is None:
        train = (number - validation) * 8 // 9
    if validation is None:
        validation = max(1, (number - train) * 3 // 4)
    if train < 1 or number - train - validation < 1:
        raise UserError(
            f"class {label} has {number} images: too few for {max(train, 1)} to train, "
            f"{validation} to validate and 1 to test"
        )
    return train, validation


def write_splits(folder, listing, columns, read_bytes, train, validation):
    """Write the six files; return what went into them, {split: [(name, class)]}, and what could
    not be read, [name]: each such image is skipped and the next one takes its place."""
    classes = {label for _, label in listing}
    unreadable = []
    while True:
        if lost := classes - {label for _, label in listing}:
            raise UserError(f"class {min(lost)} has no image that can be read")
        splits = deal(listing, train, validation)
        bad = write_arrays(folder, splits, columns, read_bytes)
        if not bad:
            return splits, unreadable
        names = ", ".join(name if name.isprintable() else repr(name) for name in bad)
        print(f"skipped {len(bad):,} that can't be read: {names}; dealing again")
        unreadable += bad
        bad = set(bad)
        listing = [image for image in listing if image[0] not in bad]


def write_arrays(folder, splits, columns, read_bytes):
    """Write the six files; return the names of the images that can't be read, for then the files
    have holes at their end and have to be written again."""
    names = [name for split in SPLITS for name, _ in splits[split]]
    images = read_ahead(read_bytes, names)
    images = iter(tqdm(images, total=len(names), unit=" images", disable=None))
    bad = []
    for split in SPLITS:
        shape = (len(splits[split]), IMAGE_SIZE, IMAGE_SIZE, 3)
        with open(folder / f"{split}_set.npy", "wb") as file:
            write_header(file, "|u1", shape)
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


def read_ahead(read_bytes, names):
    """Yield the images in order, read by all cores, a few ahead: memory does not grow."""
    cores = os.cpu_count() or 1
    waiting = deque()
    with ThreadPoolExecutor(cores) as pool:
        for start in range(0, len(names), 16):  # one by one, handing them over takes a fifth
            block = names[start : start + 16]
            waiting.append(pool.submit(read_images, read_bytes, block))
            if len(waiting) > 2 * cores:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def read_images(read_bytes, names):
    return [read_image(read_bytes, name) for name in names]


def read_image(read_bytes, name):
    """An image as uint8 (224, 224, 3), BGR; None if it can't be read."""
    try:
        data = np.frombuffer(read_bytes(name), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        return cv2.resize(image, (IMAGE_SIZE, IMAGE_SIZE))
    except Exception:  # foreign bytes: cv2, zipfile and zlib have some ten kinds of error
        return None


def print_proportions(classes, counts, train, validation):
    """Name the classes that were too small for the counts."""
    asked = {"train": train, "validation": validation}
    small = [
        label for label in classes if any(counts[split][label] != asked[split] for split in asked)
    ]
    if small:
        print(
            f"too few images for {train:,} + {validation:,} + 1: {' '.join(small)}, "
            "dealt in the article's proportions (8 : 3 : 1)"
        )


def print_counts(classes, counts):
    width = max(5, *(len(label) for label in classes))
    print(f"{'class':{width}}  train  validation   test")
    for label in classes:
        train, validation, test = (counts[split][label] for split in SPLITS)
        print(f"{label:{width}}  {train:5,}  {validation:10,}  {test:5,}")
    train, validation, test = (sum(counts[split].values()) for split in SPLITS)
    print(f"{'total':{width}}  {train:5,}  {validation:10,}  {test:5,}")


# ---- Numpy_folder/: written whole or not at all, and read by the later steps ----


@contextmanager
def locked(folder):
    """Keep other runs out of a folder, until the block ends or the process does."""
    folder.mkdir(parents=True, exist_ok=True)
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
        yield
    finally:
        lock.release()


def check_room(folder, size, cure="make room"):
    """Refuse to write `size` bytes in a folder that has no room for them."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{folder} has {free / 1e9:.3f} GB free, {size / 1e9:.3f} GB are to come: {cure}"
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
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir()
        try:
            yield partial
            partial.rename(folder / ".whole")  # from here on the new data set counts
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        finish_move(folder)


def finish_move(folder):
    """Move a whole new data set to its place, also where a killed run left off."""
    whole = folder / ".whole"
    if whole.exists():
        for file in whole.iterdir():
            (folder / file.name).unlink(missing_ok=True)  # ext4 would first write it to the disk
            file.rename(folder / file.name)
        whole.rmdir()


def describe_dataset(folder, **facts):
    """Write dataset.json: the facts, and the CRC-32 of each .npy file."""
    paths = sorted(folder.glob("*.npy"))
    with ThreadPoolExecutor() as pool:
        facts["files"] = {path.name: crc for path, crc in zip(paths, pool.map(crc32, paths))}
    (folder / "dataset.json").write_text(sealed(facts), encoding="utf-8")


def sealed(facts):
    """Facts as JSON, with the CRC-32 that `unsealed` checks."""
    return json.dumps({**facts, "crc32": zlib.crc32(json.dumps(facts).encode())}, indent=1)


def unsealed(text):
    """The facts that `sealed` made a text of; ValueError or KeyError if it is not whole."""
    facts = json.loads(text)
    if facts.pop("crc32") != zlib.crc32(json.dumps(facts).encode()):
        raise ValueError("CRC-32 does not fit")
    return facts


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
        raise  # the file may be whole
    except Exception as error:  # whatever a parser makes of foreign bytes
        raise UserError(
            f"{path} is damaged or foreign ({one_line(error)}): run {step} again"
        ) from None


def load_dataset(folder):
    """dataset.json of a folder that preprocess.py wrote, as a dict; see `main` for its keys."""
    if (folder / ".whole").exists():  # of a run that was killed in the middle of the move
        with locked(folder):
            finish_move(folder)
    path = folder / "dataset.json"
    with reading(path, "preprocess.py"):
        dataset = unsealed(path.read_text(encoding="utf-8"))
        for split in SPLITS:
            len(dataset["rows"][split]), len(dataset["columns"])
            dataset["files"][f"{split}_set.npy"], dataset["files"][f"{split}_classes.npy"]
    return dataset


def load_split(folder, split, dataset):
    """(images, labels) of one split, checked against what `load_dataset` gave.

    images: uint8 (n, 224, 224, 3), BGR, 0 to 255, a memory map: reading rows costs no memory.
    labels: float32 (n, columns), one-hot.
    """
    rows = len(dataset["rows"][split])
    images = load_array(
        folder / f"{split}_set.npy", (rows, IMAGE_SIZE, IMAGE_SIZE, 3), "uint8", dataset
    )
    labels = load_array(
        folder / f"{split}_classes.npy", (rows, len(dataset["columns"])), "float32", dataset
    )
    return images, labels


def load_array(path, shape, dtype, dataset):
    with reading(path, "preprocess.py"):
        array = np.lib.format.open_memmap(path, mode="r")  # np.load would also open zips
    if array.shape != shape or array.dtype != dtype:
        raise UserError(
            f"{path} holds {array.dtype} {array.shape}, not {dtype} {shape}: "
            "run preprocess.py again"
        )
    if crc32(path) != dataset["files"][path.name]:
        raise UserError(f"{path} is of another data set or damaged: run preprocess.py again")
    return array


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
        cure = CURES.get(error.errno, "check the path")
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        sys.exit(f"{name}: {where}{reason}; {cure}")
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run_main(main)
