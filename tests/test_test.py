"""test.py: which weights it takes, what it prints, what it refuses."""

import json
import os
import re
import shutil

import h5py
import numpy as np
import pytest
from conftest import ROOT, folder_options, load, load_script, replace, script
from sklearn.metrics import accuracy_score

import preprocess
import training

test_script = load_script(ROOT / "test.py")


def run_test(dataset, folder, *arguments):
    options = ["--numpy-folder", dataset, *folder_options(folder), *arguments]
    test_script.main([str(option) for option in options])


def weights(output):
    """The name of the file that the weights came from."""
    return re.search("^weights .*/(.*): epoch", output, re.MULTILINE)[1]


def change_run(folder, change):
    """Let a function change what run.json says."""
    path = folder / "Checkpoint" / "run.json"
    run = training.load_run(path.parent)
    change(run)
    replace(path, b"")
    preprocess.write_json(path, run)


def set_val_loss(folder, epoch, val_loss):
    change_run(folder, lambda run: run["epochs"][epoch].update(val_loss=val_loss))


def checkpoints(folder):
    return sorted((folder / "Checkpoint").glob("*.hdf5"))


def test_output(dataset, copy):
    done = script("test.py", "--numpy-folder", dataset, *folder_options(copy), check=True)
    summary, _, rest = done.stdout.partition("weights ")
    assert "Total params: 28,103,776" in summary
    right = re.findall(r"^([ABC])  (\d)/1$", rest, flags=re.MULTILINE)
    assert [label for label, _ in right] == ["A", "B", "C"]
    accuracy = sum(int(number) for _, number in right) / 3
    assert (
        f"\n##################\nAccuracy: {accuracy:.4f} (random split)\n##################\nA  "
        in rest
    )


def test_accuracy_is_that_of_the_weights(dataset, copy, capsys):
    """The figure equals one computed apart: the article's predict and accuracy_score."""
    path = checkpoints(copy)[1]
    run_test(dataset, copy, "--weights", path)
    model = training.keras.models.load_model(path)
    images, labels = (np.asarray(array) for array in load(dataset, "test"))
    predicted = [np.argmax(row) for row in model.predict(images, verbose=0)]
    accuracy = accuracy_score([np.argmax(row) for row in labels], predicted)
    output = capsys.readouterr().out
    assert weights(output) == path.name
    assert f"Accuracy: {accuracy:.4f}" in output


@pytest.mark.parametrize("best", [0, 1, 2])
def test_takes_the_lowest_val_loss_in_full_precision(dataset, copy, capsys, best):
    for number in range(3):
        set_val_loss(copy, number, 0.123456 - 1e-6 * (number == best))
    run_test(dataset, copy)
    assert weights(capsys.readouterr().out) == checkpoints(copy)[best].name


def test_checkpoints_of_another_run_do_not_count(dataset, copy, capsys):
    set_val_loss(copy, 0, 0.0)
    run_test(dataset, copy)
    assert weights(capsys.readouterr().out) == checkpoints(copy)[0].name
    change_run(copy, lambda run: run["settings"].update(seed=77))
    run_test(dataset, copy)
    assert weights(capsys.readouterr().out) == "model_weights.h5"


def test_a_damaged_checkpoint_is_ignored(dataset, copy, capsys):
    best, last = checkpoints(copy)[0], checkpoints(copy)[2]
    set_val_loss(copy, 0, 0.0)
    set_val_loss(copy, 2, 0.001)
    replace(best, best.read_bytes())
    with h5py.File(best, "r+") as file:
        file["optimizer_weights"].attrs["more"] = 1
    run_test(dataset, copy)
    output = capsys.readouterr().out
    assert f"ignored: {best} is missing or damaged" in output and weights(output) == last.name
    with pytest.raises(preprocess.UserError, match=f"{best.name} is damaged or foreign"):
        run_test(dataset, copy, "--weights", best)


def test_a_run_that_was_cut_off_is_tested_as_it_stands(dataset, copy, tmp_path, capsys):
    """After its first epoch, before any final weights."""
    (copy / "Weights_Full" / "model_weights.h5").unlink()
    network = training.load_class_names(copy / "Weights_Full")
    del network["files"]["model_weights.h5"]
    path = copy / "Weights_Full" / "class_names.json"
    replace(path, b"")
    preprocess.write_json(path, network | {"last": None})
    run_test(dataset, copy)
    assert weights(capsys.readouterr().out).startswith("weights.0")
    shutil.rmtree(copy / "Checkpoint")
    with pytest.raises(preprocess.UserError, match="no trained weights yet: run training.py"):
        run_test(dataset, copy)


def test_weights_that_stand_alone(dataset, copy, tmp_path, capsys):
    """Any file that fits the network is taken; what it was trained on is not known."""
    alone = tmp_path / "somewhere.hdf5"
    alone.hardlink_to(checkpoints(copy)[0])
    run_test(dataset, copy, "--weights", alone)
    assert f"weights {alone}: nothing beside them says what" in capsys.readouterr().out
    alone.unlink()
    alone.write_bytes(b"no HDF5")
    with pytest.raises(preprocess.UserError, match="somewhere.hdf5 is damaged or foreign"):
        run_test(dataset, copy, "--weights", alone)
    with pytest.raises(preprocess.UserError, match="nowhere.hdf5 is missing, or no file"):
        run_test(dataset, copy, "--weights", tmp_path / "nowhere.hdf5")


def test_without_checkpoints_the_last_weights_stay(dataset, copy, capsys):
    shutil.rmtree(copy / "Checkpoint")
    run_test(dataset, copy)
    assert weights(capsys.readouterr().out) == "model_weights.h5"


def test_other_data_is_refused_unless_the_weights_are_named(drawings, copy, tmp_path, capsys):
    preprocess.main(["--data", f"{drawings}", "--numpy-folder", f"{tmp_path / 'n'}", "--seed", "1"])
    with pytest.raises(preprocess.UserError, match="was trained on other data"):
        run_test(tmp_path / "n", copy)
    run_test(tmp_path / "n", copy, "--weights", checkpoints(copy)[0])
    output = capsys.readouterr().out
    assert "trained on other data, which may hold some of the test images\n" in output
    assert "Accuracy: " in output


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "foreign", "changed"])
@pytest.mark.parametrize("name", ["model.json", "model_weights.h5", "class_names.json"])
def test_final_files_that_are_damaged(dataset, copy, name, kind):
    path = copy / "Weights_Full" / name
    shutil.rmtree(copy / "Checkpoint")  # or the best checkpoint is tested in their place
    data = path.read_bytes()
    changed = data.replace(b'"B"', b'"V"').replace(b"conv2d_1", b"conv2d_2").replace(b"0.", b"1.")
    harms = {"empty": b"", "truncated": data[: len(data) // 2], "changed": changed}
    replace(path, harms.get(kind, b"[]"))
    if kind == "missing":
        path.unlink()
    with pytest.raises(preprocess.UserError, match=name):
        run_test(dataset, copy)


def test_columns_that_do_not_fit(drawings, trained, tmp_path):
    names = {"A": "J", "B": "Z", "C": "del"}
    for path in drawings.iterdir():
        (tmp_path / "data").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "data" / f"{names[path.name[0]]}{path.name[1:]}")
    options = ["--data", tmp_path / "data", "--numpy-folder", tmp_path / "n", "--classes", "all"]
    preprocess.main([str(option) for option in options])
    with pytest.raises(preprocess.UserError, match="trained on A B C, the data holds J Z del: run"):
        run_test(tmp_path / "n", trained)


def test_letters_that_the_network_does_not_know(drawings, trained, tmp_path):
    """As many columns, and other letters in them; also where the weights are named."""
    names = {"A": "D", "B": "E", "C": "A"}
    (tmp_path / "data").mkdir()
    for path in drawings.iterdir():
        shutil.copy(path, tmp_path / "data" / f"{names[path.name[0]]}{path.name[1:]}")
    options = ["--data", tmp_path / "data", "--numpy-folder", tmp_path / "n", "--classes", "all"]
    preprocess.main([str(option) for option in options])
    for more in ((), ("--weights", checkpoints(trained)[0])):
        with pytest.raises(preprocess.UserError, match="trained on A B C, the data holds A D E:"):
            run_test(tmp_path / "n", trained, *more)


@pytest.mark.parametrize("name", ["Weights_Full/class_names.json", "Checkpoint/run.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(dataset, copy, name):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(preprocess.UserError, match="json is no file"):
        run_test(dataset, copy)
    with pytest.raises(preprocess.UserError, match="json is missing, or no file"):
        test_script.origin(copy / name)


def test_the_step_before_was_not_run(dataset, tmp_path):
    done = script("test.py", "--numpy-folder", dataset, *folder_options(tmp_path))
    message = f"test.py: {tmp_path}/Weights_Full/class_names.json is missing: run training.py first"
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["lambda", "module", "another activation"])
def test_model_json_is_never_executed(dataset, copy, tmp_path, kind):
    """Refused as it is not what training.py wrote; and where its checksum is forged as well, by
    keras' safe mode."""
    harm = tmp_path / "harm"
    network, names = (copy / "Weights_Full" / name for name in ("model.json", "class_names.json"))
    config = json.loads(network.read_text())
    first = config["config"]["layers"][2]
    if kind == "lambda":
        code = python_lambda(f"__import__('os').mkdir({str(harm)!r})")
        first |= {"class_name": "Lambda", "config": {"name": "x", "function": code}}
    elif kind == "module":
        first |= {"module": "os", "class_name": "mkdir", "config": {"path": str(harm)}}
    else:
        config["config"]["layers"][3]["config"]["activation"] = "tanh"
    replace(network, json.dumps(config).encode())
    with pytest.raises(preprocess.UserError, match="model.json is damaged or foreign .CRC-32"):
        run_test(dataset, copy)
    facts = training.load_class_names(names.parent)
    facts["files"]["model.json"] = preprocess.crc32(network)
    replace(names, b"")
    preprocess.write_json(names, facts)
    if kind != "another activation":
        with pytest.raises(preprocess.UserError, match="model.json is damaged or foreign"):
            run_test(dataset, copy)
    assert not harm.exists()


def python_lambda(expression):
    """A lambda as keras writes it in JSON."""
    function = training.keras.layers.Lambda(eval(f"lambda x: {expression}"))
    return function.get_config()["function"]
