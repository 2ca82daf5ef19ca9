"""Train the article's network, an AlexNet with batch normalisation, on Numpy_folder/*.npy.

Reads what preprocess.py wrote in Numpy_folder/ and writes
    Checkpoint/weights.{epoch:02d}-{val_loss:.2f}.hdf5   after each epoch, to go on from
    Checkpoint/run.json, history.png                     settings, loss and accuracy of each epoch
    Weights_Full/model.json, model_weights.h5            the network and its last weights
    Weights_Full/class_names.json                        its settings, with the class of each output
The same command, without --fresh, goes on after the last epoch and ends as if never stopped.

    python training.py
    python training.py --precision mixed_bfloat16
    python training.py --augment --keep 3          # to read other people's hands, in other rooms
"""

import argparse
import json
import logging
import math
import os
import shutil
import sys
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # fewer lines of TensorFlow's log
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")  # some network disks have no locks
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # 1.3 to 2 times as fast on CPUs

import filelock
import h5py
import keras
import numpy as np
from keras.layers import Activation, BatchNormalization, Conv2D, Dense, Dropout, Flatten
from keras.layers import Input, MaxPooling2D, Rescaling
from keras.optimizers import SGD
from matplotlib.figure import Figure

from asl_data.augment_hands import Augmentation, Pool
from asl_data.find_images import UserError, run_main
from preprocess import HERE, IMAGE_SIZE, load_dataset, load_split, positive

logging.getLogger("absl").setLevel(logging.ERROR)  # Keras warns at each .hdf5


def build_model(outputs, seed):
    """The article's network: uint8 (n, 224, 224, 3), BGR in, float32 (n, outputs) out."""
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
            Dense(outputs),
            Activation("softmax", dtype="float32"),  # in any --precision
        ]
    )


def main(argv=None):
    options = parse_options(argv)
    use_all_devices(options.batch_size)  # changes nothing with one GPU: see the end
    dataset = load_dataset(options.numpy_folder)
    run = Run(options, dataset)  # reads run.json: the epochs so far, none with --fresh
    train = AugmentedBatches(options, dataset) if options.augment else Batches(options, dataset)
    validation = Batches(options, dataset, "validation")

    keras.config.set_dtype_policy(options.precision)
    keras.utils.set_random_seed(options.seed)
    model = build_model(len(dataset["columns"]), options.seed)
    architecture = model.to_json()  # before compile, which adds to it
    if options.augment:
        loss, optimizer = augmentation_recipe(options, len(train))
    else:
        loss = "categorical_crossentropy"
        optimizer = SGD(options.learning_rate, options.momentum)
    model.compile(loss=loss, optimizer=optimizer, metrics=["accuracy"])
    if run.rows:
        restore(model, run.folder / run.rows[-1]["file"])
    else:
        if options.start_from:
            start_from(model, options.start_from, run.settings)
        run.move_aside(options.weights_full)
    save_architecture(options.weights_full, architecture, run.settings)
    model.summary()
    print(f"train {train.rows:,} images, validation {validation.rows:,}")
    print_devices(options.precision)

    # Build the metrics now. Else fit, on JAX, asks for batches before Reseed shuffles, and also
    # trains on those.
    model.test_on_batch(*validation[0])
    model.fit(
        train,
        validation_data=validation,
        initial_epoch=len(run.rows),
        epochs=options.epochs,
        shuffle=False,  # Reseed shuffles: with a seed, Keras repeats one order in every epoch
        verbose=1 if sys.stdout.isatty() else 2,
        callbacks=[Reseed(train), run],
    )
    save_weights(options.weights_full, model, run.settings)
    row = tested_epoch(run.rows, options.augment)
    print("test.py takes epoch {epoch}: val_accuracy {val_accuracy:.4f}, {file}".format(**row))
    print("Saved model to disk")


def parse_options(argv):
    parser = argparse.ArgumentParser(description="Train the article's network.")
    add = parser.add_argument
    add("--epochs", type=positive, default=50, help="passes over the images (default: 50)")
    add("--batch-size", type=positive, default=32, help="images per step (default: 32)")
    about = "learning rate of SGD (default: 0.001, with --augment 0.01)"
    add("--learning-rate", type=float, help=about)
    add("--momentum", type=float, help="momentum of SGD (default: 0, with --augment 0.9)")
    about = "train on changed photographs, to read other people's hands (default: off)"
    add("--augment", action="store_true", help=about)
    about = "begin with the weights of an earlier run (default: random weights)"
    add("--start-from", type=Path, metavar="FILE", help=about)
    add("--seed", type=int, default=0, help="of weights, dropout and order (default: 0)")
    about = "number format of the layers; weights stay float32 (default: float32)"
    choices = ["float32", "mixed_bfloat16", "mixed_float16"]
    add("--precision", choices=choices, default="float32", help=about)
    about = "keep the last N checkpoints and the one that test.py takes (default: all)"
    add("--keep", type=positive, metavar="N", help=about)
    about = "start over; old files move to Checkpoint/old-<time>/ (default: go on)"
    add("--fresh", action="store_true", help=about)
    add_folders(parser)
    options = parser.parse_args(argv)
    folders = (options.checkpoint.resolve(), options.weights_full.resolve())
    if options.start_from and options.start_from.resolve().parent in folders:
        parser.error("--start-from would be moved aside: give other --checkpoint, --weights-full")
    if options.learning_rate is None:
        options.learning_rate = 0.01 if options.augment else 0.001
    if options.momentum is None:
        options.momentum = 0.9 if options.augment else 0.0
    return options


def add_folders(parser):
    """Three options that test.py has too."""
    add, folder = parser.add_argument, {"type": Path, "metavar": "DIR"}
    add("--numpy-folder", default=HERE / "Numpy_folder", help="(default: Numpy_folder)", **folder)
    add("--checkpoint", default=HERE / "Checkpoint", help="(default: Checkpoint)", **folder)
    add("--weights-full", default=HERE / "Weights_Full", help="(default: Weights_Full)", **folder)


def augmentation_recipe(options, steps):
    """The loss and optimizer of --augment; steps: batches per epoch."""
    rate = keras.optimizers.schedules.CosineDecay(
        0.0,
        warmup_target=options.learning_rate,
        warmup_steps=steps,  # grows from 0 in the first epoch
        decay_steps=max(1, (options.epochs - 1) * steps),  # then falls to 0 as a cosine
    )
    # Smoothed labels, 0.95 in place of 1, and gradients of a limited norm: some photographs are
    # changed so much that nobody can read them.
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.05)
    return loss, SGD(rate, options.momentum, global_clipnorm=5.0)


def print_devices(precision):
    devices, backend = keras.distribution.list_devices(), keras.backend.backend()
    print(f"device {', '.join(devices)}, backend {backend}, {precision}")
    if all(device.startswith("cpu") for device in devices):
        print("no GPU is used: if there is one, see README.md, With the photographs")
    elif len(devices) > 1 and backend == "tensorflow":
        print(f"only {devices[0]} is used: for several GPUs see README.md, Several GPUs")


# ---- what feeds the network ----


class Batches(keras.utils.PyDataset):
    """Batches of (images, labels), which Keras asks for by their index. The arrays are memory maps:
    only the rows of a batch are copied.

    order: int (n,), the rows in the order in which they are trained on.
    """

    def __init__(self, options, dataset, split="train", threads=2):
        super().__init__(workers=threads, max_queue_size=2 * threads)
        self.images, self.labels = load_split(options.numpy_folder, split, dataset)
        self.batch_size, self.seed = options.batch_size, options.seed
        self.process, self.processes, devices = jax_processes()  # 0, 1, 1 with one GPU
        self.rows = len(self.images) // devices * devices  # a multiple of the devices
        self.order = np.arange(self.rows)

    def __len__(self):
        return math.ceil(self.rows / self.batch_size)

    def places(self, index):
        """Positions in self.order: the part of a batch that this process takes."""
        start = index * self.batch_size
        batch = range(start, min(start + self.batch_size, self.rows))
        first, end = self.process * len(batch), (self.process + 1) * len(batch)
        return batch[first // self.processes : end // self.processes]

    def __getitem__(self, index):
        rows = self.order[self.places(index)]
        return self.images[rows], self.labels[rows]

    def shuffle(self, epoch):
        rng = np.random.default_rng((self.seed, epoch))
        self.order = rng.permutation(len(self.images))[: self.rows]


class AugmentedBatches(Batches):
    """Batches of augmented photographs, each letter as often as the others. An image depends on
    (seed, epoch, place in the order) and, by its strength, on --epochs."""

    def __init__(self, options, dataset):
        processes = min(os.cpu_count(), 32)
        super().__init__(options, dataset, threads=max(2, processes))
        self.augmentation = Augmentation(options.numpy_folder, options.seed)
        self.pool = Pool(self.augmentation, processes)
        self.epochs = options.epochs
        self.shuffle(0)  # Keras asks for a batch before the first epoch

    def shuffle(self, epoch):
        self.epoch, self.order = epoch, self.augmentation.choose_rows(epoch)[: self.rows]
        # Weak at first, full strength after 40 % of the epochs: else the network learns nothing.
        self.strength = min(1, 0.1 + 0.9 * epoch / (0.4 * self.epochs))

    def __getitem__(self, index):
        places = self.places(index)
        # The pool chooses the same rows, from (seed, epoch): so images and labels match.
        images = self.pool.images(self.epoch, places, self.strength)
        return images, self.labels[self.order[places]]


class Reseed(keras.callbacks.Callback):
    """Order and dropout depend on (seed, epoch) only, so a resumed run repeats them exactly."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.shuffle(epoch)
        for layer in self.model.layers:
            if isinstance(layer, Dropout):  # the state of its random numbers: (seed, steps so far)
                layer.seed_generator.state.assign([layer.seed, epoch * len(self.batches)])


# ---- Checkpoint/: the run, and how it goes on ----

SETTINGS = ("augment", "learning_rate", "momentum", "batch_size", "seed", "precision")
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")
RESULT_FILES = ("model.json", "model_weights.h5", "class_names.json")
RESULT_FILES += ("confusion.png", "mistakes.jpg")  # written by test.py


class Run(keras.callbacks.Callback):
    """The article's ModelCheckpoint (Keras 3 refuses its .hdf5), and run.json, to go on from.

    settings: all that the weights depend on; rows: one for each complete epoch, with its METRICS
    and its file.
    """

    def __init__(self, options, dataset):
        super().__init__()
        self.folder, self.keep, self.rows = options.checkpoint, options.keep, []
        self.settings = {name: getattr(options, name) for name in SETTINGS}
        # With --augment, the learning rate depends on the number of epochs.
        self.settings["epochs"] = options.epochs if options.augment else None
        self.settings["start_from"] = str(options.start_from) if options.start_from else None
        self.settings["backend"] = keras.backend.backend()
        self.settings |= {name: dataset[name] for name in ("classes", "columns")}
        self.settings["find_hand"] = dataset.get("find_hand", False)  # not in older data
        self.settings["data"] = dataset["id"]
        if is_main():
            self.lock()
        old = read_json(self.folder / "run.json")
        if old and not options.fresh:
            for name, value in self.settings.items():
                if (before := old["settings"].get(name)) != value:
                    what = "other data" if name == "data" else f"{name} {before}, not {value}"
                    run = f"{self.folder / 'run.json'} is of a run with {what}"
                    raise UserError(f"{run}: undo this change, or start over by --fresh")
            self.rows = old["epochs"]
            print(f"goes on after epoch {len(self.rows)} of {options.epochs}")
        check_processes([self.settings, self.rows])

    def lock(self):
        """Keep other trainings out of the folder until this process ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file_lock = filelock.FileLock(self.folder / ".lock")
        try:
            self.file_lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"another training is at work in {self.folder}") from None
        except OSError as error:  # some network disks have no locks
            print(f"no lock in {self.folder} ({error}): start one training at a time")

    def move_aside(self, weights_full):
        """Move the files of an earlier run to Checkpoint/old-<time>/."""
        paths = [self.folder / "run.json", *self.folder.glob("weights.*")]
        paths += [self.folder / "history.png", *(weights_full / name for name in RESULT_FILES)]
        files = [path for path in paths if path.exists()]
        if files and is_main():
            old = self.folder / time.strftime("old-%Y%m%d-%H%M%S")
            old.mkdir()
            for file in files:
                shutil.move(file, old)
            print(f"moved {len(files)} files of an earlier run to {old}")

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1} | {name: float(logs[name]) for name in METRICS}
        if not math.isfinite(row["loss"] + row["val_loss"]):
            raise UserError("the loss is not finite: start over by --fresh, lower --learning-rate")
        row["file"] = "weights.{epoch:02d}-{val_loss:.2f}.hdf5".format(**row)
        self.rows.append(row)
        if is_main():
            with replacing(self.folder / row["file"]) as path:
                self.model.save(path)
            facts = {"settings": self.settings, "epochs": self.rows}
            write_json(self.folder / "run.json", facts)  # the epoch is complete
            draw_history(self.folder / "history.png", self.rows, self.settings["augment"])
            self.remove_others()

    def remove_others(self):
        """With --keep, remove all checkpoints but the last ones and the one that test.py takes."""
        tested = tested_epoch(self.rows, self.settings["augment"])
        for row in self.rows[: -self.keep] if self.keep else []:
            if row is not tested:
                (self.folder / row["file"]).unlink(missing_ok=True)


@contextmanager
def replacing(path):
    """Write under another name; the file gets its own name when it is complete."""
    partial = path.with_name(f".partial{path.suffix}")  # Keras needs the same ending
    yield partial
    partial.replace(path)


def write_json(path, facts):
    with replacing(path) as partial:
        partial.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def read_json(path):
    """What `write_json` wrote; {} if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def tested_epoch(epochs, augment):
    """The row with the lowest val_loss; with --augment the last, of the lowest learning rate."""
    return epochs[-1] if augment else min(epochs, key=lambda row: row["val_loss"])


def restore(model, path):
    """Bring a compiled model to where it was at a checkpoint."""
    load_weights(model, path)
    # The optimizer too: keras.models.load_model would lose its state, such as momentum.
    model.optimizer.build(model.trainable_variables)
    with h5py.File(path) as file:
        saved = file["optimizer_weights"]
        names = saved.attrs["weight_names"]
        for variable, name in zip(model.optimizer.variables, names, strict=True):
            variable.assign(saved[name][()])


def load_weights(model, path):
    try:
        model.load_weights(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be loaded into this network: {error}") from None


def start_from(model, path, settings):
    """Take the weights of an earlier run, without its last layer if it read other letters."""
    earlier = settings_beside(path)
    network = build_model(len(earlier["columns"]), seed=0)
    load_weights(network, path)
    same_columns = settings["columns"] == earlier["columns"]
    keep_last = same_columns and set(settings["classes"]) <= set(earlier["classes"])
    end = None if keep_last else -2  # without the last Dense and its softmax
    for layer, old in zip(model.layers[:end], network.layers):
        layer.set_weights(old.get_weights())
    print(f"starts from {path}{'' if keep_last else ', with a new last layer'}")


def draw_history(path, epochs, augment):
    """Draw loss and accuracy of all epochs, and mark the epoch that test.py takes."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    numbers, tested = [row["epoch"] for row in epochs], tested_epoch(epochs, augment)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        axes.plot(numbers, [row[name] for row in epochs], "o-", ms=4, label="training")
        values = [row[f"val_{name}"] for row in epochs]
        axes.plot(numbers, values, "s--", ms=4, label="validation")
        about = f"epoch {tested['epoch']}: {tested[f'val_{name}']:.4g}"
        axes.plot(tested["epoch"], tested[f"val_{name}"], "ko", ms=12, mfc="none", label=about)
        axes.set(xlabel="epoch", ylabel=name, yscale="log" if name == "loss" else "linear")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.legend()
    figure.savefig(path)


# ---- Weights_Full/: the network ----


def save_architecture(folder, architecture, settings):
    """Write model.json, and class_names.json with the settings: so test.py can test a checkpoint
    while the training still runs."""
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "model.json") as path:
            path.write_text(architecture, encoding="utf-8")
        write_json(folder / "class_names.json", {"settings": settings, "trained": False})


def save_weights(folder, model, settings):
    if is_main():
        with replacing(folder / "model_weights.h5") as path:
            model.save(path, include_optimizer=False)  # Keras' save_weights refuses this name
        write_json(folder / "class_names.json", {"settings": settings, "trained": True})


def settings_beside(path):
    """The settings of the run that wrote a file of weights, as the .json beside it tells."""
    run, network = (read_json(path.parent / name) for name in ("run.json", "class_names.json"))
    if path.name in [row["file"] for row in run.get("epochs", [])]:
        return run["settings"]
    if path.name == "model_weights.h5" and network.get("trained"):
        return network["settings"]
    raise UserError(f"{path} is not among the weights that training.py has written there")


# ---- several GPUs or processes, on JAX; with one GPU this changes nothing ----


def use_all_devices(batch_size):
    """Let all devices share each batch, those of other processes too.

    The processes find each other by Keras' own KERAS_DISTRIBUTION_* variables.
    """
    if "KERAS_DISTRIBUTION_NUM_PROCESSES" in os.environ:
        if keras.backend.backend() != "jax":
            raise UserError("several processes need KERAS_BACKEND=jax")
        keras.distribution.initialize()
    _, _, devices = jax_processes()
    if batch_size % devices:
        raise UserError(f"--batch-size {batch_size} does not divide by {devices} devices")
    if devices > 1:
        share = keras.distribution.DataParallel(auto_shard_dataset=False)  # Batches.places shards
        keras.distribution.set_distribution(share)


def jax_processes():
    """(number of this process, number of processes, number of devices of all of them)"""
    if keras.backend.backend() != "jax":
        return 0, 1, 1
    import jax

    return jax.process_index(), jax.process_count(), jax.device_count()


def is_main():
    """Whether this process, of several, is the one that writes."""
    return jax_processes()[0] == 0


def check_processes(facts):
    """Refuse processes of different data, settings or epochs."""
    if jax_processes()[1] > 1:
        from jax.experimental import multihost_utils

        number = np.uint32(zlib.crc32(json.dumps(facts).encode()))
        if len(np.unique(multihost_utils.process_allgather(number))) > 1:
            raise UserError("the processes have different data, settings or checkpoints")


if __name__ == "__main__":
    run_main(main)
