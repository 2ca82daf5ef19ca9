"""Vary photographs of hands: other rooms, light, sizes, places and cameras.

`training.py --vary` trains on what this makes. Run by itself it writes asl_data/varied.jpg, 48
varied photographs of Numpy_folder/, to look at: you should still be able to read nearly every hand.

    python asl_data/vary_hands.py
    python asl_data/vary_hands.py --numpy-folder my_arrays --strength 0.3 --seed 1

Where a camera stood still, the frames show the empty room too, each a part of it: so the hand can
be cut out (`cut_hands`) and pasted before made-up rooms (`draw_room`). A photograph with no such
neighbours is varied as a whole.
"""

import argparse
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryFile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from preprocess import HERE, IMAGE_SIZE, UserError, between, cores_of_this_process, frame
from preprocess import ending_in_one_line, load_dataset, load_split, replacing, run_main, spread

import cv2  # after preprocess, which says what to do where one of these is missing
import numpy as np

cv2.setNumThreads(1)  # all cores are at work on many images at once
SIZE = IMAGE_SIZE
EDGE = 5  # pixels cut off at each side: the Kaggle frames have a blue border that nothing else has
SPARSE = (slice(EDGE, -EDGE, 4),) * 2  # some of an image's pixels: enough to measure the light
BLOCK = 500  # frame numbers that are one room, as the Kaggle scenes end at 1000, 2000 and 2500
SKIN = np.array((-0.15, -0.03, 0.15))  # what makes grey a skin: less blue, more red
ROOMS = 300  # made-up rooms that are drawn once and then varied

# -----------------------------------------------------------------------------
# what training takes


class Variation:
    """Varied photographs of a data set: each a function of (seed, epoch, place in the epoch).

    Three of four hands are cut out and put into a made-up room, if hands of every letter can be
    cut out: of each letter as many, or a made-up room would tell the letter.
    """

    def __init__(self, images, labels, names, seed):
        """images: uint8 (n, SIZE, SIZE, 3); labels: one-hot (n, columns); names: of the files."""
        self.images, self.seed, self.epoch = images, seed, None
        columns = labels.argmax(axis=1)
        self.hands, self.studio = cut_hands(images, columns, names), Studio(seed, images)
        found = self.hands.any(axis=1)
        self.letters = [np.flatnonzero(columns == column) for column in np.unique(columns)]
        self.free = [rows[found[rows]] for rows in self.letters]  # of their room
        fewest = min(self.letters, key=lambda rows: found[rows].mean())
        self.share = 0.75 if found[fewest].mean() > 0.1 else 0
        print(f"{found.sum():,} of {len(images):,} hands can be cut out", end="")
        file = names[fewest[0]].rpartition("/")[2]
        keep = f", too few of the letter of {file}: the photographs keep their rooms"
        print("" if self.share else keep)

    def draw(self, epoch):
        """Choose the rows of an epoch, int (n,), and which hands are cut out: of each letter as
        many of both."""
        self.epoch, rng = epoch, np.random.default_rng((self.seed, epoch))
        count, more = divmod(len(self.images), len(self.letters))
        rows, cut = [], []
        for place, (letter, free) in enumerate(zip(self.letters, self.free)):
            total = count + (place < more)
            cuts = round(self.share * total)
            rows += [sample(rng, free, cuts), sample(rng, letter, total - cuts)]
            cut += [np.ones(cuts, bool), np.zeros(total - cuts, bool)]
        order = rng.permutation(len(self.images))
        self.rows, self.cut = np.concatenate(rows)[order], np.concatenate(cut)[order]
        return self.rows

    def image(self, place, strength):
        """The varied image at a place of the epoch, uint8 (SIZE, SIZE, 3)."""
        row, hand = self.rows[place], None
        if self.cut[place]:
            hand = np.unpackbits(self.hands[row]).reshape(SIZE, SIZE)
        rng = np.random.default_rng((self.seed, self.epoch, place))
        return vary(self.images[row], hand, self.studio, rng, strength)

    def __getstate__(self):
        """What another process needs, which maps the same file of images."""
        some = np.array(self.images[:3])
        return vars(self) | {"images": self.images.filename, "some": some}

    def __setstate__(self, state):
        images = np.load(state["images"], mmap_mode="r")
        if not np.array_equal(state.pop("some"), images[:3]):
            raise UserError(f"{state['images']} was made anew meanwhile")
        vars(self).update(state, images=images)


def sample(rng, rows, count):
    """`count` of the rows, at random, each as often as the others."""
    times = -(-count // max(1, len(rows)))
    return np.concatenate([rng.permutation(rows) for _ in range(times)] or [rows[:0]])[:count]


# -----------------------------------------------------------------------------
# one photograph, varied


def vary(image, hand, studio, rng, strength):
    """One photograph as another camera, in another room, might have taken it.

    image: uint8 (SIZE, SIZE, 3); hand: uint8 (SIZE, SIZE), 1 where it is cut out, None to vary the
    whole photograph; strength: from 0, almost the same, to 1. A hand that is cut out always gets
    another room, at 0 a plain grey one. Returns uint8 (SIZE, SIZE, 3).
    """
    inside = image[EDGE:-EDGE, EDGE:-EDGE]
    # Outside the picture its edge goes on: a reflection would be a second hand.
    how = {"flags": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REPLICATE}
    if hand is None:
        move = movement((SIZE / 2 - EDGE,) * 2, place_photograph(rng, strength), rng, strength)
        picture = cv2.warpPerspective(inside, move, (SIZE, SIZE), **how)
    else:
        hand = np.ascontiguousarray(hand[EDGE:-EDGE, EDGE:-EDGE])
        top, bottom, left, right = fist_box(hand)
        middle, side = ((left + right) / 2, (top + bottom) / 2), max(right - left, bottom - top)
        move = movement(middle, place_hand(middle, side, rng, strength), rng, strength)
        both = cv2.cvtColor(inside, cv2.COLOR_BGR2BGRA)
        cv2.insertChannel(cv2.erode(hand, None) * 255, both, 3)
        both = cv2.warpPerspective(both, move, (SIZE, SIZE), **how)
        if rng.random() < 0.7 * strength:
            palm = move @ ((left + right) / 2, 0.3 * top + 0.7 * bottom, 1)
            bend = studio.bend(palm[:2] / palm[2], rng, strength)
            both = cv2.remap(both, bend, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        picture, mask = cv2.cvtColor(both, cv2.COLOR_BGRA2BGR), cv2.extractChannel(both, 3)
        picture = paste(picture, mask, studio, rng, strength)
    return photograph(picture, studio, rng, strength)


def fist_box(hand):
    """(top, bottom, left, right) of a hand without its arm, which is what is narrower below."""
    widths = hand.sum(axis=1, dtype=np.int64)
    top = int(np.argmax(widths > 0))
    widest = top + int(np.argmax(widths[top:]))
    narrow = np.flatnonzero(widths[widest:] < 0.65 * widths[widest])
    bottom = widest + int(narrow[0]) if len(narrow) else len(hand)
    columns = np.flatnonzero(hand[top:bottom].any(axis=0))
    return top, bottom, int(columns[0]), int(columns[-1]) + 1


def place_photograph(rng, strength):
    """(middle, scale) for a photograph that keeps its room."""
    shift = rng.uniform(-0.18, 0.18, 2) * SIZE * strength
    return SIZE / 2 + shift, np.exp(rng.uniform(-0.4, 0.6) * strength)


def place_hand(middle, side, rng, strength):
    """(middle, scale) of a hand of another size at another place."""
    wanted = SIZE * np.exp(rng.uniform(np.log(0.25), np.log(1.1)))
    scale = (wanted / side) ** strength
    half = min(0.45 * side * scale, SIZE / 2)
    place = rng.uniform(half, SIZE - half + 1e-9, 2) + rng.normal(0, 6, 2)
    return place * strength + (np.array(middle) + EDGE) * (1 - strength), scale


def movement(middle, target, rng, strength):
    """The matrix (3, 3) that moves `middle` to the target, a (middle, scale), and turns and skews
    about it."""
    (x, y), scale = target
    angle, shear = np.radians(rng.uniform(-25, 25)) * strength, rng.uniform(-0.2, 0.2) * strength
    aspect = np.exp(rng.uniform(-0.2, 0.2) * strength)
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    turn = turn @ np.array([(aspect, shear), (0, 1 / aspect)]) * scale
    if rng.random() < 0.15 * strength:
        turn[:, 0] *= -1
    back = np.array([(1, 0, -middle[0]), (0, 1, -middle[1]), (0, 0, 1)])
    tilt = rng.uniform(-0.0015, 0.0015, 2) * strength * min(scale, 1)
    there = np.array([(*turn[0], 0), (*turn[1], 0), (*tilt, 1)])
    return np.array([(1, 0, x), (0, 1, y), (0, 0, 1)]) @ there @ back


def paste(picture, mask, studio, rng, strength):
    """The hand of a picture, in another light, before a made-up room; mask: uint8 (SIZE, SIZE), how
    much of each place is hand, of 255."""
    light = np.mean(cv2.mean(picture, mask)[:3])
    wanted = light ** (1 - strength) * rng.uniform(20, 215) ** strength
    wall, steepest = rng.uniform(5, 250) * strength + 175 * (1 - strength), 2.8
    if rng.random() < 0.25 * strength:  # nearly black, before a light room
        wanted, wall, steepest = rng.uniform(8, 60), rng.uniform(180, 330), 1
    tint = rng.normal(0, 0.1, 3) + SKIN * rng.uniform(0, 1.5) * (wanted / 255)
    picture = cv2.LUT(picture, light_table(light, wanted, tint * strength, steepest))
    light = np.mean(cv2.mean(picture, mask)[:3])  # as near to the wanted one as it could be

    room = studio.room(rng)
    behind = np.mean(cv2.mean(room)[:3])
    while abs(wall - light) < 15:  # the hand must be darker or lighter, on average
        wall = rng.uniform(5, 250)
    table = wall + (np.arange(256) - behind) * rng.uniform(0.6, 1.1) * strength
    room = cv2.LUT(room, table.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.7:
        mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.5, 1.5))
    mask = cv2.merge([mask] * 3)
    return cv2.add(
        cv2.multiply(picture, mask, scale=1 / 255),
        cv2.multiply(room, cv2.bitwise_not(mask), scale=1 / 255),
    )


def light_table(light, wanted, tint, steepest):
    """The table, uint8 (1, 256, 3), that takes what is as bright as `light` to `wanted`, or towards
    it: by a power from 0.35 to `steepest`, and where that leaves it too light by a factor too.
    tint: float (3,), the logarithm of one more factor for each channel."""
    light, wanted = (min(max(value / 255, 0.02), 0.98) for value in (light, wanted))
    gamma = min(max(np.log(wanted) / np.log(light), 0.35), steepest)
    factor = min(1, wanted / light**gamma) * np.exp(tint)
    table = 255 * (np.arange(256)[:, None] / 255) ** gamma * factor
    return table.clip(0, 255).astype(np.uint8)[None]


def photograph(picture, studio, rng, strength):
    """A picture, uint8 (SIZE, SIZE, 3), through another camera."""
    # At half the strength each of these is half as likely: it happens where its number is small.
    chances = rng.random(9) / max(strength, 1e-9)
    lit, haze, negative, grey, soft, coarse, noisy, patches, bars = chances
    if lit < 0.5:
        light = studio.lights[rng.integers(len(studio.lights))]
        picture = cv2.multiply(picture, light, scale=1 / 128)
    table = 255 * (np.arange(256)[:, None] / 255) ** np.exp(rng.uniform(-0.4, 0.4) * strength)
    table = table * np.exp(rng.normal(0, 0.1, 3) * strength)
    if haze < 0.3:  # or a screen
        table = rng.uniform(30, 225) + (table - 128) * rng.uniform(0.22, 0.9)
    if negative < 0.04:
        table = 255 - table
    picture = cv2.LUT(picture, table.clip(0, 255).astype(np.uint8)[None])
    if grey < 0.15:
        picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return hide(blur(picture, studio, rng, soft, coarse, noisy), rng, patches, bars)


def blur(picture, studio, rng, soft, coarse, noisy):
    """A picture out of focus, of few pixels, with noise, or none of it."""
    if soft < 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 2))
    if coarse < 0.3:
        small = (int(rng.integers(50, 170)),) * 2
        picture = cv2.resize(cv2.resize(picture, small, interpolation=cv2.INTER_AREA), (SIZE, SIZE))
    if noisy < 0.5:
        grain = np.roll(studio.noise[rng.integers(len(studio.noise))], int(rng.integers(SIZE)), 0)
        picture = cv2.add(picture, grain, dtype=cv2.CV_8U)
    return picture


def hide(picture, rng, patches, bars):
    """A picture with patches on it, bars at its sides or above, or none of it."""
    if patches < 0.25:
        for _ in range(rng.integers(1, 4)):
            left, top = rng.integers(-20, SIZE, 2).tolist()
            width, height = rng.integers(8, 60, 2).tolist()
            corner = (left + width, top + height)
            cv2.rectangle(picture, (left, top), corner, pick_color(rng).tolist(), -1)
    if bars < 0.15:
        thick, shade = int(rng.integers(4, 50)), rng.random()
        color = pick_color(rng) if shade < 0.3 else np.full(3, 255.0 * (shade > 0.7))
        if rng.random() < 0.6:
            picture[:, :thick] = picture[:, -thick:] = color.clip(0, 255)
        else:
            picture[:thick] = color.clip(0, 255)
    return picture


# -----------------------------------------------------------------------------
# a hand without its room; the thresholds were found on the Kaggle frames, by looking at the cuts


def cut_hands(images, letters, names):
    """The hand of each image, uint8 (n, SIZE * SIZE / 8) of packed bits, all 0 where none is found.

    images: uint8 (n, SIZE, SIZE, 3); letters: int (n,); names: their files, whose last number is
    the frame's. Photographs of many rooms, as of a telephone, keep them.
    """
    places = [frame((name.rpartition("/")[2], None)) for name in names]  # [..., number, ".jpg"]
    blocks = np.array([max(place[-2] - 1, 0) // BLOCK if place[1:] else 0 for place in places])
    masks = np.zeros((len(images), SIZE * SIZE // 8), np.uint8)
    with ThreadPoolExecutor(cores_of_this_process()) as pool:
        for block in np.unique(blocks):
            for rows in scenes(images, letters, np.flatnonzero(blocks == block)):
                room = find_room(images, rows)
                if room is None:
                    continue
                hands = list(pool.map(packed_hand, (images[row] for row in rows), repeat(room)))
                found = [(row, hand) for row, hand in zip(rows, hands) if hand is not None]
                if len(found) > 0.2 * len(rows):  # else the few may be chance
                    for row, hand in found:
                        masks[row] = hand
    return masks


def scenes(images, letters, rows):
    """The rows, int (n,), in groups of letters before the same room: in the set of 24 letters
    frames of one number may be of different rooms."""
    from sklearn.cluster import AgglomerativeClustering  # takes a second, in each of the processes

    found, places = np.unique(letters[rows], return_inverse=True)
    if len(found) == 1:
        return [rows]
    owns = [rows[places == place] for place in range(len(found))]
    rooms = [empty_room([images[row][SPARSE] for row in spread(own, 27)]) for own in owns]
    # The room of one letter may show much of its hand: so the quarter that differs least counts.
    off = [[np.percentile(difference(a, b, gains(a, b)), 25) for a in rooms] for b in rooms]
    cluster = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="complete", distance_threshold=9
    )
    groups = cluster.fit_predict(np.add(off, np.transpose(off)) / 2)[places]
    return [rows[groups == group] for group in np.unique(groups)]


def find_room(images, rows):
    """The empty room behind these frames, uint8 (SIZE, SIZE, 3); None where there is none.

    In photographs of one room the median brightness hardly changes, in those of many it does. Of
    fewer than 27 that could be chance, so they have no room.
    """
    if len(rows) < 27:
        return None
    frames = spread(rows, 81)
    room = empty_room(images[frames])
    light = np.log(
        [np.median((images[row][SPARSE] + 1.0) / (room[SPARSE] + 1.0)) for row in frames]
    )
    return room if np.median(np.abs(light - np.median(light))) < 0.15 else None


def empty_room(frames):
    """What these frames, uint8 (n, height, width, 3), show where no hand is: uint8, as one of them.

    A hand is darker than the wall, or redder. So of what was seen at a place, the third that has
    the largest 2 * blue - red is the room, both divided by their bright value at that place.
    """
    frames = np.asarray(frames)
    blue, _, red = np.moveaxis(frames / (np.percentile(frames, 80, axis=0) + 1), -1, 0)
    order = (2 * blue - red).argsort(axis=0)
    third = np.take_along_axis(frames, order[-len(frames) // 3 :, ..., None], axis=0)
    return np.median(third, axis=0).astype(np.uint8)


def packed_hand(image, room):
    hand = cut_hand(image, room)
    return None if hand is None else np.packbits(hand)


def cut_hand(image, room):
    """The hand before its empty room, uint8 (SIZE, SIZE), 1 or 0; None where it can't be told.

    The hand must be whole, come from below, and stand before a light wall.
    """
    now, known = image[EDGE:-EDGE, EDGE:-EDGE], room[EDGE:-EDGE, EDGE:-EDGE]
    some, of_these = image[SPARSE], room[SPARSE]
    near = difference(some, of_these, gains(some, of_these)) < 40  # the wall alone: its gains count
    if near.mean() < 0.3:
        return None
    off = difference(now, known, gains(some[near], of_these[near]))
    differs = cv2.morphologyEx((off > 24).view(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3)))
    count, labels, facts, _ = cv2.connectedComponentsWithStats(differs)
    if count < 2:
        return None
    hand = (labels == 1 + facts[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    fill_holes(hand, 400)
    if not 0.04 < hand.mean() < 0.6 or not hand[-3:].any():
        return None
    top, bottom, left, right = fist_box(hand)
    if not (top > 1 and left > 1 and right < len(hand) - 1):
        return None  # a part of it is not in the picture
    light = cv2.cvtColor(known, cv2.COLOR_BGR2GRAY)
    blind = light < 95
    if np.mean(cv2.mean(now, hand)[:3]) > 130:  # a light hand is not seen in a window
        blind |= light > 245
    if cv2.countNonZero(cv2.dilate(hand, np.ones((7, 7))) & blind) > 0.01 * hand.sum():
        return None  # before a dark beam or in a window, where its edge is not seen
    return np.pad(hand, EDGE, mode="edge")  # as large as the image again


def gains(now, known):
    """How much lighter each channel is than it was, float (3,)."""
    return np.median(((now + 1.0) / (known + 1.0)).reshape(-1, 3), axis=0)


def difference(now, known, lighter):
    """How far an image is from the room in this light, uint8: in the channel that differs most, or
    in red less blue, where skin differs even from a wall that is as light."""
    table = (np.arange(256)[:, None] * lighter).clip(0, 255).astype(np.uint8)
    room = cv2.LUT(known, table[None])
    off = cv2.absdiff(now, room)
    off = cv2.max(cv2.max(off[..., 0], off[..., 1]), off[..., 2])
    skin = cv2.absdiff(red_less_blue(now), red_less_blue(room))
    return cv2.max(off, cv2.convertScaleAbs(skin, alpha=1.25))  # a wall hardly changes in it


def red_less_blue(image):
    """How much more red than blue a place has, int16 (height, width), below 0 if it is less."""
    return cv2.subtract(image[..., 2], image[..., 0], dtype=cv2.CV_16S)


def fill_holes(hand, most):
    """Fill, in place, the holes of a mask that have fewer than `most` pixels."""
    count, labels, facts, _ = cv2.connectedComponentsWithStats(1 - hand, connectivity=4)
    for part in range(1, count):
        if facts[part, cv2.CC_STAT_AREA] < most:
            hand[labels == part] = 1


# -----------------------------------------------------------------------------
# the studio; its rooms are blue-green-red, and float32 (SIZE, SIZE, 3) while they are drawn


class Studio:
    """What is drawn once and then used for all photographs: rooms, lights, noise, the bends of
    hands and the fan of their fingers."""

    def __init__(self, seed, images):
        rng = np.random.default_rng((seed, 1))
        self.rooms = [draw_room(rng, images) for _ in range(ROOMS)]
        self.lights = [draw_light(rng) for _ in range(40)]
        self.bends = [draw_bend(rng) for _ in range(60)]
        self.fan = draw_fan()
        self.noise = []
        for sigma in np.linspace(2, 22, 12):
            grain = rng.normal(0, sigma, (SIZE, SIZE, 3)).astype(np.float32)
            if rng.random() < 0.5:
                grain = 2 * cv2.GaussianBlur(grain, (0, 0), 0.8)
            self.noise.append(grain.astype(np.int16))

    def bend(self, palm, rng, strength):
        """Where each pixel of another hand comes from, float32 (SIZE, SIZE, 2): of one that is bent
        and has its fingers wider or less wide apart about its palm, at (x, y)."""
        bend = self.bends[rng.integers(len(self.bends))]
        x, y = np.clip(palm, 0, SIZE).astype(int)
        fan = self.fan[SIZE - y : 2 * SIZE - y, SIZE - x : 2 * SIZE - x]
        return cv2.scaleAdd(fan, rng.uniform(-0.55, 0.5) * strength, bend)

    def room(self, rng):
        """A made-up room, uint8 (SIZE, SIZE, 3), seldom twice the same: a part of a drawn one. In
        half of them another one shows where a stencil, one more room, is darker than its mean."""
        room = self.part_of_a_room(rng)
        if rng.random() < 0.5:
            other, stencil = self.part_of_a_room(rng), self.part_of_a_room(rng)
            stencil = cv2.cvtColor(stencil, cv2.COLOR_BGR2GRAY)
            cv2.copyTo(other, cv2.compare(stencil, cv2.mean(stencil)[0], cv2.CMP_LT), room)
        return room

    def part_of_a_room(self, rng):
        room = self.rooms[rng.integers(ROOMS)]
        side = int(rng.integers(SIZE // 3, SIZE + 1))
        left, top = rng.integers(0, SIZE - side + 1, 2)
        room = cv2.resize(room[top : top + side, left : left + side], (SIZE, SIZE))
        return cv2.flip(room, 1) if rng.random() < 0.5 else room


def draw_room(rng, images):
    """What may lie behind a hand, uint8 (SIZE, SIZE, 3): a wall, and mostly things before it.

    images: photographs, uint8 (n, SIZE, SIZE, 3), of which small pieces are among the things.
    """
    color = pick_color(rng)
    room = np.full((SIZE, SIZE, 3), color, np.float32)
    if rng.random() < 0.6:
        room += rng.uniform(10, 90) * smooth(rng, 2, 3)
    if rng.random() < 0.4:
        room += rng.uniform(5, 50) * smooth(rng, 4, 12)
    things = (draw_clutter, draw_shapes, draw_grid, draw_person, draw_stripes)
    if rng.random() < 0.8:
        things[rng.choice(5, p=(0.35, 0.15, 0.15, 0.25, 0.1))](room, rng)
    if rng.random() < 0.4:
        lay_pieces(room, rng, images)
    if rng.random() < 0.6:
        room *= np.exp(rng.uniform(0.1, 1) * texture(rng))
    if rng.random() < 0.4:
        room = cv2.GaussianBlur(room, (0, 0), rng.uniform(0.7, 6))
    return room.clip(0, 255).astype(np.uint8)


def pick_color(rng, most=0.5):
    """A colour, float (3,): mostly a grey one; the larger `most`, the less of a grey one."""
    saturation = most * rng.random() ** 2
    return rng.uniform(10, 245) * (1 + saturation * rng.uniform(-1, 1, 3))


def smooth(rng, least, most):
    """A smooth field, float32 (SIZE, SIZE, 1 or 3), about -1 to 1, of least to most cells."""
    cells = rng.integers(least, most, 2, endpoint=True)
    field = rng.uniform(-1, 1, (*cells, 3 if rng.random() < 0.3 else 1)).astype(np.float32)
    return cv2.resize(field, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).reshape(SIZE, SIZE, -1)


def texture(rng):
    """Bark, cloth, leaves: a field, float (SIZE, SIZE, 1 or, mostly, 3), about -2 to 2, of coarse
    and fine parts, the finer the weaker, as in photographs. Each part has twice the cells."""
    parts = rng.uniform(0.5, 1) ** np.arange(7)
    parts /= np.linalg.norm(parts)
    return sum(part * smooth(rng, 2 << n, 4 << n) for n, part in enumerate(parts))


def draw_clutter(room, rng):
    """Many things before each other, of a few colours; their number falls with size ** -3, as in
    photographs ("dead leaves", Lee, Mumford and Huang 2001)."""
    colors = [pick_color(rng, 1.2) for _ in range(rng.integers(2, 9))]
    least, most = rng.uniform(3, 12), rng.uniform(30, 100)  # pixels
    for _ in range(rng.integers(50, 500)):
        size = least / np.sqrt(1 - rng.random() * (1 - (least / most) ** 2))
        color = colors[rng.integers(len(colors))] * rng.uniform(0.6, 1.3)
        draw_shape(room, rng, color, (size * rng.uniform(0.5, 2, 2)).round().astype(int))


def lay_pieces(room, rng, images):
    """Pieces of photographs, too small to show a hand: skin and walls as a camera sees them."""
    for _ in range(rng.integers(5, 60)):
        side, size = rng.integers(12, 50), rng.integers(10, 100, 2)
        left, top = rng.integers(EDGE, SIZE - EDGE - side, 2)
        piece = images[rng.integers(len(images))][top : top + side, left : left + side]
        piece = np.rot90(piece, rng.integers(4))
        x, y = rng.integers(1 - size, SIZE)
        part = room[max(0, y) : y + size[1], max(0, x) : x + size[0]]
        part[:] = cv2.resize(piece, part.shape[1::-1])


def draw_shapes(room, rng):
    """Boxes and discs of any colour."""
    for _ in range(rng.integers(2, 14)):
        draw_shape(room, rng, pick_color(rng), rng.integers(6, 130, 2))


def draw_shape(room, rng, color, sides):
    """A box or a disc, turned, anywhere."""
    color, (width, height) = color.tolist(), sides.tolist()
    x, y = rng.integers(-30, SIZE + 30, 2).tolist()
    angle = int(rng.integers(180))
    if rng.random() < 0.6:
        corners = cv2.boxPoints(((x, y), (width, height), angle)).round().astype(np.int32)
        cv2.fillPoly(room, [corners], color)
    else:
        cv2.ellipse(room, (x, y), (width // 2, height // 2), angle, 0, 360, color, -1)


def draw_grid(room, rng):
    """Shelves, windows, keys: cells of one size between lines."""
    across, down = rng.integers(12, 110, 2).tolist()
    left, top = rng.integers(-60, 60, 2).tolist()
    gap, alike = int(rng.integers(2, 10)), pick_color(rng)
    for y in range(top, SIZE, down):
        for x in range(left, SIZE, across):
            color = (alike * rng.uniform(0.8, 1.2)).tolist()
            cv2.rectangle(room, (x + gap, y + gap), (x + across, y + down), color, -1)


def draw_person(room, rng):
    """A head on shoulders, as behind a hand before a camera."""
    x, y = rng.integers((20, 30), (SIZE - 20, 150)).tolist()
    size = int(rng.integers(22, 75))
    skin = rng.uniform(60, 235) * np.array((0.72, 0.84, 1.0)) * rng.uniform(0.92, 1.08, 3)
    cloth, hair = pick_color(rng).tolist(), (rng.uniform(5, 120) * np.array((0.8, 0.9, 1))).tolist()
    cv2.ellipse(room, (x, y + 3 * size), (2 * size, int(1.8 * size)), 0, 0, 360, cloth, -1)
    neck = (skin * 0.8).tolist()
    cv2.rectangle(room, (x - size // 3, y), (x + size // 3, y + 2 * size), neck, -1)
    cv2.ellipse(room, (x, y - size // 4), (size, int(1.2 * size)), 0, 0, 360, hair, -1)
    face = (int(0.8 * size), int(1.1 * size))
    cv2.ellipse(room, (x, y), face, 0, 0, 360, skin.tolist(), -1)
    for side in (-1, 1):
        eye = (x + side * size // 3, y - size // 5)
        cv2.ellipse(room, eye, (size // 7, size // 12), 0, 0, 360, hair, -1)
    mouth = (skin * 0.7).tolist()
    cv2.ellipse(room, (x, y + size // 2), (size // 4, size // 12), 0, 0, 360, mouth, -1)


def draw_stripes(room, rng):
    """Blinds, boards, stripes of cloth."""
    angle, width = rng.uniform(0, np.pi), rng.uniform(4, 40)
    y, x = np.mgrid[:SIZE, :SIZE]
    wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * np.pi / width)
    room += rng.uniform(10, 60) * np.sign(wave).astype(np.float32)[..., None]


def draw_light(rng):
    """How bright light and shadow make each place, uint8 (SIZE, SIZE, 3), 128 is as it is."""
    grey = smooth(rng, 2, 3).mean(axis=2, keepdims=True)
    light = (128 + 70 * grey + 12 * smooth(rng, 2, 2)).clip(30, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(light, (SIZE, SIZE, 3)))


def draw_bend(rng):
    """Where each pixel of a bent hand comes from, float32 (SIZE, SIZE, 2): other hands have other
    fingers, and hold them otherwise."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    far = rng.uniform(3, 14)  # pixels
    x += far * smooth(rng, 3, 6).mean(axis=2)
    y += far * smooth(rng, 3, 6).mean(axis=2)
    return np.dstack([x, y])


def draw_fan():
    """The step from each pixel to where it comes from, float32 (2 * SIZE, 2 * SIZE, 2), that closes
    fingers about a palm in the middle: r * sin(a) along the circle, at the distance r and the angle
    a from upwards. Times a number below 0 it spreads them."""
    y, x = np.mgrid[-SIZE:SIZE, -SIZE:SIZE].astype(np.float32)
    return np.dstack([-x * y, x * x]) / np.maximum(1, np.hypot(x, y))[..., None]


# -----------------------------------------------------------------------------
# many at once


class Makers:
    """Processes, one for each core, at most 32, that make varied images: threads of one process
    would wait for each other in Python, and those of multiprocessing would load Keras. They end at
    `end`, or with this process. The images come through a file without a name that all map: through
    pipes each would cost this process 1.6 times as much."""

    PART = 8  # images that one makes at a time

    def __init__(self, variation):
        """variation: of the images of a Numpy_folder, which each process maps too."""
        self.variation, self.idle = variation, SimpleQueue()
        cores = min(cores_of_this_process(), 32)
        self.threads, self.at_once = ThreadPoolExecutor(cores), 2 * self.PART * cores
        with file_of_images(cores) as file:
            starts = [(variation, file.fileno(), number) for number in range(cores)]
            for process, made in zip(self.threads.map(start_process, starts), map_made(file)):
                self.idle.put((process, made))

    def begin(self, places, strength):
        """Begin to make the images of these places of the epoch; returns the function that waits
        for them, uint8 (n, SIZE, SIZE, 3)."""
        images, parts = np.empty((len(places), SIZE, SIZE, 3), np.uint8), []
        for start in range(0, len(places), self.PART):
            part = slice(start, start + self.PART)
            wanted = (self.variation.epoch, places[part], strength)
            parts.append(self.threads.submit(self.make, wanted, images[part]))

        def wait():
            for part in parts:
                part.result()
            return images

        return wait

    def make(self, wanted, images):
        """Let a process make what is wanted, into `images`. UserError where it has ended."""
        process, made = self.idle.get()
        try:
            ask(wanted, process)
            images[:] = made[: len(images)]
        finally:
            self.idle.put((process, made))

    def end(self):
        self.threads.shutdown(cancel_futures=True)
        while not self.idle.empty():
            process, _ = self.idle.get()
            with process:  # which closes its pipes and waits for its end
                process.kill()


READY = b"ready"
ENDED = "a process that varies photographs has ended: if it said nothing above, run it again"


def file_of_images(processes):
    """A file for `map_made`, gone when nobody has it open or maps it; in memory, where the system
    can."""
    in_memory = hasattr(os, "memfd_create")
    file = open(os.memfd_create("made"), "w+b") if in_memory else TemporaryFile()
    file.write(bytes(processes * Makers.PART * SIZE * SIZE * 3))
    file.flush()
    return file


def map_made(file):
    """The images in a file, uint8 (processes, Makers.PART, SIZE, SIZE, 3)."""
    return np.memmap(file, np.uint8, "r+").reshape(-1, Makers.PART, SIZE, SIZE, 3)


def start_process(start):
    """A process that makes images; start: the variation, the descriptor of the file for them, and
    the number of the process."""
    # What OpenCV prints must not come among what the process says.
    python = "import os, sys; says = open(os.dup(1), 'wb'); "
    python += "os.dup2(os.open(os.devnull, os.O_WRONLY), 1); "
    python += f"sys.argv, sys.path = ['vary_hands.py'], {[*map(str, sys.path)]}; "
    python += f"from {__name__} import serve; serve(says)"
    # glibc would return the memory of each image to the system, and get it again.
    keeping = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 28)}
    process = subprocess.Popen(
        [sys.executable, "-c", python],
        env=keeping | os.environ,
        pass_fds=[start[1]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is not for it
    )
    ask(start, process)
    return process


def ask(wanted, process):
    """Send a process what is wanted and wait for READY. UserError where it has ended."""
    try:
        pickle.dump(wanted, process.stdin)
        process.stdin.flush()
    except (BrokenPipeError, ValueError):  # ValueError: it was closed here
        with suppress(BrokenPipeError):  # Python 3.13 would speak of it in the end
            process.stdin.close()
        raise UserError(ENDED) from None
    if process.stdout.read(len(READY)) != READY:
        raise UserError(ENDED)


@ending_in_one_line()
def serve(says):
    """Make what `Makers` want, into the part of the file that is this process's, until they end.

    says: the pipe for READY, once at the start and after each request.
    """
    wants = sys.stdin.buffer
    try:
        variation, file, number = pickle.load(wants)
        made = map_made(open(file, "r+b"))[number]
        while True:
            says.write(READY)
            says.flush()
            epoch, places, strength = pickle.load(wants)
            if epoch != variation.epoch:
                variation.draw(epoch)
            for image, place in zip(made, places):
                image[:] = variation.image(place, strength)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        os._exit(0)  # the other has ended; what is not written yet is for nobody


# -----------------------------------------------------------------------------
# a sheet to look at


def draw_sheet(folder, seed, strength):
    """48 varied training images of a Numpy_folder, uint8 (6 * SIZE, 8 * SIZE, 3), each with its
    letter in the corner, and these 48 letters."""
    dataset = load_dataset(folder)
    images, labels = load_split(folder, "train", dataset)
    variation = Variation(images, labels, dataset["rows"]["train"], seed)
    sheet, letters = [], []
    for epoch in range(-(-48 // len(images))):  # several of a small set
        rows = variation.draw(epoch)[: 48 - len(sheet)]
        sheet += [variation.image(place, strength) for place in range(len(rows))]
        letters += [dataset["columns"][column] for column in labels[rows].argmax(axis=1)]
    font = cv2.FontFace("sans")
    for picture, letter in zip(sheet, letters):
        cv2.rectangle(picture, (0, 0), (14 + 16 * len(letter[:8]), 30), (0, 0, 0), -1)
        cv2.putText(picture, letter[:8], (7, 24), (255, 255, 255), font, 22, 600)
    sheet = np.stack(sheet).reshape(6, 8, SIZE, SIZE, 3).swapaxes(1, 2)
    return sheet.reshape(6 * SIZE, 8 * SIZE, 3), letters


def main(argv=None):
    about = "Draw a sheet of varied photographs to look at."
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    add, here = parser.add_argument, Path(__file__).resolve().parent
    about = "what preprocess.py wrote (default: Numpy_folder beside the scripts)"
    add("--numpy-folder", type=Path, default=HERE / "Numpy_folder", metavar="DIR", help=about)
    about = "the sheet, a JPEG (default: varied.jpg beside this script)"
    add("--output", type=Path, default=here / "varied.jpg", metavar="FILE", help=about)
    about = "how much is varied, 0 to 1 (default: 1.0)"
    add("--strength", type=between(float, 0, 1), default=1.0, help=about)
    add("--seed", type=between(int, 0), default=0, help="of what is drawn (default: 0)")
    options = parser.parse_args(argv)
    if options.output.exists() and not options.output.is_file():
        raise UserError(f"{options.output} is no file")  # but a folder, or a device
    options.output.parent.mkdir(parents=True, exist_ok=True)
    sheet, letters = draw_sheet(options.numpy_folder, options.seed, options.strength)
    with replacing(options.output) as path:
        path.write_bytes(cv2.imencode(".jpg", sheet)[1])
    print(f"wrote {options.output}; its letters, row by row:")
    for row in range(0, 48, 8):
        print(*letters[row : row + 8])


if __name__ == "__main__":
    run_main(main)
