"""What the tests share: the drawn images, a data set of them, a network trained on it."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# What is compared bit for bit and line by line is TensorFlow's on a CPU.
os.environ.update(CUDA_VISIBLE_DEVICES="-1", KERAS_BACKEND="tensorflow")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"  # real photographs and the article; not on a user's machine
sys.path.insert(0, str(ROOT))

import preprocess  # noqa: E402

TRAINING = ("--epochs", "3", "--batch-size", "8", "--learning-rate", "0.01", "--momentum", "0.9")


def script(name, *arguments, cwd=ROOT, **options):
    """Run a script as a user does; return the finished process with its output as text."""
    command = [sys.executable, ROOT / name, *arguments]
    options = {"capture_output": True, "text": True, "encoding": "utf-8"} | options
    return subprocess.run(command, cwd=cwd, env=environment(), **options)


def environment():
    """The user's environment, with the drawing of colours and widths off."""
    return os.environ | {"PYTHONIOENCODING": "utf-8", "COLUMNS": "100", "NO_COLOR": "1"}


def load_script(path):
    """A script as a module; `import test` would find Python's own package of that name."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stop(process):
    """Stop a process in its tracks; return when it has stopped."""
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)


def folder_options(folder):
    """The options that point training.py and test.py to the folders of a test's run."""
    return ("--checkpoint", folder / "Checkpoint", "--weights-full", folder / "Weights_Full")


def load(folder, split):
    """(images, labels) of a split of a Numpy_folder."""
    return preprocess.load_split(folder, split, preprocess.load_dataset(folder))


@pytest.fixture(scope="session")
def drawings(tmp_path_factory):
    """A folder of 12 drawings of each letter: A_1.jpg ... C_12.jpg."""
    folder = tmp_path_factory.mktemp("drawings")
    script("asl_data/draw_hands.py", "--output", folder, "--count", "12", check=True)
    return folder


@pytest.fixture(scope="session")
def dataset(drawings, tmp_path_factory):
    """A Numpy_folder of the drawings: 24 images to train, 9 to validate, 3 to test."""
    folder = tmp_path_factory.mktemp("dataset")
    script("preprocess.py", "--data", drawings, "--numpy-folder", folder, check=True)
    return folder


@pytest.fixture(scope="session")
def trained(dataset, tmp_path_factory):
    """A folder with the Checkpoint and Weights_Full of three epochs, never interrupted."""
    folder = tmp_path_factory.mktemp("trained")
    done = script(
        "training.py", "--numpy-folder", dataset, *folder_options(folder), *TRAINING, check=True
    )
    (folder / "output.txt").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of `trained` by links, as a checkpoint is 225 MB; replace its files, never write in
    them."""
    return shutil.copytree(trained, tmp_path / "copy", copy_function=os.link)


def replace(path, data):
    """Write bytes as a new file of the same name."""
    path.unlink()
    path.write_bytes(data)


@pytest.fixture
def small_disk(tmp_path):
    """A function that gives a folder of its own small disk, or makes that disk larger."""
    folder = tmp_path / "disk"

    def mount(size):
        option = f"size={size}" if not folder.exists() else f"remount,size={size}"
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", folder])
        if done.returncode:
            pytest.skip("only root may mount a disk")
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", folder])


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=6, help="how often to kill a run (default: 6)")
