"""Several devices, and several processes, of KERAS_BACKEND=jax."""

import socket
import sys
from subprocess import PIPE, run

import numpy as np
import pytest
from conftest import ROOT, assert_same_run, folders, make, read_hdf5, run_of, script, stop_early
from conftest import wait_until

import preprocess

pytest.importorskip("jax")

# Two steps of all 24 images. In more and larger ones rounding grows as much as a fault would.
OPTIONS = ("--epochs", "2", "--batch-size", "24", "--learning-rate", "0.0001", "--momentum", "0.9")


@pytest.fixture
def two(dataset, start, monkeypatch):
    """A function that starts two processes of one run; `data` is that of the second."""

    def one(number, folder, data):
        monkeypatch.setenv("KERAS_DISTRIBUTION_PROCESS_ID", str(number))
        options = ("--numpy-folder", data, *folders(folder), *OPTIONS)
        return start("training.py", *options, stdout=PIPE, stderr=PIPE, encoding="utf-8")

    def both(folder, data=dataset):
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("KERAS_DISTRIBUTION_JOB_ADDRESSES", address)
        monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
        monkeypatch.setenv("KERAS_BACKEND", "jax")
        return one(0, folder, dataset), one(1, folder, data)

    return both


def finish(process):
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def one_device(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "jax")
        options = ("--numpy-folder", dataset, *folders(folder), *OPTIONS)
        script("training.py", *options, check=True)
    return folder


def test_goes_on_exactly(dataset, one_device, tmp_path, monkeypatch):
    """One device; test_training.py has the other backend."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    stop_early(one_device, tmp_path / "run")
    options = ("--numpy-folder", dataset, *folders(tmp_path / "run"), *OPTIONS)
    assert "goes on after epoch 1" in script("training.py", *options, check=True).stdout
    assert_same_run(tmp_path / "run", one_device)


def test_three_devices(dataset, one_device, tmp_path, monkeypatch):
    """Each has its share, and they train like one, within what float32 allows: a step agrees to
    1e-6, the next one multiplies that. Three divide the batch and all images."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    code = "import keras, sys, training; training.main(sys.argv[1:]); "
    code += "print(keras.distribution.distribution().num_model_replicas)"
    options = map(str, ("--numpy-folder", dataset, *folders(tmp_path), *OPTIONS))
    done = run([sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("\n3\n"), done.stderr
    said = "train 24 images, validation 9\ndevice cpu:0, cpu:1, cpu:2, backend jax"
    assert said in done.stdout
    rows = zip(run_of(tmp_path)["epochs"], run_of(one_device)["epochs"], strict=True)
    for (row, expected), close, far in zip(rows, (1e-5, 3e-3), (1e-4, 5e-3)):
        for name in ("loss", "val_loss"):
            assert row[name] == pytest.approx(expected[name], rel=close), name
        ours, theirs = (
            read_hdf5(tmp_path / "Checkpoint" / row["file"]),
            read_hdf5(one_device / "Checkpoint" / expected["file"]),
        )
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert np.allclose(ours[name], theirs[name], rtol=0, atol=far), name


def test_rows_that_do_not_divide_are_left_out(dataset, monkeypatch):
    """Of 24 and 9 rows five devices share 20 and 5, of the last batch too."""
    import training

    monkeypatch.setattr(training, "jax_processes", lambda: (1, 2, 5))
    options = training.parse_options(["--numpy-folder", str(dataset), "--batch-size", "15"])
    facts = preprocess.load_dataset(dataset)
    train, validation = (
        training.Batches(options, facts, split) for split in ("train", "validation")
    )
    train.shuffle(0)
    assert len(train.order) == 20 and len(validation.order) == 5
    assert [train.places(i) for i in range(2)] == [range(7, 15), range(17, 20)]
    assert validation.places(0) == range(2, 5)  # the share of the second of two processes


def test_two_processes_killed_and_run_again(two, one_device, tmp_path):
    """Without the last image, as 9 validation images do not divide; the same commands go on."""
    first, second = two(tmp_path / "run")
    wait_until((tmp_path / "run" / "Checkpoint" / "run.json").exists, first)
    for process in (second, first):
        process.kill()
        process.wait()
    out, other = map(finish, two(tmp_path / "run"))
    assert "goes on after epoch 1" in out and "goes on after epoch 1" in other
    expected, found = (run_of(each)["epochs"] for each in (one_device, tmp_path / "run"))
    for row, ours, close in zip(expected, found, (1e-5, 3e-3), strict=True):
        assert ours["loss"] == pytest.approx(row["loss"], rel=close)


def test_two_processes_of_other_data(drawings, two, tmp_path):
    make(tmp_path / "other", "--data", drawings, "--seed", "1")
    for process in two(tmp_path / "run", data=tmp_path / "other"):
        _, err = process.communicate(timeout=100)
        said = "training.py: the processes have different data, settings or checkpoints"
        assert said in err.splitlines() and process.returncode == 1
    assert not list(tmp_path.rglob("*.hdf5"))


def test_what_cannot_be_shared(monkeypatch):
    """A batch that does not divide; processes of another backend."""
    import training

    monkeypatch.setattr(training, "jax_processes", lambda: (0, 1, 4))
    with pytest.raises(training.UserError, match="--batch-size 10 does not divide by 4 devices"):
        training.main(["--batch-size", "10"])
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    with pytest.raises(training.UserError, match="several processes need KERAS_BACKEND=jax"):
        training.main([])
