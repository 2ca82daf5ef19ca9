"""training.py: its network against the article's, its checkpoints, and what it refuses."""

import errno
import fcntl
import json
import os
import re
import signal
from functools import partial
from unittest.mock import Mock

import cv2
import keras
import numpy as np
import pytest
from conftest import SHARED, TRAINING, assert_same_run, copy_images, equal
from conftest import folders, last_line, load, make, read_hdf5, run_of, stop_early, train
from conftest import train_here, wait_until
from keras.layers import Activation, BatchNormalization, Conv2D, Dense, Dropout, Flatten
from keras.layers import MaxPooling2D

import test as test_script
import training
from asl_data import find_images
from preprocess import UserError


def article_layers():
    """The article's layers, with all else left to Keras' defaults."""
    relu, pool = partial(Activation, "relu"), partial(MaxPooling2D, 2)
    return [
        *(Conv2D(96, 11, 4), relu(), pool(), BatchNormalization()),
        *(Conv2D(256, 11), relu(), pool(), BatchNormalization()),
        *(Conv2D(384, 3), relu(), BatchNormalization()),
        *(Conv2D(384, 3), relu(), BatchNormalization()),
        *(Conv2D(256, 3), relu(), pool(), BatchNormalization()),
        Flatten(),
        *(Dense(4096), relu(), Dropout(0.4), BatchNormalization()),
        *(Dense(4096), relu(), Dropout(0.6), BatchNormalization()),
        *(Dense(1000), relu(), Dropout(0.5), BatchNormalization()),
        *(Dense(24), Activation("softmax")),
    ]


@pytest.fixture
def model():
    keras.utils.set_random_seed(3)
    yield training.build_model(24, seed=3)
    keras.utils.clear_session()


# ---- the network ----


def test_layers_are_the_articles(model):
    assert isinstance(model.layers[0], keras.layers.Rescaling) and model.layers[0].scale == 1 / 255
    for ours, theirs in zip(model.layers[1:], article_layers(), strict=True):
        assert same_layer(ours, theirs)
    dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert len({layer.seed for layer in dropouts}) == 3


def same_layer(*layers):
    free = ("name", "seed", "dtype", "batch_input_shape")
    first, other = (
        {key: value for key, value in layer.get_config().items() if key not in free}
        for layer in layers
    )
    return type(layers[0]) is type(layers[1]) and first == other


def test_sizes_and_parameters(model):
    sizes = [layer.output.shape[1] for layer in model.layers if len(layer.output.shape) == 4]
    assert list(dict.fromkeys(sizes)) == [224, 54, 27, 17, 8, 6, 4, 2, 1]
    assert model.count_params() == 28_103_776 and model.output_shape == (None, 24)
    assert training.build_model(29, seed=0).output_shape == (None, 29)


@pytest.mark.skipif(not SHARED.exists(), reason="the article is not on this machine")
def test_the_layers_above_are_the_articles():
    text = (SHARED / "article" / "article.fr.md").read_text(encoding="utf-8")
    text = text[text.index("# training.py") : text.index("# test.py")]
    calls = re.findall(r"model\.add\((.*?\))\)(?=model|#|$| *\n)", text, flags=re.MULTILINE)
    calls = [call for line in calls for call in line.split(")model.add(")]
    calls = [re.sub(r",? ?input_shape=\([\d,*]*\)", "", call) for call in calls]
    theirs = [eval(call, vars(keras.layers).copy()) for call in calls]
    for ours, layer in zip(article_layers(), theirs, strict=True):
        assert same_layer(ours, layer)


def test_predicts_as_the_articles_network(model):
    """uint8 into ours and float / 255 into the article's, with the same weights."""
    article = keras.Sequential([keras.Input((224, 224, 3)), *article_layers()])
    article.set_weights(model.get_weights())
    images = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
    ours, theirs = model.predict(images, verbose=0), article.predict(images / 255.0, verbose=0)
    assert np.allclose(ours, theirs, atol=1e-6) and ours.std() > 0


# ---- what feeds the network ----


def small_batches(folder, seed):
    """Batches of 20 images of one pixel, whose value is their row."""
    images = np.arange(20, dtype=np.uint8).reshape(20, 1)
    np.save(folder / "train_set.npy", images)
    np.save(folder / "train_classes.npy", images.astype("float32"))
    arguments = ["--numpy-folder", str(folder), "--batch-size", "8", "--seed", str(seed)]
    dataset = {"rows": {"train": [""] * 20}, "columns": [""]}
    return training.Batches(training.parse_options(arguments), dataset)


def test_order_and_dropout_depend_on_seed_and_epoch(tmp_path):
    orders = []
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        reseed = training.Reseed(small_batches(tmp_path, seed))
        reseed.set_model(keras.Sequential([keras.layers.Dropout(0.5, seed=1)]))
        reseed.on_epoch_begin(epoch)
        state = reseed.model.layers[0].seed_generator.state.numpy().tolist()
        assert state == [1, 3 * epoch]
        rows = [reseed.batches[i][0] for i in range(3)]
        assert [len(part) for part in rows] == [8, 8, 4] and rows[0].dtype == np.uint8
        orders.append(np.concatenate(rows)[:, 0].tolist())
        assert sorted(orders[-1]) == list(range(20))
    assert orders[0] == orders[3] and orders[0] != orders[1] != orders[2] != orders[0]


def test_fit_sees_the_order_of_each_epoch(tmp_path):
    """Keras reads ahead; even so the batches of an epoch are of that epoch's order."""
    seen = []

    class See(keras.layers.Layer):
        def call(self, images):
            if not isinstance(images, keras.KerasTensor):
                seen.append(keras.ops.convert_to_numpy(images)[:, 0].tolist())
            return images

    batches = small_batches(tmp_path, 7)
    model = keras.Sequential([keras.Input((1,)), See(), keras.layers.Dense(1)])
    model.compile(loss="mse", optimizer="sgd", run_eagerly=True)
    reseed = training.Reseed(batches)
    model.fit(batches, epochs=3, shuffle=False, verbose=0, callbacks=[reseed])
    for epoch in range(3):
        expected = np.random.default_rng((7, epoch)).permutation(20).tolist()
        assert sum(seen[3 * epoch : 3 * epoch + 3], []) == expected


# ---- what a run leaves ----


def test_files_and_output(trained):
    names = [row["file"] for row in run_of(trained)["epochs"]]
    assert [re.fullmatch(r"weights.(0\d)-\d+.\d\d.hdf5", name)[1] for name in names] == ["01", "02"]
    assert {path.name for path in (trained / "Checkpoint").iterdir()} == {
        *names,
        *("run.json", "history.png", ".lock"),
    }
    final = {"model.json", "model_weights.h5", "class_names.json"}
    assert {path.name for path in (trained / "Weights_Full").iterdir()} == final
    network = json.loads((trained / "Weights_Full" / "class_names.json").read_text())
    assert network["settings"]["columns"] == list("ABCDEFGHIKLMNOPQRSTUVWXY")
    assert network["settings"]["classes"] == ["A", "B", "C"] and network["trained"]
    output = (trained / "output.txt").read_text(encoding="utf-8")
    assert "Total params: 28,103,776" in output
    assert "train 24 images, validation 9\ndevice cpu:0, backend tensorflow, float32\n" in output
    assert re.findall(r"^Epoch (\d)/2$", output, flags=re.MULTILINE) == ["1", "2"]
    assert output.endswith("Saved model to disk\n") and "\b" not in output
    assert cv2.imread(str(trained / "Checkpoint" / "history.png")).shape == (420, 1000, 3)


def test_keras_opens_checkpoint_and_final_model(trained, dataset):
    """Both are the network that was trained, and val_loss is of whole labels: the article divides
    the labels by 255 as well, and its val_loss is 255 times too small."""
    row, folder = run_of(trained)["epochs"][-1], trained / "Weights_Full"
    loaded = keras.models.load_model(trained / "Checkpoint" / row["file"])
    final = keras.models.model_from_json((folder / "model.json").read_text())
    final.load_weights(folder / "model_weights.h5")
    images, labels = map(np.asarray, load(dataset, "validation"))
    assert np.array_equal(loaded.predict(images, verbose=0), final.predict(images, verbose=0))
    loss, _ = loaded.evaluate(images, labels, verbose=0)
    assert row["val_loss"] == pytest.approx(loss, rel=1e-4)


def small_run(folder, *arguments):
    """A Run in a folder, and a small model for it to save."""
    options = training.parse_options(["--checkpoint", str(folder), *arguments])
    run = training.Run(options, {"id": "", "classes": [], "columns": [], "find_hand": True})
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(loss="mse", optimizer="sgd")
    run.set_model(model)
    return run


def test_keep(tmp_path):
    """The last N and the best; val_losses that look alike in the names are told apart."""
    run = small_run(tmp_path, "--keep", "2")
    foreign = tmp_path / "weights.77-0.00.hdf5"
    foreign.write_bytes(b"mine")
    for epoch, val_loss in enumerate([0.9, 0.101, 0.1009, 0.102, 0.103, 0.104]):
        run.on_epoch_end(epoch, dict(accuracy=0, loss=0, val_accuracy=0, val_loss=val_loss))
    names = sorted(path.name for path in tmp_path.glob("*.hdf5"))
    assert [name[8:10] for name in names] == ["03", "05", "06", "77"]
    assert run.settings["find_hand"]  # as preprocess.py did


def test_a_loss_that_is_not_finite_stops_and_is_not_kept(tmp_path):
    run = small_run(tmp_path)
    for loss, val_loss in ((np.nan, 1.0), (1.0, np.nan), (np.inf, 1.0)):
        logs = dict(loss=loss, val_loss=val_loss, accuracy=0.3, val_accuracy=0.3)
        with pytest.raises(UserError, match="the loss is not finite"):
            run.on_epoch_end(2, logs)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


# ---- going on ----


def test_killed_and_run_again_equals_never_killed(dataset, trained, tmp_path, start):
    """Killed while the second checkpoint is written: the first one counts, and is complete. While
    a training runs, a second one is refused in its folder."""
    process = start("training.py", "--numpy-folder", dataset, *folders(tmp_path), *TRAINING)
    checkpoints = tmp_path / "Checkpoint"
    wait_until((checkpoints / "run.json").exists, process)
    wait_until((checkpoints / ".partial.hdf5").exists, process)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match=f"another training is at work in {checkpoints}$"):
        small_run(checkpoints)
    process.kill()
    process.wait()
    (row,) = run_of(tmp_path)["epochs"]
    assert row == run_of(trained)["epochs"][0]
    paths = [folder / "Checkpoint" / row["file"] for folder in (tmp_path, trained)]
    assert equal(*map(read_hdf5, paths))
    done = train(dataset, tmp_path, check=True)
    assert "goes on after epoch 1 of 2\n" in done.stdout
    assert_same_run(tmp_path, trained)


@pytest.mark.parametrize("what", ["mixed_bfloat16", "augment"])
def test_goes_on_exactly(small_dataset, tmp_path, what):
    """The run is stopped after its first epoch and goes on in a process of its own."""
    arguments = ("--batch-size", "4", "--keep", "2")
    if what == "mixed_bfloat16":
        arguments += ("--precision", what)
    if what == "augment":
        arguments += ("--augment",)
    train_here(small_dataset, tmp_path / "straight", *arguments)
    stop_early(tmp_path / "straight", tmp_path / "resumed")
    train(small_dataset, tmp_path / "resumed", *arguments, check=True)
    assert_same_run(tmp_path / "resumed", tmp_path / "straight")
    if what == "augment":  # its learning rate depends on the number of epochs
        with pytest.raises(UserError, match="of a run with epochs 2, not 3"):
            train_here(small_dataset, tmp_path / "straight", *arguments, "--epochs", "3")
    final = read_hdf5(tmp_path / "straight" / "Weights_Full" / "model_weights.h5")
    assert {array.dtype for array in final.values()} == {np.dtype("float32")}


def test_all_state_is_restored(tmp_path):
    """Weights and optimizer; mixed_float16 wraps the optimizer to scale the loss. (The network
    itself takes minutes in float16 on a CPU.)"""

    def small_model(seed):
        keras.utils.set_random_seed(seed)
        policy = keras.DTypePolicy("mixed_float16")
        layers = [keras.Input((4,)), keras.layers.Dense(8, dtype=policy)]
        layers += [keras.layers.BatchNormalization(dtype=policy)]
        layers += [keras.layers.Dense(2, activation="softmax", dtype="float32")]
        model = keras.Sequential(layers)
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01, momentum=0.9))
        model.compile(loss="categorical_crossentropy", optimizer=optimizer, metrics=["accuracy"])
        return model

    images, labels = np.ones((8, 4), "float32"), np.eye(2, dtype="float32")[[0, 1] * 4]
    run, first, second = small_run(tmp_path), small_model(1), small_model(2)
    first.fit(images, labels, verbose=0, validation_data=(images, labels), callbacks=[run])
    training.restore(second, tmp_path / run.rows[-1]["file"])
    for get in (lambda model: model.weights, lambda model: model.optimizer.variables):
        assert len(get(first)) == len(get(second)) > 0
        for ours, theirs in zip(get(first), get(second)):
            assert np.array_equal(ours.numpy(), theirs.numpy()), ours.path


def test_more_epochs_go_on_and_fresh_starts_over(dataset, copy, capsys):
    before = run_of(copy)["epochs"]
    (copy / "Checkpoint" / "history.png").unlink()  # which is a link
    train_here(dataset, copy, "--epochs", "3")
    assert run_of(copy)["epochs"][:2] == before and len(run_of(copy)["epochs"]) == 3
    train_here(dataset, copy, "--fresh", "--epochs", "1", "--seed", "8")
    (old,) = (copy / "Checkpoint").glob("old-*")
    assert f"moved 8 files of an earlier run to {old}\n" in capsys.readouterr().out
    assert len(list(old.glob("weights.*"))) == 3 and len(run_of(copy)["epochs"]) == 1
    assert json.loads((old / "run.json").read_text())["epochs"][:2] == before


def test_learning_rate():
    options = training.parse_options(["--augment", "--epochs", "11"])
    assert (options.learning_rate, options.momentum) == (0.01, 0.9)
    _, optimizer = training.augmentation_recipe(options, steps=10)
    rates = [float(optimizer._learning_rate(step)) for step in (0, 5, 10, 60, 110)]
    assert np.allclose(rates, [0, 0.005, 0.01, 0.005, 0], atol=1e-8)
    options = training.parse_options([])
    assert (options.learning_rate, options.momentum) == (0.001, 0.0)


@pytest.mark.parametrize(
    "arguments, difference",
    [
        (("--learning-rate", "0.5"), "learning_rate 0.01, not 0.5"),
        (("--momentum", "0"), "momentum 0.9, not 0.0"),
        (("--batch-size", "4"), "batch_size 8, not 4"),
        (("--seed", "1"), "seed 0, not 1"),
        (("--precision", "mixed_float16"), "precision float32, not mixed_float16"),
        (("--augment",), "augment False, not True"),
    ],
)
def test_other_settings_are_refused(dataset, trained, arguments, difference):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    with pytest.raises(UserError, match=f"run.json is of a run with {difference}"):
        train_here(dataset, trained, *arguments)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_other_data_is_refused(drawings, trained, tmp_path):
    make(tmp_path, "--data", drawings, "--seed", "1")
    with pytest.raises(UserError, match="of a run with other data: undo this change"):
        train_here(tmp_path, trained)


# ---- mistakes ----


def test_the_step_before_was_not_run(tmp_path):
    said = last_line("training.py", "--numpy-folder", tmp_path)
    assert said == f"training.py: {tmp_path}/dataset.json is missing: run preprocess.py first"


@pytest.mark.parametrize(
    "error, line",
    [
        (KeyboardInterrupt(), "training.py: stopped; the same command, without --fresh"),
        (RuntimeError("OOM when allocating tensor"), "out of memory: training.py needs"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of"), "out of memory: training.py needs"),
    ],
)
def test_ctrl_c_and_out_of_memory(monkeypatch, error, line):
    """They end in one line; any other error keeps its traceback."""
    monkeypatch.setattr("sys.argv", ["training.py"])
    with pytest.raises(SystemExit, match=line):
        find_images.run_main(Mock(side_effect=error))
    with pytest.raises(RuntimeError, match="another"):
        find_images.run_main(Mock(side_effect=RuntimeError("another")))


# ---- --start-from ----


@pytest.mark.parametrize("letters", ["ABC", "XYK", ["new A", "new B", "C"]])
def test_starts_from_the_weights_of_a_run(trained, drawings, tmp_path, capsys, letters):
    """A rate of 0 keeps them (but the averages of BatchNormalization, which see the images). Other
    letters, in the same 24 columns and in others, get a new last layer."""
    copy_images(drawings, tmp_path / "photos", "{}/{}.jpg".format, letters)
    make(tmp_path / "arrays", "--data", tmp_path / "photos", "--classes", *letters)
    start, kept = trained / "Weights_Full" / "model_weights.h5", letters == "ABC"
    none = ("--learning-rate", "0", "--epochs", "1", "--start-from", start)
    train_here(tmp_path / "arrays", tmp_path, *none)
    said = f"starts from {start}{'' if kept else ', with a new last layer'}\n"
    assert said in capsys.readouterr().out
    old, new = (
        keras.models.load_model(path, compile=False).trainable_variables
        for path in (start, tmp_path / "Weights_Full" / "model_weights.h5")
    )
    same = [a.shape == b.shape and np.array_equal(a, b) for a, b in zip(old, new, strict=True)]
    assert all(same[:-2]) and same[-2:] == [kept, kept]
    test_script.main(["--numpy-folder", str(tmp_path / "arrays"), *map(str, folders(tmp_path))])
    said = f"fine-tuned from {start}, which may have seen these test images"
    assert said in capsys.readouterr().out


def test_a_start_that_cannot_be_used(small_dataset, copy, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_here(small_dataset, copy, "--start-from", copy / "Weights_Full" / "model_weights.h5")
    assert "--start-from would be moved aside" in capsys.readouterr().err
    alone = tmp_path / "alone.h5"
    (copy / "Weights_Full" / "model_weights.h5").rename(alone)
    with pytest.raises(UserError, match="alone.h5 is not among the weights"):
        train_here(small_dataset, tmp_path, "--start-from", alone)
    broken = copy / "Weights_Full" / "model_weights.h5"
    broken.write_bytes(b"no HDF5")
    with pytest.raises(UserError, match="model_weights.h5 cannot be loaded into this network"):
        train_here(small_dataset, tmp_path, "--start-from", broken)


def test_a_disk_without_locks(tmp_path, monkeypatch, capsys):
    """As some network disks: flock fails. HDF5 is told not to try, and a line says so."""
    assert os.environ["HDF5_USE_FILE_LOCKING"] == "FALSE"  # set by training.py
    no_locks = OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=no_locks))
    small_run(tmp_path)
    assert "no lock in" in capsys.readouterr().out
