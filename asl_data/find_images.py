"""Find images of letters, and the class of each, in a folder or a zip, however it is laid out.

preprocess.py and test.py use this. Run by itself it prints the classes:

    python asl_data/find_images.py my_photos
    python asl_data/find_images.py archive.zip --classes A B C
"""

import argparse
import re
import string
import sys
import unicodedata
import zipfile
import zlib
from collections import defaultdict
from functools import cache
from glob import glob
from itertools import zip_longest
from os.path import commonprefix
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

ASL_DATA = Path(__file__).resolve().parent
ALPHABET = set(string.ascii_uppercase)
KAGGLE_CLASSES = ALPHABET | {"del", "nothing", "space"}
SUFFIXES = tuple(".jpg .jpeg .jpe .jfif .png .bmp .webp .tif .tiff .gif .avif".split())
SUFFIXES += (".heic", ".heif", ".dng", ".cr2", ".nef", ".arw", ".mov", ".mp4")  # some are JPEGs
UNREADABLE = "damaged, or no image that OpenCV can read: convert HEIC to .jpg"
NO_IMAGES = """no images in {}. Put there
  the Kaggle data set (1 GB)
    curl -L -o asl_data/asl-alphabet.zip \
https://www.kaggle.com/api/v1/datasets/download/grassknoted/asl-alphabet
  or your own photographs, A_1.jpg ... or A/1.jpg ..., or, to try the scripts, drawings
    python asl_data/draw_hands.py"""


class UserError(Exception):
    """An error that the user can mend: run_main prints it without a traceback."""


def run_main(main):
    """Run the main function of a script; an error that the user can mend ends it in a message."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except UserError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        goes_on = "; the same command, without --fresh, goes on" if name == "training.py" else ""
        sys.exit(f"{name}: stopped{goes_on}")
    except Exception as error:  # TensorFlow and JAX have no common class for out of memory
        if not re.search(r"\bOOM\b|RESOURCE_EXHAUSTED", str(error)):
            raise
        sys.exit(f"{name}: out of memory: training.py needs less with a smaller --batch-size")


class Images:
    """The images of a folder, of a zip, which is read in place, or of a single file.

    names: their paths in the folder or zip, sorted.
    """

    def __init__(self, path):
        self.path, self.zip, self.stretched = path, None, False
        if path.is_dir():
            found = glob("**", root_dir=path, recursive=True)  # also behind links to folders
            found = [Path(name).as_posix() for name in found]
        elif zipfile.is_zipfile(path):
            self.zip = zipfile.ZipFile(path)
            found = self.zip.namelist()
        elif path.is_file() and path.suffix.lower() in SUFFIXES:
            self.path, found = path.parent, [path.name]
        elif not path.exists():
            raise UserError(f"{path} is not there")
        else:
            raise UserError(f"{path} is no image and no complete zip: unpack it or load it again")
        # Names that begin with a dot, as ._A1.jpg, are what macOS leaves in a zip.
        found = [name for name in sorted(found) if not PurePosixPath(name).name.startswith(".")]
        self.names = [name for name in found if name.lower().endswith(SUFFIXES)]

    def leave_out(self, names, why):
        if names:
            print(f"left out {len(names):,}: {why} (such as {names[0]})")
            self.names = sorted(set(self.names) - set(names))

    def read(self, name):
        """The image, uint8 (height, width, 3), BGR; None if OpenCV cannot read it."""
        try:
            data = self.zip.read(name) if self.zip else (self.path / name).read_bytes()
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except (cv2.error, zipfile.BadZipFile, zlib.error):  # cv2: empty, or over 2**30 pixels
            image = None
        if image is not None and image.dtype != np.uint8:  # else 12 bits of 16 are nearly black
            image = (image * (255 / max(image.max(), 1))).astype(np.uint8)
            if not self.stretched:
                print(f"16-bit images: the brightest value of each becomes 255 (such as {name})")
            self.stretched = True
        return image


def find_images(path):
    """The Images of --data or, without it, of the first place in asl_data/ that has any."""
    files = sorted(ASL_DATA.glob("*.*"))
    zips = [file for file in files if zipfile.is_zipfile(file) or file.suffix.lower() == ".zip"]
    places = [ASL_DATA / "new", ASL_DATA, *zips, ASL_DATA / "demo"]
    places = [path] if path else list(filter(Path.exists, places))
    for place in places:
        images = Images(place)
        others = [name for name in images.names if "asl_alphabet_test/" in name]
        images.leave_out(others, "test images of the archive, which the article does not use")
        if place.resolve() == ASL_DATA.resolve():  # the drawings count only where nothing else is
            images.names = [name for name in images.names if not name.startswith("demo/")]
        if images.names:
            print(f"source {place}: {len(images.names):,} images")
            return images
    inside = f"no images in {path}: unpack archives that are in it"
    raise UserError(inside if path else NO_IMAGES.format(ASL_DATA))


# ---- the class of each image ----

TOKEN = re.compile(r"\d+|[^_\-\s\d()\[\]{}]+")


@cache
def plain(name):
    """One spelling of a name: "A" of "a " and "A", "del" of "Del"."""
    name = unicodedata.normalize("NFC", name.strip()).casefold()
    return name.upper() if len(name) == 1 else name


def file_tokens(name):
    """The parts of a file name: of "me/10_a.jpg" ["10", "A"]."""
    return [plain(token) for token in TOKEN.findall(name.rpartition("/")[2].split(".")[0])]


def name_parts(name):
    """The folders, nearest first, and the parts of a file name: of "me/B/hand1_a.jpg" ["B", "me"]
    and ["hand", "A"]."""
    folders = list(map(plain, name.split("/")[:-1]))
    return folders[::-1], [part for part in file_tokens(name) if not part.isdecimal()]


def possible_classes(name, classes, others=()):
    """The classes that an image may have: mostly one, [] if none.

    The nearest folder with the name of a class, or of another Kaggle class, decides. Without such a
    folder, the file name decides, unless the image is in one of the `others` folders.
    """
    folders, parts = name_parts(name)
    for folder in folders:
        if folder in classes:
            return [folder]
        if folder in KAGGLE_CLASSES:
            return []  # of another class
    return sorted(set(parts) & set(classes)) if set(others).isdisjoint(folders) else []


def label_images(names, classes):
    """{file name: its class, or None}"""
    others = set()  # folders beside those of the classes: hello/3a4.jpg, beside A/, is no A
    for depth in zip_longest(*(name_parts(name)[0][::-1] for name in names)):
        if not set(classes).isdisjoint(depth):
            others |= set(depth)
    found = {name: possible_classes(name, classes, others) for name in names}
    for name, labels in found.items():
        if len(labels) > 1:
            raise UserError(f"is {name} {' or '.join(labels)}? Put it in a folder of its class")
    return {name: labels[0] if labels else None for name, labels in found.items()}


def name_levels(names):
    """{("folder" or "part", place): {file name: the name there}}; folder 0 is the nearest."""
    levels = defaultdict(dict)
    for name in names:
        for kind, found in zip(("folder", "part"), name_parts(name)):
            for place, label in enumerate(found):
                levels[kind, place][name] = label
    return levels


def choose_classes(wanted, names):
    """(the wanted classes, sorted; {file name: its class or None})

    `all` takes the names at the level, of folders or in file names, that has most of the 26
    letters. With fewer than two letters, it takes the images' own folders or, if all images are in
    one folder, the first part of the file names.
    """
    levels = name_levels(names)
    letters = {level: len(ALPHABET & set(levels[level].values())) for level in sorted(levels)}
    best = [level for level in letters if letters[level] == max(letters.values()) > 1]
    if not best:
        folders = set(levels["folder", 0].values())
        best = [("folder", 0) if len(folders) > 1 else ("part", 0)]
    there = sorted(set(levels[best[0]].values()))
    classes = there if wanted == ["all"] else sorted(set(map(plain, wanted)))

    labels = label_images(names, classes)
    for level in best if wanted == ["all"] else []:
        for name, label in levels[level].items():
            if label in ALPHABET and labels[name] != label:
                raise UserError(f"all: is {name} {labels[name]} or {label}? Name the --classes")
    for label in classes:
        if label not in labels.values():
            raise UserError(f"no image of class {label}; there are {' '.join(there[:40])}")
    if len(classes) < 2:
        raise UserError("one class leaves nothing to learn: see --classes")
    return classes, labels


def top_folders(listing):
    """For each image the person or day that it is of: its first folder below those that all images
    share, folders of classes apart. In 10_A_1.jpg, the parts before the class count as folders."""
    paths = []
    for name, label in listing:
        folders, _ = name_parts(name)  # the nearest first
        if label in folders:
            folders.remove(label)  # once: another one may be a person
        tokens = file_tokens(name)
        before = tokens[: tokens.index(label)] if label in tokens else []
        paths.append(folders[::-1] + before)
    depth = len(commonprefix(paths))
    return ["".join(path[depth : depth + 1]) for path in paths]


def main(argv=None):
    parser = argparse.ArgumentParser(description="Print the classes of images.")
    about = "folder or zip of images (default: search asl_data)"
    parser.add_argument("data", nargs="?", type=Path, metavar="PATH", help=about)
    about = "names, or all (default: all)"
    parser.add_argument("--classes", nargs="+", default=["all"], help=about)
    options = parser.parse_args(argv)
    images = find_images(options.data)
    classes, labels = choose_classes(options.classes, images.names)
    for label in classes:
        names = [name for name in images.names if labels[name] == label]
        print(f"{label:10} {len(names):,} images, such as {names[0]}")
    images.leave_out([name for name in images.names if not labels[name]], "of other classes")
    folders = set(top_folders([(name, labels[name]) for name in images.names]))
    print("folders for --split by-folder:", *sorted(folders))


if __name__ == "__main__":
    run_main(main)
