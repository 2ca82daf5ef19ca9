"""The three scripts in order, as the README has them, and draw_hands.py."""

import re
import shutil

import cv2
from conftest import ROOT, copy_scripts, script


def test_in_order_from_another_folder(drawings, tmp_path):
    """Without options all folders lie beside the scripts; the current folder stays empty."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(drawings, project / "asl_data" / "new")
    copy_scripts(project)
    said = {}
    for name, *options in (
        ("preprocess.py",),
        ("training.py", "--epochs", "1", "--batch-size", "8"),
        ("test.py",),
    ):
        done = script(project / name, *options, cwd=elsewhere, check=True)
        said[name] = done.stdout.splitlines()
    assert list(elsewhere.iterdir()) == []
    assert said["preprocess.py"][0].endswith("asl_data/new: 36 images")
    assert said["preprocess.py"][-3].split() == ["total", "24", "9", "3"]
    assert said["preprocess.py"][-1] == "Data preprocessing success!"
    assert said["training.py"][-1] == "Saved model to disk"
    assert said["test.py"][-6].startswith("Accuracy: ") and "mistakes" in said["test.py"][-1]
    written = {path.relative_to(project).as_posix() for path in project.rglob("*.*")}
    assert {
        "Numpy_folder/samples.jpg",
        "Checkpoint/history.png",
        "Weights_Full/model.json",
        "Weights_Full/confusion.png",
        "Weights_Full/mistakes.jpg",
    } < written


def test_drawings_depend_on_the_seed_only(drawings, tmp_path):
    names = {f"{letter}_{i}.jpg" for letter in "ABC" for i in range(1, 13)}
    assert {path.name for path in drawings.iterdir()} == names
    for folder, *seed in ("same",), ("other", "--seed", "1"):
        options = ("--output", tmp_path / folder, "--count", "2", *seed)
        done = script("asl_data/draw_hands.py", *options, check=True)
        assert "these are drawings" in done.stdout
        for path in (tmp_path / folder).iterdir():
            assert cv2.imread(str(path)).shape == (200, 200, 3)
            same = path.read_bytes() == (drawings / path.name).read_bytes()
            assert same == (folder == "same")


def test_no_script_imports_tensorflow():
    """Any backend of Keras will do."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("asl_data/*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) tensorflow", text, re.MULTILINE)
