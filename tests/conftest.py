"""What the tests share: drawn hands, a data set of them, a network trained on it."""

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

# Bit for bit comparisons are of TensorFlow on a CPU.
os.environ.update(CUDA_VISIBLE_DEVICES="-1", KERAS_BACKEND="tensorflow")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"  # real photographs and the article; not on a user's machine
sys.path.insert(0, str(ROOT))

import preprocess  # noqa: E402

ARRAYS = [f"{split}_{kind}.npy" for split in preprocess.SPLITS for kind in ("set", "classes")]
TRAINING = ("--epochs", "2", "--batch-size", "8", "--learning-rate", "0.01", "--momentum", "0.9")


def command(name, *arguments):
    return [sys.executable, str(ROOT / name), *map(str, arguments)]


def script(name, *arguments, **options):
    """Run a script as a user does; return the finished process with its output as text."""
    options = {"capture_output": True, "encoding": "utf-8", "timeout": 300} | options
    return subprocess.run(command(name, *arguments), **options)


def copy_scripts(folder):
    """The scripts as a fresh clone has them: without images, arrays and the hand detector."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("asl_data/*.py")]:
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


def last_line(name, *arguments):
    """The last line on standard error of a script that must end without a traceback."""
    done = script(name, *arguments)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


def wait_until(condition, process=None, seconds=100):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.002)


def make(folder, *arguments):
    """Run preprocess.main into a folder; return {name: array} and dataset.json."""
    preprocess.main([*map(str, arguments), "--numpy-folder", str(folder)])
    arrays = {name: np.load(folder / name) for name in ARRAYS}
    return arrays, json.loads((folder / "dataset.json").read_text())


def load(folder, split):
    """(images, labels) of a split of a Numpy_folder."""
    return preprocess.load_split(folder, split, preprocess.load_dataset(folder))


def equal(some, others):
    """Whether two {name: array} are bit for bit the same."""
    return some.keys() == others.keys() and all(np.array_equal(some[k], others[k]) for k in some)


def copy_images(drawings, folder, name, letters="ABC"):
    """Copy the drawings, each under name(letter, number), A, B and C as other letters."""
    for path in drawings.iterdir():
        letter, number = path.stem.split("_")
        target = folder / name(letters["ABC".index(letter)], number)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


# ---- runs of training.py, and what they leave ----


def folders(folder):
    """The options that point training.py and test.py to the folders of a test's run."""
    return ("--checkpoint", folder / "Checkpoint", "--weights-full", folder / "Weights_Full")


def train(dataset, folder, *arguments, **options):
    arguments = ("--numpy-folder", dataset, *folders(folder), *TRAINING, *arguments)
    return script("training.py", *arguments, **options)


def train_here(dataset, folder, *arguments):
    import keras  # takes seconds
    import training

    keras.utils.clear_session()  # so layers have the names that they have in a new process
    gc.collect()  # the lock of an earlier call
    options = ("--numpy-folder", dataset, *folders(folder), *TRAINING, *arguments)
    training.main([str(option) for option in options])


def run_of(folder):
    return json.loads((folder / "Checkpoint" / "run.json").read_text())


def change_json(path, change):
    facts = json.loads(path.read_text())
    change(facts)
    path.unlink()  # it may be a link to a file of `trained`
    path.write_text(json.dumps(facts))


def read_hdf5(path):
    """{name: array} of all that a file holds."""
    names = []
    with h5py.File(path) as file:
        file.visit(names.append)
        return {name: file[name][()] for name in names if isinstance(file[name], h5py.Dataset)}


def stop_early(folder, copy):
    """Copy a run, by links, as it was before its last epoch."""
    ignore = shutil.ignore_patterns(".lock", run_of(folder)["epochs"][-1]["file"])
    shutil.copytree(folder, copy, copy_function=os.link, ignore=ignore)
    change_json(copy / "Checkpoint" / "run.json", lambda run: run["epochs"].pop())


def assert_same_run(folder, other):
    """The same epochs and bit for bit the same weights, optimizers included."""
    assert run_of(folder)["epochs"] == run_of(other)["epochs"]
    names = [f"Checkpoint/{row['file']}" for row in run_of(folder)["epochs"]]
    for name in [*names, "Weights_Full/model_weights.h5"]:
        assert equal(read_hdf5(folder / name), read_hdf5(other / name)), name


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    """The processes of JAX share what they compile: each would take 15 seconds for it."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


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
    make(folder, "--data", drawings)
    return folder


@pytest.fixture(scope="session")
def small_dataset(drawings, tmp_path_factory):
    """6 images to train, 3 to validate: for bfloat16 on a processor without units for it."""
    folder = tmp_path_factory.mktemp("small")
    make(folder, "--data", drawings, "--train", "2", "--validation", "1")
    return folder


@pytest.fixture(scope="session")
def trained(dataset, tmp_path_factory):
    """A folder with the Checkpoint and Weights_Full of two epochs, never interrupted. Tests that
    write there, as a plain test.py does, take `copy`."""
    folder = tmp_path_factory.mktemp("trained")
    done = train(dataset, folder, check=True)
    (folder / "output.txt").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of `trained` by links, as a checkpoint has 225 MB: replace its files, never write in
    them."""
    return shutil.copytree(trained, tmp_path / "copy", copy_function=os.link)


@pytest.fixture
def start():
    """A function that starts a script; what still runs ends with the test."""
    processes = []

    def popen(name, *arguments, **options):
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | options
        processes.append(subprocess.Popen(command(name, *arguments), **options))
        return processes[-1]

    yield popen
    for process in processes:
        process.kill()
        process.wait(timeout=60)
