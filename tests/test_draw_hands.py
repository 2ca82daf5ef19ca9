"""asl_data/draw_hands.py, run as users run it."""

import cv2
from conftest import script


def test_pictures_follow_the_seed_alone(drawings, tmp_path):
    """Twelve of each letter; the first of them are the same whatever the count."""
    names = {f"{letter}_{i}.jpg" for letter in "ABC" for i in range(1, 13)}
    assert {path.name for path in drawings.iterdir()} == names
    for folder, *seed in ("same",), ("other", "--seed", "1"):
        options = ("--output", tmp_path / folder, "--count", "2", *seed)
        done = script("asl_data/draw_hands.py", *options, check=True)
        assert "these are drawings: an accuracy on them says nothing" in done.stdout
        for path in (tmp_path / folder).iterdir():
            assert cv2.imread(str(path)).shape == (200, 200, 3)
            same = path.read_bytes() == (drawings / path.name).read_bytes()
            assert same == (folder == "same")


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = script("asl_data/draw_hands.py", "--output", tmp_path / "file" / "demo")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "file" in done.stderr
