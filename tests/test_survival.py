"""Runs that are killed, stopped or out of room, and files that are damaged afterwards."""

import errno
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ARRAYS, ROOT, contents, equal, load, make, replace, script, wait_until

import preprocess


# ---- all or nothing ----


def test_a_run_that_fails_leaves_what_was_there(drawings, tmp_path, monkeypatch):
    make(tmp_path, "--data", drawings)
    before = contents(tmp_path)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preprocess, "write_json", full)
    with pytest.raises(OSError):
        preprocess.main(["--data", str(drawings), "--seed", "1", "--numpy-folder", str(tmp_path)])
    assert contents(tmp_path) == before


def test_killed_runs_leave_an_intact_set(tmp_path, request, start):
    """kill -9 at moments drawn over a run: what stands is the old set or the new one, and the
    same command completes."""
    images, out = tmp_path / "images", tmp_path / "out"
    script("asl_data/draw_hands.py", "--output", images, "--count", "150", check=True)
    sets = []
    for seed in ("1", "0"):
        make(out, "--data", images, "--seed", seed)
        sets.append({name: (out / name).read_bytes() for name in ARRAYS})

    command = [sys.executable, ROOT / "preprocess.py", "--data", images, "--numpy-folder", out]
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "timeout": 60}
    begin = time.perf_counter()
    subprocess.run([*command[:-1], tmp_path / "timed"], **quiet)
    seconds = time.perf_counter() - begin
    draw = random.Random(0)
    for kill in range(request.config.getoption("--kills")):
        make(out, "--data", images, "--seed", "1")
        process = start(command)
        if kill == 0:
            wait_until((out / ".partial" / "train_set.npy").exists, process)
        else:
            time.sleep(draw.uniform(0.3, 1) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        assert kill or (out / ".partial").exists()
        for split in preprocess.SPLITS:
            load(out, split)
        assert {name: (out / name).read_bytes() for name in ARRAYS} in sets
        subprocess.run(command, **quiet)
        assert {name: (out / name).read_bytes() for name in ARRAYS} == sets[1]
        assert {path.name for path in out.iterdir()} == {*ARRAYS, "dataset.json", ".lock"}


def test_killed_between_the_moves(drawings, tmp_path, monkeypatch):
    """A run that dies while its files take their places has won: the next reader moves the rest."""
    make(tmp_path / "out", "--data", drawings)
    new, _ = make(tmp_path / "new", "--data", drawings, "--seed", "1")
    (tmp_path / "out" / ".whole").mkdir()
    for name in sorted([*ARRAYS, "dataset.json"])[:4]:
        shutil.copy(tmp_path / "new" / name, tmp_path / "out" / name)
    for name in sorted([*ARRAYS, "dataset.json"])[4:]:
        shutil.copy(tmp_path / "new" / name, tmp_path / "out" / ".whole" / name)
    load(tmp_path / "out", "train")
    assert equal(new, {name: np.load(tmp_path / "out" / name) for name in ARRAYS})
    assert not (tmp_path / "out" / ".whole").exists()


# ---- two runs at once ----


def test_two_runs_at_once(drawings, tmp_path, start_stopped):
    """The second is told so; the lock of a killed run is free."""
    images, out = tmp_path / "images", tmp_path / "out"
    script("asl_data/draw_hands.py", "--output", images, "--count", "150", check=True)
    options = ["--data", drawings, "--numpy-folder", out]
    first = [sys.executable, ROOT / "preprocess.py", "--data", images, "--numpy-folder", out]
    process = start_stopped(first, out / ".partial" / "train_set.npy")
    before = contents(out)
    second = script("preprocess.py", *options)
    assert second.returncode == 1
    assert second.stderr == f"preprocess.py: another run is at work in {out}: let it end first\n"
    assert contents(out) == before
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=60) == 0
    assert len(preprocess.load_dataset(out)["rows"]["train"]) == 300
    process = start_stopped(first, out / ".partial" / "train_set.npy")
    process.kill()
    process.wait(timeout=60)
    assert script("preprocess.py", *options).returncode == 0


def test_a_disk_without_locks(drawings, tmp_path, monkeypatch, capsys):
    """Some network disks have none; better a warning than no run, or a lock that outlives it."""

    def refuse(lock):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(preprocess.filelock.FileLock, "acquire", refuse)
    make(tmp_path, "--data", drawings)
    said = f"{tmp_path} can't be locked (Function not implemented): start no second run in it\n"
    assert said in capsys.readouterr().out


# ---- no room, no permission ----


def test_no_room(drawings, tmp_path, small_disk, start_stopped):
    """36 images take 5.4 MB: refused before the first byte, and again while the disk fills up."""
    disk = small_disk("4m")
    options = ["--data", drawings, "--numpy-folder", disk / "out"]
    done = script("preprocess.py", *options)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert " has 0.004 GB free, 0.005 GB are to come: make room" in done.stderr
    assert {path.name for path in (disk / "out").iterdir()} == {".lock"}

    small_disk("100m")
    assert script("preprocess.py", *options).returncode == 0
    before = contents(disk / "out")
    images = tmp_path / "images"
    script("asl_data/draw_hands.py", "--output", images, "--count", "150", check=True)
    command = [sys.executable, ROOT / "preprocess.py", "--data", images, *options[2:]]
    with open(tmp_path / "stderr", "w+") as stderr:
        process = start_stopped(command, disk / "out" / ".partial" / "train_set.npy", stderr=stderr)
        subprocess.run(["fallocate", "-l", "80m", disk / "filler"], check=True, timeout=60)
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=60) == 1
        stderr.seek(0)
        said = stderr.read()
    assert said == (
        "preprocess.py: No space left on device; make room and run the same command again\n"
    )
    assert contents(disk / "out") == before
    (disk / "filler").unlink()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_file_size_limit(drawings, tmp_path):
    """A disk that is full: one line, no rubbish, and the old set as it was."""
    make(tmp_path, "--data", drawings)
    before = contents(tmp_path)
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))}
    options = ("--data", drawings, "--numpy-folder", tmp_path, "--seed", "1")
    done = script("preprocess.py", *options, **limit)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "File too large" in done.stderr
    assert contents(tmp_path) == before


def test_read_only(drawings, small_disk):
    disk = small_disk("4m")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True, timeout=60)
    done = script("preprocess.py", "--data", drawings, "--numpy-folder", disk / "out")
    assert done.returncode == 1
    message = f"preprocess.py: {disk / 'out'}: Read-only file system; name another place\n"
    assert done.stderr == message


# ---- arrays and dataset.json that are damaged ----


def harm(path, kind):
    """Damage a file of Numpy_folder/ in one of the ways that happen."""
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "zip":
        replace(path, b"PK\x03\x04" + data[4:])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "header":
        replace(path, data.replace(b"}", b"\x00", 1))
    elif kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "one bit":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif kind == "pickle":
        np.save(path, np.array([print, {}], dtype=object), allow_pickle=True)
    elif kind == "shape":
        np.save(path, np.load(path)[1:])
    elif kind == "dtype":
        np.save(path, np.load(path).astype("float64"))


@pytest.mark.parametrize(
    "kind", "missing zip empty header truncated pickle shape dtype".split() + ["one bit"]
)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_damaged(dataset, tmp_path, name, kind):
    shutil.copytree(dataset, tmp_path / "out")
    harm(tmp_path / "out" / name, kind)
    reason = "holds .*, not" if kind in ("shape", "dtype") else ""
    with pytest.raises(preprocess.UserError, match=f"{name} {reason}.*run preprocess.py"):
        load(tmp_path / "out", name.partition("_")[0])


def test_arrays_of_another_run(drawings, dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "out")
    make(tmp_path / "new", "--data", drawings, "--seed", "1")
    shutil.copy(tmp_path / "new" / "train_set.npy", tmp_path / "out" / "train_set.npy")
    with pytest.raises(preprocess.UserError, match="train_set.npy is of another data set"):
        load(tmp_path / "out", "train")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "7", '{"rows": {}}'])
def test_dataset_json_that_is_damaged(dataset, tmp_path, text):
    shutil.copytree(dataset, tmp_path / "out")
    (tmp_path / "out" / "dataset.json").write_text(text)
    with pytest.raises(preprocess.UserError, match="dataset.json is damaged"):
        load(tmp_path / "out", "train")


def test_labels_that_were_changed(dataset, tmp_path):
    """JSON that is intact but not as it was written: A and B have changed places."""
    shutil.copytree(dataset, tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "dataset.json").read_text())
    facts["columns"][:2] = "BA"
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(preprocess.UserError, match="dataset.json is damaged .*CRC-32 does not fit"):
        load(tmp_path / "out", "train")
