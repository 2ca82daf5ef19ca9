"""Augment photographs of hands: other backgrounds, light, sizes, places and cameras.

`training.py --augment` trains on what this makes. Run by itself it writes
Numpy_folder/augmented.jpg, 48 augmented training images. You should be able to read most hands.

    python asl_data/augment_hands.py
    python asl_data/augment_hands.py --numpy-folder my_arrays --strength 0.3 --seed 1

If a camera stood still, its frames together show the whole background. So the hand can be cut out
(`cut_hands`) and put in front of a drawn background (`draw_background`). Three of four training
images show such a hand, the fourth is a whole photograph. If few hands of a letter can be cut out,
all are whole photographs.
"""

import argparse
import math
import os
import pickle
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from queue import SimpleQueue
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run it as a script
from asl_data.find_images import run_main
from preprocess import HERE, IMAGE_SIZE as SIZE, load_dataset, load_split

EDGE = 5  # pixels cut off at each side: the Kaggle frames have a blue border there
BORDER = cv2.BORDER_REPLICATE  # of a moved picture: a reflection would show a second hand
SKIN = np.array((-0.15, -0.03, 0.15))  # logarithms that turn grey into skin: less blue, more red


# ---- one photograph ----


def augment(image, mask, studio, rng, strength):
    """One photograph as another camera in another place might have taken it.

    image: uint8 (SIZE, SIZE, 3); mask: uint8 (SIZE, SIZE), 1 where the hand is, None to keep the
    background; studio: a Studio; strength: from 0, nearly the same (but a hand with a mask
    gets a grey background), to 1. Returns uint8 (SIZE, SIZE, 3).
    """
    inside = image[EDGE:-EDGE, EDGE:-EDGE]
    if mask is None:
        picture = move_photograph(inside, rng, strength)
    else:
        hand = move_hand(inside, mask[EDGE:-EDGE, EDGE:-EDGE], studio, rng, strength)
        picture = paste(hand, studio, rng, strength)
    return other_camera(picture, studio, rng, strength)


def move_photograph(picture, rng, strength):
    """The whole photograph at another place and of another size: uint8 (SIZE, SIZE, 3)."""
    target = SIZE / 2 + rng.uniform(-0.18, 0.18, 2) * SIZE * strength
    scale = np.exp(rng.uniform(-0.4, 0.6) * strength)
    middle = (SIZE / 2 - EDGE, SIZE / 2 - EDGE)
    move = movement(middle, target, scale, rng, strength)
    return cv2.warpPerspective(picture, move, (SIZE, SIZE), borderMode=BORDER)


def move_hand(picture, mask, studio, rng, strength):
    """The hand at another place, of another size and sometimes bent: uint8 (SIZE, SIZE, 4) of blue,
    green, red, and the mask, here 0 to 255."""
    top, bottom, left, right = fist_box(mask)
    middle, side = ((left + right) / 2, (top + bottom) / 2), max(right - left, bottom - top)
    move = movement(middle, *place_hand(middle, side, rng, strength), rng, strength)
    inner = cv2.erode(mask, None)  # without the edge, whose pixels show the wall too
    hand = cv2.merge([*cv2.split(picture), inner * 255])
    hand = cv2.warpPerspective(hand, move, (SIZE, SIZE), borderMode=BORDER)
    if rng.random() < 0.7 * strength:
        palm = move @ (middle[0], 0.3 * top + 0.7 * bottom, 1)
        bend = studio.bend(palm[:2] / palm[2], rng, strength)
        hand = cv2.remap(hand, bend, None, cv2.INTER_LINEAR, borderMode=BORDER)
    return hand


def fist_box(mask):
    """(top, bottom, left, right) of a hand without its arm, which is the narrow part below."""
    widths = mask.sum(axis=1, dtype=np.int64)
    top = int(np.argmax(widths > 0))
    widest = top + int(np.argmax(widths[top:]))
    narrow = np.flatnonzero(widths[widest:] < 0.65 * widths[widest])
    bottom = widest + int(narrow[0]) if len(narrow) else len(mask)
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    return top, bottom, int(columns[0]), int(columns[-1]) + 1


def place_hand(middle, side, rng, strength):
    """(target, scale) of a hand of another size at another place."""
    wanted = SIZE * np.exp(rng.uniform(np.log(0.25), np.log(1.4)))
    scale = (wanted / side) ** strength
    room = abs(SIZE - 0.9 * side * scale) / 2  # beside the hand, or what is cut off of a large one
    place = SIZE / 2 + rng.uniform(-room, room, 2) + rng.normal(0, 6, 2)
    return place * strength + (np.array(middle) + EDGE) * (1 - strength), scale


def movement(middle, target, scale, rng, strength):
    """The matrix (3, 3) that moves `middle` to `target`, and scales, turns, skews, tilts and
    sometimes mirrors the picture around that point. At full strength, half are mirrored."""
    angle, shear = np.radians(rng.uniform(-25, 25)) * strength, rng.uniform(-0.2, 0.2) * strength
    aspect = np.exp(rng.uniform(-0.2, 0.2) * strength)
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    skew = np.array([(aspect, shear), (0, 1 / aspect)])
    linear = turn @ skew * scale
    if rng.random() < 0.5 * strength:
        linear[:, 0] *= -1
    tilt = rng.uniform(-0.0015, 0.0015, 2) * strength * min(scale, 1)  # less if it shrinks
    to_origin = np.array([(1, 0, -middle[0]), (0, 1, -middle[1]), (0, 0, 1)])
    around_origin = np.array([(*linear[0], 0), (*linear[1], 0), (*tilt, 1)])
    to_target = np.array([(1, 0, target[0]), (0, 1, target[1]), (0, 0, 1)])
    return to_target @ around_origin @ to_origin


def paste(hand, studio, rng, strength):
    """A hand, uint8 (SIZE, SIZE, 4) of blue, green, red, mask, in other light and in front of a
    drawn background: uint8 (SIZE, SIZE, 3)."""
    picture, mask = cv2.cvtColor(hand, cv2.COLOR_BGRA2BGR), cv2.extractChannel(hand, 3)
    light = brightness(picture, mask)
    if rng.random() < 0.25 * strength:  # nearly black, as against a window
        wanted, wall, max_power = rng.uniform(8, 60), rng.uniform(180, 330), 1
    else:
        wanted = light ** (1 - strength) * rng.uniform(20, 215) ** strength
        wall, max_power = rng.uniform(5, 250) * strength + 175 * (1 - strength), 2.8
    tint = rng.normal(0, 0.1, 3) + SKIN * rng.uniform(0, 1.5) * (wanted / 255)
    picture = apply_table(light_table(light, wanted, tint * strength, max_power), picture)
    light = brightness(picture, mask)
    while abs(wall - light) < 15:  # the hand must be darker or lighter than the background
        wall = rng.uniform(5, 250)

    background = studio.background(rng)
    contrast = rng.uniform(0.6, 1.1) * strength
    table = wall + (np.arange(256) - brightness(background)) * contrast
    background = apply_table(table, background)
    if rng.random() < 0.7:
        mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.5, 1.5))
    mask = cv2.merge([mask] * 3)
    picture = cv2.multiply(picture, mask, scale=1 / 255)
    background = cv2.multiply(background, cv2.bitwise_not(mask), scale=1 / 255)
    return cv2.add(picture, background)


def brightness(picture, mask=None):
    return np.mean(cv2.mean(picture, mask)[:3])


def apply_table(table, picture):
    """The picture with each value replaced by that of a table, float (256,), (256, 1 or 3)."""
    return cv2.LUT(picture, np.reshape(table, (1, 256, -1)).clip(0, 255).astype(np.uint8))


def power_table(power):
    """A gamma curve, float (256, 1): below 1 it makes a picture brighter."""
    return 255 * (np.arange(256)[:, None] / 255) ** power


def light_table(light, wanted, tint, max_power):
    """The table, float (256, 3), that makes `light` as bright as `wanted`: a gamma curve, then a
    gain where that leaves it too bright. tint: float (3,), the logarithm of more gain of each
    channel. max_power: of the gamma curve; a larger one hides the fingers of a dark hand."""
    light, wanted = (min(max(value / 255, 0.02), 0.98) for value in (light, wanted))
    power = min(max(np.log(wanted) / np.log(light), 0.35), max_power)
    return power_table(power) * min(1, wanted / light**power) * np.exp(tint)


# ---- another camera ----


def other_camera(picture, studio, rng, strength):
    """The picture, uint8 (SIZE, SIZE, 3), as another camera takes it."""
    gains = np.exp(rng.normal(0, 0.1, 3) * strength)
    table = power_table(np.exp(rng.uniform(-0.4, 0.4) * strength)) * gains
    picture = apply_table(table, picture)
    if rng.random() < 0.5 * strength:  # light and shadow
        light = studio.lights[rng.integers(len(studio.lights))]
        picture = cv2.multiply(picture, light, scale=1 / 128)
    if rng.random() < 0.3 * strength:  # haze
        middle, contrast = rng.uniform(30, 225), rng.uniform(0.22, 0.9)
        picture = apply_table(middle + (np.arange(256) - 128) * contrast, picture)
    if rng.random() < 0.04 * strength:
        picture = 255 - picture
    if rng.random() < 0.15 * strength:
        picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    if rng.random() < 0.3 * strength:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 2))
    if rng.random() < 0.3 * strength:  # fewer pixels
        side = int(rng.integers(50, 170))
        small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        picture = cv2.resize(small, (SIZE, SIZE))
    if rng.random() < 0.5 * strength:
        noise = studio.noise[rng.integers(len(studio.noise))]
        picture = cv2.add(picture, np.roll(noise, int(rng.integers(SIZE)), 0), dtype=cv2.CV_8U)
    if rng.random() < 0.25 * strength:
        hide_patches(picture, rng)
    if rng.random() < 0.15 * strength:
        add_bars(picture, rng)
    return picture


def hide_patches(picture, rng):
    for _ in range(rng.integers(1, 4)):
        corner = rng.integers(-20, SIZE, 2)
        opposite = corner + rng.integers(8, 60, 2)
        color = pick_color(rng).tolist()
        cv2.rectangle(picture, corner.tolist(), opposite.tolist(), color, -1)


def add_bars(picture, rng):
    """Black, white or coloured bars at both sides, or one above."""
    thick, shade = int(rng.integers(4, 50)), rng.random()
    color = pick_color(rng).clip(0, 255) if shade < 0.3 else 255 * (shade > 0.7)
    if rng.random() < 0.6:
        picture[:, :thick] = picture[:, -thick:] = color
    else:
        picture[:thick] = color


# ---- masks: the hand without its background ----
# The thresholds were found on the Kaggle frames, by looking at the masks.

BLOCK = 500  # frames that share a background: the Kaggle scenes end at 1000, 2000 and 2500


def cut_hands(images, letters, names):
    """The mask of each image, uint8 (n, SIZE * SIZE / 8) of packed bits, all 0 where none is found.

    images: uint8 (n, SIZE, SIZE, 3); letters: int (n,); names: their files. The last number in a
    name is the frame's; folders do not count.
    """
    numbers = [re.findall(r"\d+", Path(name).stem) for name in names]
    blocks = np.array([(int(each[-1]) - 1) // BLOCK if each else 0 for each in numbers])
    masks = np.zeros((len(images), SIZE * SIZE // 8), np.uint8)
    with ThreadPoolExecutor() as pool:
        for block in np.unique(blocks):
            for rows in scenes(images, letters, np.flatnonzero(blocks == block)):
                background = find_background(images, rows)
                if background is None:
                    continue
                cuts = pool.map(cut_hand, (images[row] for row in rows), [background] * len(rows))
                found = {row: np.packbits(cut) for row, cut in zip(rows, cuts) if cut is not None}
                if len(found) > 0.2 * len(rows):  # a few may be found by chance
                    masks[list(found)] = list(found.values())
    return masks


def scenes(images, letters, rows):
    """Split rows, int (n,), into groups of letters before the same background. In the set of 24
    letters, frames of one number may have different backgrounds."""
    from sklearn.cluster import AgglomerativeClustering  # takes a second

    found, indices = np.unique(letters[rows], return_inverse=True)
    if len(found) == 1:
        return [rows]
    per_letter = [spread(rows[indices == index], 27) for index in range(len(found))]
    seen = [find_common(sparse(images[some])) for some in per_letter]
    # What the frames of one letter have in common may show its hand: the 25th percentile of the
    # pixels ignores it.
    off = [[np.percentile(difference(a, b, measure_gains(a, b)), 25) for a in seen] for b in seen]
    cluster = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="complete", distance_threshold=9
    )
    groups = cluster.fit_predict(np.add(off, np.transpose(off)) / 2)[indices]
    return [rows[groups == group] for group in np.unique(groups)]


def sparse(images):
    """Every fourth pixel of one image or many: enough to measure the light."""
    return images[..., EDGE:-EDGE:4, EDGE:-EDGE:4, :]


def find_background(images, rows):
    """The background of these frames, uint8 (SIZE, SIZE, 3); None if they share none.

    They share none if there are fewer than 27, or if their brightness relative to the background's
    varies. A moved camera is not noticed: then `cut_hand` finds few hands, or wrong ones if the
    wall is nearly plain.
    """
    if len(rows) < 27:
        return None
    frames = images[spread(rows, 81)]
    background = find_common(frames)
    gains = (sparse(frames) + 1.0) / (sparse(background) + 1.0)
    light = np.log(np.median(gains, axis=(1, 2, 3)))
    return background if np.median(np.abs(light - np.median(light))) < 0.15 else None


def spread(rows, count):
    """`count` of an array's rows, evenly from the first to the last; all if there are fewer."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]


def find_common(frames):
    """What frames, uint8 (n, height, width, 3), show where no hand is: uint8 (height, width, 3).

    A hand is darker or redder than the wall. So at each pixel, the third of the frames with the
    largest 2 * blue - red shows the background (both divided by their 80th percentile there).
    """
    light = frames / (np.percentile(frames, 80, axis=0) + 1)
    order = (2 * light[..., 0] - light[..., 2]).argsort(axis=0)
    third = math.ceil(len(frames) / 3)
    bluest = np.take_along_axis(frames, order[-third:, ..., None], axis=0)
    return np.median(bluest, axis=0).astype(np.uint8)


def cut_hand(image, background):
    """The mask of the hand, uint8 (SIZE, SIZE), 1 or 0; None if it is not certain.

    The hand must be whole, come from below, and stand before a light wall.
    """
    now, known = image[EDGE:-EDGE, EDGE:-EDGE], background[EDGE:-EDGE, EDGE:-EDGE]
    small, small_known = sparse(image), sparse(background)
    # The light is measured twice: with the hand, to find the wall, then on the wall alone.
    is_wall = difference(small, small_known, measure_gains(small, small_known)) < 40
    if is_wall.mean() < 0.3:
        return None
    off = difference(now, known, measure_gains(small[is_wall], small_known[is_wall]))
    differs = cv2.morphologyEx((off > 24).view(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3)))
    count, labels, facts, _ = cv2.connectedComponentsWithStats(differs)
    if count < 2:
        return None
    mask = (labels == 1 + facts[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    _, parts, facts, _ = cv2.connectedComponentsWithStats(1 - mask, connectivity=4)
    mask[facts[parts, cv2.CC_STAT_AREA] < 400] = 1  # holes
    if not 0.04 < mask.mean() < 0.6 or not mask[-3:].any():
        return None
    top, _, left, right = fist_box(mask)
    if min(top, left, len(mask) - right) < 2:
        return None  # a part of it is not in the picture
    light = cv2.cvtColor(known, cv2.COLOR_BGR2GRAY)
    brightest = 245 if brightness(now, mask) > 130 else 255  # a light hand is not seen in a window
    unclear = (light < 95) | (light > brightest)
    if cv2.countNonZero(cv2.dilate(mask, np.ones((7, 7))) & unclear) > 0.01 * mask.sum():
        return None  # before a dark beam or in a window, where its edge is not seen
    return np.pad(mask, EDGE)


def measure_gains(now, known):
    """The gain of each channel, float (3,): the median of now / known."""
    return np.median(((now + 1.0) / (known + 1.0)).reshape(-1, 3), axis=0)


def difference(now, known, gains):
    """How far each pixel is from the background with these gains, uint8 (height, width).

    The largest difference of a channel counts, or 1.25 times that of red - blue: skin differs in
    it even from a wall that is as light.
    """
    background = apply_table(np.arange(256)[:, None] * gains, known)
    blue, _, red = cv2.split(cv2.subtract(now, background, dtype=cv2.CV_16S))
    skin = cv2.convertScaleAbs(red - blue, alpha=1.25)
    blue, green, red = cv2.split(cv2.absdiff(now, background))
    return cv2.max(cv2.max(blue, green), cv2.max(red, skin))


# ---- the studio: what is drawn once, for all photographs ----


class Studio:
    """Backgrounds, lights, noise, and what bends hands, all drawn from a seed."""

    def __init__(self, seed):
        rng = np.random.default_rng((seed, 1))
        self.backgrounds = [draw_background(rng) for _ in range(300)]
        self.lights = [draw_light(rng) for _ in range(40)]
        self.bends = [draw_bend(rng) for _ in range(60)]
        self.finger_spread = draw_finger_spread()
        self.noise = []
        for sigma in np.linspace(2, 22, 12):
            noise = rng.normal(0, sigma, (SIZE, SIZE, 3)).astype(np.float32)
            if rng.random() < 0.5:
                noise = 2 * cv2.GaussianBlur(noise, (0, 0), 0.8)
            self.noise.append(noise.astype(np.int16))

    def bend(self, palm, rng, strength):
        """Source coordinates for cv2.remap, float32 (SIZE, SIZE, 2): bends the hand and spreads or
        closes its fingers around the palm, at (x, y)."""
        bend = self.bends[rng.integers(len(self.bends))]
        x, y = np.clip(palm, 0, SIZE).astype(int)
        # The part of the field whose middle lies at the palm.
        offsets = self.finger_spread[SIZE - y : 2 * SIZE - y, SIZE - x : 2 * SIZE - x]
        return cv2.scaleAdd(offsets, rng.uniform(-0.55, 0.5) * strength, bend)

    def background(self, rng):
        """A background, uint8 (SIZE, SIZE, 3), seldom the same twice: a part of a drawn one. Half
        of them mix two parts, by a third one as a stencil."""
        background = self.part(rng)
        if rng.random() < 0.5:
            other, stencil = self.part(rng), cv2.cvtColor(self.part(rng), cv2.COLOR_BGR2GRAY)
            dark = cv2.compare(stencil, cv2.mean(stencil)[0], cv2.CMP_LT)
            cv2.copyTo(other, dark, background)
        return background

    def part(self, rng):
        background = self.backgrounds[rng.integers(len(self.backgrounds))]
        side = int(rng.integers(SIZE // 3, SIZE + 1))
        left, top = rng.integers(0, SIZE - side + 1, 2)
        part = cv2.resize(background[top : top + side, left : left + side], (SIZE, SIZE))
        return cv2.flip(part, 1) if rng.random() < 0.5 else part


def draw_background(rng):
    """What may lie behind a hand, uint8 (SIZE, SIZE, 3): a wall, and mostly things before it."""
    background = np.full((SIZE, SIZE, 3), pick_color(rng), np.float32)
    if rng.random() < 0.6:
        background += rng.uniform(10, 90) * smooth(rng, 2, 3)
    if rng.random() < 0.4:
        background += rng.uniform(5, 50) * smooth(rng, 4, 12)
    things = (draw_clutter, draw_shapes, draw_grid, draw_person, draw_stripes)
    if rng.random() < 0.8:
        rng.choice(things, p=(0.35, 0.15, 0.15, 0.25, 0.1))(background, rng)
    if rng.random() < 0.6:
        background *= np.exp(rng.uniform(0.1, 1) * texture(rng))
    if rng.random() < 0.4:
        background = cv2.GaussianBlur(background, (0, 0), rng.uniform(0.7, 6))
    return background.clip(0, 255).astype(np.uint8)


def pick_color(rng, most=0.5):
    """A colour, float (3,), mostly near grey; `most` is its largest saturation."""
    saturation = most * rng.random() ** 2
    return rng.uniform(10, 245) * (1 + saturation * rng.uniform(-1, 1, 3))


def smooth(rng, least, most):
    """A smooth field, float32 (SIZE, SIZE, 1 or 3), about -1 to 1, of least to most cells."""
    cells = rng.integers(least, most, 2, endpoint=True)
    field = rng.uniform(-1, 1, (*cells, 3 if rng.random() < 0.3 else 1)).astype(np.float32)
    return cv2.resize(field, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).reshape(SIZE, SIZE, -1)


def texture(rng):
    """Bark, cloth, leaves: a field, float (SIZE, SIZE, 1 or 3), about -2 to 2. It adds fields of
    ever finer cells and ever smaller weight, as in photographs."""
    weights = rng.uniform(0.5, 1) ** np.arange(7)
    weights /= np.linalg.norm(weights)
    return sum(weight * smooth(rng, 2 << n, 4 << n) for n, weight in enumerate(weights))


# Each thing is drawn into a background, float32 (SIZE, SIZE, 3).


def draw_clutter(background, rng):
    """Many things before each other, of a few colours. Their number falls with size ** -3, as in
    photographs ("dead leaves", Lee, Mumford and Huang 2001)."""
    colors = [pick_color(rng, 1.2) for _ in range(rng.integers(2, 9))]
    least, most = rng.uniform(3, 12), rng.uniform(30, 100)  # pixels
    for _ in range(rng.integers(50, 500)):
        size = least / np.sqrt(1 - rng.random() * (1 - (least / most) ** 2))
        color = colors[rng.integers(len(colors))] * rng.uniform(0.6, 1.3)
        draw_shape(background, rng, color, (size * rng.uniform(0.5, 2, 2)).round().astype(int))


def draw_shapes(background, rng):
    """Boxes and discs of any colour."""
    for _ in range(rng.integers(2, 14)):
        draw_shape(background, rng, pick_color(rng), rng.integers(6, 130, 2))


def draw_shape(background, rng, color, sides):
    """A box or a disc, turned, anywhere."""
    color, (width, height) = color.tolist(), sides.tolist()
    x, y = rng.integers(-30, SIZE + 30, 2).tolist()
    angle = int(rng.integers(180))
    if rng.random() < 0.6:
        corners = cv2.boxPoints(((x, y), (width, height), angle)).round().astype(np.int32)
        cv2.fillPoly(background, [corners], color)
    else:
        cv2.ellipse(background, (x, y), (width // 2, height // 2), angle, 0, 360, color, -1)


def draw_grid(background, rng):
    """Shelves, windows, keys: cells of one size between lines."""
    across, down = rng.integers(12, 110, 2).tolist()
    left, top = rng.integers(-60, 60, 2).tolist()
    gap, alike = int(rng.integers(2, 10)), pick_color(rng)
    for y in range(top, SIZE, down):
        for x in range(left, SIZE, across):
            color = (alike * rng.uniform(0.8, 1.2)).tolist()
            cv2.rectangle(background, (x + gap, y + gap), (x + across, y + down), color, -1)


def draw_person(background, rng):
    """A head on shoulders, as behind a hand before a camera."""
    x, y = rng.integers((20, 30), (SIZE - 20, 150)).tolist()
    size = int(rng.integers(22, 75))
    skin = rng.uniform(60, 235) * np.array((0.72, 0.84, 1.0)) * rng.uniform(0.92, 1.08, 3)
    cloth, hair = pick_color(rng).tolist(), (rng.uniform(5, 120) * np.array((0.8, 0.9, 1))).tolist()
    ellipse = partial(cv2.ellipse, background, angle=0, startAngle=0, endAngle=360, thickness=-1)
    ellipse((x, y + 3 * size), (2 * size, int(1.8 * size)), color=cloth)
    neck = (skin * 0.8).tolist()
    cv2.rectangle(background, (x - size // 3, y), (x + size // 3, y + 2 * size), neck, -1)
    ellipse((x, y - size // 4), (size, int(1.2 * size)), color=hair)
    ellipse((x, y), (int(0.8 * size), int(1.1 * size)), color=skin.tolist())
    for side in (-1, 1):  # eyes, then the mouth
        ellipse((x + side * size // 3, y - size // 5), (size // 7, size // 12), color=hair)
    ellipse((x, y + size // 2), (size // 4, size // 12), color=(skin * 0.7).tolist())


def draw_stripes(background, rng):
    """Blinds, boards, stripes of cloth."""
    angle, width = rng.uniform(0, np.pi), rng.uniform(4, 40)
    y, x = np.mgrid[:SIZE, :SIZE]
    wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * np.pi / width)
    background += rng.uniform(10, 60) * np.sign(wave).astype(np.float32)[..., None]


def draw_light(rng):
    """Light and shadow, uint8 (SIZE, SIZE, 3): 128 leaves a pixel as it is."""
    grey = smooth(rng, 2, 3).mean(axis=2, keepdims=True)
    light = (128 + 70 * grey + 12 * smooth(rng, 2, 2)).clip(30, 255)
    return np.full((SIZE, SIZE, 3), light, np.uint8)


def draw_bend(rng):
    """Source coordinates for cv2.remap, float32 (SIZE, SIZE, 2), that bend a hand: other people
    have other fingers."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    far = rng.uniform(3, 14)  # pixels
    x += far * smooth(rng, 3, 6).mean(axis=2)
    y += far * smooth(rng, 3, 6).mean(axis=2)
    return np.dstack([x, y])


def draw_finger_spread():
    """Offsets to source coordinates, float32 (2 * SIZE, 2 * SIZE, 2), for a palm in the middle.
    Times a positive number they close the fingers, times a negative number they spread them.

    At the distance r from the palm and the angle a from upwards, they are r * sin(a) along the
    circle around the palm.
    """
    y, x = np.mgrid[-SIZE:SIZE, -SIZE:SIZE].astype(np.float32)
    return np.dstack([-x * y, x * x]) / np.maximum(1, np.hypot(x, y))[..., None]


# ---- what training takes ----


class Augmentation:
    """The augmented training images of a Numpy_folder: each depends on (seed, epoch, place) and the
    strength only. First `choose_rows` of an epoch, then ask for an `image` at a place there.

    Three of four images show a hand that was cut out, if more than a tenth of each letter's can be.
    masks: those that `cut_hands` found; None to find them.
    """

    def __init__(self, folder, seed, masks=None):
        dataset = load_dataset(folder)
        self.images, labels = load_split(folder, "train", dataset)
        self.folder, self.seed, self.id, self.epoch = folder, seed, dataset["id"], None
        self.columns, self.letters = dataset["columns"], labels.argmax(axis=1)
        names = dataset["rows"]["train"]
        self.masks = cut_hands(self.images, self.letters, names) if masks is None else masks
        found = self.masks.any(axis=1)
        letters = np.unique(self.letters)
        self.letter_rows = [np.flatnonzero(self.letters == letter) for letter in letters]
        self.cut_rows = [rows[found[rows]] for rows in self.letter_rows]
        self.share = 0.75 if min(found[rows].mean() for rows in self.letter_rows) > 0.1 else 0
        if masks is None:
            print(f"{found.sum():,} of {len(found):,} hands can be cut out")
            if not self.share:
                print("less than a tenth of one letter: so all photographs keep their background")

    @cached_property
    def studio(self):
        return Studio(self.seed)

    def choose_rows(self, epoch):
        """The rows of an epoch, int (n,): each letter as often as the others.

        Of each letter the same share of hands is cut out, or the background would tell the letter.
        """
        rng = np.random.default_rng((self.seed, epoch))
        count, more = divmod(len(self.images), len(self.letter_rows))
        order, is_cut = [], []
        for index, (rows, cut_rows) in enumerate(zip(self.letter_rows, self.cut_rows)):
            total = count + (index < more)
            cuts = round(self.share * total)
            order += [sample(rng, cut_rows, cuts), sample(rng, rows, total - cuts)]
            is_cut.append(np.repeat((True, False), (cuts, total - cuts)))
        shuffled = rng.permutation(len(self.images))
        self.epoch, self.is_cut = epoch, np.concatenate(is_cut)[shuffled]
        self.order = np.concatenate(order)[shuffled]
        return self.order

    def image(self, place, strength):
        """The augmented image at a place of the chosen rows, uint8 (SIZE, SIZE, 3)."""
        row, mask = self.order[place], None
        if self.is_cut[place]:
            mask = np.unpackbits(self.masks[row]).reshape(SIZE, SIZE)
        rng = np.random.default_rng((self.seed, self.epoch, place))
        return augment(self.images[row], mask, self.studio, rng, strength)


def sample(rng, rows, count):
    """`count` of the rows, at random, each as often as the others."""
    if not count:
        return rows[:0]
    times = math.ceil(count / len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(times)])[:count]


class Pool:
    """Processes that augment images. Threads of one process would wait for each other in Python.

    They end when this process ends, as their pipes close.
    """

    def __init__(self, augmentation, count):
        self.idle, self.temporary = SimpleQueue(), TemporaryDirectory(prefix="asl-masks-")
        path = Path(self.temporary.name) / "masks.npy"  # which all processes map
        np.save(path, augmentation.masks)
        self.facts = (augmentation.folder, augmentation.id, augmentation.seed, path)
        command = [sys.executable, __file__, "--serve"]
        for _ in range(count):  # in a new session, so Ctrl-C does not reach them
            self.idle.put(Popen(command, stdin=PIPE, stdout=PIPE, start_new_session=True))

    def images(self, epoch, places, strength):
        """The augmented images at these places of an epoch, uint8 (n, SIZE, SIZE, 3)."""
        process = self.idle.get()
        try:
            pickle.dump((self.facts, epoch, places, strength), process.stdin)
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            raise RuntimeError("a process that augments images has ended") from None
        finally:
            self.idle.put(process)


def serve():
    """What each process of a Pool does: augment images until the Pool ends."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what OpenCV prints must not mix with the images
    cv2.setNumThreads(1)  # each core has a process
    augmentation = None
    with suppress(EOFError, BrokenPipeError):
        while True:
            facts, epoch, places, strength = pickle.load(sys.stdin.buffer)
            if augmentation is None:  # at the first batch: the training may end before
                folder, its_id, seed, path = facts
                augmentation = Augmentation(folder, seed, np.load(path, mmap_mode="r"))
                if augmentation.id != its_id:
                    sys.exit(f"{folder} has changed since the training began")
            if epoch != augmentation.epoch:
                augmentation.choose_rows(epoch)
            images = np.stack([augmentation.image(place, strength) for place in places])
            pickle.dump(images, output)
            output.flush()


# ---- a sheet to look at ----


def draw_sheet(augmentation, strength):
    """48 augmented training images, uint8 (6 * SIZE, 8 * SIZE, 3), each with its letter."""
    sheet, font = [], cv2.FontFace("sans")
    for epoch in range(math.ceil(48 / len(augmentation.images))):  # several of a small set
        for place, row in enumerate(augmentation.choose_rows(epoch)[: 48 - len(sheet)]):
            image = augmentation.image(place, strength)
            name = augmentation.columns[augmentation.letters[row]][:8]
            cv2.rectangle(image, (0, 0), (14 + 16 * len(name), 30), (0, 0, 0), -1)
            cv2.putText(image, name, (7, 24), (255, 255, 255), font, 22, 600)
            sheet.append(image)
    return np.vstack([np.hstack(sheet[i : i + 8]) for i in range(0, 48, 8)])


def main(argv=None):
    parser = argparse.ArgumentParser(description="Draw a sheet of augmented photographs.")
    add = parser.add_argument
    about = "what preprocess.py wrote; the sheet goes there (default: Numpy_folder)"
    add("--numpy-folder", type=Path, default=HERE / "Numpy_folder", metavar="DIR", help=about)
    add("--strength", type=float, default=1.0, help="of the augmentation, 0 to 1 (default: 1)")
    add("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    add("--serve", action="store_true", help=argparse.SUPPRESS)  # see Pool
    options = parser.parse_args(argv)
    if options.serve:
        return serve()
    augmentation = Augmentation(options.numpy_folder, options.seed)
    path = options.numpy_folder / "augmented.jpg"
    cv2.imwrite(str(path), draw_sheet(augmentation, options.strength))
    print(f"look at {path}: can you read most hands?")


if __name__ == "__main__":
    run_main(main)
