"""asl_data/augment_hands.py: masks, augmented photographs, and the processes that make them."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import SHARED, folders, script, wait_until

import preprocess
from asl_data import augment_hands, draw_hands, find_images

SIZE = preprocess.IMAGE_SIZE


def film(skin, tint=(1, 1, 1), change=lambda wall, rng: wall):
    """(images, letters, names, masks) of 135 drawn hands before a camera that stands still.

    skin: the hands' blue, green and red, before light and shadow; tint: the wall's; change: what
    happens to the wall between two images.
    """
    wall = (190 + 30 * draw_hands.ramp(np.random.default_rng(1))) * np.array(tint)
    images, masks, names = [], [], []
    for letter in "ABC":
        for number in range(1, 46):
            rng = np.random.default_rng((number, ord(letter)))
            relief, mask = draw_hands.draw_hand(letter, rng)
            shift = np.float32([(1, 0, rng.uniform(-50, 50)), (0, 1, rng.uniform(0, 60))])
            relief, mask = (cv2.warpAffine(each, shift, (200, 200)) for each in (relief, mask))
            color = np.array(skin) * rng.uniform(0.8, 1.2)
            gain = rng.uniform(0.9, 1.1)  # the camera's own
            behind = change(wall, rng)
            picture = gain * (behind + mask[..., None] * (relief[..., None] * color - behind))
            images.append(preprocess.resize(picture.clip(0, 255).astype(np.uint8)))
            masks.append(cv2.resize(mask, (SIZE, SIZE)) > 0.5)
            names.append(f"{letter}/{letter}{number}.jpg")
    return np.stack(images), np.repeat(range(3), 45), names, np.stack(masks)


@pytest.fixture(scope="module")
def still():
    """Hands that are darker than a grey wall."""
    return film((60, 90, 142))


def augmentation_of(folder, images, letters, names, seed=0):
    """An Augmentation of images that did not come through preprocess.py."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "train_set.npy", images)
    np.save(folder / "train_classes.npy", np.eye(24, dtype="float32")[letters])
    facts = {"id": "", "columns": list(preprocess.LETTERS), "rows": {"train": list(names)}}
    (folder / "dataset.json").write_text(json.dumps(facts))
    return augment_hands.Augmentation(folder, seed)


@pytest.fixture(scope="module")
def augmentation(still, tmp_path_factory):
    return augmentation_of(tmp_path_factory.mktemp("still"), *still[:3])


# ---- masks ----


def overlaps(images, letters, names, masks):
    """Which hands are cut out, bool (n,), and how well each of these, 0 to 1."""
    found = np.unpackbits(augment_hands.cut_hands(images, letters, names), axis=1)
    found = found.reshape(-1, SIZE, SIZE).astype(bool)
    taken = found.any(axis=(1, 2))
    inside = (slice(None), slice(8, -8), slice(8, -8))
    found, masks = found[taken][inside], masks[taken][inside]
    return taken, (found & masks).sum(axis=(1, 2)) / (found | masks).sum(axis=(1, 2))


@pytest.mark.parametrize(
    "skin, tint",
    [
        ((60, 90, 142), (1, 1, 1)),
        ((165, 205, 275), (1, 1, 1)),  # its red is lighter than the wall's
        ((190, 210, 245), (1, 1, 1)),  # as light as the wall
        ((30, 45, 75), (0.35, 0.6, 0.85)),  # a dark hand before wood, which is redder
    ],
)
def test_hands_of_any_skin_are_cut_out(skin, tint):
    taken, overlap = overlaps(*film(skin, tint))
    assert taken.mean() > 0.7
    assert np.median(overlap) > 0.95 and overlap.min() > 0.8


def other_light(wall, rng):
    return wall * rng.uniform(0.4, 1.2)


def other_things(wall, rng):
    things = rng.integers(-60, 60, (8, 8)).astype(np.float32)
    return wall + cv2.resize(things, (200, 200))[..., None]


@pytest.mark.parametrize("change", [other_light, other_things])
def test_images_without_a_common_background(change):
    images, letters, names, _ = film((60, 90, 142), change=change)
    assert not augment_hands.cut_hands(images, letters, names).any()


@pytest.mark.skipif(not SHARED.exists(), reason="the photographs are not on this machine")
def test_hands_of_the_photographs_are_cut_out():
    images = find_images.Images(SHARED / "data" / "asl-alphabet-abc.zip")
    names = [name for name in images.names if re.search(r"[ABC]([1-4]?\d?)1.jpg", name)]
    pictures = np.stack([preprocess.resize(images.read(name)) for name in names])
    masks = augment_hands.cut_hands(pictures, np.repeat(range(3), 50), names)
    assert (masks.any(axis=1).reshape(3, 50).mean(axis=1) > 0.3).all()


def test_each_block_of_frames_has_its_own_background(still):
    """As the Kaggle scenes: the second is before a darker wall."""
    images, letters, names, _ = still
    darker = (images * 0.75).astype(np.uint8)
    later = [f"{name[:3]}{501 + i}.jpg" for i, name in enumerate(names)]
    alone = augment_hands.cut_hands(darker, letters, later)
    images, letters = np.concatenate([images, darker]), np.tile(letters, 2)
    both = augment_hands.cut_hands(images, letters, [*names, *later])
    assert alone.any() and np.array_equal(both[len(alone) :], alone)
    one = augment_hands.cut_hands(images, letters, [*names, *names])
    assert not np.array_equal(one[len(alone) :], alone)


def test_letters_before_different_walls(still):
    """As in the set of 24 letters. A hand that does not move is no other wall."""
    images, letters, names, _ = still
    noise = np.random.default_rng(0).integers(-60, 60, (8, 8)).astype(np.float32)
    walls, unmoved = images.copy(), images.copy()
    walls[45:90] = (walls[45:90] + cv2.resize(noise, (SIZE, SIZE))[..., None]).clip(0, 255)
    groups = augment_hands.scenes(walls, letters, np.arange(135))
    groups = sorted(rows.tolist() for rows in groups)
    assert groups == [[*range(45), *range(90, 135)], [*range(45, 90)]]
    assert augment_hands.cut_hands(walls, letters, names).any(axis=1)[45:90].mean() > 0.5
    unmoved[45:90, 80:, 80:] = 30
    assert len(augment_hands.scenes(unmoved, letters, np.arange(135))) == 1


@pytest.mark.parametrize(
    "left, shade, wall, found",
    [
        (0, 30, 180, False),  # a part is outside of the picture
        (80, 30, 80, False),  # a dark hand before a beam
        (80, 140, 253, False),  # a light hand in a window
        (80, 30, 180, True),
        (80, 140, 180, True),
    ],
)
def test_hands_whose_edge_is_not_seen(left, shade, wall, found):
    background = np.full((SIZE, SIZE, 3), wall, np.uint8)
    image = cv2.rectangle(background.copy(), (left, 90), (left + 60, SIZE), (shade,) * 3, -1)
    assert (augment_hands.cut_hand(image, background) is not None) == found


# ---- the images of an epoch ----


def test_an_image_depends_on_seed_epoch_and_place(augmentation):
    folder = augmentation.folder
    again = augment_hands.Augmentation(folder, 0, augmentation.masks)
    again.choose_rows(7)
    augmentation.choose_rows(3)
    assert augmentation.choose_rows(7).tolist() == again.order.tolist()
    for place in (5, 3, 4):
        assert np.array_equal(augmentation.image(place, 0.5), again.image(place, 0.5))
    seventh = augmentation.image(5, 0.5)
    augmentation.choose_rows(8)
    augmentation.order, augmentation.is_cut = again.order, again.is_cut
    assert not np.array_equal(augmentation.image(5, 0.5), seventh)
    other = augment_hands.Augmentation(folder, 1, augmentation.masks)
    assert other.choose_rows(7).tolist() != again.order.tolist()


def test_each_letter_is_as_often_there_and_cut_out(augmentation, still):
    letters = still[1]
    for epoch in range(3):
        order = augmentation.choose_rows(epoch)
        assert np.bincount(letters[order]).tolist() == [45, 45, 45]
        assert np.bincount(letters[order[augmentation.is_cut]]).tolist() == [34, 34, 34]
        assert augmentation.masks[order[augmentation.is_cut]].any(axis=1).all()


def test_letters_of_unequal_numbers(still, tmp_path):
    images, letters, names, _ = still
    some = [*range(30), *range(45, 49), *range(90, 100)]
    few = augmentation_of(tmp_path, images[some], letters[some], [names[i] for i in some])
    assert np.bincount(letters[some][few.choose_rows(0)]).tolist() == [15, 15, 14]


def test_a_letter_of_which_no_hand_can_be_cut_out(still, tmp_path, capsys):
    """Then none is, or a drawn background would tell that it is another letter."""
    images, letters, names, _ = still
    images = images.copy()
    images[45:90] = np.random.default_rng(0).integers(0, 256, images[:45].shape, dtype=np.uint8)
    augmentation = augmentation_of(tmp_path, images, letters, names)
    augmentation.choose_rows(0)
    assert augmentation.masks[:45].any() and augmentation.masks[90:].any()
    assert not augmentation.is_cut.any()
    assert (
        "less than a tenth of one letter: so all photographs keep their background"
        in capsys.readouterr().out
    )


# ---- one photograph ----


@pytest.mark.parametrize("cut", [True, False])
def test_strength(augmentation, still, cut):
    """Weakly augmented, a photograph is nearly as it was; strongly, it is another one."""
    images, far = still[0], {}
    rows = np.flatnonzero(augmentation.masks.any(axis=1))[:20]
    for strength in (0, 1):
        off = []
        for row in rows:
            mask = np.unpackbits(augmentation.masks[row]).reshape(SIZE, SIZE) if cut else None
            rng = np.random.default_rng(row)
            image = augment_hands.augment(images[row], mask, augmentation.studio, rng, strength)
            assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
            off.append(np.abs(image[20:-20, 20:-20] - images[row][20:-20, 20:-20].astype(int)))
        far[strength] = np.mean(off)
    assert far[0] < 20 < 40 < far[1]


def test_half_of_the_hands_are_left_hands():
    rng = np.random.default_rng(0)
    middle = (SIZE / 2, SIZE / 2)
    moves = [augment_hands.movement(middle, middle, 1, rng, 1) for _ in range(400)]
    assert 0.42 < np.mean(np.linalg.det(moves) < 0) < 0.58


def test_large_hands_are_cut_off():
    rng, half = np.random.default_rng(0), SIZE / 2
    places = [augment_hands.place_hand((half, half), 100, rng, 1) for _ in range(400)]
    outside = [np.abs(target - half).max() + 50 * scale - half for target, scale in places]
    assert 0.08 < np.mean(np.array(outside) > 0.15 * SIZE) < 0.3


def test_backgrounds_are_full_of_things(augmentation):
    """Most have more edges than a wall has, in many a hand would be lost."""
    rng = np.random.default_rng(0)
    edges = [
        np.abs(cv2.Laplacian(augmentation.studio.background(rng), cv2.CV_32F)).mean()
        for _ in range(200)
    ]
    assert np.mean(np.array(edges) > 2) > 0.6 and np.mean(np.array(edges) > 8) > 0.25


def test_fingers_spread_and_close(augmentation, monkeypatch):
    """Two fingers on a palm: sometimes nearer, sometimes twice as wide apart; the palm stays."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    monkeypatch.setattr(augmentation.studio, "bends", [np.dstack([x, y])])  # not bent
    picture, palm = np.zeros((SIZE, SIZE), np.uint8), (112, 170)
    for tip in (82, 142):
        cv2.line(picture, palm, (tip, 70), 255, 3)
    wide, rng = [], np.random.default_rng(0)
    for _ in range(100):
        bend = augmentation.studio.bend(np.array(palm), rng, 1)
        bent = cv2.remap(picture, bend, None, cv2.INTER_LINEAR)
        columns = np.flatnonzero(bent[95] > 100)
        wide.append(columns[-1] - columns[0])
        assert bent[165:170, 105:120].any()
    assert min(wide) < 0.8 * 45 and max(wide) > 1.6 * 45


# A studio with grey backgrounds only.
GREY = SimpleNamespace(background=lambda rng: np.full((SIZE, SIZE, 3), 128, np.uint8))


def test_a_hand_stands_out():
    mask = cv2.circle(np.zeros((SIZE, SIZE), np.uint8), (112, 112), 50, 255, -1)
    inside = cv2.erode(mask, np.ones((15, 15))) > 0
    outside = cv2.dilate(mask, np.ones((15, 15))) == 0
    for seed in range(300):  # dark, middling and light hands
        hand = np.dstack([np.full((SIZE, SIZE, 3), (10, 60, 240)[seed % 3], np.uint8), mask])
        picture = augment_hands.paste(hand, GREY, np.random.default_rng(seed), 1)
        assert abs(picture[inside].mean() - picture[outside].mean()) > 12


def test_some_hands_are_against_the_light():
    """Light ones too are nearly black before what is white, and their fingers still differ."""
    hand = np.full((SIZE, SIZE, 4), 200, np.uint8)
    hand[:100, :, :3] = 240
    hand[:, : SIZE // 2, 3], hand[:, SIZE // 2 :, 3] = 255, 0
    against = []
    for seed in range(200):
        picture = augment_hands.paste(hand, GREY, np.random.default_rng(seed), 1)
        upper, lower, wall = picture[:90, :90].mean(), picture[110:, :90].mean(), picture[:, -90:]
        if lower < 60 and wall.mean() > 175:
            against.append(upper / lower)
    assert 0.15 < len(against) / 200 < 0.45 and 1.1 < np.median(against) < 1.3


# ---- the sheet, and the processes of training ----


def test_the_sheet(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "n")
    done = script("asl_data/augment_hands.py", "--numpy-folder", tmp_path / "n", check=True)
    assert "0 of 24 hands can be cut out\nless than a tenth of one letter" in done.stdout
    sheet = cv2.imread(str(tmp_path / "n" / "augmented.jpg"))
    assert sheet.shape == (6 * SIZE, 8 * SIZE, 3) and sheet.std() > 20
    assert (sheet[: 3 * SIZE] != sheet[3 * SIZE :]).any()  # two epochs of 24 images


def test_batches_are_those_of_the_augmentation(augmentation, monkeypatch):
    """Whichever process makes an image, whatever OpenCV prints there."""
    import training

    monkeypatch.setenv("OPENCV_LOG_LEVEL", "INFO")
    arguments = ["--augment", "--epochs", "11", "--batch-size", "4"]
    arguments += ["--numpy-folder", str(augmentation.folder)]
    options, strengths = training.parse_options(arguments), []
    batches = training.AugmentedBatches(options, preprocess.load_dataset(augmentation.folder))
    for epoch in (0, 2, 5, 10):
        batches.shuffle(epoch)
        strengths.append(batches.strength)
    assert np.allclose(strengths, [0.1, 0.1 + 0.9 * 2 / 4.4, 1, 1])
    assert batches.augmentation.is_cut.any()
    for index in range(len(batches)):
        images, labels = batches[index]
        assert np.array_equal(labels, batches.labels[batches.order[batches.places(index)]])
        for place, image in zip(batches.places(index), images, strict=True):
            assert np.array_equal(image, batches.augmentation.image(place, 1))


def test_training_ends_with_its_processes(small_dataset, tmp_path, start):
    options = ("--numpy-folder", small_dataset, *folders(tmp_path), "--augment", "--batch-size", 4)
    process = start("training.py", *options, stderr=subprocess.PIPE, encoding="utf-8")
    wait_until((tmp_path / "Checkpoint" / "run.json").exists, process)
    workers = children(process.pid)
    assert len(workers) == min(os.cpu_count(), 32)
    for number in workers:
        os.kill(number, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "a process that augments images has ended" in said


@pytest.mark.parametrize("asked", [False, True])
def test_processes_end_with_training(dataset, capfd, asked):
    """And say nothing: while they wait for their first batch, and while they make one."""
    pool = augment_hands.Pool(augment_hands.Augmentation(dataset, 0), 2)
    process = pool.idle.get()  # the other one must not keep its pipes open
    if asked:
        pickle.dump((pool.facts, 0, range(3), 1), process.stdin)
    process.stdout.close()
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    assert capfd.readouterr().err == ""


def children(number):
    with open(f"/proc/{number}/task/{number}/children") as file:
        found = [int(child) for child in file.read().split()]
    return [child for child in found if b"--serve" in open(f"/proc/{child}/cmdline", "rb").read()]


def test_arrays_made_anew_meanwhile(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "n")
    augmentation = augment_hands.Augmentation(tmp_path / "n", 0)
    augmentation.id = "of other arrays"
    pool = augment_hands.Pool(augmentation, 1)
    augmentation.choose_rows(0)
    with pytest.raises(RuntimeError, match="a process that augments images has ended"):
        pool.images(0, range(3), 1)
