"""How well a network reads validation frames changed in set ways, most unlike `--augment`'s.

    python preprocess.py --split in-order
    python training.py --augment
    python tests/changed.py [--find-hand]

For choosing between augmentations, so that other people's hands remain an unseen test. Some hands
are put before photographs that come with scikit-learn (a pagoda, a flower) and matplotlib (a face).
Hands are cut out as by `--augment`, so compare networks with one commit of the repository. Prints
the accuracy for each change, of all and of each letter.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from asl_data import augment_hands
from asl_data.find_images import run_main
from preprocess import load_dataset, load_split, resize
from test import check_data, load_network, predict
from training import add_folders

import cv2
import matplotlib
import numpy as np
from sklearn.datasets import load_sample_images

SIZE, EDGE = augment_hands.SIZE, augment_hands.EDGE


def put_before(image, mask, rng, size, behind):
    """The hand, `size` of the picture wide or high, somewhere before what is behind it."""
    image, mask = image[EDGE:-EDGE, EDGE:-EDGE], mask[EDGE:-EDGE, EDGE:-EDGE]
    top, bottom, left, right = augment_hands.fist_box(mask)
    scale = size * SIZE / max(right - left, bottom - top)
    room = abs(1 - size) * SIZE / 2  # beside the hand, or what is cut off of a large one
    x, y = SIZE / 2 + rng.uniform(-room, room, 2)
    to_x, to_y = x - scale * (left + right) / 2, y - scale * (top + bottom) / 2
    move = np.float32([(scale, 0, to_x), (0, scale, to_y)])
    how = {"dsize": (SIZE, SIZE), "borderMode": cv2.BORDER_REPLICATE}
    mask = cv2.warpAffine(cv2.erode(mask, None) * 255, move, **how)
    picture = cv2.warpAffine(image, move, **how)
    mask = cv2.GaussianBlur(mask, (0, 0), 0.8)[..., None] / 255
    return picture * mask + behind(rng) * (1 - mask)


def part(photograph, rng):
    """A square of a photograph, another one each time."""
    side = int(rng.uniform(0.4, 1) * min(photograph.shape[:2]))
    top, left = (rng.integers(0, length - side + 1) for length in photograph.shape[:2])
    square = photograph[top : top + side, left : left + side]
    return cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def moved(image, mask, rng):
    """Blurred by a movement of 15 pixels."""
    kernel, angle = np.zeros((15, 15), np.float32), rng.uniform(0, np.pi)
    far = (round(7 * np.cos(angle)), round(7 * np.sin(angle)))
    cv2.line(kernel, (7 - far[0], 7 - far[1]), (7 + far[0], 7 + far[1]), 1)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def lit(image, mask, rng):
    """In the dark but for a spot of light."""
    y, x = np.mgrid[:SIZE, :SIZE]
    far = np.hypot(x - rng.uniform(0, SIZE), y - rng.uniform(0, SIZE))
    return image * (1.6 * np.exp(-((far / 120) ** 2)) + 0.25)[..., None]


def turned(image, mask, rng):
    """By 35 degrees; --augment turns by 25 at most, and skews and tilts."""
    move = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), rng.choice((-35, 35)), 1)
    image = cv2.resize(image[EDGE:-EDGE, EDGE:-EDGE], (SIZE, SIZE))
    return cv2.warpAffine(image, move, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)


def mirrored(image, mask, rng):
    """A left hand, or a camera that records as a mirror shows."""
    return image[:, ::-1]


def over_exposed(image, mask, rng):
    """A hand as white as the wall behind it, or whiter."""
    light = image * (300 / image[mask > 0].mean())
    return put_before(np.clip(light, 0, 255), mask, rng, 0.8, lambda rng: 215)


def thumb(image, mask, rng):
    """A corner of the fist, where its thumb may be, drawn out sideways or upwards."""
    top, bottom, left, right = augment_hands.fist_box(mask)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    corner = rng.choice((left, right)), top + 0.3 * (bottom - top)
    away = (np.sign(corner[0] - (left + right) / 2), 0) if rng.random() < 0.5 else (0, -1)
    angle = np.clip(np.hypot(x - corner[0], y - corner[1]) / 40, 0, np.pi / 2)
    far = 0.3 * (right - left) * np.cos(angle)
    source = np.dstack([x - far * away[0], y - far * away[1]]).astype(np.float32)
    return cv2.remap(image, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def few_bytes(image, mask, rng):
    return cv2.imdecode(cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 8))[1], 1)


def changes():
    """{name: function of (image, mask, rng) to the changed image, uint8 or float}.

    image: uint8 (SIZE, SIZE, 3); mask: uint8 (SIZE, SIZE), 1 where the hand is.
    """
    pagoda, flower = (photograph[..., ::-1] for photograph in load_sample_images().images)
    samples = Path(matplotlib.get_data_path()) / "sample_data"
    face = cv2.imread(str(samples / "grace_hopper.jpg"))[:450]
    behind = {
        "a white wall": lambda rng: 235,
        "a photograph": lambda rng: part((pagoda, flower)[rng.integers(2)], rng),
        "a face": partial(part, face),
    }
    found = {
        "as it is": lambda image, mask, rng: image,
        "moved": moved,
        "JPEG of quality 8": few_bytes,
        "a spot of light": lit,
        "of 4 shades": lambda image, mask, rng: image // 64 * 64 + 32,
        "turned by 35 degrees": turned,
        "mirrored": mirrored,
        "over-exposed": over_exposed,
        "the thumb drawn out": thumb,
    }
    for what, draw in behind.items():
        for size in (1.3, 0.9, 0.7, 0.5, 0.35):
            name = f"{size} of the picture before {what}"
            found[name] = partial(put_before, size=size, behind=draw)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folders(parser)
    add = parser.add_argument
    add("--weights", type=Path, metavar="FILE", help="(default: as test.py)")
    add("--find-hand", action="store_true", help="cut the hand out (default: read the whole)")
    add("--count", type=int, default=150, help="frames of each letter (default: 150)")
    about = "draw nine frames of each change (default: draw none)"
    add("--sheet", type=Path, metavar="FILE", help=about)
    options = parser.parse_args()
    model, settings = load_network(options)
    dataset = load_dataset(options.numpy_folder)
    check_data(settings, dataset, options.weights)
    images, labels = load_split(options.numpy_folder, "validation", dataset)
    letters, rng = labels.argmax(axis=1), np.random.default_rng(7)
    packed = augment_hands.cut_hands(images, letters, dataset["rows"]["validation"])
    cut = np.flatnonzero(packed.any(axis=1))
    if not len(cut):
        sys.exit("no hand can be cut out")
    found = np.unique(letters[cut])
    some = [rng.permutation(cut[letters[cut] == letter])[: options.count] for letter in found]
    rows = np.concatenate(some)
    masks = [np.unpackbits(packed[row]).reshape(SIZE, SIZE) for row in rows]
    names = [dataset["columns"][letter] for letter in found]
    print(f"{len(rows)} frames; accuracy of all, of {', '.join(names)}")
    sheet = []
    for name, change in changes().items():
        rng, changed = np.random.default_rng(11), []
        for row, mask in zip(rows, masks):
            image = change(np.array(images[row]), mask, rng)
            changed.append(np.clip(image, 0, 255).astype(np.uint8))
        if options.find_hand:
            changed = [resize(image, find_hand=True) for image in changed]
        sheet.append(np.hstack(changed[:: max(1, len(changed) // 9)][:9]))
        right = predict(model, changed).argmax(axis=1) == letters[rows]
        each = [right[letters[rows] == letter].mean() for letter in found]
        print(f"{name:40} {right.mean():.3f}  ", *(f"{value:.2f}" for value in each), flush=True)
    if options.sheet:
        cv2.imwrite(str(options.sheet), np.vstack(sheet))


if __name__ == "__main__":
    run_main(main)
