"""Train the article's network, an AlexNet with batch normalisation, on Numpy_folder/*.npy.

Reads what preprocess.py wrote in Numpy_folder/ and writes
    Checkpoint/weights.{epoch:02d}-{val_loss:.2f}.hdf5   after each epoch, to go on from
    Checkpoint/run.json, history.csv                     settings, loss and accuracy of each epoch
    Checkpoint/history.png                               the same as curves
    Weights_Full/model.json, model_weights.h5            the network and its last weights
    Weights_Full/class_names.json                        the class of each output
The same command, without --fresh, goes on after the last epoch, and ends as if never stopped.

    python training.py --dry-run
    python training.py
    python training.py --precision mixed_bfloat16 --epochs 100
    python training.py --vary
"""

import argparse
import atexit
import csv
import glob
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

sys.path.insert(0, str(Path(__file__).parent))  # python -I leaves it out
from preprocess import HERE, IMAGE_SIZE, UserError, between, check_room, checksums, crc32
from preprocess import existing, importing_keras, is_memory, load_dataset, load_split, locked
from preprocess import number, one_line, picture, read_json, reading, replacing, run_main
from preprocess import same_command, write_json

with importing_keras():
    import h5py
    import keras
    import numpy as np
    from keras.layers import Activation, BatchNormalization, Conv2D, Dense, Dropout, Flatten
    from keras.layers import Input, MaxPooling2D, Rescaling
    from keras.optimizers import SGD


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


def main(argv=None):
    options = parse_options(argv)
    with one_of_several_processes() as first:
        train_network(options, first)


def train_network(options, first):
    """What the options ask for. first: whether this process, of several, is the one that writes."""
    dataset = load_dataset(options.numpy_folder)
    train, validation = (
        Batches(*load_split(options.numpy_folder, split, dataset), options.batch_size)
        for split in ("train", "validation")
    )
    with ExitStack() as to_end:
        to_end.enter_context(
            folders_to_write(options) if first else redirect_stdout(open(os.devnull, "w"))
        )
        run = Run(options, dataset, first)  # which reads how far it got
        devices = devices_that_share(options.batch_size, len(train.images))
        refuse_other_processes(run)

        keras.distribution.set_distribution(None)  # of an earlier call
        keras.config.set_dtype_policy(options.precision)
        keras.utils.set_random_seed(options.seed)
        model = build_model(len(dataset["columns"]), options.seed)
        architecture = model.to_json()  # now, as compile would add the optimizer to it
        if options.vary:
            loss, optimizer = recipe(options, len(train))
        else:
            loss = "categorical_crossentropy"
            optimizer = SGD(options.learning_rate, options.momentum)
        model.compile(loss=loss, optimizer=optimizer, weighted_metrics=["accuracy"])
        model.summary()
        print(f"train {number(len(train.images), 'image')}, validation {len(validation.images):,}")
        print_device(options.precision)
        if first and options.start_from and not run.epochs:
            start_from(options, model, run)
        if first and not options.dry_run:
            run.begin(model)
            write_network(options.weights_full, architecture, run)  # for test.py meanwhile
        if options.vary:
            train = Varied(train, dataset["rows"]["train"], options)
            to_end.callback(train.makers.end)
        if devices > 1:
            model, validation = on_all_devices(model), Filled(validation, devices)
        if options.dry_run:
            return try_out(model, train, validation, run)

        done = of_the_first(len(run.epochs))
        if done >= options.epochs:
            more = "start over with --fresh" if options.vary else "go on with more --epochs"
            print(f"finished before, after epoch {done}; {more}")
        else:
            with run.telling_how_to_go_on():
                model.fit(
                    train,
                    validation_data=validation,
                    initial_epoch=done,
                    epochs=options.epochs,
                    shuffle=False,  # keras would draw one order and keep it: see Chance
                    verbose=1 if sys.stdout.isatty() else 2,
                    callbacks=[Chance(train, options.seed), Speed(len(train.images)), run],
                )
        if first:
            run.print_best()
            write_network(options.weights_full, architecture, run, model)
            print("Saved model to disk")


def parse_options(argv):
    parser = argparse.ArgumentParser(
        description="Train the article's network on Numpy_folder/*.npy.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--epochs", type=between(int, 1), default=50, help="passes over the images (default: 50)")
    add("--batch-size", type=between(int, 1), default=32, help="images per step (default: 32)")
    about = "learning rate of SGD (default: 0.001, with --vary 0.01)"
    add("--learning-rate", type=between(float, 0, 10), help=about)
    about = "momentum of SGD (default: 0.0, with --vary 0.9)"
    add("--momentum", type=between(float, 0, 1), help=about)
    about = "for other hands and rooms: varied photographs, momentum, a learning rate that grows "
    about += "for an epoch and falls as a cosine (default: the article's recipe)"
    add("--vary", action="store_true", help=about)
    about = "begin with these weights of an earlier run (default: with random ones)"
    add("--start-from", type=Path, metavar="FILE", help=about)
    about = "seed of weights, dropout and order (default: 0)"
    add("--seed", type=between(int, 0), default=0, help=about)
    about = "number format of the layers; the weights stay float32 (default: float32)"
    choices = ["float32", "mixed_bfloat16", "mixed_float16"]
    add("--precision", choices=choices, default="float32", help=about)
    about = "keep the last N checkpoints and the best (default: all)"
    add("--keep", type=between(int, 1), metavar="N", help=about)
    add("--fresh", action="store_true", help="start over; old files move aside (default: go on)")
    about = "try one batch and a checkpoint, say how long the run would take (default: train)"
    add("--dry-run", action="store_true", help=about)
    add_folders(parser)
    options = parser.parse_args(argv)
    if options.learning_rate is None:
        options.learning_rate = 0.01 if options.vary else 0.001
    if options.momentum is None:
        options.momentum = 0.9 if options.vary else 0.0
    return options


def recipe(options, steps):
    """The loss and optimizer of --vary: a rate that grows from 0 for an epoch, then falls to 0."""
    rate = keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=max(1, (options.epochs - 1) * steps),
        warmup_target=options.learning_rate,
        warmup_steps=steps,
    )
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.05)
    return loss, SGD(rate, options.momentum, global_clipnorm=5.0)


def add_folders(parser):
    """The options --numpy-folder, --checkpoint and --weights-full."""
    for option, name, what in (
        ("--numpy-folder", "Numpy_folder", "what preprocess.py wrote"),
        ("--checkpoint", "Checkpoint", "a checkpoint for each epoch"),
        ("--weights-full", "Weights_Full", "the trained network"),
    ):
        about = f"{what} (default: {name} beside this script)"
        parser.add_argument(option, type=Path, default=HERE / name, metavar="DIR", help=about)


# ---- what feeds the network, and where it runs ----


class Batches(keras.utils.PyDataset):
    """Batches of (images, labels) from memory maps; only the rows of a batch are ever copied.

    images: uint8 (n, 224, 224, 3); labels: float32 (n, columns); order: the rows, as they come.
    Of several processes each has its own part of a batch, one as long as the others.
    """

    def __init__(self, images, labels, batch_size):
        # With one thread Keras lets tf.data tune itself, and that may sleep on when an epoch ends.
        # On JAX Keras reads a batch before the first epoch: two would go on from there.
        threads = 2 if keras.backend.backend() == "tensorflow" else 1
        super().__init__(workers=threads, max_queue_size=4)  # batches that wait
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.order = np.arange(len(images))

    def __len__(self):
        return math.ceil(len(self.order) / self.batch_size)

    def __getitem__(self, index):
        rows = self.order[self.places(index)]
        return np.asarray(self.images[rows]), np.asarray(self.labels[rows])

    def places(self, index):
        """Where in the order the rows of a batch stand, of this process's part of it."""
        start = index * self.batch_size
        batch = range(start, min(start + self.batch_size, len(self.order)))
        process, count = this_process()
        return batch[process * len(batch) // count : (process + 1) * len(batch) // count]

    def draw(self, seed, epoch):
        """The order of an epoch."""
        self.order = np.random.default_rng((seed, epoch)).permutation(len(self.images))


class Varied(Batches):
    """Batches of varied photographs, in which each letter comes as often as the others.

    Processes make them, some batches ahead; an image is a function of (seed, epoch, its place in
    the epoch), whichever makes it.
    """

    def __init__(self, batches, names, options):
        super().__init__(batches.images, batches.labels, batches.batch_size)
        try:
            from asl_data import vary_hands  # here: asl_data may be a link to a disk of photographs

            self.variation = vary_hands.Variation(self.images, self.labels, names, options.seed)
        except ImportError as error:
            path = HERE / "asl_data" / "vary_hands.py"
            raise UserError(f"{path} is missing or can't be loaded: {error}") from None
        self.growing = 0.4 * options.epochs
        self.makers, self.lock = vary_hands.Makers(self.variation), Lock()
        self.draw(options.seed, options.epochs - 1)  # --dry-run times these, at full strength

    def draw(self, seed, epoch):
        """The order of an epoch and what is varied in it; the seed is the variation's own."""
        # All at full strength from the first step, the network learns nothing.
        self.strength = min(1, 0.1 + 0.9 * epoch / self.growing)
        self.order, self.coming = self.variation.draw(epoch), {}

    def __getitem__(self, index):
        with self.lock:  # two threads of Keras may ask
            part = len(self.places(index))  # of a batch, this process's
            ahead = index + 1 + math.ceil(self.makers.at_once / part)
            for near in range(index, min(ahead, len(self))):
                if near not in self.coming:
                    self.coming[near] = self.makers.begin(self.places(near), self.strength)
            finish = self.coming.pop(index)
        return finish(), np.asarray(self.labels[self.order[self.places(index)]])


class Filled(Batches):
    """Batches to validate on several devices: rows of weight 0 fill up the last one, so that it
    divides by the devices. Keras averages the losses over all rows, so the others weigh more."""

    def __init__(self, batches, devices):
        super().__init__(batches.images, batches.labels, batches.batch_size)
        self.order = np.append(self.order, np.zeros(-len(self.order) % devices, int))

    def __getitem__(self, index):
        real = np.array(self.places(index)) < len(self.images)
        weights = real * len(self.order) / len(self.images)
        return *super().__getitem__(index), weights.astype(np.float32)


class Chance(keras.callbacks.Callback):
    """What an epoch draws at random, its order and its dropout, follows from (seed, epoch).

    So a run that goes on needs no state of any generator, and draws what it would have drawn.
    """

    def __init__(self, batches, seed):
        super().__init__()
        self.batches, self.seed = batches, seed

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.draw(self.seed, epoch)
        for layer in self.model.layers:
            if isinstance(layer, Dropout):  # its state is its seed and the steps that it has made
                layer.seed_generator.state.assign([layer.seed, epoch * len(self.batches)])


class Speed(keras.callbacks.Callback):
    """Adds the training images per second, validation apart, to what keras shows of an epoch."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def on_epoch_begin(self, epoch, logs=None):
        self.begin = time.perf_counter()

    def on_test_begin(self, logs=None):
        keras.ops.convert_to_numpy(self.model.metrics_variables[0])  # waits for the device
        self.trained = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logs["images/s"] = self.images / (self.trained - self.begin)


def print_device(precision):
    """Say where the network runs, and what to do where an NVIDIA GPU is not used."""
    backend = keras.backend.backend()
    if backend == "torch":  # which keras.distribution does not know
        devices = [str(keras.ops.zeros(1).device)]
    else:
        devices = keras.distribution.list_devices()
    _, processes = this_process()
    several = f" of {processes} processes" if processes > 1 else ""
    print(f"device {', '.join(devices)}{several}, backend {backend}, {precision}")
    if backend == "tensorflow" and len(devices) > 1:
        print(f"TensorFlow uses {devices[0]} alone; all of them: pip install 'jax[cuda13]', and")
        print(f"  KERAS_BACKEND=jax {same_command()}")
    on_cpu = all(device.startswith("cpu") for device in devices)
    if on_cpu and precision == "mixed_float16":
        print("warning: mixed_float16 is for GPUs, a processor takes minutes for a step; stop this")
    if on_cpu and (gpu := first_nvidia_gpu()):
        remedy = {"tensorflow": "tensorflow[and-cuda]", "jax": "jax[cuda13]"}.get(backend, backend)
        print(f"warning: Keras does not see {gpu}; mend it with: pip install '{remedy}'")


def try_out(model, train, validation, run):
    """Train and validate a few batches, write, read and remove a checkpoint; say what the whole
    run would take. Leaves nothing behind."""
    options = run.options
    if run.first:
        run.check_room(model)
    with run.telling_how_to_go_on():
        step = seconds_per_batch(train, lambda part: model.fit(part, shuffle=False, verbose=0))
        look = seconds_per_batch(validation, lambda part: model.evaluate(part, verbose=0))
    begin = time.perf_counter()
    beside = existing(run.folder) if run.first else None  # the others' would not be written to
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=beside) as folder:
        path = Path(folder) / "checkpoint.hdf5"
        model.save(path)
        written = time.perf_counter() - begin
        restore(model, path)
        size = path.stat().st_size
    epoch = step * len(train) + look * len(validation) + written
    epochs = max(0, options.epochs - len(run.epochs))
    images = min(options.batch_size, len(train.images))
    print(
        f"dry run: a batch of {number(images, 'image')} fits into memory and takes {step:.3g} s, "
        f"a checkpoint {written:.2g} s and {size / 1e6:.0f} MB"
    )
    print(f"an epoch takes about {in_words(epoch)}, ", end="")
    print(f"the {number(epochs, 'epoch')} to come {in_words(epoch * epochs)}; nothing was kept")


def seconds_per_batch(batches, go_through):
    """Seconds that a batch takes, after a first one, which also builds the graph."""
    order = batches.order

    def timed(count):
        batches.order = order[: count * batches.batch_size]
        begin = time.perf_counter()
        go_through(batches)
        return time.perf_counter() - begin

    timed(1)
    one = timed(1)
    some = of_the_first(min(100, math.ceil(1 / one)))  # a second or so
    seconds = timed(1 + some) - one  # without what the start and the end take
    more = len(batches) - 1
    batches.order = order
    return seconds / more if seconds > 0 and more else one  # on a busy machine it may be less


def in_words(seconds):
    """A duration: "50 s", "4 min", "2.3 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def first_nvidia_gpu():
    """Name of the first GPU that nvidia-smi lists, "" where there is none."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return listing.stdout.split("\n")[0].split(" (UUID")[0] if listing.returncode == 0 else ""


# ---- several devices, of one process or of several: JAX alone ----


ENDED = "a process of this run has ended or failed; the same command on all goes on"


@contextmanager
def one_of_several_processes():
    """Join the other processes, where the environment says that there are some; give whether this
    one is the first, which alone reads and writes Checkpoint and Weights_Full."""
    joining = how_to_join()
    if not joining:
        yield True
        return
    with alone_in_its_place(joining), joined(joining):
        index, count = this_process()
        if index:
            print(f"process {index + 1} of {count}: the first one says how it goes, and writes")
        yield not index


@contextmanager
def joined(joining):
    """Be one of the processes, until all have ended, or end with them."""
    import jax
    from jax.experimental import multihost_utils

    one_line_of_the_runtime()
    jax.config.update("jax_enable_preemption_service", False)  # it makes SIGTERM do nothing
    print("waits for the other processes, up to five minutes", flush=True)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)  # or Ctrl-C would wait too
    try:
        # Not keras.distribution.initialize: it waits 100 s for a process that has died.
        jax.distributed.initialize(**joining, heartbeat_timeout_seconds=30)
    except Exception as error:  # also what the library of a cluster says
        raise UserError(f"the processes do not find each other ({one_line(error)})") from None
    finally:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
        multihost_utils.sync_global_devices("the first one has written all")
    except BaseException as error:
        # At its end JAX would wait for the others.
        atexit.register(os._exit, 130 if isinstance(error, KeyboardInterrupt) else 1)
        lost = isinstance(error, (jax.errors.JaxRuntimeError, ValueError))
        if not lost or is_memory(error) or not re.match("[A-Z_]+: ", str(error)):  # UNKNOWN: ...
            raise
        raise UserError(f"{ENDED} ({one_line(error)})") from None
    jax.distributed.shutdown()


@contextmanager
def alone_in_its_place(joining):
    """A UserError if this process is at work on this machine already, or its port is in use: JAX
    would take a second one for the first, started again, and end them all."""
    if sys.platform != "linux" or "process_id" not in joining:
        yield
        return
    address, index = joining["coordinator_address"], joining["process_id"]
    with socket.socket(socket.AF_UNIX) as place:
        try:
            place.bind(f"\0training.py {address} {index}")  # no file: it is gone with the process
            if index == 0:
                socket.create_server(("", int(address.rpartition(":")[2]))).close()
        except OSError:
            what = f"process {index} of {address}, or another program with that port"
            raise UserError(f"{what}, is at work already") from None
        yield


def how_to_join():
    """What jax.distributed.initialize is to be told, by Keras' own variables or by those that it
    reads itself, of SLURM and Kubernetes; None where there is one process alone."""
    names = [f"KERAS_DISTRIBUTION_{x}" for x in ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")]
    given = [os.environ.get(name) for name in names]
    if keras.backend.backend() != "jax":
        if any(given):
            raise UserError("several processes are for KERAS_BACKEND=jax alone: unset " + names[1])
        return None
    if any(given):
        address = (given[0] or "").split(",")[0]
        if not re.fullmatch(r".+:\d+ \d+ \d+", f"{address} {given[1]} {given[2]}"):
            said = ", ".join(f"{name}={value or ''}" for name, value in zip(names, given))
            raise UserError(f"{said} must be HOST:PORT of the first one, and numbers")
        return {
            "coordinator_address": address,
            "num_processes": int(given[1]),
            "process_id": int(given[2]),
            "cluster_detection_method": "deactivate",
        }
    in_slurm = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    in_kubernetes = "JOB_COMPLETION_INDEX" in os.environ and find_spec("kubernetes")
    return {"cluster_detection_method": None} if in_slurm or in_kubernetes else None


def one_line_of_the_runtime():
    """Where another process is gone, JAX ends this one with thirty lines of C++: make it one."""
    if not shutil.which("sed"):
        return
    name = Path(sys.argv[0]).name
    script = "/^[EF][0-9]{4} .*(coordination|distributed)[ _]?service/I "
    script += f"s/.*/{name}: {ENDED}/; /^{name}: /q"  # the last one, as one of ours is
    editor = subprocess.Popen(
        ["sed", "-uE", script],
        stdin=subprocess.PIPE,
        stdout=2,
        start_new_session=True,  # or Ctrl-C would end it before the last line
    )
    os.dup2(editor.stdin.fileno(), 2)


def this_process():
    """(its number, of how many) processes that train together."""
    if keras.backend.backend() != "jax":
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def of_the_first(value):
    """A number, or arrays, that the first process has, in all; they wait for one another."""
    if this_process()[1] == 1:
        return value
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(value)


def devices_that_share(batch_size, images):
    """How many devices share a batch; a UserError if it, or the last one, does not divide."""
    if keras.backend.backend() != "jax":
        return 1
    import jax

    devices = jax.device_count()
    for count, what in ((batch_size, "images of a batch"), (images, "training images")):
        if count % devices:  # to fill up a batch would change what BatchNormalization sees
            raise UserError(
                f"{count:,} {what} do not divide by {devices} devices: use fewer devices "
                "(CUDA_VISIBLE_DEVICES=0), or change --batch-size or preprocess.py --train"
            )
    return devices


def refuse_other_processes(run):
    """A UserError if a process is about to do something else than the first one."""
    if this_process()[1] == 1:
        return
    import jax
    import jaxlib
    from jax.experimental import multihost_utils

    if len(set(Counter(device.process_index for device in jax.devices()).values())) > 1:
        raise UserError("the processes have different numbers of devices")
    facts = run.settings | {"start_from": None}  # which the first one reads, for all
    facts |= {"epochs": run.options.epochs, "dry_run": run.options.dry_run}
    facts |= {module.__name__: module.__version__ for module in (jax, jaxlib, keras, np)}
    code = [HERE / name for name in ("training.py", "preprocess.py", "asl_data/vary_hands.py")]
    facts |= checksums([path for path in code if path.exists()])
    text = np.frombuffer(json.dumps(facts).encode().ljust(10_000), np.uint8)
    all_facts = [json.loads(bytes(each)) for each in multihost_utils.process_allgather(text)]
    for index, theirs in enumerate(all_facts):
        if difference := differences(all_facts[0], theirs):
            raise UserError(f"process {index + 1} is unlike the first one: {difference}")


def on_all_devices(model):
    """The same compiled model, with the first process's weights and optimizer on all devices."""
    build_optimizer(model)
    values = [keras.ops.convert_to_numpy(v) for v in model.variables + model.optimizer.variables]
    values = of_the_first(values)
    share = keras.distribution.DataParallel(auto_shard_dataset=False)  # Batches share out the rows
    keras.distribution.set_distribution(share)
    twin = keras.models.clone_model(model)
    twin.compile_from_config(model.get_compile_config())
    build_optimizer(twin)
    for variable, value in zip(twin.variables + twin.optimizer.variables, values, strict=True):
        variable.assign(value)
    return twin


# ---- the run, as it stands in Checkpoint/ ----

CHECKPOINTS = "weights.*.hdf5"
METRICS = ("accuracy", "loss", "val_accuracy", "val_loss")
# Not keep; epochs only with --vary, as a part of "vary".
SETTINGS = ("learning_rate", "momentum", "batch_size", "seed", "precision", "vary")


class Run(keras.callbacks.Callback):
    """A run in Checkpoint/: the article's ModelCheckpoint, and what it takes to go on.

    settings: all that the weights after an epoch depend on.
    epochs: a row for each epoch that counts, {"epoch": 1 ..., the METRICS, "file", "crc32"}.
    run.json holds both; an epoch counts if its row stands there and its file has that CRC-32.
    To go on: `find_epochs` finds the last epoch that counts, `begin` restores the weights and the
    optimizer, `fit` starts at the next one, and Chance draws what that one would have drawn.
    """

    def __init__(self, options, dataset, first=True):
        """Read how far the run got; a UserError if another one stands there, and not --fresh.

        A process that is not the first leaves the folders alone.
        """
        super().__init__()
        self.options, self.folder, self.first = options, options.checkpoint, first
        self.classes, self.columns = dataset["classes"], dataset["columns"]
        self.settings = {name: getattr(options, name) for name in SETTINGS}
        self.settings |= {"backend": keras.backend.backend(), "data": dataset["files"]}
        if options.vary:  # whose rate and strength depend on the epochs
            self.settings["vary"] = f"over {number(options.epochs, 'epoch')}"
        self.settings["start_from"] = first and options.start_from and self.describe_start() or None
        self.epochs = []
        if first and not options.fresh:
            for path in (self.folder / "run.json", options.weights_full / "class_names.json"):
                if path.exists():
                    self.refuse_other_settings(path)
            self.find_epochs()
            self.refuse_network_of_elsewhere()

    def describe_start(self):
        """The file of --start-from and its CRC-32, in words; in a run that goes on, which may have
        moved it aside or written another one there, what they were."""
        path, known = self.options.start_from, ""
        if not self.options.fresh and (self.folder / "run.json").exists():
            known = load_run(self.folder)["settings"].get("start_from") or ""
        if known.startswith(f"{path} ("):
            return known
        if not path.is_file() or not re.search(r"(?<!\.weights)\.(h5|hdf5)$", path.name):
            raise UserError(f"{path} is missing, or no .hdf5 or .h5 file of training.py")
        checksum = f"(CRC-32 {crc32(path)})"
        return known if known.endswith(checksum) else f"{path} {checksum}"

    def refuse_other_settings(self, path):
        old = read_json(path, "settings", "training.py --fresh")["settings"]
        if difference := differences(old, self.settings):
            raise UserError(
                f"{path} is of a run with {difference}; "
                "go on with what it had, or start over with --fresh"
            )

    def refuse_network_of_elsewhere(self):
        """Keep a trained network whose checkpoints are gone, or in another folder."""
        path = self.options.weights_full / "class_names.json"
        last = load_class_names(path.parent)["last"] if path.exists() else None
        if last and not self.epochs:
            raise UserError(
                f"{path.parent} holds a network of epoch {last['epoch']}, of which {self.folder} "
                "has no checkpoint: name its --checkpoint, or start over with --fresh"
            )

    def find_epochs(self):
        """Take the epochs up to the last one whose file is intact."""
        known = (self.folder / "run.json").exists()
        listed = load_run(self.folder)["epochs"] if known else []
        self.epochs = list(listed)
        while self.epochs and not is_intact(self.folder, self.epochs[-1]):
            self.epochs.pop()
        if len(self.epochs) < len(listed):
            print(f"ignored: {self.folder / listed[-1]['file']} is missing or damaged")
        # Checkpoints without run.json may be of any run.
        unknown = not known and list(self.folder.glob(CHECKPOINTS))
        if not self.epochs and (listed or unknown):
            raise UserError(
                f"no checkpoint in {self.folder} is intact and listed in its run.json; "
                "start over with --fresh"
            )

    def begin(self, model):
        """Start over if that is wanted, or bring the compiled model to the last epoch."""
        self.check_room(model)
        if self.options.fresh:
            self.put_aside()
        if self.epochs:
            path = self.folder / self.epochs[-1]["file"]
            restore(model, path)
            print(f"{path} restored")
        self.write()  # so that the first checkpoint, too, is of a run that is known

    def check_room(self, model):
        """Refuse to begin what would end on a full disk."""
        weights = 4 * model.count_params()  # bytes: float32 in any precision
        to_come = max(0, self.options.epochs - len(self.epochs))
        if self.options.keep:  # at most the last ones, the best, and the one being written
            stand = sum((self.folder / row["file"]).exists() for row in self.epochs)
            to_come = min(to_come, max(1, self.options.keep + 2 - stand))
        checkpoint = weights * (2 if self.options.momentum else 1)
        remedy = "make room, or keep fewer with --keep"
        check_room(self.folder, to_come * checkpoint + weights, remedy)
        check_room(self.options.weights_full, weights)

    def put_aside(self):
        """Move an earlier run's files to Checkpoint/old-<time>/, run.json first."""
        files = [self.folder / name for name in ("run.json", "history.csv", "history.png")]
        files += self.folder.glob(CHECKPOINTS)
        files += [self.options.weights_full / name for name in WEIGHTS_FULL]
        if files := [path for path in files if path.is_file()]:
            old = self.folder / time.strftime("old-%Y%m%d-%H%M%S")
            old.mkdir()
            for path in files:
                shutil.move(path, old)
            print(f"moved {number(len(files), 'file')} of an earlier run to {old}")

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1} | {name: float(logs[name]) for name in METRICS}
        if not math.isfinite(row["loss"] + row["val_loss"]):
            raise UserError(
                f"the loss is nan or infinite in epoch {epoch + 1}, which is not kept; "
                "start over with --fresh and a lower --learning-rate"
            )
        if not self.first:
            return
        path = self.folder / "weights.{epoch:02d}-{val_loss:.2f}.hdf5".format(**row)
        with replacing(path) as partial:
            self.model.save(partial)
        self.epochs.append(row | {"file": path.name, "crc32": crc32(path)})
        self.write()
        if self.options.keep:
            there = [old for old in self.epochs if (self.folder / old["file"]).exists()]
            for old in there[: -self.options.keep]:
                if old != best_first(there, self.settings)[0]:
                    (self.folder / old["file"]).unlink()

    def write(self):
        """Write history.csv and .png, for people, and run.json, from which the run goes on."""
        with replacing(self.folder / "history.csv") as partial:
            with open(partial, "w", newline="") as file:
                writer = csv.DictWriter(file, ("epoch", *METRICS), extrasaction="ignore")
                writer.writeheader()
                writer.writerows(self.epochs)
        if self.epochs:
            with picture(self.folder / "history.png") as partial:
                draw_history(partial, self.epochs, self.settings)
        facts = {"settings": self.settings, "classes": self.classes, "columns": self.columns}
        write_json(self.folder / "run.json", {**facts, "epochs": self.epochs})

    @contextmanager
    def telling_how_to_go_on(self):
        """Around the training: Ctrl-C says what is kept, want of memory what to change."""
        try:
            yield
        except KeyboardInterrupt:
            if self.options.dry_run or not self.first:
                raise
            kept = number(len(load_run(self.folder)["epochs"]), "epoch")
            raise KeyboardInterrupt(f": {kept} kept; {same_command()} goes on from there") from None
        except Exception as error:
            if said := re.search(r"UserError: (.*)", str(error)):
                raise UserError(said[1]) from None  # of a batch, in the words of TensorFlow
            if not is_memory(error):
                raise
            size, fresh = self.options.batch_size, "" if self.options.dry_run else ", with --fresh"
            raise UserError(
                f"not enough memory for --batch-size {size}: take a smaller one{fresh}"
            ) from None

    def print_best(self):
        best = best_intact(self.folder, self.epochs, self.settings)  # says it where there is none
        if best is None:
            return
        word = "last" if self.settings["vary"] else "best"
        print(
            f"{word} epoch {best['epoch']}: val_loss {best['val_loss']:.4g}, "
            f"val_accuracy {best['val_accuracy']:.4f}"
        )


@contextmanager
def folders_to_write(options):
    """Keep other runs out of the folders, and fail now if one can't be written, rather than after
    an epoch. A dry run writes nothing there."""
    folders = (options.checkpoint, options.weights_full)
    with ExitStack() as locks:
        for folder in folders if not options.dry_run else ():
            locks.enter_context(locked(folder))
        for folder in folders:
            tempfile.TemporaryFile(dir=existing(folder)).close()
        yield


def draw_history(path, epochs, settings):
    """Draw loss and accuracy of all epochs, of training and validation, the best or last marked."""
    from matplotlib.figure import Figure  # takes half a second
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    best, word = best_first(epochs, settings)[0], "last" if settings["vary"] else "best"
    numbers = [row["epoch"] for row in epochs]
    figure = Figure(figsize=(10, 4.2), dpi=100, layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        axes.plot(numbers, [row[name] for row in epochs], "o-", c="#0072B2", ms=4, label="training")
        values = [row[f"val_{name}"] for row in epochs]
        axes.plot(numbers, values, "s--", c="#D55E00", ms=4, label="validation")
        value = best[f"val_{name}"]
        label = f"{word} epoch, {best['epoch']}: {value:.4g}"
        axes.plot(best["epoch"], value, "o", c="black", ms=14, mfc="none", mew=2, label=label)
        axes.set_xlim(0.5, len(epochs) + 0.5)
        axes.set_xlabel("epoch", fontsize=13)
        axes.set_ylabel(name, fontsize=13)
        axes.tick_params(labelsize=12)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=12)
        if name == "loss":
            axes.set_yscale("log")  # one epoch of ten times the loss hides all others
            axes.set_ylabel("loss (logarithmic)", fontsize=13)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
    figure.savefig(path)


def load_run(folder):
    """What run.json says of the run in a folder; see Run."""
    return read_json(folder / "run.json", "settings classes columns epochs", "training.py")


def is_intact(folder, row):
    """Whether the file of an epoch, or another that is listed so, is there as it was written."""
    path = folder / row["file"]
    if not path.is_file():
        return False
    if crc32(path) == row["crc32"]:
        return True
    with suppress(UserError), reading(path, "training.py"), h5py.File(path):
        pass  # but one that another program writes in is locked, not damaged: an OSError
    return False


def best_first(epochs, settings):
    """The rows of the epochs, the lowest val_loss first.

    With --vary the last first: the rate falls to 0 there, and early epochs have seen little varied.
    """
    if settings.get("vary"):
        return epochs[::-1]
    return sorted(epochs, key=lambda row: row["val_loss"])


def best_intact(folder, epochs, settings):
    """The first of `best_first` whose file is intact, None if there is none."""
    rows = best_first(epochs, settings)
    best = next((row for row in rows if is_intact(folder, row)), None)
    if rows and best != rows[0]:
        print(f"ignored: {folder / rows[0]['file']} is missing or damaged")
    return best


def differences(old, new):
    """In words, what differs between the settings of two runs.

    Where an old run does not know a setting, it had that option's default.
    """
    defaults = vars(parse_options([]))
    return ", ".join(
        "other data" if name == "data" else f"{name.replace('_', ' ')} {before}, not {new[name]}"
        for name in new
        if (before := old.get(name, defaults.get(name))) != new[name]
    )


def restore(model, path):
    """Bring a compiled model to where it was at a checkpoint, its optimizer too."""
    with reading(path, "training.py"), h5py.File(path, "r") as file:
        model.load_weights(path)
        build_optimizer(model)  # load_model would leave it empty
        saved = file["optimizer_weights"]
        names = saved.attrs["weight_names"]
        for variable, name in zip(model.optimizer.variables, names, strict=True):
            variable.assign(saved[name][()])


def build_optimizer(model):
    if not model.optimizer.built:  # that of mixed_float16 would get its variables twice
        model.optimizer.build(model.trainable_variables)


def start_from(options, model, run):
    """Give the model the weights of an earlier run; its output anew, if that had other letters."""
    # An earlier start, killed before its first epoch ended, may have moved it aside.
    moved = options.checkpoint.glob(f"old-*/{glob.escape(options.start_from.name)}")
    for path in (options.start_from, *moved):
        if path.is_file() and run.settings["start_from"].endswith(f"(CRC-32 {crc32(path)})"):
            break
    else:
        raise UserError(
            f"{options.start_from} is not what this run began with: start over with --fresh"
        )
    earlier, _ = origin(path)
    if not earlier:
        raise UserError(
            f"nothing beside {path} says which letters it reads: name it where training.py wrote it"
        )
    with reading(path, "training.py"):
        network = build_model(len(earlier["columns"]), 0)
        network.load_weights(path)
    same = set(run.classes) <= set(earlier["classes"]) and run.columns == earlier["columns"]
    output = [layer for layer in model.layers if isinstance(layer, Dense)][-1]
    for layer, old in zip(model.layers, network.layers):
        if same or layer is not output:
            layer.set_weights(old.get_weights())
    print(f"starts from {path}{'' if same else ', its output anew'}")


# ---- Weights_Full/: the trained network ----


WEIGHTS_FULL = ("class_names.json", "model.json", "model_weights.h5")
WEIGHTS_FULL += ("confusion.png", "mistakes.jpg", "report.json")  # which test.py writes


def write_network(folder, architecture, run, model=None):
    """Write the architecture, the class of each output and, of a trained model, the weights."""
    path = folder / "class_names.json"
    if not model and path.exists():
        return  # of this run, or Run would have refused it: its weights still count
    facts = {"classes": run.classes, "columns": run.columns, "settings": run.settings}
    files = [folder / "model.json"]
    with replacing(files[0]) as partial:
        partial.write_text(architecture, encoding="utf-8")
    write_json(path, facts | {"last": None, "files": checksums(files)})
    if model:
        files.append(folder / "model_weights.h5")
        with replacing(files[1]) as partial:
            model.save(partial, include_optimizer=False)
        write_json(path, facts | {"last": run.epochs[-1], "files": checksums(files)})


def load_class_names(folder):
    """class_names.json: the classes trained on, the column names, the run's settings, the last
    epoch's row, and the CRC-32 of each file that is part of the network."""
    keys = "classes columns settings last files"
    return read_json(folder / "class_names.json", keys, "training.py")


def origin(path):
    """(what is known of the run, the epoch) of a file of weights, as the JSON beside it tells.

    (None, None) of weights that stand alone; a UserError if the file is not what the JSON lists.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing, or no file")
    listed = {}  # name: (CRC-32, what is known, the epoch)
    if (path.parent / "run.json").exists():
        run = load_run(path.parent)
        listed |= {row["file"]: (row["crc32"], run, row) for row in run["epochs"]}
    if (path.parent / "class_names.json").exists():
        network = load_class_names(path.parent)
        listed |= {name: (crc, network, network["last"]) for name, crc in network["files"].items()}
    checksum, run, epoch = listed.get(path.name, (None, None, None))
    if checksum and not is_intact(path.parent, {"file": path.name, "crc32": checksum}):
        raise UserError(
            f"{path} is damaged or foreign (CRC-32 does not fit): run training.py again"
        )
    return run, epoch


if __name__ == "__main__":
    run_main(main)
