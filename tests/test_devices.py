"""Several devices, and several processes, of KERAS_BACKEND=jax: training.py."""

import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, arrays, environment, folder_options, history, make, wait_until

import preprocess
import training

pytest.importorskip("jax")

# Two steps of all 24 images. In more and larger ones rounding grows as much as the harm would.
OPTIONS = ("--epochs", "2", "--batch-size", "24", "--learning-rate", "0.0001")


def command(dataset, folder, *arguments, devices=1, **variables):
    """What subprocess takes to train on so many devices of a CPU."""
    count = f"--xla_force_host_platform_device_count={devices}"
    variables = {
        "KERAS_BACKEND": "jax",
        "XLA_FLAGS": count,
        "TF_CPP_MIN_LOG_LEVEL": "2",
    } | variables
    options = ["--numpy-folder", dataset, *folder_options(folder), *OPTIONS, *arguments]
    return {
        "args": [sys.executable, ROOT / "training.py", *options],
        "env": environment() | variables,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "encoding": "utf-8",
    }


def join(address, index):
    """The variables of one of two processes."""
    return {
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
        "KERAS_DISTRIBUTION_PROCESS_ID": index,
    }


@pytest.fixture
def start_two(dataset):
    """A function that starts two processes of one run; the second may be told otherwise."""
    processes = []

    def start(folder, *arguments, other=(), other_dataset=None, devices=(1, 1)):
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        for index in ("0", "1"):
            variables = join(address, index)
            # The second one's folders are not there: on another machine they would not be.
            folders = folder if index == "0" else folder / "elsewhere"
            more = (*arguments, *other) if index == "1" else arguments
            data = other_dataset if other_dataset and index == "1" else dataset
            variables["devices"] = devices[int(index)]
            processes.append(subprocess.Popen(**command(data, folders, *more, **variables)))
            processes[-1].address = address
        return processes[-2:]

    yield start
    for process in processes:
        process.kill()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def one_device(dataset, tmp_path_factory):
    """A folder with two epochs on one device."""
    folder = tmp_path_factory.mktemp("one")
    done = subprocess.run(**command(dataset, folder), timeout=300)
    assert done.returncode == 0 and "device cpu:0, backend jax" in done.stdout, done.stderr
    return folder


def assert_like_one_device(folder, one_device):
    """Within what float32 allows: a step agrees to 1e-6, the next one multiplies that."""
    for row, expected, limit in zip(
        history(folder), history(one_device), (1e-5, 3e-3), strict=True
    ):
        for name in ("loss", "val_loss"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=limit), name
    for epoch, limit in (("01", 1e-4), ("02", 5e-3)):
        ours, theirs = (
            arrays(*(each / "Checkpoint").glob(f"weights.{epoch}-*"))
            for each in (folder, one_device)
        )
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert np.allclose(ours[name], theirs[name], rtol=0, atol=limit), name


def test_two_devices(dataset, one_device, tmp_path):
    done = subprocess.run(**command(dataset, tmp_path, devices=2), timeout=300)
    assert done.returncode == 0 and "device cpu:0, cpu:1, backend jax" in done.stdout, done.stderr
    assert_like_one_device(tmp_path, one_device)


def test_four_devices_go_on_from_one(dataset, one_device, tmp_path):
    """Four do not divide the 9 validation images either."""
    shutil.copytree(one_device, tmp_path, dirs_exist_ok=True)
    (last,) = (tmp_path / "Checkpoint").glob("weights.02-*")
    last.unlink()
    done = subprocess.run(**command(dataset, tmp_path, devices=4), timeout=300)
    assert done.returncode == 0 and "weights.01-3.18.hdf5 restored" in done.stdout, done.stderr
    assert_like_one_device(tmp_path, one_device)


def test_rows_of_weight_0_fill_up_the_validation(dataset):
    """Each image counts once, and the weighted mean is that of the images."""
    images, labels = preprocess.load_split(dataset, "validation", preprocess.load_dataset(dataset))
    batches = training.Filled(training.Batches(images, labels, 8), devices=4)
    rows = [batches[index] for index in range(len(batches))]
    assert [len(images) for images, _, _ in rows] == [8, 4]
    weights = np.concatenate([weights for _, _, weights in rows])
    assert np.array_equal(np.concatenate([images for images, _, _ in rows])[:9], images)
    assert np.allclose(weights, [12 / 9] * 9 + [0] * 3)


def test_a_batch_that_does_not_divide(dataset, tmp_path):
    for arguments, what in (
        (("--batch-size", "10"), "10 images of a batch do not divide by 4 devices"),
        (("--batch-size", "5"), "24 training images do not divide by 5 devices"),
    ):
        devices = 4 if "4 devices" in what else 5
        done = subprocess.run(**command(dataset, tmp_path, *arguments, devices=devices), timeout=60)
        assert done.returncode == 1 and done.stderr.startswith(f"training.py: {what}: "), (
            done.stderr
        )
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.hdf5"))


def lines(process):
    """What a process said on standard error, but what TensorFlow logs at its import."""
    process.wait(timeout=60)
    text = process.stderr.read().splitlines()
    return [line for line in text if not line.startswith(("WARNING: All log", "I0000"))]


def test_two_processes_one_of_them_killed(one_device, start_two, tmp_path):
    """The other ends in a line; the same command on both goes on."""
    first, second = start_two(tmp_path)
    wait_until(lambda: list((tmp_path / "Checkpoint").glob("weights.01-*")), first, 120)
    second.kill()
    said = lines(first)
    assert len(said) == 1, "\n".join(said)
    assert said[0].startswith("training.py: a process of this run has ended or failed; the same")
    assert first.returncode in (1, -6)

    first, second = start_two(tmp_path)
    (out, _), (other, _) = (process.communicate(timeout=300) for process in (first, second))
    assert (first.returncode, second.returncode) == (0, 0)
    assert " of 2 processes, backend jax" in out and "Saved model to disk" in out
    assert "process 2 of 2: the first one says how it goes, and writes" in other
    assert "epoch" not in other.lower()
    assert not (tmp_path / "elsewhere").exists()
    assert_like_one_device(tmp_path, one_device)


def test_the_first_of_two_processes_killed(start_two, tmp_path):
    first, second = start_two(tmp_path)
    wait_until((tmp_path / "Checkpoint" / "run.json").exists, first, 300)
    first.terminate()  # as SLURM and Kubernetes do
    said = lines(second)
    assert len(said) == 1, "\n".join(said)
    assert said[0].startswith("training.py: a process of this run has ended or failed; the same")


def test_what_the_runtime_says_is_one_line():
    """Whichever comes first, the runtime's own line or that of training.py."""
    ours = f"training.py: {training.ENDED}"
    runtime = "E1127 10:11:12 81 client.cc:9] Polled an error from the coordination service: gone"
    for said, shown in (
        (["a warning", runtime, "RPC: /Poll", ours], ["a warning", ours]),
        (
            ["a warning", f"{ours} (UNKNOWN: gone)", runtime],
            ["a warning", f"{ours} (UNKNOWN: gone)"],
        ),
    ):
        code = "import os, sys, training; sys.argv[0] = 'x/training.py'; "
        code += "training.one_line_of_the_runtime(); os.write(2, sys.argv[1].encode())"
        python = [sys.executable, "-c", code, "\n".join([*said, ""])]
        variables = {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            python, env=environment() | variables, stderr=subprocess.PIPE, encoding="utf-8"
        )
        assert done.stderr.splitlines()[-len(shown) :] == shown


def test_two_processes_that_differ(drawings, start_two, tmp_path):
    make(tmp_path / "other", "--data", drawings, "--seed", "1")
    other = ("--epochs", "3", "--momentum", "0.5")
    processes = start_two(tmp_path, other=other, other_dataset=tmp_path / "other")
    for process in processes:
        (line,) = lines(process)
        start = "training.py: process 2 is unlike the first one: "
        assert line == f"{start}momentum 0.0, not 0.5, other data, epochs 2, not 3"
        assert process.returncode == 1
    assert not list(tmp_path.rglob("*.hdf5"))


def test_two_processes_with_other_numbers_of_devices(start_two, tmp_path):
    for process in start_two(tmp_path, devices=(1, 2)):
        assert lines(process) == ["training.py: the processes have different numbers of devices"]


def test_a_dry_run_of_two_processes(start_two, tmp_path):
    """The second has no room and may not write where its folders would be."""
    other = ("--checkpoint", "/proc/c", "--weights-full", "/proc/w")
    first, second = start_two(tmp_path, "--dry-run", other=other)
    (out, _), (other, _) = (process.communicate(timeout=300) for process in (first, second))
    assert (first.returncode, second.returncode) == (0, 0)
    assert "dry run: a batch of 24 images" in out and "dry run" not in other
    assert not list(tmp_path.rglob("*.*"))


def test_a_process_that_is_there_already(start_two, dataset, tmp_path):
    """JAX would take it for the first one, started again, and end both."""
    first, second = start_two(tmp_path, "--epochs", "1000", "--keep", "1")
    wait_until((tmp_path / "Checkpoint" / "run.json").exists, first, 300)
    address = first.address
    for index in ("0", "1"):
        done = subprocess.run(**command(dataset, tmp_path, **join(address, index)), timeout=100)
        assert done.returncode == 1 and done.stderr == (
            f"training.py: process {index} of {address}, or another program with that port, "
            "is at work already\n"
        )
    assert first.poll() is None and second.poll() is None


def test_a_port_in_use_and_a_process_that_waits(dataset, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = subprocess.run(**command(dataset, tmp_path, **join(address, "0")), timeout=100)
        assert done.returncode == 1 and f"process 0 of {address}, or another" in done.stderr
    with subprocess.Popen(**command(dataset, tmp_path, **join(address, "0"))) as process:
        line = "waits for the other processes, up to five minutes\n"
        assert process.stdout.readline() == line
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT


def test_one_of_two_that_can_not_begin(start_two, tmp_path):
    """Its own line says why; the other does not wait for long."""
    first, second = start_two(tmp_path, other_dataset=tmp_path / "nothing")
    (line,) = lines(second)
    assert "nothing/dataset.json is missing: run preprocess.py first" in line
    (line,) = lines(first)
    assert "a process of this run has ended or failed" in line


def test_on_tensorflow(monkeypatch, capsys, dataset, tmp_path):
    """Which trains on one: it says so; several processes would each train alone."""
    gpus = ["gpu:0", "gpu:1"]
    monkeypatch.setattr(training.keras.distribution, "list_devices", lambda: gpus)
    training.print_device("float32")
    assert "TensorFlow uses gpu:0 alone; all of them: pip install" in capsys.readouterr().out
    monkeypatch.setenv("KERAS_DISTRIBUTION_PROCESS_ID", "1")
    with pytest.raises(preprocess.UserError, match="are for KERAS_BACKEND=jax alone"):
        training.main([])


def test_when_to_join(monkeypatch):
    """By all three variables of Keras, or in a step of SLURM with several tasks."""
    monkeypatch.setattr(training.keras.backend, "backend", lambda: "jax")
    assert training.how_to_join() is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # srun --pty bash
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")  # Kubernetes, without its library
    assert training.how_to_join() is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert training.how_to_join() == {"cluster_detection_method": None}
    for values in (
        ("10.0.0.1:99,10.0.0.2:99", "2", ""),
        ("10.0.0.1", "2", "1"),
        ("a:1", "two", "0"),
    ):
        for name, value in zip(("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID"), values):
            monkeypatch.setenv(f"KERAS_DISTRIBUTION_{name}", value)
        with pytest.raises(preprocess.UserError, match="must be HOST:PORT of the first one"):
            training.how_to_join()
    monkeypatch.setenv("KERAS_DISTRIBUTION_JOB_ADDRESSES", "10.0.0.1:99,10.0.0.2:99")
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    joining = training.how_to_join()
    assert (joining["coordinator_address"], joining["process_id"]) == ("10.0.0.1:99", 0)
