"""asl_data/find_hand.py: the square around a hand, with the answers of a detector or with it."""

from types import SimpleNamespace
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from conftest import SHARED, change_json, folders, last_line, make, script

import preprocess
import test as test_script
from asl_data import find_hand
from preprocess import UserError, resize


def answer(monkeypatch, place, middle, size, finger=(0, -9), score=5.0):
    """Let the detector find one palm: middle and size in the 192x192 pixels of its input."""
    boxes, scores = np.zeros((1, 2016, 18), np.float32), np.full((1, 2016, 1), -9, np.float32)
    boxes[0, place, :4] = *np.subtract(middle, find_hand.anchors()[place]), size, size
    boxes[0, place, 8:10] = finger  # the root of the middle finger; the wrist is at (0, 0)
    scores[0, place] = score
    seen = []
    fake = SimpleNamespace(setInput=seen.append, forward=lambda names: (boxes, scores))
    monkeypatch.setattr(find_hand, "detector", lambda: fake)
    return seen


def test_anchors():
    """Two answers at each of 24x24 places, then six at each of 12x12."""
    anchors = find_hand.anchors()
    assert anchors.shape == (2016, 2)
    assert anchors[[0, 1, 2, 48, 1151, 1152, 1157, 1158, 2015]].tolist() == [
        *([4, 4], [4, 4], [12, 4], [4, 12], [188, 188]),
        *([8, 8], [8, 8], [24, 8], [184, 184]),
    ]


def test_the_square(monkeypatch):
    """Its side is 2.6 palms, its middle half a palm towards the fingers; it stays inside."""
    image = np.zeros((480, 640, 3), np.uint8)
    image[:, :, 2] = 255  # red
    scale = 640 / 192
    seen = answer(monkeypatch, 1000, (96, 96), 40)
    left, top, side = find_hand.find_hand(image)
    assert side == int(2.6 * 40 * scale)
    assert abs(left + side / 2 - 320) < 2 and abs(top + side / 2 - (240 - 20 * scale)) < 2
    blob = seen[0][0]  # RGB, 0 to 1, with bars above and below
    assert blob.shape == (3, 192, 192) and blob[:, 96, 96].tolist() == [1, 0, 0]
    assert blob[:, 20, 96].max() == 0 == blob[:, 171, 96].max() and blob[0, 26, 96] == 1
    answer(monkeypatch, 3, (96, 96), 40, finger=(9, 0))  # a hand that points to the right
    left, top, _ = find_hand.find_hand(image)
    assert abs(left + side / 2 - (320 + 20 * scale)) < 2 and abs(top + side / 2 - 240) < 2
    answer(monkeypatch, 2000, (10, 40), 40)
    assert find_hand.find_hand(image) == (0, 0, side)
    answer(monkeypatch, 2000, (180, 150), 120)
    assert find_hand.find_hand(image) == (160, 0, 480)


@pytest.mark.parametrize("size, score, shape", [(40, -1, 480), (10, 5, 480), (40, 5, 28)])
def test_what_is_no_hand(monkeypatch, size, score, shape):
    """A low score; a palm too small for the detector; a square of a few pixels."""
    answer(monkeypatch, 7, (96, 96), size, score=score)
    image = np.arange(shape * shape * 6, dtype=np.uint8).reshape(shape, 2 * shape, 3)
    assert find_hand.find_hand(image) is None
    middle = image[:, shape // 2 : shape // 2 + shape]
    assert np.array_equal(find_hand.crop_hand(image), middle)


def test_option_of_preprocess_and_test(drawings, copy, tmp_path, monkeypatch, capsys):
    """Images are cut; dataset.json tells it, and test.py cuts likewise, unless told otherwise."""
    answer(monkeypatch, 1000, (96, 96), 40)
    _, facts = make(tmp_path / "n", "--data", drawings, "--find-hand")
    assert facts["find_hand"] is True
    images, _ = preprocess.load_split(tmp_path / "n", "train", facts)
    path = drawings / facts["rows"]["train"][0]
    whole = cv2.imread(str(path))
    expected = {True: resize(find_hand.crop_hand(whole)), False: resize(whole)}
    assert np.array_equal(images[0], expected[True])
    assert not np.array_equal(images[0], expected[False])
    for facts in (copy / "Checkpoint" / "run.json", copy / "Weights_Full" / "class_names.json"):
        change_json(facts, lambda saved: saved["settings"].update(find_hand=True))
    predict = Mock(return_value=np.eye(24)[:1])
    monkeypatch.setattr(test_script, "predict", predict)
    for option, cut in (["--find-hand"], True), (["--no-find-hand"], False), ([], True):
        capsys.readouterr()
        test_script.main([str(path), *map(str, folders(copy)), *option])
        assert ("each picture is cut to its hand, to its middle" in capsys.readouterr().out) == cut
        assert np.array_equal(predict.call_args.args[1][0], expected[cut])


def test_without_the_detector(drawings, tmp_path, monkeypatch):
    find_hand.detector.cache_clear()
    monkeypatch.setattr(find_hand, "DETECTOR", tmp_path / "palm_detection_full.tflite")
    message = "palm_detection_full.tflite is missing: python asl_data/find_hand.py gets it"
    with pytest.raises(UserError, match=message):
        make(tmp_path / "n", "--data", drawings, "--find-hand")


@pytest.mark.skipif(not find_hand.DETECTOR.exists(), reason="asl_data/find_hand.py gets the model")
@pytest.mark.skipif(not SHARED.exists(), reason="no photographs")
def test_the_detector(tmp_path):
    """Kaggle frames, small before a black wall: most hands are found, and where they are."""
    images = preprocess.find_images(SHARED / "data" / "asl-alphabet-abc.zip")
    found = []
    for name in images.names[40::450]:
        picture = np.zeros((480, 640, 3), np.uint8)
        picture[200:400, 300:500] = images.read(name)
        square = find_hand.find_hand(picture)
        if square:
            left, top, side = square
            found.append(np.abs((left + side / 2 - 400, top + side / 2 - 300)).max() < 100)
    assert len(found) > 9 and np.mean(found) > 0.9
    done = script("asl_data/find_hand.py", SHARED / "data" / "webcam-abc.zip", check=True)
    assert done.stdout.startswith("look at ")
    (tmp_path / "empty").mkdir()
    line = last_line("asl_data/find_hand.py", tmp_path / "empty")
    assert line == "find_hand.py: there is no image"
