"""Varied photographs: asl_data/vary_hands.py, training.py --vary and --start-from."""

import json
import os
import pickle
import re
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import cv2
import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, SHARED, assert_same_run, copy_images, files, folder_options, history
from conftest import in_process, load, load_script, make, open_run, replace, script, train
from conftest import wait_until

import preprocess
import training
from asl_data import vary_hands

draw_hands = load_script(ROOT / "asl_data" / "draw_hands.py")
SIZE = preprocess.IMAGE_SIZE


def film(skin, tint=(1, 1, 1)):
    """(images, labels, names, hands) of 135 drawn hands before a camera that stands still.

    skin: the hands' blue, green and red, before light and shadow; tint: what the wall has of each.
    """
    wall = (190 + 30 * draw_hands.ramp(np.random.default_rng(1))) * np.array(tint)
    images, hands, names = [], [], []
    for letter in "ABC":
        for number in range(1, 46):
            rng = np.random.default_rng((number, ord(letter)))
            relief, mask = draw_hands.draw_hand(letter, rng)
            shift = np.float32([(1, 0, rng.uniform(-50, 50)), (0, 1, rng.uniform(0, 60))])
            relief, mask = (cv2.warpAffine(each, shift, (200, 200)) for each in (relief, mask))
            color = np.array(skin) * rng.uniform(0.8, 1.2)
            picture = wall + mask[..., None] * (relief[..., None] * color - wall)
            picture = picture * rng.uniform(0.9, 1.1)  # the camera's own gain
            images.append(preprocess.fit(picture.clip(0, 255).astype(np.uint8)))
            hands.append(cv2.resize(mask, (SIZE, SIZE)) > 0.5)
            names.append(f"{letter}/{letter}{number}.jpg")
    return np.stack(images), np.repeat(np.eye(24)[:3], 45, axis=0), names, np.stack(hands)


@pytest.fixture(scope="module")
def still():
    """Hands that are darker than a grey wall, as `film` gives them."""
    return film((60, 90, 142))


def unpack(masks):
    return np.unpackbits(masks, axis=1).reshape(-1, SIZE, SIZE).astype(bool)


def overlaps(images, labels, names, hands):
    """Which hands are cut out, bool (n,), and how well each of these, 0 to 1."""
    found = unpack(vary_hands.cut_hands(images, labels.argmax(axis=1), names))
    taken = found.any(axis=(1, 2))
    inside = (slice(None), slice(8, -8), slice(8, -8))
    found, hands = found[taken][inside], hands[taken][inside]
    return taken, (found & hands).sum(axis=(1, 2)) / (found | hands).sum(axis=(1, 2))


def test_hands_are_cut_out(still):
    taken, overlap = overlaps(*still)
    assert taken.mean() > 0.7
    assert np.median(overlap) > 0.95 and overlap.min() > 0.8
    images, labels, names, hands = still
    from_0 = [re.sub(r"\d+", lambda number: str(int(number[0]) - 1), name) for name in names]
    assert np.array_equal(overlaps(images, labels, from_0, hands)[0], taken)


@pytest.mark.parametrize(
    "skin, tint",
    [
        ((165, 205, 275), (1, 1, 1)),  # its red is lighter than the wall's
        ((190, 210, 245), (1, 1, 1)),  # as light as the wall
        ((30, 45, 75), (0.35, 0.6, 0.85)),  # a dark hand before wood, which is redder
    ],
)
def test_hands_of_other_skins_before_other_walls_are_cut_out(skin, tint):
    taken, overlap = overlaps(*film(skin, tint))
    assert taken.mean() > 0.7
    assert np.median(overlap) > 0.95 and overlap.min() > 0.8


def test_a_camera_that_moves_has_no_room(drawings):
    """Each of these drawings has a room of its own."""
    names = sorted(path.name for path in drawings.iterdir())
    images = np.stack([preprocess.decode((drawings / name).read_bytes()) for name in names])
    letters = np.repeat(range(3), 12)
    assert not vary_hands.cut_hands(images, letters, names).any()


@pytest.mark.skipif(not SHARED.exists(), reason="the photographs are not on this machine")
def test_hands_of_the_photographs_are_cut_out():
    source = preprocess.Archive(SHARED / "data" / "asl-alphabet-abc.zip")
    names = [f"asl_alphabet_train/asl_alphabet_train/{x}/{x}{n}.jpg" for x in "ABC"
             for n in range(1, 500, 10)]  # fmt: skip
    images = np.stack([image for image, _ in preprocess.read_images(source, names)])
    masks = vary_hands.cut_hands(images, np.repeat(range(3), 50), names)
    found = masks.any(axis=1).reshape(3, 50)
    assert (found.mean(axis=1) > 0.3).all()


@pytest.fixture
def variation(still):
    images, labels, names, _ = still
    return vary_hands.Variation(images, labels, names, seed=0)


def test_an_image_follows_from_seed_epoch_and_place(variation, still):
    images, labels, names, _ = still
    again = vary_hands.Variation(images, labels, names, seed=0)
    again.draw(7)
    variation.draw(3)
    assert variation.draw(7).tolist() == again.rows.tolist()
    for place in (5, 3, 4):
        assert np.array_equal(variation.image(place, 0.5), again.image(place, 0.5))
    seventh = variation.image(5, 0.5)
    variation.draw(8)
    variation.rows, variation.cut = again.rows, again.cut
    assert not np.array_equal(variation.image(5, 0.5), seventh)
    other = vary_hands.Variation(images, labels, names, seed=1)
    assert other.draw(7).tolist() != again.rows.tolist()


def test_each_letter_is_as_often_there_and_cut_out(variation, still):
    _, labels, _, _ = still
    for epoch in range(3):
        rows = variation.draw(epoch)
        letters = labels.argmax(axis=1)[rows]
        assert np.bincount(letters).tolist() == [45, 45, 45]
        assert np.bincount(letters[variation.cut]).tolist() == [34, 34, 34]
        assert variation.hands[rows[variation.cut]].any(axis=1).all()


def test_letters_of_unequal_numbers(still):
    images, labels, names, _ = still
    some = [*range(30), *range(45, 49), *range(90, 100)]
    few = vary_hands.Variation(images[some], labels[some], [names[i] for i in some], seed=0)
    assert np.bincount(labels[some].argmax(axis=1)[few.draw(0)]).tolist() == [15, 15, 14]


def test_a_letter_of_which_no_hand_can_be_cut_out(still, capsys):
    """Then none is, or a made-up room would say that it is another letter."""
    images, labels, names, _ = still
    images = images.copy()
    images[45:90] = np.random.default_rng(0).integers(0, 256, images[:45].shape, dtype=np.uint8)
    variation = vary_hands.Variation(images, labels, names, seed=0)
    variation.draw(0)
    assert variation.hands[:45].any() and variation.hands[90:].any() and not variation.cut.any()
    assert "too few of the letter of B1.jpg: the photographs keep" in capsys.readouterr().out


def test_each_block_of_numbers_has_its_own_room(still):
    """As the Kaggle scenes: the hands of the second are before a darker wall."""
    images, labels, names, _ = still
    letters, darker = labels.argmax(axis=1), (images * 0.75).astype(np.uint8)
    later = [f"{name[:3]}{501 + i}.jpg" for i, name in enumerate(names)]
    alone = vary_hands.cut_hands(darker, letters, later)
    images, letters = np.concatenate([images, darker]), np.tile(letters, 2)
    both = vary_hands.cut_hands(images, letters, [*names, *later])
    assert alone.any() and np.array_equal(both[len(alone) :], alone)
    one = vary_hands.cut_hands(images, letters, [*names, *names])
    assert not np.array_equal(one[len(alone) :], alone)


def test_letters_before_different_walls(still):
    """As the 24 letters of the Kaggle set, of which some have the first scene elsewhere."""
    images, labels, names, _ = still
    letters, images = labels.argmax(axis=1), images.copy()
    grain = np.random.default_rng(0).integers(-60, 60, (1, 8, 8, 1))
    wall = cv2.resize(grain[0].astype(np.float32), (SIZE, SIZE))[..., None]
    images[45:90] = (images[45:90] + wall).clip(0, 255)
    groups = vary_hands.scenes(images, letters, np.arange(135))
    groups = sorted(rows.tolist() for rows in groups)
    assert groups == [[*range(45), *range(90, 135)], [*range(45, 90)]]
    assert vary_hands.cut_hands(images, letters, names).any(axis=1)[45:90].mean() > 0.5


def test_a_hand_that_does_not_move_is_no_other_wall(still):
    """It is left in the room that its letter shows: the other letters show the same room."""
    images, labels, _, _ = still
    images = images.copy()
    images[45:90, 80:, 80:] = 30
    assert len(vary_hands.scenes(images, labels.argmax(axis=1), np.arange(135))) == 1


@pytest.mark.parametrize("harm", ["cut off", "dark wall", "white wall"])
def test_hands_whose_edge_is_not_seen(harm):
    """A part outside of the picture, a dark hand before a beam, a light one in a window."""
    room = np.full((SIZE, SIZE, 3), {"dark wall": 80, "white wall": 253}.get(harm, 180), np.uint8)
    image, plain = room.copy(), np.full((SIZE, SIZE, 3), 180, np.uint8)
    shade = 140 if harm == "white wall" else 30
    left = 0 if harm == "cut off" else 80
    for picture in (image, plain):
        cv2.rectangle(picture, (left, 90), (left + 60, SIZE), (shade,) * 3, -1)
    assert vary_hands.cut_hand(image, room) is None
    found = vary_hands.cut_hand(plain, np.full((SIZE, SIZE, 3), 180, np.uint8))
    assert (found is None) == (harm == "cut off")


@pytest.mark.parametrize("cut", [True, False])
def test_strength(variation, still, cut):
    """Weakly varied, a photograph is nearly as it was; strongly, it is another one."""
    images, hand = still[0], variation.hands
    rows = np.flatnonzero(hand.any(axis=1))[:20]
    far = {}
    for strength in (0, 1):
        off = []
        for row in rows:
            mask = np.unpackbits(hand[row]).reshape(SIZE, SIZE) if cut else None
            rng = np.random.default_rng(row)
            varied = vary_hands.vary(images[row], mask, variation.studio, rng, strength)
            assert varied.shape == (SIZE, SIZE, 3) and varied.dtype == np.uint8
            off.append(np.abs(varied[20:-20, 20:-20] - images[row][20:-20, 20:-20].astype(int)))
        far[strength] = np.mean(off)
    assert far[0] < 20 < 40 < far[1]


def test_rooms_are_full_of_things(variation):
    """Most have more edges than a wall has, in many a hand would be lost."""
    rng = np.random.default_rng(0)
    rooms = np.stack([variation.studio.room(rng) for _ in range(200)])
    assert rooms.shape == (200, SIZE, SIZE, 3) and rooms.dtype == np.uint8
    edges = [np.abs(cv2.Laplacian(room, cv2.CV_32F)).mean() for room in rooms]
    assert np.mean(np.array(edges) > 2) > 0.6 and np.mean(np.array(edges) > 8) > 0.25


def test_pieces_lie_everywhere_alike():
    rng, covered = np.random.default_rng(0), np.zeros((SIZE, SIZE, 3))
    for _ in range(400):
        room = np.zeros((SIZE, SIZE, 3), np.float32)
        vary_hands.lay_pieces(room, rng, np.ones((1, SIZE, SIZE, 3), np.uint8))
        covered += room / 400
    for edge in (covered[10:40], covered[-40:-10], covered[:, 10:40], covered[:, -40:-10]):
        assert abs(edge.mean() - covered[80:-80, 80:-80].mean()) < 0.05


def test_fingers_spread_and_close(variation, monkeypatch):
    """Two fingers on a palm: sometimes nearer, sometimes twice as wide apart; the palm stays."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    monkeypatch.setattr(variation.studio, "bends", [np.dstack([x, y])])  # not bent
    picture, palm = np.zeros((SIZE, SIZE), np.uint8), (112, 170)
    for tip in (82, 142):
        cv2.line(picture, palm, (tip, 70), 255, 3)
    wide, rng = [], np.random.default_rng(0)
    for _ in range(100):
        bend = variation.studio.bend(np.array(palm), rng, 1)
        bent = cv2.remap(picture, bend, None, cv2.INTER_LINEAR)
        columns = np.flatnonzero(bent[95] > 100)
        wide.append(columns[-1] - columns[0])
        assert bent[165:170, 105:120].any()
    assert min(wide) < 0.8 * 45 and max(wide) > 1.6 * 45


class Grey:
    """A studio with grey rooms alone."""

    def room(self, rng):
        return np.full((SIZE, SIZE, 3), 128, np.uint8)


def test_a_hand_stands_out():
    mask = cv2.circle(np.zeros((SIZE, SIZE), np.uint8), (112, 112), 50, 255, -1)
    inside = cv2.erode(mask, np.ones((15, 15))) > 0
    outside = cv2.dilate(mask, np.ones((15, 15))) == 0
    for seed in range(300):  # dark, middling and light hands
        picture = np.full((SIZE, SIZE, 3), (10, 60, 240)[seed % 3], np.uint8)
        rng = np.random.default_rng(seed)
        picture = vary_hands.paste(picture, mask, Grey(), rng, 1)
        assert abs(picture[inside].mean() - picture[outside].mean()) > 12


def test_some_hands_are_against_the_light():
    """Light ones too are nearly black before what is white, and their fingers still differ."""
    mask = np.full((SIZE, SIZE), 255, np.uint8)
    mask[:, SIZE // 2 :] = 0
    picture = np.full((SIZE, SIZE, 3), 200, np.uint8)
    picture[:100] = 240
    against = []
    for seed in range(200):
        varied = vary_hands.paste(picture, mask, Grey(), np.random.default_rng(seed), 1)
        upper, lower, room = varied[:90, :90].mean(), varied[110:, :90].mean(), varied[:, -90:]
        if lower < 60 and room.mean() > 175:
            against.append(upper / lower)
    assert 0.15 < len(against) / 200 < 0.45 and 1.1 < np.median(against) < 1.3


def test_weak_bars_are_as_often_white_as_black(variation):
    whites = blacks = 0
    for seed in range(3000):
        rng = np.random.default_rng(seed)
        picture = np.full((SIZE, SIZE, 3), 100, np.uint8)
        corner = vary_hands.photograph(picture, variation.studio, rng, 0.1)[:4, :4]
        whites, blacks = whites + (corner == 255).all(), blacks + (corner == 0).all()
    assert whites + blacks > 20 and 0.25 < whites / (whites + blacks) < 0.75


def test_the_sheet(dataset, tmp_path):
    options = ("--numpy-folder", dataset, "--output", tmp_path / "sheet.jpg")
    done = script("asl_data/vary_hands.py", *options, check=True)
    assert "0 of 24 hands can be cut out, too few of the letter of A_" in done.stdout
    _, said = done.stdout.split(f"wrote {tmp_path / 'sheet.jpg'}; its letters, row by row:\n")
    letters = [line.split() for line in said.splitlines()]
    assert len(letters) == 6 and {len(row) for row in letters} == {8}
    assert sorted(sum(letters, [])) == sorted("ABC" * 16)  # all of two epochs
    sheet = cv2.imread(str(tmp_path / "sheet.jpg"))
    assert sheet.shape == (6 * SIZE, 8 * SIZE, 3) and sheet.std() > 20
    assert (sheet[: 3 * SIZE] != sheet[3 * SIZE :]).any()
    for wrong, what in (
        (("--numpy-folder", tmp_path / "nothing"), "preprocess.py"),
        (("--numpy-folder", dataset, "--output", tmp_path), f"{tmp_path} is no file"),
        (("--numpy-folder", dataset, "--output", ""), "is no file"),
    ):
        done = script("asl_data/vary_hands.py", *wrong)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and what in done.stderr


# ---- training.py --vary ----


def test_vary_goes_on_exactly(small_dataset, tmp_path, monkeypatch):
    arguments = ("--vary", "--epochs", "3")
    train(small_dataset, tmp_path / "straight", *arguments, check=True)
    write = training.Run.write
    keras.utils.clear_session()  # layers are named as in a process of their own

    def stop_after_two(self):
        write(self)
        if len(self.epochs) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "write", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            in_process(small_dataset, tmp_path / "stopped", *arguments)
    assert len(history(tmp_path / "stopped")) == 2
    train(small_dataset, tmp_path / "stopped", *arguments, check=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "straight")


def test_vary_changes_no_network(small_dataset, trained, tmp_path):
    """The variation is outside of it; the rate grows from 0 and falls to 0."""
    train(small_dataset, tmp_path, "--vary", "--epochs", "1", check=True)
    model = "Weights_Full/model.json"
    assert (tmp_path / model).read_bytes() == (trained / model).read_bytes()
    done = script("test.py", "--numpy-folder", small_dataset, *folder_options(tmp_path), check=True)
    assert f"weights {tmp_path / 'Checkpoint' / 'weights.01-'}" in done.stdout
    for other, difference in (
        (("--vary", "--epochs", "2"), "vary over 1 epoch, not over 2 epochs"),
        (("--epochs", "1"), "vary over 1 epoch, not False"),
    ):
        with pytest.raises(preprocess.UserError, match=difference):
            open_run(small_dataset, tmp_path, *other)


def test_the_last_epoch_counts(small_dataset, tmp_path, capsys):
    options = ("--vary", "--epochs", "2", "--keep", "1")
    before = children(os.getpid())
    in_process(small_dataset, tmp_path, *options)
    assert not set(children(os.getpid())) - set(before)  # those that vary photographs have ended
    last = history(tmp_path)[-1]
    assert f"last epoch 2: val_loss {float(last['val_loss']):.4g}, " in capsys.readouterr().out
    (checkpoint,) = (tmp_path / "Checkpoint").glob("*.hdf5")
    assert checkpoint.name.startswith("weights.02-")
    rows = [{"epoch": 1, "val_loss": 0.1}, {"epoch": 2, "val_loss": 0.2}]
    assert training.best_first(rows, {"vary": "over 2 epochs"}) == rows[::-1]
    assert training.best_first(rows[::-1], {"vary": False}) == rows


def test_rate_and_strength(dataset, monkeypatch):
    monkeypatch.setenv("OPENCV_LOG_LEVEL", "INFO")  # the processes' OpenCV prints
    options = training.parse_options(["--vary", "--epochs", "11"])
    assert (options.learning_rate, options.momentum) == (0.01, 0.9)
    _, optimizer = training.recipe(options, steps=10)
    rates = [float(optimizer._learning_rate(step)) for step in (0, 5, 10, 60, 110)]
    assert np.allclose(rates, [0, 0.005, 0.01, 0.005, 0], atol=1e-8)
    batches = training.Batches(*load(dataset, "train"), 4)
    rows = preprocess.load_dataset(dataset)["rows"]["train"]
    varied, strengths = training.Varied(batches, rows, options), []
    for epoch in (0, 2, 5, 10):
        varied.draw(0, epoch)
        strengths.append(varied.strength)
    assert np.allclose(strengths, [0.1, 0.1 + 0.9 * 2 / 4.4, 1, 1])
    before = [varied[index] for index in range(len(varied))]
    for index, (images, _) in enumerate(before):  # made by other processes
        for place, image in zip(varied.places(index), images, strict=True):
            assert np.array_equal(image, varied.variation.image(place, 1))
    varied.draw(0, 3)
    assert not np.array_equal(varied[0][0], before[0][0])
    varied.draw(0, 10)
    for index, (images, labels) in enumerate(before):
        again = varied[index]
        assert np.array_equal(again[0], images) and np.array_equal(again[1], labels)
        assert np.array_equal(labels, batches.labels[varied.order[4 * index : 4 * index + 4]])
    varied.makers.at_once = 4
    for processes in (1, 2, 4):  # as many images are begun, of smaller parts of batches
        monkeypatch.setattr(training, "this_process", lambda count=processes: (0, count))
        varied.draw(0, 10)
        varied[0]
        assert len(varied.coming) == processes
    options = training.parse_options([])
    assert (options.learning_rate, options.momentum) == (0.001, 0.0)


def children(number):
    """The numbers of the processes that a process has started, of those that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            if path.read_text().rpartition(")")[2].split()[1] == str(number):
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("killed", ["training.py", "its processes"])
def test_processes_that_vary_photographs(dataset, tmp_path, start, killed, monkeypatch):
    """They end with training, however that ends, and say nothing; training ends with them."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    command = [sys.executable, ROOT / "training.py", "--numpy-folder", dataset, "--vary"]
    command += ["--batch-size", "4", "--keep", "1", *folder_options(tmp_path)]
    with open(tmp_path / "said", "w+") as said:
        training = start(command, stderr=said)
        makers = min(len(os.sched_getaffinity(0)), 32)
        wait_until(lambda: len(children(training.pid)) == makers, training)
        if killed == "its processes":  # in an epoch, where TensorFlow has much to say of it
            wait_until(lambda: list((tmp_path / "Checkpoint").glob("*.hdf5")), training)
        makers = children(training.pid)
        for number in [training.pid] if killed == "training.py" else makers:
            os.kill(number, signal.SIGKILL)
        training.wait(timeout=60)
        wait_until(lambda: not any(Path(f"/proc/{maker}/cwd").exists() for maker in makers))
        assert not list((tmp_path / "temporary").iterdir())
        said.seek(0)
        said = said.read()
    if killed == "training.py":
        assert "Traceback" not in said and "Broken pipe" not in said
    else:  # TensorFlow logs what it saw, too
        assert training.returncode == 1
        assert f"training.py: {vary_hands.ENDED}" in said.splitlines()


def test_arrays_made_anew_while_training_starts(dataset, tmp_path, capfd):
    shutil.copytree(dataset, tmp_path / "arrays")
    images, labels = load(tmp_path / "arrays", "train")
    names = preprocess.load_dataset(dataset)["rows"]["train"]
    variation = vary_hands.Variation(images, labels, names, seed=0)
    path = tmp_path / "arrays" / "train_set.npy"
    path.unlink()  # as preprocess.py does, which never writes over what is in use
    np.save(path, 255 - images)
    with pytest.raises(preprocess.UserError, match="^a process that varies photographs has ended"):
        vary_hands.start_process((variation, 2, 0))
    assert capfd.readouterr().err == f"vary_hands.py: {path} was made anew meanwhile\n"


@pytest.mark.parametrize("memory", [True, False])
def test_a_process_writes_its_own_part_and_ends_silently(dataset, capfd, monkeypatch, memory):
    if not memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    images, labels = load(dataset, "train")
    names = preprocess.load_dataset(dataset)["rows"]["train"]
    variation = vary_hands.Variation(images, labels, names, seed=0)
    variation.draw(0)
    file = vary_hands.file_of_images(2)
    process = vary_hands.start_process((variation, file.fileno(), 1))
    vary_hands.ask((0, range(3), 1), process)
    made = vary_hands.map_made(file)
    assert not made[0].any() and np.array_equal(made[1, 2], variation.image(2, 1))
    process.stdout.close()
    pickle.dump((0, range(3), 1), process.stdin)
    process.stdin.flush()
    assert process.wait(timeout=60) == 0
    assert not capfd.readouterr().err


# ---- training.py --start-from ----


def test_starts_from_the_weights_of_a_run(small_dataset, trained, tmp_path, capsys, monkeypatch):
    """A rate of 0 keeps them: but the averages of BatchNorm, which see the images."""
    start = trained / "Weights_Full" / "model_weights.h5"
    options = ("--learning-rate", "0", "--epochs", "1", "--start-from")
    in_process(small_dataset, tmp_path, *options, start)
    assert f"starts from {start}\n" in capsys.readouterr().out
    run = json.loads((tmp_path / "Checkpoint" / "run.json").read_text())
    assert run["settings"]["start_from"] == f"{start} (CRC-32 {preprocess.crc32(start)})"
    before, after = (
        keras.models.load_model(path, compile=False).trainable_variables
        for path in (start, tmp_path / "Weights_Full" / "model_weights.h5")
    )
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old, new), new.path

    monkeypatch.chdir(start.parent)  # the same file, called otherwise
    assert len(open_run(small_dataset, tmp_path, *options, start.name).epochs) == 1
    options = ("--numpy-folder", small_dataset, *folder_options(tmp_path))
    output = script("test.py", *options, check=True).stdout
    assert f"\nthey began with {start} (CRC-32 " in output


def test_other_letters_get_an_output_anew(trained, drawings, tmp_path, capsys):
    for label in "AB":
        for number in range(1, 5):
            (tmp_path / "photos" / f"new{label}").mkdir(parents=True, exist_ok=True)
            name = tmp_path / "photos" / f"new{label}" / f"{number}.jpg"
            shutil.copy(drawings / f"{label}_{number}.jpg", name)
    make(tmp_path / "arrays", "--data", tmp_path / "photos", "--classes", "all")
    start = trained / "Weights_Full" / "model_weights.h5"
    none = ("--learning-rate", "0", "--epochs", "1", "--start-from", start)
    in_process(tmp_path / "arrays", tmp_path, *none)
    assert f"starts from {start}, its output anew" in capsys.readouterr().out
    kernels = []
    for path in (start, tmp_path / "Weights_Full" / "model_weights.h5"):
        with h5py.File(path) as file:
            found = []
            file.visititems(lambda name, item, found=found: found.append((name, item[()]))
                            if name.endswith("kernel") else None)  # fmt: skip
            kernels.append({array.shape: array for _, array in found})
    assert np.array_equal(kernels[0][4096, 1000], kernels[1][4096, 1000])
    assert (1000, 24) in kernels[0] and (1000, 2) in kernels[1]


def test_other_letters_in_the_same_columns(trained, drawings, tmp_path, capsys):
    names = {"A": "X", "B": "Y", "C": "K"}
    copy_images(drawings, tmp_path / "photos", lambda label, i: f"{names[label]}/{i}.jpg")
    make(tmp_path / "arrays", "--data", tmp_path / "photos", "--classes", "X", "Y", "K")
    start = trained / "Weights_Full" / "model_weights.h5"
    none = ("--learning-rate", "0", "--epochs", "1", "--start-from", start)
    in_process(tmp_path / "arrays", tmp_path, *none)
    assert f"starts from {start}, its output anew" in capsys.readouterr().out


def test_start_from_a_file_that_fresh_moves(small_dataset, copy, monkeypatch):
    """And which the run writes anew; it is killed at once, goes on, ends, and is made longer."""
    start = copy / "Weights_Full" / "model_weights.h5"
    options = ("--start-from", start, "--epochs")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.keras.Sequential, "fit", interrupt)
        in_process(small_dataset, copy, *options, "1", "--fresh")
    assert not start.exists()
    start.write_bytes(b"another file")
    in_process(small_dataset, copy, *options, "1")
    assert len(start.read_bytes()) > 1e6
    in_process(small_dataset, copy, *options, "2")
    with pytest.raises(preprocess.UserError, match="start from"):
        open_run(small_dataset, copy, "--epochs", "2")


def test_start_from_a_file_that_is_another_one_now(small_dataset, copy, tmp_path, monkeypatch):
    """The run was killed before its first epoch ended, and only its settings name the file."""
    start, run = copy / "Weights_Full" / "model_weights.h5", tmp_path / "new"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.keras.Sequential, "fit", interrupt)
        in_process(small_dataset, run, "--start-from", start)
    replace(start, start.read_bytes() + b"0")
    with pytest.raises(preprocess.UserError, match="not what this run began with"):
        in_process(small_dataset, run, "--start-from", start)


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "damage", ["missing", "foreign", "changed", "a pipe", "of another kind", "renamed"]
)
def test_a_start_that_cannot_be_used(dataset, copy, tmp_path, damage):
    start = copy / "Weights_Full" / "model_weights.h5"
    if damage == "missing":
        start.unlink()
    elif damage == "renamed":
        start = start.rename(start.with_name("abc.h5"))
    elif damage == "of another kind":
        start = start.rename(start.with_suffix(".weights.h5"))
    elif damage == "a pipe":
        os.mkfifo(start := tmp_path / "pipe.h5")
    elif damage == "foreign":
        start = tmp_path / "other.h5"
        with h5py.File(start, "w") as file:
            file["something"] = 1
    else:
        replace(start, start.read_bytes()[:-9] + b"123456789")
    with pytest.raises(preprocess.UserError, match=re.escape(str(start))):
        in_process(dataset, tmp_path / "new", "--start-from", start)
    assert not files(tmp_path / "new").keys() - {"Checkpoint/.lock", "Weights_Full/.lock"}
