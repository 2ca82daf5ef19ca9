"""Draw a small data set: hands that sign A, B and C, to run the three scripts without photographs.

Writes asl_data/demo/A_1.jpg ... C_320.jpg, 200x200 pixels, named as in the article. These are
drawings: an accuracy measured on them says nothing about photographs of real hands.

    python asl_data/draw_hands.py
    python asl_data/draw_hands.py --output my_drawings --count 20 --seed 1
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

SIZE = 200  # side of a picture in pixels
ZOOM = 3  # a hand is drawn this many times larger, then shrunk to smooth its edges
QUALITY = 92  # of the JPEG files, in percent

OUTLINE = 1.3  # width of the line around a part of the hand, in hand units
LINE, CREASE = 70, 150  # how bright that line and the skin folds are, 255 is full skin
# A part is filled in rings from its edge (1.0) to its middle, and gets brighter inwards.
RINGS = [(1.0, 150), (0.92, 170), (0.82, 190), (0.7, 206), (0.55, 220), (0.38, 230), (0.2, 236)]

# Skin tones from light to dark, BGR; a hand takes a tone between two of them.
SKIN = np.array(
    [
        (184, 207, 243),
        (148, 183, 231),
        (114, 156, 212),
        (84, 122, 182),
        (60, 90, 142),
        (46, 68, 106),
        (38, 54, 82),
    ],
    np.float32,
)

CIRCLE = np.array([(np.cos(t), np.sin(t)) for t in np.linspace(0, 2 * np.pi, 24, False)])

# ---- a hand, in units that are about one pixel: x to the right, y down, (0, 0) in its middle ----


class Hand:
    """One hand while it is drawn.

    relief: uint8 (SIZE * ZOOM, SIZE * ZOOM), how bright the skin is, 0 where there is no hand;
    matrix (2, 2) and middle (2,): from hand units to pixels of the picture; relief has ZOOM times
    as many.
    """

    def __init__(self, matrix, middle):
        self.relief = np.zeros((SIZE * ZOOM, SIZE * ZOOM), np.uint8)
        self.matrix, self.middle = matrix * ZOOM, middle * ZOOM
        self.scale = np.sqrt(abs(np.linalg.det(self.matrix)))

    def pixels(self, points):
        return np.asarray(points, float) @ self.matrix.T + self.middle

    def hull(self, discs, share, extra, value):
        """Fill the convex hull of discs (x, y, radius * share + extra) with a brightness."""
        discs = np.asarray(discs, float)
        radii = (discs[:, 2] * share + extra) * self.scale
        edge = self.pixels(discs[:, :2])[:, None] + radii[:, None, None] * CIRCLE
        edge = edge.reshape(-1, 2).round().astype(np.int32)
        cv2.fillConvexPoly(self.relief, cv2.convexHull(edge), value)

    def part(self, *hulls):
        """Draw hulls that belong together: one line around them all, none between them."""
        for discs in hulls:
            self.hull(discs, 1, OUTLINE, LINE)
        for share, value in RINGS:
            for discs in hulls:
                self.hull(discs, share, 0, value)

    def limb(self, *discs):
        """Draw a finger or an arm: a chain of discs (x, y, radius), each joined to the next."""
        self.part(*zip(discs, discs[1:]))

    def blend(self, *discs):
        """Paint over the line where a part begins, so that it grows out of the one below."""
        self.hull(discs, 1, 0, RINGS[-1][1])

    def fold(self, start, end):
        """Draw a thin skin fold between two points (x, y)."""
        start, end = self.pixels([start, end]).round().astype(int).tolist()
        cv2.line(self.relief, start, end, CREASE, max(2, round(0.9 * self.scale)), cv2.LINE_AA)

    def nail(self, x, y, angle, size):
        """Draw a fingernail; angle in degrees, 0 is a nail that points up."""
        turn = np.radians(angle)
        turn = np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))])
        for grow, value in ((1.0, 165), (0.8, 252)):
            edge = CIRCLE * (0.62 * size * grow, 0.9 * size * grow) @ turn.T + (x, y)
            cv2.fillConvexPoly(self.relief, self.pixels(edge).round().astype(np.int32), value)


def draw_a(hand, rng, arm):
    """A: a fist, four fingers folded down side by side, the thumb upright beside them."""
    hand.part([(0, 42, 25), arm], [(-27, -14, 13), (26, -14, 13), (-18, 38, 19), (18, 38, 19)])
    tops = np.array([-26, -34, -37, -33]) + rng.normal(0, 1, 4)
    tips = np.array([8, 14, 16, 14]) + rng.normal(0, 1.5, 4)
    for x, top, tip in zip((-31, -10.5, 10, 30.5), tops, tips):
        hand.limb((x, top, 10.5), (x, top + 10, 10.5))
        hand.limb((x, top + 17, 10.6), (x * 0.96, tip, 9.6))
        hand.nail(x * 0.96, tip + 2.5, 180, 6)
    lean = rng.normal(0, 2.5)
    hand.limb((28, 38, 16), (47, 14, 12), (51, -10, 10.5), (50 + lean, -33, 9.3))
    hand.blend((24, 44, 9), (10, 46, 9))
    hand.fold((46, -9), (54, -11))


def draw_b(hand, rng, arm):
    """B: a flat hand, four straight fingers up and together, the thumb across the palm."""
    lengths = np.array([66, 88, 97, 87]) * rng.uniform(0.95, 1.05) + rng.normal(0, 1.5, 4)
    spread = rng.uniform(0, 1.5)
    for place, length in zip((-1.5, -0.5, 0.5, 1.5), lengths):
        x, tip, top = 19.5 * place, (19.5 + spread) * place, 32 - length
        hand.limb((x, 35, 10.3), (tip, top, 8.8))
        for share in (0.42, 0.72):
            y, mid = 32 - share * length, x + share * (tip - x)
            hand.fold((mid - 6, y), (mid + 6, y - 1))
    hand.part([(0, 82, 25), arm], [(-26, 40, 13), (26, 38, 13), (-18, 78, 19), (18, 78, 19)])
    reach = rng.normal(0, 3)
    hand.limb((32, 78, 15), (36, 60, 13), (16, 48, 11.5), (-8 + reach, 45, 9.8))
    hand.blend((30, 79, 9), (12, 82, 12))
    hand.nail(-10 + reach, 44, -95, 7)


def draw_c(hand, rng, arm):
    """C: the hand from its side, fingers curved over the top, the thumb curved below."""
    curl = rng.normal(0, 2.5)
    for back, reach in ((3, -5), (2, 4), (1, 5)):
        hand.limb(*curved_finger(2.5 * back, -8 * back, curl, reach))
    finger = curved_finger(0, 0, curl, 0)
    thumb = [(-12, 50, 21), (12, 56, 16), (30, 50, 12.5), (41, 40, 12), (49, 24 + curl, 9.5)]
    hand.part(
        [(-22, 66, 24), arm],
        [(-22, 56, 24), (-36, -4, 19)],
        *zip(finger, finger[1:]),
        *zip(thumb, thumb[1:]),
    )
    hand.fold((0, 44), (-14, 20))
    hand.fold((-14, -38), (-9, -43))
    hand.fold((36, 36), (40, 40))
    hand.nail(53, 29 + curl, 25, 6.5)


def curved_finger(x, y, curl, reach):
    """The discs of a finger of the C, its joints moved by (x, y) and its tip by reach."""
    return [
        (-38 + x / 2, -8 + y / 2, 16),
        (-31 + x / 2, -32 + y, 12.5),
        (-17 + x, -48 + y, 13),
        (2 + x, -56 + y, 11.3),
        (20 + x, -55 + y, 11.8),
        (34 + x, -46 + curl / 2 + y, 10.6),
        (43 + x + reach, -34 + curl + y + reach, 8.8),
    ]


POSES = {"A": draw_a, "B": draw_b, "C": draw_c}
SCALES = {"A": (0.95, 1.2), "B": (0.78, 0.92), "C": (0.8, 0.96)}  # pixels per hand unit
HEIGHTS = {"A": 98, "B": 90, "C": 98}  # where the middle of the hand is, in pixels from the top


def draw_hand(letter, rng):
    """How bright the skin is and where the hand is, both float32 (SIZE, SIZE) in 0..1."""
    scale, tilt = rng.uniform(*SCALES[letter]), np.radians(rng.uniform(-10, 10))
    matrix = scale * np.array([(np.cos(tilt), -np.sin(tilt)), (np.sin(tilt), np.cos(tilt))])
    matrix[:, 1] *= rng.uniform(0.94, 1.06)  # a hand may be longer or broader
    middle = rng.uniform((82, HEIGHTS[letter] - 8), (118, HEIGHTS[letter] + 8))
    hand = Hand(matrix, middle)
    # The elbow is below the picture, so the arm always leaves through the lower border.
    elbow = np.linalg.solve(matrix, (rng.uniform(-25, 25), 260))
    POSES[letter](hand, rng, (*elbow, 34))
    # Outside the hand the line goes on, or the edge would mix with black.
    return shrink(np.maximum(hand.relief, LINE)), shrink((hand.relief > 0) * np.uint8(255))


def shrink(image):
    image = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return image.astype(np.float32) / 255


# ---- the scene around it; images are float32 (SIZE, SIZE, 3), BGR, 0..255 ----


def ramp(rng):
    """A plane that rises in a random direction, float32 (SIZE, SIZE, 1), from -1 to 1."""
    angle = rng.uniform(0, 2 * np.pi)
    line = np.linspace(-1, 1, SIZE)
    plane = np.cos(angle) * line[None] + np.sin(angle) * line[:, None]
    return (plane / plane.max()).astype(np.float32)[..., None]


def draw_wall(rng, color):
    return color * (1 + rng.uniform(0, 0.45) * ramp(rng))


def draw_texture(rng, color):
    cells = rng.integers((4, 4), (60, 60)).tolist()
    grain = rng.normal(0, 1, cells).astype(np.float32)
    grain = cv2.resize(grain, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return color * (1 + rng.uniform(0.04, 0.1) * grain[..., None])


def draw_background(rng, skin):
    """A background that is lighter than the skin, a (3,) color."""
    tone = rng.uniform(min(skin.mean() + 30, 225), 240)
    color = (tone * rng.uniform(0.92, 1.08, 3)).astype(np.float32)
    return (draw_wall, draw_texture)[rng.integers(2)](rng, color)


def pick_skin(rng):
    place = rng.uniform(0, len(SKIN) - 1)
    low = int(place)
    skin = SKIN[low] + (place - low) * (SKIN[low + 1] - SKIN[low])
    return skin * rng.uniform(0.97, 1.03, 3).astype(np.float32)


def light_hand(relief, skin, toward):
    """The coloured hand, lit from the direction `toward`, a (2,) vector."""
    soft = cv2.GaussianBlur(relief, (0, 0), 1.5)
    slope = cv2.Sobel(soft, -1, 1, 0) * toward[0] + cv2.Sobel(soft, -1, 0, 1) * toward[1]
    bright = np.clip(cv2.GaussianBlur(relief, (0, 0), 0.6) - 0.35 * slope, 0.1, 1.2)
    # Shadows on skin turn red, so blue and green fall off faster than red.
    return skin * bright[..., None] ** np.array([1.18, 1.1, 0.95], np.float32)


def draw_picture(letter, rng):
    """One picture of a hand that signs the letter, uint8 (SIZE, SIZE, 3), BGR."""
    relief, mask = draw_hand(letter, rng)
    skin = pick_skin(rng)
    angle = rng.uniform(-np.pi, 0)  # light comes from above
    toward = np.array([np.cos(angle), np.sin(angle)], np.float32)
    shift = np.float32([(1, 0, -9 * toward[0]), (0, 1, -9 * toward[1])])
    shadow = cv2.GaussianBlur(cv2.warpAffine(mask, shift, (SIZE, SIZE)), (0, 0), 7)
    image = draw_background(rng, skin) * (1 - rng.uniform(0, 0.45) * shadow[..., None])
    image += mask[..., None] * (light_hand(relief, skin, toward) - image)
    image *= rng.uniform(0.75, 1.15) * (1 + rng.uniform(0, 0.25) * ramp(rng))
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9))
    image += rng.uniform(0, 4) * rng.standard_normal((SIZE, SIZE, 1), np.float32)
    return image.clip(0, 255).astype(np.uint8)


# ---- the files ----


def write_pictures(folder, count, seed):
    folder.mkdir(parents=True, exist_ok=True)
    for index, letter in enumerate(POSES):
        for i in range(1, count + 1):
            # One generator per picture, so that it does not depend on the others.
            picture = draw_picture(letter, np.random.default_rng((seed, index, i)))
            data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
            (folder / f"{letter}_{i}.jpg").write_bytes(data)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Draw hands that sign A, B and C.")
    add = parser.add_argument
    default = Path(__file__).resolve().parent / "demo"
    about = "folder for the pictures (default: demo beside this script)"
    add("--output", type=Path, default=default, metavar="PATH", help=about)
    add("--count", type=int, default=320, metavar="N", help="per letter (default: 320)")
    add("--seed", type=int, default=0, metavar="N", help="of every picture (default: 0)")
    options = parser.parse_args(argv)
    if options.count < 1:
        parser.error("--count must be at least 1")
    if options.seed < 0:
        parser.error("--seed must be at least 0")
    write_pictures(options.output, options.count, options.seed)
    print(f"wrote {options.count * len(POSES)} pictures to {options.output}")
    print("these are drawings: an accuracy on them says nothing about photographs")


if __name__ == "__main__":
    main()
