"""Find the hand in a picture, and the square to cut out around it.

The palm is found by MediaPipe's palm detector (Zhang et al. 2020, "MediaPipe Hands: On-device
Real-time Hand Tracking"; Apache License 2.0). Run by itself this gets the detector, 2.3 MB out of
a package of 36, if it is missing. With pictures, it draws a sheet of them with their squares:

    python asl_data/find_hand.py
    python asl_data/find_hand.py my_photos      # look at Numpy_folder/hands.jpg
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from threading import Lock

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run it as a script
from asl_data.find_images import ASL_DATA, Images, UserError, run_main

DETECTOR = ASL_DATA / "palm_detection_full.tflite"
SHA256 = "1b14e9422c6ad006cde6581a46c8b90dd573c07ab7f3934b5589e7cea3f89a54"
PACKAGE = "mediapipe==0.10.21"  # the last with the detector in it; installed, it would need numpy 1
INPUT = 192  # pixels, the side of the detector's input
FACTOR = 2.6  # side of the square / side of the palm: the square then holds the hand
LOCK = Lock()  # the detector answers one thread at a time


def find_hand(image):
    """The square around the hand: (left, top, side) in pixels, inside the image; None without one.

    image: uint8 (height, width, 3), BGR. Of several hands it is the surest.
    """
    height, width, _ = image.shape
    scale = INPUT / max(height, width)
    across, down = max(1, round(width * scale)), max(1, round(height * scale))
    x0, y0 = (INPUT - across) // 2, (INPUT - down) // 2
    padded = np.zeros((INPUT, INPUT, 3), np.uint8)
    small = cv2.resize(image, (across, down), interpolation=cv2.INTER_AREA)
    padded[y0 : y0 + down, x0 : x0 + across] = small
    with LOCK:
        detector().setInput(cv2.dnn.blobFromImage(padded, 1 / 255, swapRB=True))
        boxes, scores = detector().forward(["Identity", "Identity_1"])
    best = scores.argmax()
    if scores.flat[best] < 0:  # a logit: a probability below 0.5
        return None
    # Centre and size of the palm, then the wrist, the index finger, the root of the middle finger.
    centre, size, wrist, _, finger = boxes[0, best, :10].reshape(5, 2)
    centre = anchors()[best] + centre
    palm = size.max()
    side = FACTOR * palm / scale
    # In so small a square, the hand is often a finger tip.
    if side < 64 or FACTOR * palm < INPUT / 5:
        return None
    side = min(side, height, width)
    fingers = (finger - wrist) / max(np.linalg.norm(finger - wrist), 1e-6)  # the direction to them
    x, y = (centre + fingers * palm / 2 - (x0, y0)) / scale - side / 2
    left, top = min(max(x, 0), width - side), min(max(y, 0), height - side)
    return int(left), int(top), int(side)


@cache
def detector():
    if not DETECTOR.exists():
        raise UserError(f"{DETECTOR.name} is missing: python asl_data/find_hand.py gets it")
    # By its newer engine, OpenCV 5.0 gives only one of the two outputs.
    return cv2.dnn.readNetFromTFLite(str(DETECTOR), cv2.dnn.ENGINE_CLASSIC)


@cache
def anchors():
    """Centres of the detector's anchors in its input, float (2016, 2), pixels: two at each of
    24x24 places, then six at each of 12x12."""
    grids = []
    for cells, each in ((24, 2), (12, 6)):
        y, x = (np.mgrid[:cells, :cells] + 0.5) * INPUT / cells
        grids.append(np.dstack([x, y]).reshape(-1, 2).repeat(each, axis=0))
    return np.concatenate(grids)


def middle_square(image):
    """(left, top, side) of the largest square in the middle."""
    height, width, _ = image.shape
    side = min(height, width)
    return (width - side) // 2, (height - side) // 2, side


def cut_out(image, square):
    left, top, side = square
    return image[top : top + side, left : left + side]


def crop_hand(image):
    """The square around the hand, else the one in the middle, as an image."""
    return cut_out(image, find_hand(image) or middle_square(image))


def get_detector():
    """Download the package, that of Linux on every system, and keep the detector alone."""
    with tempfile.TemporaryDirectory() as folder:
        options = ("--no-deps", "--only-binary=:all:", "--python-version", "3.12")
        options += ("--platform", "manylinux_2_28_x86_64", "--dest", folder, PACKAGE)
        if subprocess.run([sys.executable, "-m", "pip", "download", *options]).returncode:
            raise UserError(f"pip cannot download {PACKAGE}")
        (wheel,) = Path(folder).iterdir()
        data = zipfile.ZipFile(wheel).read(f"mediapipe/modules/palm_detection/{DETECTOR.name}")
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise UserError(f"{PACKAGE} has another {DETECTOR.name} than it should")
    DETECTOR.write_bytes(data)
    print(f"wrote {DETECTOR}")


def draw_sheet(images, names):
    """Pictures with the squares that are cut out, uint8 (n * 224, 6 * 224, 3); a grey one is the
    middle, where no hand was found."""
    tiles = []
    for name in names:
        image = images.read(name)
        if image is None:
            continue
        found = find_hand(image)
        left, top, side = found or middle_square(image)
        color = (0, 255, 0) if found else (128, 128, 128)
        thick = 1 + max(image.shape) // 80
        corner = (left + side, top + side)
        image = cv2.rectangle(image, (left, top), corner, color, thick)
        scale = 224 / max(image.shape[:2])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        down, right = 224 - image.shape[0], 224 - image.shape[1]
        tiles.append(cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_CONSTANT))
    if not tiles:
        raise UserError("there is no image")
    tiles += [np.zeros((224, 224, 3), np.uint8)] * (-len(tiles) % 6)
    return np.vstack([np.hstack(tiles[row : row + 6]) for row in range(0, len(tiles), 6)])


def main(argv=None):
    parser = argparse.ArgumentParser(description="Get the hand detector; look at what it finds.")
    about = "folder, zip or picture, for a sheet of up to 48 pictures (default: none)"
    parser.add_argument("pictures", nargs="?", type=Path, metavar="PATH", help=about)
    options = parser.parse_args(argv)
    if not DETECTOR.exists():
        get_detector()
    if options.pictures:
        images = Images(options.pictures)
        names = images.names[:: len(images.names) // 48 + 1]
        path = ASL_DATA.parent / "Numpy_folder" / "hands.jpg"
        cv2.imwrite(str(path), draw_sheet(images, names))
        print(f"look at {path}")


if __name__ == "__main__":
    run_main(main)
