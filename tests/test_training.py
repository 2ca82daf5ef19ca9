"""training.py: its network against the article's, its checkpoints, and what it refuses."""

import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import cv2
import keras
import numpy as np
import pytest
from conftest import (
    ROOT,
    SHARED,
    TRAINING,
    arrays,
    assert_same_run,
    environment,
    files,
    folder_options,
    history,
    in_process,
    load,
    open_run,
    same_arrays,
    train,
)

import preprocess
import training

# The article's layers: kind and, where it has them, sizes, strides, units or rate.
ARTICLE = [
    *(("conv", 96, 11, 4), ("relu",), ("pool", 2, 2), ("norm",)),
    *(("conv", 256, 11, 1), ("relu",), ("pool", 2, 2), ("norm",)),
    *(("conv", 384, 3, 1), ("relu",), ("norm",)),
    *(("conv", 384, 3, 1), ("relu",), ("norm",)),
    *(("conv", 256, 3, 1), ("relu",), ("pool", 2, 2), ("norm",)),
    ("flatten",),
    *(("dense", 4096), ("relu",), ("dropout", 0.4), ("norm",)),
    *(("dense", 4096), ("relu",), ("dropout", 0.6), ("norm",)),
    *(("dense", 1000), ("relu",), ("dropout", 0.5), ("norm",)),
    *(("dense", 24), ("softmax",)),
]


def article_layer(kind, *facts):
    """A layer of the table as Keras makes it with all else left to its defaults."""
    layers = keras.layers
    if kind == "conv":
        filters, size, stride = facts
        return layers.Conv2D(filters, (size, size), strides=(stride, stride), padding="valid")
    if kind == "pool":
        size, stride = facts
        return layers.MaxPooling2D((size, size), strides=(stride, stride), padding="valid")
    if kind in ("relu", "softmax"):
        return layers.Activation(kind)
    kinds = {"norm": layers.BatchNormalization, "flatten": layers.Flatten}
    kinds |= {"dense": layers.Dense, "dropout": layers.Dropout}
    return kinds[kind](*facts)


def article_layers():
    return [article_layer(*facts) for facts in ARTICLE]


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


def same_layer(*layers):
    free = ("name", "seed", "dtype", "batch_input_shape")
    first, other = (
        {key: value for key, value in layer.get_config().items() if key not in free}
        for layer in layers
    )
    return type(layers[0]) is type(layers[1]) and first == other


@pytest.mark.skipif(not SHARED.exists(), reason="the article is not on this machine")
def test_the_table_above_is_the_articles():
    text = (SHARED / "article" / "article.fr.md").read_text(encoding="utf-8")
    text = text[text.index("# training.py") : text.index("# test.py")]
    calls = re.findall(r"model\.add\((.*?\))\)(?=model|#|$| *\n)", text, flags=re.MULTILINE)
    calls = [call for line in calls for call in line.split(")model.add(")]
    calls = [re.sub(r",? ?input_shape=\([\d,*]*\)", "", call) for call in calls]
    theirs = [eval(call, vars(keras.layers).copy()) for call in calls]
    for ours, layer in zip(article_layers(), theirs, strict=True):
        assert same_layer(ours, layer)


def test_sizes_and_parameters(model):
    sizes = [layer.output.shape[1] for layer in model.layers if len(layer.output.shape) == 4]
    assert list(dict.fromkeys(sizes)) == [224, 54, 27, 17, 8, 6, 4, 2, 1]
    assert model.count_params() == 28_103_776
    assert model.output_shape == (None, 24)
    dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert len({layer.seed for layer in dropouts}) == 3


def test_predicts_as_the_articles_network(model):
    """uint8 into ours and float / 255 into the article's, with the same weights."""
    article = keras.Sequential([keras.Input((224, 224, 3)), *article_layers()])
    article.set_weights(model.get_weights())
    images = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
    ours, theirs = model.predict(images, verbose=0), article.predict(images / 255.0, verbose=0)
    assert np.allclose(ours, theirs, atol=1e-6) and ours.std() > 0


def test_as_many_outputs_as_columns():
    assert training.build_model(29, seed=0).output_shape == (None, 29)


# ---- feeding ----


def test_batches_are_a_new_order_each_epoch():
    images = np.arange(20, dtype=np.uint8).reshape(20, 1)
    batches = training.Batches(images, images.astype("float32"), 8)
    orders = []
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        chance = training.Chance(batches, seed)
        chance.set_model(keras.Sequential([keras.layers.Dropout(0.5, seed=1)]))
        chance.on_epoch_begin(epoch)
        state = chance.model.layers[0].seed_generator.state.numpy().tolist()
        assert state == [1, 3 * epoch]
        rows = [batches[i][0] for i in range(len(batches))]
        assert [len(part) for part in rows] == [8, 8, 4] and rows[0].dtype == np.uint8
        orders.append(np.concatenate(rows)[:, 0].tolist())
        assert sorted(orders[-1]) == list(range(20))
    assert orders[0] == orders[3] and orders[0] != orders[1] != orders[2] != orders[0]


def test_fit_sees_the_order_of_each_epoch():
    """Keras reads ahead; even so the batches of an epoch are of that epoch's order."""
    seen = []

    class See(keras.layers.Layer):
        def call(self, images):
            if not isinstance(images, keras.KerasTensor):
                seen.append(keras.ops.convert_to_numpy(images)[:, 0].tolist())
            return images

    images = np.arange(20, dtype=np.uint8).reshape(20, 1)
    batches = training.Batches(images, images.astype("float32"), 8)
    model = keras.Sequential([keras.Input((1,)), See(), keras.layers.Dense(1)])
    model.compile(loss="mse", optimizer="sgd", run_eagerly=True)
    chance = training.Chance(batches, 7)
    model.fit(batches, epochs=3, shuffle=False, verbose=0, callbacks=[chance])
    assert [len(rows) for rows in seen] == [8, 8, 4] * 3
    for epoch in range(3):
        expected = np.random.default_rng((7, epoch)).permutation(20).tolist()
        assert sum(seen[3 * epoch : 3 * epoch + 3], []) == expected


def test_tensorflow_does_not_tune_the_feed(dataset):
    """One that tunes itself may sleep for long when it is to end."""
    batches = training.Batches(*load(dataset, "train"), 4)
    adapter = keras.src.trainers.data_adapters.get_data_adapter(batches)
    assert adapter.get_tf_dataset().options().autotune.enabled is False


# ---- what a run leaves ----


def test_files_and_their_names(trained):
    rows = history(trained)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    names = [f"weights.{int(r['epoch']):02d}-{float(r['val_loss']):.2f}.hdf5" for r in rows]
    final = {"model.json", "model_weights.h5", "class_names.json"}
    expected = {f"Checkpoint/{name}" for name in (*names, "history.csv", "history.png", "run.json")}
    assert files(trained).keys() == expected | {f"Weights_Full/{name}" for name in final}
    classes = json.loads((trained / "Weights_Full" / "class_names.json").read_text())
    assert classes["columns"] == list("ABCDEFGHIKLMNOPQRSTUVWXY")
    assert classes["classes"] == ["A", "B", "C"]


def test_output(trained):
    output = (trained / "output.txt").read_text(encoding="utf-8")
    assert "Total params: 28,103,776" in output
    assert "train 24 images, validation 9\ndevice cpu:0, backend tensorflow, float32\n" in output
    assert re.findall(r"^Epoch (\d)/3$", output, flags=re.MULTILINE) == ["1", "2", "3"]
    assert len(re.findall(r"^3/3 - .* - images/s: [\d.]+$", output, flags=re.MULTILINE)) == 3
    assert output.endswith("Saved model to disk\n")
    assert "\b" not in output and "\r" not in output


def test_keras_opens_checkpoints_and_final_model(trained):
    last = max((trained / "Checkpoint").glob("*.hdf5"))
    loaded = keras.models.load_model(last)
    folder = trained / "Weights_Full"
    final = keras.models.model_from_json((folder / "model.json").read_text())
    final.load_weights(folder / "model_weights.h5")
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    assert np.array_equal(loaded.predict(images, verbose=0), final.predict(images, verbose=0))
    assert loaded.optimizer.name == "sgd" and float(loaded.optimizer.momentum) == 0.9


def test_validation_loss_is_of_whole_labels(trained, dataset):
    """The article divides the labels by 255 as well; its val_loss is 255 times too small."""
    model = keras.models.load_model(max((trained / "Checkpoint").glob("*.hdf5")))
    images, labels = map(np.asarray, load(dataset, "validation"))
    loss, _ = model.evaluate(images, labels, verbose=0)
    assert float(history(trained)[-1]["val_loss"]) == pytest.approx(loss, rel=1e-4)


# ---- going on ----


def test_finished_run_writes_what_is_missing(dataset, trained, copy):
    shutil.rmtree(copy / "Weights_Full")
    done = train(dataset, copy, check=True)
    assert "finished before, after epoch 3; go on with more --epochs\n" in done.stdout
    assert_same_run(copy, trained)


def test_more_epochs_go_on(dataset, trained, copy):
    done = train(dataset, copy, "--epochs", "4", check=True)
    assert re.findall(r"^Epoch (\d/\d)", done.stdout, flags=re.MULTILINE) == ["4/4"]
    assert history(copy)[:3] == history(trained) and len(history(copy)) == 4
    assert not same_arrays(*(f / "Weights_Full/model_weights.h5" for f in (copy, trained)))


def test_fresh_moves_the_old_run_aside(dataset, trained, copy):
    done = train(dataset, copy, "--fresh", "--epochs", "1", "--seed", "8", check=True)
    (old,) = (copy / "Checkpoint").glob("old-*")
    assert f"moved 9 files of an earlier run to {old}\n" in done.stdout
    assert files(old) == {name.split("/")[1]: facts for name, facts in files(trained).items()}
    assert len(history(copy)) == 1


def test_fresh_where_both_folders_are_one(dataset, trained, tmp_path):
    """Every file moves once, and only what a run or a test wrote."""
    for path in trained.rglob("*.*"):
        if path.is_file() and path.name not in (".lock", "output.txt"):
            os.link(path, tmp_path / path.name)
    for name in ("confusion.png", "report.json", "mine.jpg", "mine.py"):
        (tmp_path / name).touch()
    run = small_run(tmp_path, "--fresh")
    run.put_aside()
    (old,) = tmp_path.glob("old-*")
    left = {path.name for path in tmp_path.iterdir() if path != old}
    assert left == {"mine.jpg", "mine.py"} and len(list(old.iterdir())) == 11


def test_killed_between_the_weights_and_their_list(dataset, copy, monkeypatch):
    """What class_names.json lists is intact at every moment of writing."""
    write, seen = training.write_json, []

    def watched(path, facts):
        write(path, facts)
        if path.name == "class_names.json":
            seen.append(facts)

    @contextmanager
    def killed(path):
        with replacing(path) as partial:
            yield partial
        if path.name == "model_weights.h5":
            raise KeyboardInterrupt

    replacing = training.replacing
    monkeypatch.setattr(training, "write_json", watched)
    monkeypatch.setattr(training, "replacing", killed)
    with pytest.raises(KeyboardInterrupt):
        in_process(dataset, copy, "--epochs", "3")
    folder = copy / "Weights_Full"
    facts = training.load_class_names(folder)
    assert seen and facts["last"] is None and facts["files"].keys() == {"model.json"}
    assert preprocess.checksums([folder / "model.json"]) == facts["files"]


@pytest.mark.parametrize(
    "arguments, difference",
    [
        (("--learning-rate", "0.5"), "learning rate 0.01, not 0.5"),
        (("--momentum", "0"), "momentum 0.9, not 0.0"),
        (("--batch-size", "4"), "batch size 8, not 4"),
        (("--seed", "1"), "seed 0, not 1"),
        (("--precision", "mixed_float16"), "precision float32, not mixed_float16"),
    ],
)
def test_other_settings_are_refused(dataset, copy, arguments, difference):
    before = files(copy)
    with pytest.raises(preprocess.UserError, match=f"with {difference};.*--fresh"):
        in_process(dataset, copy, *arguments)
    assert files(copy) == before


def test_other_data_is_refused(drawings, copy, tmp_path):
    preprocess.main(["--data", f"{drawings}", "--numpy-folder", f"{tmp_path / 'n'}", "--seed", "1"])
    with pytest.raises(preprocess.UserError, match="with other data;.*--fresh"):
        in_process(tmp_path / "n", copy)


def test_a_setting_of_later_times_had_its_default(dataset, copy):
    """A run that began before an option was there goes on."""
    path = copy / "Checkpoint" / "run.json"
    run = training.load_run(path.parent)
    del run["settings"]["seed"]
    preprocess.write_json(path, run)
    assert len(open_run(dataset, copy).epochs) == 3
    with pytest.raises(preprocess.UserError, match="with seed 0, not 1;"):
        open_run(dataset, copy, "--seed", "1")


def test_the_network_of_another_run_is_not_overwritten(dataset, copy, tmp_path):
    """Weights_Full/ of another run: refused, though Checkpoint/ is new."""
    before = files(copy)
    options = ("--checkpoint", str(tmp_path / "new"), "--learning-rate", "0.02")
    with pytest.raises(preprocess.UserError, match="class_names.json is of a run with learning"):
        in_process(dataset, copy, *options)
    assert files(copy) == before


def test_a_network_whose_checkpoints_are_elsewhere(dataset, copy, tmp_path):
    """Of the same settings: a shorter run would be written over it."""
    before = files(copy)
    with pytest.raises(
        preprocess.UserError, match="holds a network of epoch 3, of which .*new has"
    ):
        in_process(dataset, copy, "--checkpoint", str(tmp_path / "new"), "--epochs", "1")
    assert files(copy) == before


def test_bfloat16_goes_on_exactly(small_dataset, tmp_path):
    for folder, epochs in [("straight", "2"), ("resumed", "1"), ("resumed", "2")]:
        arguments = ("--epochs", epochs, "--batch-size", "4", "--precision", "mixed_bfloat16")
        done = train(small_dataset, tmp_path / folder, *arguments, check=True)
        assert "backend tensorflow, mixed_bfloat16\n" in done.stdout
    assert_same_run(tmp_path / "resumed", tmp_path / "straight")
    final = arrays(tmp_path / "straight" / "Weights_Full" / "model_weights.h5")
    assert {array.dtype for array in final.values()} == {np.dtype("float32")}


def small_run(folder, *arguments):
    """A Run in a folder, of no data set."""
    folders = ("--checkpoint", str(folder), "--weights-full", str(folder))
    options = training.parse_options([*folders, *arguments])
    return training.Run(options, {"classes": [], "columns": [], "files": {}})


def test_goes_on_exactly_on_jax(small_dataset, tmp_path):
    """Without TensorFlow order and dropout follow from (seed, epoch) too."""
    pytest.importorskip("jax")
    for folder, epochs in [("straight", "2"), ("resumed", "1"), ("resumed", "2")]:
        arguments = ["--numpy-folder", small_dataset, *folder_options(tmp_path / folder), *TRAINING]
        done = subprocess.run(
            [sys.executable, ROOT / "training.py", *arguments, "--epochs", epochs]
            + ["--batch-size", "4"],
            env=environment() | {"KERAS_BACKEND": "jax"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0 and "backend jax, float32\n" in done.stdout, done.stderr
    assert_same_run(tmp_path / "resumed", tmp_path / "straight")


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_all_state_is_restored(tmp_path, precision):
    """Weights and optimizer; mixed_float16 wraps the optimizer to scale the loss. (The
    network itself takes minutes in float16 on a CPU.)"""

    def make_small(seed):
        keras.utils.set_random_seed(seed)
        policy = keras.DTypePolicy(precision)
        layers = [
            keras.Input((4,)),
            keras.layers.Dense(8, dtype=policy),
            keras.layers.BatchNormalization(dtype=policy),
            keras.layers.Dropout(0.5, seed=seed, dtype=policy),
            keras.layers.Dense(2, activation="softmax", dtype="float32"),
        ]
        model = keras.Sequential(layers)
        optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
        if precision == "mixed_float16":  # compile does so by itself under the global policy
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(loss="categorical_crossentropy", optimizer=optimizer, metrics=["accuracy"])
        return model

    images, labels = np.ones((8, 4), "float32"), np.eye(2, dtype="float32")[[0, 1] * 4]
    callback = small_run(tmp_path)
    first = make_small(1)
    options = {"validation_data": (images, labels), "verbose": 0, "batch_size": 2}
    first.fit(images, labels, epochs=2, callbacks=[callback], **options)
    second = make_small(2)
    path = tmp_path / callback.epochs[-1]["file"]
    training.restore(second, path)
    training.restore(first, path)  # one that was fitted, as in a dry run
    third = training.on_all_devices(second)
    for other in (second, third):
        for get in (lambda m: m.weights, lambda m: m.optimizer.variables):
            assert len(get(first)) == len(get(other)) > 0
            for ours, theirs in zip(get(first), get(other)):
                assert np.array_equal(ours.numpy(), theirs.numpy()), ours.path
    keras.distribution.set_distribution(None)
    assert keras.models.load_model(path).count_params() == first.count_params()
    second.save(tmp_path / "again.hdf5")


# ---- curves, and a run that is tried out ----


def row(epoch, val_loss):
    return dict(epoch=epoch, loss=1 / epoch, accuracy=0.9, val_loss=val_loss, val_accuracy=0.8)


@pytest.mark.parametrize("epochs", [1, 2, 100])
def test_curves_of_any_number_of_epochs(tmp_path, epochs):
    rows = [row(n, 5 / n) for n in range(1, epochs + 1)]
    training.draw_history(tmp_path / "h.png", rows, {"vary": False})
    picture = cv2.imread(str(tmp_path / "h.png"))
    assert picture.shape == (420, 1000, 3) and 150 < picture.mean() < 254


def test_curves_that_cannot_be_drawn_cost_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    callback = small_run(tmp_path)
    callback.epochs = [row(1, 0.5)]
    callback.write()
    assert "history.png can't be written (" in capsys.readouterr().out
    assert (tmp_path / "run.json").exists() and not (tmp_path / "history.png").exists()


def test_pictures_are_imported_when_they_are_drawn():
    assert not {"matplotlib", "pandas", "sklearn", "gradio"} & imported_by("training")


def imported_by(module):
    code = f"import {module}, sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return set(done.stdout.split())


def test_dry_run_looks_at_both_folders(dataset, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        in_process(dataset, tmp_path, "--dry-run", "--weights-full", str(tmp_path / "file"))


@pytest.mark.parametrize("where", ["nowhere", "a finished run"])
def test_dry_run_leaves_nothing(dataset, copy, tmp_path, where):
    """Neither a file nor a folder; the same checks as before a run."""
    folder = copy if where == "a finished run" else tmp_path / "new" / "run"
    before = everything(tmp_path)
    done = train(dataset, folder, "--epochs", "5", "--dry-run", check=True)
    left = 2 if where == "a finished run" else 5
    assert re.search(
        r"\ndry run: a batch of 8 images fits into memory and takes [\d.]+ s, "
        r"a checkpoint [\d.]+ s and 22. MB\n"
        rf"an epoch takes about \d+ s, the {left} epochs to come \d+ (s|min); nothing was kept\n$",
        done.stdout,
    )
    assert everything(tmp_path) == before


def everything(folder):
    """The folders and files below a folder, and when each file changed."""
    return {path: path.is_file() and path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_dry_run_on_a_busy_machine(dataset, monkeypatch):
    """One batch took longer than the next two: no time may be less than none."""
    clock = iter([0, 3, 3, 6, 6, 7])
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))
    arrays = preprocess.load_split(dataset, "train", preprocess.load_dataset(dataset))
    seconds = training.seconds_per_batch(training.Batches(*arrays, 8), lambda batches: None)
    assert seconds == 3


def test_dry_run_says_what_the_run_would_say(dataset, copy):
    with pytest.raises(preprocess.UserError, match="with learning rate 0.01, not 0.5"):
        in_process(dataset, copy, "--learning-rate", "0.5", "--dry-run")


@pytest.mark.parametrize(
    "seconds, words", [(3.4, "3 s"), (99, "99 s"), (300, "5 min"), (8400, "2.3 h")]
)
def test_durations_in_words(seconds, words):
    assert training.in_words(seconds) == words


# ---- mistakes ----


def test_nan_stops_and_is_not_kept(tmp_path):
    """The best checkpoint can't be one of a loss that is no number."""
    callback = small_run(tmp_path)
    for loss, val_loss in ((math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0)):
        logs = {"loss": loss, "val_loss": val_loss}
        with pytest.raises(
            preprocess.UserError, match="nan or infinite in epoch 3.*lower --learning-rate"
        ):
            callback.on_epoch_end(2, logs | {"accuracy": 0.3, "val_accuracy": 0.3})
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_diverges(dataset, tmp_path):
    done = train(dataset, tmp_path, "--learning-rate", "10", "--momentum", "1", "--epochs", "9")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    message = (
        r"training.py: the loss is nan or infinite in epoch (\d), .* a lower --learning-rate\n$"
    )
    epoch = int(re.search(message, done.stderr)[1])
    assert [row["epoch"] for row in history(tmp_path)] == [str(n) for n in range(1, epoch)]
    assert len(list(tmp_path.rglob("weights.*.hdf5"))) == epoch - 1
    assert not (tmp_path / "Weights_Full" / "model_weights.h5").exists()


def test_keep(dataset, trained, tmp_path):
    """The last N and the best stay, of this run alone; the result is the same."""
    train(dataset, tmp_path, "--epochs", "1", check=True)
    foreign = tmp_path / "Checkpoint" / "weights.77-0.00.hdf5"
    foreign.write_bytes(b"mine")
    train(dataset, tmp_path, "--keep", "1", check=True)
    losses = [float(row["val_loss"]) for row in history(trained)]
    names = sorted(path.name for path in (trained / "Checkpoint").glob("*.hdf5"))
    kept = {names[-1], names[losses.index(min(losses))], foreign.name}
    assert {path.name for path in (tmp_path / "Checkpoint").glob("*.hdf5")} == kept
    assert same_arrays(*(f / "Weights_Full/model_weights.h5" for f in (tmp_path, trained)))


def test_keep_the_best(tmp_path):
    """Whatever its place; val_losses that look alike in the names are told apart."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(loss="mse", optimizer="sgd")
    callback = small_run(tmp_path, "--keep", "2")
    callback.set_model(model)
    for epoch, val_loss in enumerate([0.9, 0.101, 0.1009, 0.102, 0.103, 0.104]):
        callback.on_epoch_end(epoch, dict(accuracy=0, loss=0, val_accuracy=0, val_loss=val_loss))
    names = sorted(path.name for path in tmp_path.glob("*.hdf5"))
    assert [name[8:10] for name in names] == ["03", "05", "06"]


def test_the_step_before_was_not_run(tmp_path):
    done = train(tmp_path, tmp_path)
    assert done.returncode == 1
    message = f"training.py: {tmp_path}/dataset.json is missing: run preprocess.py first\n"
    assert done.stderr.endswith(message) and "Traceback" not in done.stderr
    assert done.stdout == "" and files(tmp_path) == {}


@pytest.mark.parametrize(
    "wrong",
    ["--epochs 0", "--precision float8", "--epoch 1", "--seed -1", "--seed 9999999999"]
    + ["--momentum 2", "--learning-rate nan", "--learning-rate -1", "--batch-size 1.5"],
)
def test_wrong_usage(wrong):
    with pytest.raises(SystemExit) as ended:
        training.main(wrong.split())
    assert ended.value.code == 2


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")]
    + [RuntimeError("OOM when allocating tensor with shape[32,96,54,54]")],
)
def test_no_memory_names_the_batch_size(dataset, tmp_path, monkeypatch, error):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(keras.Sequential, "fit", refuse)
    advice = "not enough memory for --batch-size 8: take a smaller one, with --fresh"
    with pytest.raises(preprocess.UserError, match=advice):
        in_process(dataset, tmp_path)
    with pytest.raises(preprocess.UserError, match="with --fresh"):  # else it is refused
        open_run(dataset, tmp_path, "--batch-size", "4")
    open_run(dataset, tmp_path, "--batch-size", "4", "--fresh")


def test_float16_on_a_processor_is_warned_of(capsys):
    training.print_device("mixed_float16")
    assert "warning: mixed_float16 is for GPUs" in capsys.readouterr().out
    training.print_device("mixed_bfloat16")
    assert "warning" not in capsys.readouterr().out


def test_the_advice_after_fresh_is_safe(monkeypatch):
    """The same command with --fresh would start over."""
    for arguments, advice in ([], ""), (["--fresh"], " without --fresh"):
        monkeypatch.setattr(sys, "argv", ["training.py", *arguments])
        with pytest.raises(SystemExit) as ended, preprocess.ending_in_one_line():
            raise OSError(errno.ENOSPC, "No space left on device", "x.hdf5")
        assert ended.value.code == (
            "training.py: x.hdf5: No space left on device; "
            f"make room and run the same command{advice} again"
        )


def test_names_the_gpu_that_keras_does_not_see(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    smi = tmp_path / "nvidia-smi"
    training.print_device("float32")
    assert capsys.readouterr().out == "device cpu:0, backend tensorflow, float32\n"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\n")
    smi.chmod(0o755)
    training.print_device("float32")
    assert capsys.readouterr().out == (
        "device cpu:0, backend tensorflow, float32\n"
        "warning: Keras does not see GPU 0: NVIDIA H200; "
        "mend it with: pip install 'tensorflow[and-cuda]'\n"
    )
