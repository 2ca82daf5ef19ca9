"""How well a network reads validation frames changed in other ways than `--vary` changes them.

    python preprocess.py --split in-order
    python training.py --vary
    python tests/changed.py

For choosing between variations, without other people's hands: these stay the examiner. The hands
are cut out and put before photographs that are installed with scikit-learn (a pagoda, a flower)
and matplotlib (a face with a flag), which no network was trained on. They are cut out as `--vary`
does it, so compare networks with one commit of this, and as their edges are those of training,
hands before a room of their own may be harder. Prints the accuracy for each change, of all and of
each letter, of the frames whose hand could be cut out; with --sheet FILE draws nine of each.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from asl_data import vary_hands
from preprocess import HERE, between, load_dataset, load_split, run_main
from test import check_classes, load_model
from training import load_class_names

import cv2
import matplotlib
import numpy as np
from sklearn.datasets import load_sample_images

SIZE, EDGE = vary_hands.SIZE, vary_hands.EDGE


def place(image, hand, rng, size, behind):
    """The hand, `size` of the picture wide or high, somewhere before what is behind it."""
    image, hand = (np.ascontiguousarray(each[EDGE:-EDGE, EDGE:-EDGE]) for each in (image, hand))
    top, bottom, left, right = vary_hands.fist_box(hand)
    scale = size * SIZE / max(right - left, bottom - top)
    x, y = rng.uniform(size * SIZE / 2, SIZE - size * SIZE / 2, 2)
    x, y = x - scale * (left + right) / 2, y - scale * (top + bottom) / 2
    move = np.float32([(scale, 0, x), (0, scale, y)])
    how = {"dsize": (SIZE, SIZE), "borderMode": cv2.BORDER_REPLICATE}
    mask = cv2.warpAffine(cv2.erode(hand, None) * 255, move, **how)
    picture = cv2.warpAffine(image, move, **how)
    mask = cv2.GaussianBlur(mask, (0, 0), 0.8)[..., None] / 255
    return picture * mask + behind(rng) * (1 - mask)


def part(photograph, rng):
    """A square of a photograph, another one each time."""
    side = int(rng.uniform(0.4, 1) * min(photograph.shape[:2]))
    top, left = (rng.integers(0, length - side + 1) for length in photograph.shape[:2])
    square = photograph[top : top + side, left : left + side]
    return cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def moved(image, hand, rng):
    """Blurred by a movement of 15 pixels."""
    kernel, angle = np.zeros((15, 15), np.float32), rng.uniform(0, np.pi)
    far = (round(7 * np.cos(angle)), round(7 * np.sin(angle)))
    cv2.line(kernel, (7 - far[0], 7 - far[1]), (7 + far[0], 7 + far[1]), 1)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def lit(image, hand, rng):
    """In the dark but for a spot of light."""
    y, x = np.mgrid[:SIZE, :SIZE]
    far = np.hypot(x - rng.uniform(0, SIZE), y - rng.uniform(0, SIZE))
    return image * (1.6 * np.exp(-((far / 120) ** 2)) + 0.25)[..., None]


def turned(image, hand, rng):
    """By 35 degrees; --vary turns by 25 at most, and skews and tilts."""
    move = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), rng.choice((-35, 35)), 1)
    image = cv2.resize(image[EDGE:-EDGE, EDGE:-EDGE], (SIZE, SIZE))
    return cv2.warpAffine(image, move, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)


def few_bytes(image, hand, rng):
    return cv2.imdecode(cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 8))[1], 1)


def changes():
    """{name: a function of (image, hand, rng)}: uint8 (SIZE, SIZE, 3), hand of 1 and 0."""
    pagoda, flower = (photograph[..., ::-1] for photograph in load_sample_images().images)
    samples = Path(matplotlib.get_data_path()) / "sample_data"
    face = cv2.imread(str(samples / "grace_hopper.jpg"))[:450]
    behind = {
        "a white wall": lambda rng: 235,
        "a photograph": lambda rng: part((pagoda, flower)[rng.integers(2)], rng),
        "a face": partial(part, face),
    }
    found = {
        "as it is": lambda image, hand, rng: image,
        "moved": moved,
        "JPEG of quality 8": few_bytes,
        "a spot of light": lit,
        "of 4 shades": lambda image, hand, rng: image // 64 * 64 + 32,
        "turned by 35 degrees": turned,
    }
    for what, draw in behind.items():
        for size in (0.9, 0.7, 0.5, 0.35):
            name = f"{size} of the picture before {what}"
            found[name] = partial(place, size=size, behind=draw)
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, name in (("--numpy-folder", "Numpy_folder"), ("--weights-full", "Weights_Full")):
        about = f"(default: {name} beside the scripts)"
        parser.add_argument(option, type=Path, default=HERE / name, metavar="DIR", help=about)
    about = "frames of each letter (default: 150)"
    parser.add_argument("--count", type=between(int, 3), default=150, help=about)
    about = "draw nine frames of each change (default: draw none)"
    parser.add_argument("--sheet", type=Path, metavar="FILE", help=about)
    options = parser.parse_args(argv)
    dataset = load_dataset(options.numpy_folder)
    network = load_class_names(options.weights_full)
    check_classes(network, dataset)
    model = load_model(options.weights_full, network, options.weights_full / "model_weights.h5")
    images, labels = load_split(options.numpy_folder, "validation", dataset)
    columns, rng = labels.argmax(axis=1), np.random.default_rng(7)
    hands = vary_hands.cut_hands(images, columns, dataset["rows"]["validation"])
    free = np.flatnonzero(hands.any(axis=1))
    letters = np.unique(columns[free])
    rows = [rng.permutation(free[columns[free] == c])[: options.count] for c in letters]
    rows = np.concatenate(rows) if rows else sys.exit("no hand can be cut out")
    hands = [np.unpackbits(hands[row]).reshape(SIZE, SIZE) for row in rows]
    names = [dataset["columns"][column] for column in letters]
    print(f"{len(rows)} frames; accuracy of all, of {', '.join(names)}")
    sheet = []
    for name, change in changes().items():
        rng = np.random.default_rng(11)
        changed = np.stack(
            [
                np.clip(change(np.array(images[row]), hand, rng), 0, 255).astype(np.uint8)
                for row, hand in zip(rows, hands)
            ]
        )
        sheet.append(np.hstack(changed[np.linspace(0, len(rows) - 1, 9).astype(int)]))
        right = model.predict(changed, batch_size=32, verbose=0).argmax(axis=1) == columns[rows]
        each = [right[columns[rows] == column].mean() for column in letters]
        print(f"{name:40} {right.mean():.3f}  ", *(f"{value:.2f}" for value in each), flush=True)
    if options.sheet:
        cv2.imwrite(str(options.sheet), np.vstack(sheet))


if __name__ == "__main__":
    run_main(main)
