"""Train the article's network, an AlexNet with batch normalisation, on Numpy_folder/*.npy.

Reads what preprocess.py wrote in Numpy_folder/ and writes
    Checkpoint/weights.{epoch:02d}-{val_loss:.2f}.hdf5   after each epoch, all it takes to go on
    Checkpoint/history.csv                               loss and accuracy of each epoch
    Weights_Full/model.json, model_weights.h5            the network and its last weights
    Weights_Full/class_names.json                        the class of each output
The same command goes on after the last checkpoint, and ends as if it had never stopped.

    python training.py
    python training.py --precision mixed_bfloat16 --epochs 100
"""

import argparse
import csv
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # ahead of keras, or it logs eight lines

import h5py
import keras
import numpy as np
from keras.layers import (
    Activation,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Input,
    MaxPooling2D,
    Rescaling,
)
from keras.optimizers import SGD

from preprocess import (
    HERE,
    IMAGE_SIZE,
    UserError,
    between,
    check_room,
    crc32,
    load_dataset,
    load_split,
    locked,
    one_line,
    reading,
    run_main,
    sealed,
    unsealed,
)

logging.getLogger("absl").setLevel(logging.ERROR)  # keras warns at each .hdf5

CHECKPOINTS = "weights.*.hdf5"  # as in the article: weights.{epoch:02d}-{val_loss:.2f}.hdf5
FINAL_FILES = ("model.json", "model_weights.h5", "class_names.json")


def main(argv=None):
    options = parse_options(argv)
    dataset = load_dataset(options.numpy_folder)
    train = load_split(options.numpy_folder, "train", dataset)
    validation = load_split(options.numpy_folder, "validation", dataset)
    with locked(options.checkpoint), locked(options.weights_full):
        for folder in (options.checkpoint, options.weights_full):
            tempfile.TemporaryFile(dir=folder).close()  # fail now rather than after an epoch
        if options.fresh:
            put_aside(options.checkpoint, options.weights_full)
        settings = run_settings(options, dataset)
        last = last_checkpoint(options.checkpoint, settings)

        keras.config.set_dtype_policy(options.precision)
        keras.utils.set_random_seed(options.seed)
        model = build_model(len(dataset["columns"]), options.seed)
        architecture = model.to_json()  # before compile, as in the article: without the optimizer
        model.compile(
            loss="categorical_crossentropy",
            optimizer=SGD(learning_rate=options.learning_rate, momentum=options.momentum),
            metrics=["accuracy"],
        )
        model.summary()
        print(f"train {len(train[0]):,} images, validation {len(validation[0]):,}")
        print_device(options.precision)

        history = restore(model, *last) if last else []
        prune(options.checkpoint, history, options.keep)
        if len(history) < options.epochs:
            check_room_to_train(model, options, history)
            fit(model, train, validation, options, settings, history)
        else:
            print(f"finished before, after epoch {len(history)}; --epochs gives it more")
        print_best(history)
        save_model(options.weights_full, model, architecture, dataset, settings, history)
        print("Saved model to disk")


def parse_options(argv):
    parser = argparse.ArgumentParser(
        description="Train the article's network on Numpy_folder/*.npy.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--epochs", type=between(int, 1), default=50, help="passes over the images (default: 50)")
    add("--batch-size", type=between(int, 1), default=32, help="images per step (default: 32)")
    add(
        "--learning-rate", type=between(float, 0, 10), default=0.001, help="of SGD (default: 0.001)"
    )
    add("--momentum", type=between(float, 0, 1), default=0.0, help="of SGD (default: 0.0)")
    add(
        "--seed", type=between(int, 0), default=0, help="of weights, dropout and order (default: 0)"
    )
    add(
        "--precision",
        choices=["float32", "mixed_bfloat16", "mixed_float16"],
        default="float32",
        help="number format of the layers; the weights stay float32 (default: float32)",
    )
    about = "keep the last N checkpoints and the best (default: all)"
    add("--keep", type=between(int, 1), metavar="N", help=about)
    add("--fresh", action="store_true", help="start over; old files move aside (default: go on)")
    add_folders(parser)
    return parser.parse_args(argv)


def add_folders(parser):
    """Add an option for each folder, named after it."""
    for name, what in [
        ("Numpy_folder", "what preprocess.py wrote"),
        ("Checkpoint", "a checkpoint an epoch"),
        ("Weights_Full", "the trained network"),
    ]:
        option = "--" + name.lower().replace("_", "-")
        about = f"{what} (default: {name} beside this script)"
        parser.add_argument(option, type=Path, default=HERE / name, metavar="DIR", help=about)


# ---- the network ----


def build_model(columns, seed):
    """The article's network: uint8 (n, 224, 224, 3), BGR in, float32 (n, columns) out."""
    return keras.Sequential(
        [
            Input((IMAGE_SIZE, IMAGE_SIZE, 3), dtype="uint8"),
            Rescaling(1 / 255),  # the article divides the arrays, and forgets it in test.py
            # 1st convolution
            Conv2D(filters=96, kernel_size=(11, 11), strides=(4, 4), padding="valid"),
            Activation("relu"),
            MaxPooling2D(pool_size=(2, 2), strides=(2, 2), padding="valid"),
            BatchNormalization(),
            # 2nd convolution
            Conv2D(filters=256, kernel_size=(11, 11), strides=(1, 1), padding="valid"),
            Activation("relu"),
            MaxPooling2D(pool_size=(2, 2), strides=(2, 2), padding="valid"),
            BatchNormalization(),
            # 3rd convolution
            Conv2D(filters=384, kernel_size=(3, 3), strides=(1, 1), padding="valid"),
            Activation("relu"),
            BatchNormalization(),
            # 4th convolution
            Conv2D(filters=384, kernel_size=(3, 3), strides=(1, 1), padding="valid"),
            Activation("relu"),
            BatchNormalization(),
            # 5th convolution
            Conv2D(filters=256, kernel_size=(3, 3), strides=(1, 1), padding="valid"),
            Activation("relu"),
            MaxPooling2D(pool_size=(2, 2), strides=(2, 2), padding="valid"),
            BatchNormalization(),
            Flatten(),
            # 1st dense layer
            Dense(4096),
            Activation("relu"),
            Dropout(0.4, seed=seed),
            BatchNormalization(),
            # 2nd dense layer
            Dense(4096),
            Activation("relu"),
            Dropout(0.6, seed=seed + 1),
            BatchNormalization(),
            # 3rd dense layer
            Dense(1000),
            Activation("relu"),
            Dropout(0.5, seed=seed + 2),
            BatchNormalization(),
            # output
            Dense(columns),
            Activation("softmax", dtype="float32"),
        ]
    )


def print_device(precision):
    """Say where the network runs, and what to do where an NVIDIA GPU is not used."""
    devices = keras.distribution.list_devices()
    print(f"device {', '.join(devices)}, backend {keras.backend.backend()}, {precision}")
    if not any(device.startswith("gpu") for device in devices) and (gpu := first_nvidia_gpu()):
        cure = {"tensorflow": "tensorflow[and-cuda]", "jax": "jax[cuda13]"}
        cure = cure.get(keras.backend.backend(), "torch")
        print(f"warning: Keras does not see {gpu}; mend it with: pip install '{cure}'")


def first_nvidia_gpu():
    """Name of the first GPU that nvidia-smi lists, "" where there is none."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return listing.stdout.split("\n")[0].split(" (UUID")[0] if listing.returncode == 0 else ""


# ---- training ----


def fit(model, train, validation, options, settings, history):
    """Train from the epoch after those in `history` on; the new epochs are added to it."""
    terminal = sys.stdout.isatty()
    batches = Batches(*train, options.batch_size)
    try:
        model.fit(
            batches,
            validation_data=Batches(*validation, options.batch_size),
            initial_epoch=len(history),
            epochs=options.epochs,
            shuffle=False,  # keras would draw one order and keep it: see Shuffle
            verbose=1 if terminal else 0,
            callbacks=[
                Shuffle(batches, options.seed),
                Speed(len(train[0]), print_line=not terminal),
                Checkpoint(options.checkpoint, settings, history, options.keep),
            ],
        )
    except KeyboardInterrupt:
        fresh = ", without --fresh," * options.fresh
        print(
            f"\nstopped: {len(history)} epochs are kept; the same command{fresh} goes on from there"
        )
        sys.exit(130)


def check_room_to_train(model, options, history):
    """Refuse to begin what would end on a full disk."""
    weights = 4 * model.count_params()  # float32 in any precision
    number = options.epochs - len(history)
    if options.keep:  # the last ones, the best, and the one being written
        stand = sum(checkpoint_path(options.checkpoint, row).exists() for row in history)
        number = min(number, max(1, options.keep + 2 - stand))
    size = number * weights * (2 if options.momentum else 1) + weights
    check_room(options.checkpoint, size, "make room, or keep fewer with --keep")
    check_room(options.weights_full, weights)


def best_row(history):
    return min(history, key=lambda row: row["val_loss"])


def print_best(history):
    best = best_row(history)
    print(
        f"best epoch {best['epoch']}: val_loss {best['val_loss']:.4g}, "
        f"val_accuracy {best['val_accuracy']:.4f}"
    )


class Batches(keras.utils.PyDataset):
    """Batches of (images, labels) from memory maps; only the rows of a batch are ever copied."""

    def __init__(self, images, labels, batch_size):
        super().__init__()
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.order = np.arange(len(images))

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index):
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return np.asarray(self.images[rows]), np.asarray(self.labels[rows])


class Shuffle(keras.callbacks.Callback):
    """A new order each epoch, which depends on the seed and the epoch alone."""

    def __init__(self, batches, seed):
        super().__init__()
        self.batches, self.seed = batches, seed

    def on_epoch_begin(self, epoch, logs=None):
        order = np.random.default_rng((self.seed, epoch))
        self.batches.order = order.permutation(len(self.batches.images))


class Speed(keras.callbacks.Callback):
    """Adds the training images per second, validation apart, to what keras shows of an epoch;
    prints the epoch's line itself where keras' progress bar is off."""

    def __init__(self, images, print_line):
        super().__init__()
        self.images, self.print_line = images, print_line

    def on_epoch_begin(self, epoch, logs=None):
        self.begin = time.perf_counter()

    def on_test_begin(self, logs=None):
        keras.ops.convert_to_numpy(self.model.metrics_variables[0])  # waits for the device
        self.trained = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logs["images/s"] = self.images / (self.trained - self.begin)
        if self.print_line:
            seconds = time.perf_counter() - self.begin
            facts = ", ".join(f"{name} {value:.4g}" for name, value in logs.items())
            epochs = self.params["epochs"]
            print(f"epoch {epoch + 1}/{epochs}: {seconds:.1f} s, {facts}", flush=True)


# ---- Checkpoint/: a whole file each epoch, read again to go on and by test.py ----


def run_settings(options, dataset):
    """All that the result depends on, but the number of epochs."""
    return {
        "learning rate": options.learning_rate,
        "momentum": options.momentum,
        "batch size": options.batch_size,
        "seed": options.seed,
        "precision": options.precision,
        "backend": keras.backend.backend(),
        "data": dataset["files"],
    }


class Checkpoint(keras.callbacks.Callback):
    """The article's ModelCheckpoint, with its name of the files, which keras 3 refuses."""

    def __init__(self, folder, settings, history, keep=None):
        super().__init__()
        self.folder, self.settings, self.history = folder, settings, history
        self.keep = keep

    def on_epoch_end(self, epoch, logs=None):
        names = ("accuracy", "loss", "val_accuracy", "val_loss")
        row = {"epoch": epoch + 1} | {name: float(logs[name]) for name in names}
        if not math.isfinite(row["loss"] + row["val_loss"]):
            raise UserError(
                f"the loss is nan or infinite in epoch {epoch + 1}, which is not kept; "
                "start over with --fresh and a lower --learning-rate"
            )
        path = checkpoint_path(self.folder, row)
        with whole_file(path) as partial:
            self.model.save(partial)
            write_run(partial, self.model, self.settings, [*self.history, row])
        self.history.append(row)
        write_history(self.folder, self.history)
        prune(self.folder, self.history, self.keep)


def checkpoint_path(folder, row):
    """The checkpoint of a row of the history."""
    return folder / "weights.{epoch:02d}-{val_loss:.2f}.hdf5".format(**row)


def prune(folder, history, keep):
    """Remove all checkpoints of this run but the last `keep` and the best, if keep is given."""
    for row in history[:-keep] if keep else []:
        if row != best_row(history):
            checkpoint_path(folder, row).unlink(missing_ok=True)


@contextmanager
def whole_file(path):
    """Give the name of a file to write, which replaces `path` when the block ends without error.

    Removes what killed runs left of such files in the same folder.
    """
    for rubbish in path.parent.glob(".partial-*"):  # of a run that was killed
        rubbish.unlink()
    partial = path.with_name(f".partial-{path.name}")  # keras goes by the suffix
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # h5py names none
        raise
    except RuntimeError as error:  # of h5py, where the disk is full
        reason = one_line(error)
        raise UserError(f"{path} can't be written ({reason}); make room and run again") from None
    finally:
        partial.unlink(missing_ok=True)


def write_run(path, model, settings, history):
    """Add to an HDF5 file what keras does not save: what the run is and how far it got."""
    run = {
        "settings": settings,
        "history": history,
        "dropout": [keras.ops.convert_to_numpy(s).tolist() for s in dropout_states(model)],
    }
    with h5py.File(path, "r+") as file:
        file["run"] = sealed(run | {"arrays": arrays_crc32(file)})


def read_run(path):
    """What `write_run` wrote, as a dict: settings, history (a row an epoch), dropout, arrays."""
    with reading(path, "training.py"), h5py.File(path, "r") as file:
        return unsealed(file["run"][()])


def arrays_crc32(file):
    """CRC-32 of all that an open HDF5 file holds, but what `write_run` adds."""
    value = 0

    def add(name, item):
        nonlocal value
        if name != "run":
            facts = [(key, np.asarray(fact).tolist()) for key, fact in sorted(item.attrs.items())]
            value = zlib.crc32(repr((name, facts)).encode(), value)
            if isinstance(item, h5py.Dataset):
                value = zlib.crc32(item[()].tobytes(), value)

    add("", file)
    file.visititems(add)  # by name
    return value


def check_arrays(path, run):
    """Refuse a file that holds other arrays than those that `write_run` saw."""
    with reading(path, "training.py"), h5py.File(path, "r") as file:
        if arrays_crc32(file) != run["arrays"]:
            raise ValueError("CRC-32 does not fit")


def is_whole(path, run):
    """Whether a checkpoint passes `check_arrays`; if not, say so."""
    try:
        check_arrays(path, run)
    except UserError as error:
        print(f"left aside: {error}")
        return False
    return True


def load_weights(model, path):
    """Load the weights of an HDF5 file of training.py; return what `read_run` tells of it."""
    run = read_run(path)
    check_arrays(path, run)
    with reading(path, "training.py"):
        model.load_weights(path)
    return run


def dropout_states(model):
    """The variables that dropout draws from, which no file of keras holds."""
    return [layer.seed_generator.state for layer in model.layers if isinstance(layer, Dropout)]


def write_history(folder, history):
    with whole_file(folder / "history.csv") as partial:
        with open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, history[0])
            writer.writeheader()
            writer.writerows(history)


def checkpoints(folder):
    """The whole checkpoints in a folder, [(path, run)], by epoch."""
    found = []
    for path in folder.glob(CHECKPOINTS):
        try:
            found.append((path, read_run(path)))
        except UserError as error:
            print(f"left aside: {error}")
    return sorted(found, key=lambda checkpoint: len(checkpoint[1]["history"]))


def last_checkpoint(folder, settings):
    """(path, run) of the last checkpoint with these settings; None in an empty folder."""
    found = checkpoints(folder)
    for path, run in reversed(found):
        if run["settings"] == settings and is_whole(path, run):
            return path, run
    others = [(path, run) for path, run in found if run["settings"] != settings]
    if others:
        path, run = others[-1]
        raise UserError(
            f"{path} is of a run with {difference(run['settings'], settings)}; "
            "go on with what it had, or start over with --fresh"
        )
    if list(folder.glob(CHECKPOINTS)):
        raise UserError(f"no checkpoint in {folder} is whole; start over with --fresh")
    return None


def difference(old, new):
    """In words, what differs between the settings of two runs."""
    return ", ".join(
        "other data" if name == "data" else f"{name} {old.get(name)}, not {new[name]}"
        for name in new
        if old.get(name) != new[name]
    )


def restore(model, path, run):
    """Bring a compiled model to where it was at a checkpoint; return the history up to there."""
    print(f"{path} restored")
    with reading(path, "training.py"), h5py.File(path, "r") as file:
        model.load_weights(path)
        model.optimizer.build(model.trainable_variables)
        saved = file["optimizer_weights"]
        names = saved.attrs["weight_names"]
        for variable, name in zip(model.optimizer.variables, names, strict=True):
            variable.assign(saved[name][()])
    for variable, state in zip(dropout_states(model), run["dropout"]):
        variable.assign(state)
    write_history(path.parent, run["history"])
    return run["history"]


def put_aside(checkpoint, weights_full):
    """Move an earlier run's files to Checkpoint/old-<time>/."""
    files = [*checkpoint.glob(CHECKPOINTS), checkpoint / "history.csv"]
    files += [weights_full / name for name in FINAL_FILES]
    files = [path for path in files if path.exists()]
    if files:
        old = checkpoint / time.strftime("old-%Y%m%d-%H%M%S")
        old.mkdir()
        for path in files:
            shutil.move(path, old)
        print(f"moved {len(files)} files of an earlier run to {old}")


# ---- Weights_Full/: the trained network ----


def save_model(folder, model, architecture, dataset, settings, history):
    """Write the architecture, the weights and the class of each output."""
    network, weights, class_names = (folder / name for name in FINAL_FILES)
    with whole_file(network) as partial:
        partial.write_text(architecture, encoding="utf-8")
    with whole_file(class_names) as partial:
        names = {"columns": dataset["columns"], "classes": dataset["classes"]}
        partial.write_text(sealed(names | {"model.json": crc32(network)}), encoding="utf-8")
    with whole_file(weights) as partial:
        model.save(partial, include_optimizer=False)
        write_run(partial, model, settings, history)


def load_columns(folder):
    """The class name of each output of the network in Weights_Full/, checked to be of one run."""
    path, network = folder / "class_names.json", folder / "model.json"
    with reading(path, "training.py"):
        names = unsealed(path.read_text(encoding="utf-8"))
        columns, checksum = list(names["columns"]), names["model.json"]
    with reading(network, "training.py"):
        if crc32(network) != checksum:
            raise ValueError("CRC-32 does not fit")
    return columns


if __name__ == "__main__":
    run_main(main)
