"""What the tests share: the drawn images, a data set of them, a network trained on it."""

import csv
import filecmp
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

# What is compared bit for bit and line by line is TensorFlow's on a CPU.
os.environ.update(CUDA_VISIBLE_DEVICES="-1", KERAS_BACKEND="tensorflow")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"  # real photographs and the article; not on a user's machine
sys.path.insert(0, str(ROOT))

import preprocess  # noqa: E402

ARRAYS = [f"{split}_{kind}.npy" for split in preprocess.SPLITS for kind in ("set", "classes")]
WRITTEN = {*ARRAYS, "samples.jpg", "dataset.json"}  # by preprocess.py
TRAINING = ("--epochs", "3", "--batch-size", "8", "--learning-rate", "0.01", "--momentum", "0.9")


def script(name, *arguments, cwd=ROOT, **options):
    """Run a script as a user does; return the finished process with its output as text."""
    command = [sys.executable, ROOT / name, *arguments]
    defaults = {"capture_output": True, "text": True, "encoding": "utf-8", "timeout": 600}
    return subprocess.run(command, cwd=cwd, env=environment(), **(defaults | options))


def environment():
    """The user's environment, with the drawing of colours and widths off."""
    return os.environ | {"PYTHONIOENCODING": "utf-8", "COLUMNS": "100", "NO_COLOR": "1"}


def load_script(path):
    """A script as a module; `import test` would find Python's own package of that name."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wait_until(condition, process=None, seconds=60):
    """Return when condition() is true; fail when the time is over or the process has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.001)


def stop(process):
    """Stop a process in its tracks; return when it has stopped."""
    process.send_signal(signal.SIGSTOP)
    state = os.WSTOPPED | os.WNOHANG
    wait_until(lambda: os.waitid(os.P_PID, process.pid, state), process)


def folder_options(folder):
    """The options that point training.py and test.py to the folders of a test's run."""
    return ("--checkpoint", folder / "Checkpoint", "--weights-full", folder / "Weights_Full")


def load(folder, split):
    """(images, labels) of a split of a Numpy_folder."""
    return preprocess.load_split(folder, split, preprocess.load_dataset(folder))


def make(folder, *arguments):
    """Run preprocess.main into a folder; return {name: array} and dataset.json."""
    preprocess.main([*map(str, arguments), "--numpy-folder", str(folder)])
    arrays = {name: np.load(folder / name) for name in ARRAYS}
    return arrays, json.loads((folder / "dataset.json").read_text())


def equal(some, others):
    return all(np.array_equal(some[name], others[name]) for name in ARRAYS)


def contents(folder):
    """{name: bytes} of all files below a folder, but the empty file of the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def copy_images(drawings, folder, name):
    """Copy the drawings, each under name(letter, number)."""
    for path in drawings.iterdir():
        target = folder / name(*path.stem.split("_"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


@pytest.fixture(scope="session")
def drawings(tmp_path_factory):
    """A folder of 12 drawings of each letter: A_1.jpg ... C_12.jpg."""
    folder = tmp_path_factory.mktemp("drawings")
    script("asl_data/draw_hands.py", "--output", folder, "--count", "12", check=True)
    return folder


@pytest.fixture
def kaggle(drawings, tmp_path):
    """The Kaggle folders, with images and files that are not part of them."""
    folder = tmp_path / "kaggle"
    train = "asl_alphabet_train/asl_alphabet_train"
    copy_images(drawings, folder, lambda label, number: f"{train}/{label}/{label}{number}.jpg")
    test = folder / "asl_alphabet_test/asl_alphabet_test/A_test.jpg"
    test.parent.mkdir(parents=True)
    shutil.copy(drawings / "A_1.jpg", test)
    (folder / train / "A" / "notes.txt").write_text("not an image")
    (folder / train / "A" / "._A1.jpg").write_text("a leftover of macOS")
    return folder


@pytest.fixture(scope="session")
def dataset(drawings, tmp_path_factory):
    """A Numpy_folder of the drawings: 24 images to train, 9 to validate, 3 to test."""
    folder = tmp_path_factory.mktemp("dataset")
    script("preprocess.py", "--data", drawings, "--numpy-folder", folder, check=True)
    return folder


@pytest.fixture(scope="session")
def small_dataset(drawings, tmp_path_factory):
    """A Numpy_folder of 6 images to train and 3 to validate, for what is slow: bfloat16 on a
    processor without units for it, a backend that compiles anew at each start."""
    folder = tmp_path_factory.mktemp("small")
    counts = ("--train", "2", "--validation", "1")
    script("preprocess.py", "--data", drawings, "--numpy-folder", folder, *counts, check=True)
    return folder


@pytest.fixture(scope="session")
def trained(dataset, tmp_path_factory):
    """A folder with the Checkpoint and Weights_Full of three epochs, never interrupted. Tests that
    write there, as a plain test.py does, take `copy`."""
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
def start():
    """A function that starts a command; what still runs, or is stopped, ends with the test."""
    processes = []

    def popen(command, **options):
        options = {"stdout": subprocess.DEVNULL} | options
        processes.append(subprocess.Popen(command, env=environment(), **options))
        return processes[-1]

    yield popen
    for process in processes:
        process.kill()
        process.wait(timeout=60)


@pytest.fixture
def start_stopped(start):
    """A function that starts a command and stops it in its tracks when a path exists."""

    def popen(command, path, **options):
        process = start(command, **options)
        wait_until(path.exists, process)
        stop(process)
        return process

    return popen


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


# ---- runs of training.py, and what they leave ----


def same_arrays(some, others):
    some, others = arrays(some), arrays(others)
    return some.keys() == others.keys() and all(np.array_equal(some[k], others[k]) for k in some)


def arrays(path):
    """{name: array} of all that an HDF5 file holds."""
    found = {}
    with h5py.File(path, "r") as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]}) if hasattr(item, "shape") else None
        )
    return found


def files(folder):
    """{name: (size, time of the last change)} of what training.py left in a folder."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("output.txt", ".lock")
    }


def assert_same_run(folder, other):
    """Bit for bit the same files."""
    assert files(folder).keys() == files(other).keys()
    for name in files(folder):
        assert filecmp.cmp(folder / name, other / name, shallow=False), name


def history(folder):
    with open(folder / "Checkpoint" / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def train(dataset, folder, *arguments, **options):
    options = {"capture_output": True, "text": True, "encoding": "utf-8"} | options
    arguments = ["--numpy-folder", dataset, *folder_options(folder), *TRAINING, *arguments]
    return script("training.py", *arguments, **options)


def start_training(dataset, folder, stderr=subprocess.DEVNULL):
    command = [sys.executable, ROOT / "training.py", "--numpy-folder", dataset]
    return subprocess.Popen(
        [*command, *folder_options(folder), *TRAINING],
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=environment(),
        encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal
    )


def in_process(dataset, folder, *arguments):
    import training  # keras takes seconds

    options = ["--numpy-folder", dataset, *folder_options(folder), *TRAINING, *arguments]
    training.main([str(option) for option in options])


def open_run(dataset, folder, *arguments):
    import training  # keras takes seconds

    options = ["--numpy-folder", dataset, *folder_options(folder), *TRAINING, *arguments]
    options = training.parse_options([str(option) for option in options])
    return training.Run(options, preprocess.load_dataset(dataset))


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=6, help="how often to kill a run (default: 6)")
