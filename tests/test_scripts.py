"""The three scripts in order, as the README has them."""

import shutil
import subprocess
import sys

from conftest import ROOT, environment


def test_in_order_from_another_folder(drawings, tmp_path):
    """Without options all folders lie beside the scripts; the current folder stays empty."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(drawings, project / "asl_data" / "new")
    said = {}
    for name, *options in (
        ("preprocess.py",),
        ("training.py", "--epochs", "1", "--batch-size", "8"),
        ("test.py",),
    ):
        shutil.copy(ROOT / name, project)
        said[name] = subprocess.run(
            [sys.executable, project / name, *options],
            cwd=elsewhere,
            env=environment(),
            stdout=subprocess.PIPE,
            encoding="utf-8",
            check=True,
        ).stdout.splitlines()
    assert list(elsewhere.iterdir()) == []
    assert said["preprocess.py"][-1] == "Data preprocessing success!"
    assert said["training.py"][-1] == "Saved model to disk"
    assert said["test.py"][-7].startswith("##################")
    assert said["test.py"][-6].startswith("Accuracy: ")
    assert "mistakes" in said["test.py"][-1]
    assert {path.name for path in project.iterdir() if path.name != "__pycache__"} == {
        *("preprocess.py", "training.py", "test.py"),
        *("asl_data", "Numpy_folder", "Checkpoint", "Weights_Full"),
    }


def test_no_script_names_tensorflow():
    """Any backend of Keras will do: no tf.* in the code."""
    for name in ("preprocess.py", "training.py", "test.py"):
        assert "import tensorflow" not in (ROOT / name).read_text(encoding="utf-8")
