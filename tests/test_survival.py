"""Runs that are killed, stopped or out of room, and files that are damaged afterwards."""

import ctypes
import errno
import filecmp
import json
import math
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace

import h5py
import numpy as np
import pytest
from conftest import (
    ARRAYS,
    ROOT,
    WRITTEN,
    assert_same_run,
    contents,
    environment,
    equal,
    files,
    in_process,
    load,
    make,
    open_run,
    replace,
    script,
    start_training,
    stop,
    train,
    wait_until,
)

import preprocess
import training

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
        assert {path.name for path in out.iterdir()} == {*WRITTEN, ".lock"}


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
    assert f"{disk / 'out'} has 0.004 GB free, 0.005 GB are to come: make room" in done.stderr
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


# ---- streams, and readers of them, that are gone ----


def test_a_reader_that_went_away_ends_the_output_alone(dataset, trained, tmp_path):
    """As `training.py | head -1` does: the epochs are trained and kept."""
    process = start_training(dataset, tmp_path)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert_same_run(tmp_path, trained)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_were_closed_from_the_start(drawings, dataset, tmp_path, closed):
    """As cron does: no file of ours may take their numbers, and what is said goes nowhere."""
    command = f"exec {sys.executable} {ROOT / 'preprocess.py'} --data {drawings}"
    subprocess.run(f"{command} --numpy-folder {tmp_path} {closed}", shell=True, check=True)
    assert contents(tmp_path).keys() == contents(dataset).keys()
    for name in ARRAYS:
        assert (tmp_path / name).read_bytes() == (dataset / name).read_bytes()


# ---- a set that is written anew ----


def test_the_set_in_use_is_never_written_over(drawings, tmp_path):
    """A training run that has the arrays mapped goes on with what it began with."""
    make(tmp_path, "--data", drawings)
    images, _ = load(tmp_path, "train")
    before = images.copy()
    make(tmp_path, "--data", drawings, "--seed", "1")
    assert np.array_equal(images, before) and not np.array_equal(load(tmp_path, "train")[0], before)


def test_preprocess_at_work_is_no_damage(tmp_path, start_stopped):
    """The set that it is about to replace is not begun with."""
    images, out = tmp_path / "images", tmp_path / "out"
    script("asl_data/draw_hands.py", "--output", images, "--count", "150", check=True)
    command = [sys.executable, ROOT / "preprocess.py", "--data", images, "--numpy-folder", out]
    process = start_stopped(command, out / ".partial" / "train_set.npy")
    with pytest.raises(preprocess.UserError, match=f"another run is at work in {out}: let it end"):
        preprocess.load_dataset(str(out))
    process.kill()
    process.wait(timeout=60)
    with pytest.raises(preprocess.UserError, match="dataset.json is missing: run preprocess.py"):
        preprocess.load_dataset(str(out))


def test_the_lock_of_a_folder_that_several_people_use(drawings, tmp_path):
    """Whoever made the file .lock, others may lock it; so the folder's permissions decide."""
    make(tmp_path, "--data", drawings)
    assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o666


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


def test_dataset_json_of_an_earlier_version(dataset, tmp_path):
    """Refused before an epoch or a test is lost."""
    shutil.copytree(dataset, tmp_path / "out")
    facts = preprocess.load_dataset(tmp_path / "out")
    del facts["counts"]
    preprocess.write_json(tmp_path / "out" / "dataset.json", facts)
    with pytest.raises(preprocess.UserError, match="dataset.json is damaged .*no counts"):
        load(tmp_path / "out", "train")


# ---- before the scripts begin ----


@pytest.mark.parametrize(
    "code, status, message",
    [
        ("raise KeyboardInterrupt", 130, "stopped"),
        ("raise ImportError('No module named jax')", 1, "ImportError: No module named jax; see"),
        ("[].get('floatx')", 1, "'list' object has no attribute 'get'; see KERAS_BACKEND and {}"),
        ("raise ImportError('libx.so: failed to map segment')", 1, "not enough memory (libx"),
    ],
)
@pytest.mark.parametrize("name", ["training.py", "test.py"])
def test_keras_that_does_not_load(tmp_path, name, code, status, message):
    """Ctrl-C in the seconds that it takes, settings of another project, no memory: one line. The
    module stands in for keras."""
    (tmp_path / "keras.py").write_text(code)
    more = {"PYTHONPATH": str(tmp_path), "KERAS_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, ROOT / name],
        capture_output=True,
        text=True,
        env=environment() | more,
        timeout=60,
    )
    assert done.returncode == status and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{name}: ") and message.format(tmp_path) in done.stderr


def test_settings_of_another_project_do_not_count(tmp_path):
    """Of ~/.keras/keras.json the backend alone counts. And python -I finds the scripts."""
    settings = {"floatx": "float16", "image_data_format": "channels_first", "epsilon": 0.1}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    code = f"import runpy; names = runpy.run_path({str(ROOT / 'training.py')!r})"
    ask = "config = names['keras'].config; print(config.floatx(), config.image_data_format()"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{code}; {ask}, config.epsilon())"],
        capture_output=True,
        text=True,
        env=environment() | {"KERAS_HOME": str(tmp_path)},
        timeout=60,
    )
    assert done.stdout == "float32 channels_last 1e-07\n", done.stderr


# ---- training.py: the same harms ----


def test_killed_and_run_again_equals_never_killed(dataset, trained, tmp_path, request):
    """kill -9 at moments drawn from a seed: while a checkpoint or a final file is written, within
    an epoch, or anywhere. What stands then is whole, and the same command completes."""
    draw = random.Random(0)
    moments = ["Checkpoint/.partial-weights.*", "Checkpoint/weights.01-*", "Weights_Full/.partial*"]
    moments += ["Checkpoint/weights.02-*", None]
    for kill in range(max(1, request.config.getoption("--kills") // 2)):
        folder = tmp_path / str(kill)
        process = start_training(dataset, folder)
        if moment := moments[kill % len(moments)]:
            wait_for(moment, folder, process)
            time.sleep(draw.uniform(0, 0.05))
        else:
            time.sleep(draw.uniform(0, 8))
        process.kill()
        process.communicate(timeout=120)
        for name in files(folder):
            here, there = folder / name, trained / name
            if ".partial" in name:
                continue
            if here.suffix in (".hdf5", ".h5"):
                assert filecmp.cmp(here, there, shallow=False), name
            elif here.suffix == ".csv":  # holds the epochs so far
                assert there.read_bytes().startswith(here.read_bytes()), name
            elif here.name == "run.json":
                run, whole = (training.load_run(path.parent) for path in (here, there))
                assert run["epochs"] == whole["epochs"][: len(run["epochs"])]
        # A GPU does not repeat a val_loss, so what a kill left there keeps a name of its own.
        (folder / "Checkpoint").mkdir(parents=True, exist_ok=True)
        (folder / "Checkpoint" / ".partial-weights.02-9.99.hdf5").write_bytes(b"")
        train(dataset, folder, check=True)
        assert_same_run(folder, trained)
        shutil.rmtree(folder)


def test_two_training_runs_at_once(dataset, tmp_path):
    process = start_training(dataset, tmp_path)
    wait_for("Checkpoint/.partial-weights.*", tmp_path, process)
    stop(process)
    before = files(tmp_path)
    done = train(dataset, tmp_path)
    assert done.returncode == 1
    message = f"another run is at work in {tmp_path / 'Checkpoint'}: let it end first\n"
    assert done.stderr.endswith(f"training.py: {message}") and files(tmp_path) == before
    process.kill()
    process.communicate(timeout=120)


def test_interrupted_says_how_to_go_on(dataset, trained, tmp_path):
    process = start_training(dataset, tmp_path, stderr=subprocess.PIPE)
    wait_for("Checkpoint/weights.01-*", tmp_path, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    message = r"training.py: stopped: [012] epochs? kept; the same command goes on from there\n$"
    assert re.search(message, said)
    train(dataset, tmp_path, check=True)
    assert_same_run(tmp_path, trained)


def test_broken_and_foreign_checkpoints_do_not_count(dataset, trained, copy, capsys):
    """Training goes on after the last intact one that run.json lists, and says so."""
    names = sorted(path.name for path in (copy / "Checkpoint").glob("*.hdf5"))
    last = copy / "Checkpoint" / names[2]
    replace(last, last.read_bytes()[:50_000_000])
    (copy / "Checkpoint" / "weights.99-0.00.hdf5").write_bytes(b"not HDF5")
    assert [row["file"] for row in open_run(dataset, copy).epochs] == names[:2]
    assert capsys.readouterr().out == f"ignored: {last} is missing or damaged\n"
    for name in names[:2]:
        replace(copy / "Checkpoint" / name, b"")
    with pytest.raises(preprocess.UserError, match="no checkpoint in .* is intact .*--fresh"):
        open_run(dataset, copy)
    (copy / "Checkpoint" / "run.json").unlink()
    with pytest.raises(preprocess.UserError, match="no checkpoint in .* is intact .*--fresh"):
        open_run(dataset, copy)


@pytest.mark.parametrize("kind", ["one bit", "nan", "shape", "dtype", "names"])
def test_checkpoint_with_other_arrays(dataset, trained, copy, capsys, kind):
    """Training goes on after the one before."""
    path = max((copy / "Checkpoint").glob("*.hdf5"))
    replace(path, path.read_bytes())
    with h5py.File(path, "r+") as file:
        found = []
        file["model_weights"].visititems(lambda name, item: found.append(item.name))
        name = next(name for name in found if name.endswith("dense/kernel"))
        array = file[name][()]
        if kind == "one bit":
            array.view("uint32")[7, 7] ^= 1 << 30
        if kind == "nan":
            array[3, 3] = math.nan
        if kind == "shape":
            array = array[:-1]
        if kind == "dtype":
            array = array.astype("int32")
        if kind == "names":  # the layers change places
            names = file["model_weights"].attrs["layer_names"]
            file["model_weights"].attrs["layer_names"] = names[::-1]
        del file[name]
        file[name] = array
    assert open_run(dataset, copy).epochs[-1]["file"][:10] == "weights.02"
    assert f"ignored: {path} is missing or damaged\n" in capsys.readouterr().out


def test_a_checkpoint_that_is_locked_is_not_damaged(dataset, copy, start):
    """Another program writes in it: its bytes differ as long as that goes on."""
    path = max((copy / "Checkpoint").glob("*.hdf5"))
    replace(path, path.read_bytes())
    code = f"import h5py, time; file = h5py.File({str(path)!r}, 'r+'); print(); time.sleep(100)"
    process = start([sys.executable, "-uc", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(BlockingIOError) as error:
        open_run(dataset, copy)
    assert error.value.filename == str(path)
    process.kill()
    process.wait(timeout=60)


def test_the_best_checkpoint_deleted(dataset, copy, capsys):
    """The best that is there is named, here and by test.py."""
    known = training.load_run(copy / "Checkpoint")
    rows, settings = training.best_first(known["epochs"], known["settings"]), known["settings"]
    others = [row for row in rows if row["epoch"] < 3]  # the last one stays, to go on from
    run = Namespace(folder=copy / "Checkpoint", epochs=others, settings=settings)
    (copy / "Checkpoint" / others[0]["file"]).unlink()
    training.Run.print_best(run)
    assert capsys.readouterr().out.splitlines()[0].startswith("ignored: ")
    best = training.best_intact(copy / "Checkpoint", others, settings)
    assert best == others[1]
    (copy / "Checkpoint" / others[1]["file"]).unlink()
    training.Run.print_best(run)  # and the network is written
    assert capsys.readouterr().out.splitlines()[-1].startswith("ignored: ")


@pytest.mark.parametrize("kind", ["empty", "cut", "changed"])
def test_run_json_that_is_damaged(dataset, copy, kind):
    path = copy / "Checkpoint" / "run.json"
    text = path.read_text()
    harms = {"empty": "", "cut": text[:300], "changed": text.replace("0.01", "0.02")}
    replace(path, harms[kind].encode())
    before = files(copy)
    with pytest.raises(preprocess.UserError, match="run.json is damaged .*training.py --fresh"):
        in_process(dataset, copy)
    assert files(copy) == before


def test_file_size_limit_in_training(dataset, tmp_path):
    """One line, no broken checkpoint."""
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**7, 10**7))}
    done = train(dataset, tmp_path, **limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search("training.py: .*; .*run", done.stderr.splitlines()[-1])
    assert not list(tmp_path.rglob("*5"))


def test_no_room_in_training(dataset, trained, tmp_path, small_disk):
    """Refused at the start for want of room, and one line when another fills the disk meanwhile;
    then the run goes on, and ends as if nothing had been."""
    disk = small_disk("700m")
    done = train(dataset, disk / "run")
    assert done.returncode == 1 and files(disk) == {}
    room = r"has 0.734 GB free, 0.787 GB are to come: make room, or keep fewer with --keep\n$"
    assert re.search(f"training.py: .*Checkpoint {room}", done.stderr)
    small_disk("900m")
    with open(tmp_path / "stderr", "w+") as stderr:
        process = start_training(dataset, disk / "run", stderr=stderr)
        wait_for("Checkpoint/weights.01-*", disk / "run", process)
        stop(process)
        subprocess.run(["fallocate", "-l", "600m", disk / "filler"], check=True)
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=120)
        stderr.seek(0)
        said = stderr.read()
    assert process.returncode == 1 and "Traceback" not in said
    full = r"training.py: .*weights.02.*: No space left on device; make room and run.*\n$"
    assert re.search(full, said)
    assert not list(disk.rglob(".partial*"))
    (disk / "filler").unlink()
    done = train(dataset, disk / "run", check=True)
    assert re.search(r"weights.0[12]-.*.hdf5 restored\n", done.stdout)
    assert_same_run(disk / "run", trained)


@pytest.mark.parametrize(
    "epochs, keep, momentum, files_to_come",
    [
        (50, None, 0.0, 50),
        (53, None, 0.9, 2 * 50),
        (50, 2, 0.0, 2),
        (4, 2, 0.0, 1),
        (50, 1, 0.0, 1),
    ],
)
def test_room_to_train(tmp_path, monkeypatch, epochs, keep, momentum, files_to_come):
    """What is to come after three epochs, of which two files (with --keep) or all still stand."""
    rows = [
        {"epoch": epoch, "val_loss": 0.5, "file": f"{epoch}.hdf5"}
        for epoch in range(1, epochs - 49 if not keep else 4)
    ]
    for row in rows[-2:]:
        (tmp_path / row["file"]).touch()
    asked = {}
    monkeypatch.setattr(
        training, "check_room", lambda folder, size, *remedy: asked.update({folder: size})
    )
    arguments = ["--epochs", str(epochs), "--momentum", str(momentum)]
    arguments += ["--weights-full", str(tmp_path / "final")] + ["--keep", str(keep)] * bool(keep)
    (tmp_path / "final").mkdir()
    folders = ("--checkpoint", str(tmp_path))
    run = training.Run(
        training.parse_options([*folders, *arguments, "--fresh"]),
        {"classes": [], "columns": [], "files": {}},
    )
    run.epochs = rows
    run.check_room(Namespace(count_params=lambda: 1000))
    assert asked == {tmp_path: 4000 * (files_to_come + 1), tmp_path / "final": 4000}


def test_read_only_in_training(dataset, tmp_path, small_disk):
    """Refused before an epoch is spent; a Numpy_folder that can't be written can be read."""
    disk = small_disk("10m")
    shutil.copytree(dataset, disk / "numpy")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    done = train(dataset, disk / "run")
    message = f"training.py: {disk / 'run'}: Read-only file system; name another place\n"
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    done = train(disk / "numpy", tmp_path / "run", "--epochs", "1", check=True)
    assert done.stdout.endswith("Saved model to disk\n")


def test_no_permission(dataset, tmp_path):
    """A folder of which the user may change nothing: one line, before an epoch is spent."""
    folder = tmp_path / "Checkpoint"
    folder.mkdir()
    (folder / ".lock").touch()
    folder.chmod(0o555)
    done = train(dataset, tmp_path, preexec_fn=without_privilege)
    folder.chmod(0o755)
    message = "Permission denied; change its permissions, or name another place\n"
    assert done.returncode == 1 and done.stderr.endswith(message)
    assert "Traceback" not in done.stderr and done.stdout == "" and files(tmp_path) == {}


def without_privilege():
    """What this process starts may not pass over permissions, even as root."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def wait_for(pattern, folder, process):
    wait_until(lambda: list(folder.glob(pattern)), process, 120)
