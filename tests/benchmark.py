"""Measure the three scripts, side by side with the article's own where their folder is given.

Prints a Markdown table, each row as soon as it is measured: the median seconds of --rounds runs
that take turns, the peak memory of the worst, and the ratio of both to the article's. Linux.

    python tests/benchmark.py --data PHOTOGRAPHS.zip --article FOLDER --letters 24_LETTERS.zip
    python tests/benchmark.py --parts feed device      # on a GPU box; drawings do for it

Without --data it draws 3,000 hands a letter. All files go to a temporary folder (25 GB with the
part growth), or to --work, which stays and spares the next call what is there already.
"""

import argparse
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import numpy as np
from measure import measure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import preprocess  # noqa: E402

PRECISIONS = ("float32", "mixed_bfloat16")
Run = namedtuple("Run", "seconds anonymous mapped output")
medians = {}  # seconds of each row, for the limits


def main():
    options = parse_options()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        options.work = (options.work or Path(temporary)).resolve()
        print_machine()
        print(
            "| what | seconds | least to most | memory, MB | mapped files, MB | images/s ", end=""
        )
        print("| time to the article's | memory to the article's |")
        print("|--|--|--|--|--|--|--|--|", flush=True)
        for part in options.parts:
            PARTS[part](options)


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="ZIP", help="photographs of A, B, C (default: drawings)")
    add("--article", type=Path, metavar="DIR", help="the article's scripts (default: ours alone)")
    add("--letters", type=Path, metavar="ZIP", help="of many letters, for the part letters")
    add("--rounds", type=int, default=3, metavar="N", help="runs of each command (default: 3)")
    add("--work", type=Path, metavar="DIR", help="folder to work in (default: a temporary one)")
    about = f"what to measure, of {' '.join(PARTS)} (default: all but device)"
    parts = [part for part in PARTS if part != "device"]
    add("--parts", nargs="+", choices=PARTS, default=parts, metavar="PART", help=about)
    options = parser.parse_args()
    for name in ("data", "article", "letters"):
        if path := getattr(options, name):
            setattr(options, name, path.resolve(strict=True))
    return options


def print_machine():
    text = Path("/proc/cpuinfo").read_text()
    cpu = re.search("model name\\s*: (.*)", text)[1] + " with AMX" * ("amx_bf16" in text)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = subprocess.run("nvidia-smi -L | head -1", shell=True, capture_output=True, text=True)
    gpu = gpu.stdout.partition(" (UUID")[0] or "no GPU"
    print(f"{os.cpu_count()} cores of {cpu}, {memory:.0f} GiB, {gpu}, ", end="")
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    versions = ", ".join(f"{name} {version(name)}" for name in ("keras", backend))
    print(f"Python {platform.python_version()}, {versions}\n")


# ---- a folder for each number of photographs: the article's, and in it ours/ ----


def case(options, times):
    """A folder to run the scripts in, with `times` as many photographs in asl_data/new/.

    No two are the same file: each copy has its number behind the end of the picture.
    """
    folder = options.work / f"times_{times}"
    new = folder / "asl_data" / "new"
    if not new.exists():
        new.mkdir(parents=True)
        if times > 1:
            for path in (case(options, 1) / "asl_data" / "new").iterdir():
                for copy in range(times):
                    data = path.read_bytes() + b"%d" % copy
                    (new / f"{path.stem}_{copy}{path.suffix}").write_bytes(data)
        elif options.data:
            unpack(options.data, new)
        else:
            draw = [sys.executable, ROOT / "asl_data" / "draw_hands.py", "--count", "3000"]
            run([*draw, "--output", new], folder)
    return folder


def unpack(path, new):
    """The photographs of a zip as one flat folder: A_34.jpg ..."""
    with zipfile.ZipFile(path) as archive:
        for name, label in preprocess.list_images(archive.namelist()):
            number = re.sub(r"\D", "", PurePosixPath(name).stem)
            (new / f"{label}_{number}.jpg").write_bytes(archive.read(name))


def ours(name, folder, *more):
    """The command of one of our scripts on the files in `folder`/ours/."""
    return [sys.executable, ROOT / name, "--numpy-folder", folder / "ours" / "Numpy_folder", *more]


def preprocessing(folder, times=1):
    counts = ("--train", str(2000 * times), "--validation", str(750 * times))
    return ours("preprocess.py", folder, "--data", folder / "asl_data" / "new", *counts)


def network(folder, precision):
    """The options that name the folders of a trained network."""
    folder = folder / "ours" / precision
    return ("--checkpoint", folder / "Checkpoint", "--weights-full", folder / "Weights_Full")


def training_run(folder, precision, epochs="1"):
    more = ("--fresh", "--epochs", epochs, "--precision", precision)
    return ours("training.py", folder, *network(folder, precision), *more)


def testing(folder, precision):
    return ours("test.py", folder, *network(folder, precision))


def is_trained(folder, precision):
    return (folder / "ours" / precision / "Weights_Full" / "model_weights.h5").exists()


def article(options, name, *more):
    """{"the article's": command}, or {} without its folder."""
    command = [sys.executable, options.article / name, *more] if options.article else None
    return {"the article's": command} if command else {}


def arrays(options):
    """The case of the given photographs with our arrays made."""
    folder = case(options, 1)
    if not (folder / "ours" / "Numpy_folder" / "dataset.json").exists():
        run(preprocessing(folder), folder)
    return folder


# ---- running, and the rows of the table ----


def run(command, folder):
    """Run a command in a folder; a Run with its output. It must succeed."""
    os.sync()  # what the one before has left to write must not slow this one
    with tempfile.TemporaryFile("w+") as file:
        returncode, seconds, peaks = measure(command, cwd=folder, stdout=file, stderr=file)
        file.seek(0)
        output = file.read()
    if returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{output}")
    return Run(seconds, peaks["RssAnon"], peaks["RssFile"], output)


def compare(options, what, commands, folder, images, take=lambda run: run.seconds, rounds=None):
    """Run the commands {who: command} by turns; print a row for each."""
    runs = {who: [] for who in commands}
    for _ in range(rounds or options.rounds):
        for who, command in commands.items():
            runs[who].append(run(command, folder))
    first = runs.get("the article's")
    for who, these in runs.items():
        row(f"{what}, {who}", [take(r) for r in these], images, these, first, take)


def row(what, seconds, images=None, runs=(), first=(), take=None):
    """Print a row: seconds and Runs of the same command; first are those of the article's."""
    median = medians[what] = statistics.median(seconds)
    memory = max((r.anonymous for r in runs), default=0)
    mapped = max((r.mapped for r in runs), default=0)
    cells = [
        what,
        f"{median:.3g}",
        f"{min(seconds):.3g} to {max(seconds):.3g}" if len(seconds) > 1 else "",
        f"{memory / 1e6:,.0f}" if runs else "",
        f"{mapped / 1e6:,.0f}" if runs else "",
        f"{images / median:,.0f}" if images else "",
        f"{median / statistics.median(take(r) for r in first):.2f}" if first else "",
        f"{memory / max(r.anonymous for r in first):.3f}" if first else "",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def epoch_seconds(run):
    """Seconds of the last epoch, validation and checkpoint included, whole ones, as keras prints
    them for either training.py. Where an epoch takes few, on a GPU, see the part device."""
    return float(re.findall(r"^\d+/\d+ - (\d+)s", run.output, re.MULTILINE)[-1])


# ---- the parts ----


def part_preprocess(options):
    folder = case(options, 1)
    commands = article(options, "preprocess.py") | {"ours": preprocessing(folder)}
    if options.data:
        commands["ours, from the zip"] = ours("preprocess.py", folder, "--data", options.data)
    compare(options, "preprocess", commands, folder, 9000)


def part_training(options):
    folder = arrays(options)
    if options.article and not (folder / "Numpy_folder").exists():
        run(article(options, "preprocess.py")["the article's"], folder)
    commands = article(options, "training.py", "2")
    commands |= {f"ours, {each}": training_run(folder, each, "2") for each in PRECISIONS}
    compare(options, "second epoch", commands, folder, 6000, epoch_seconds)


def part_test(options):
    folder = arrays(options)
    if not is_trained(folder, PRECISIONS[-1]):
        part_training(options)
    commands = article(options, "test.py", "scaled")
    commands |= {f"ours, {precision}": testing(folder, precision) for precision in PRECISIONS}
    compare(options, "test", commands, folder, 750)


def part_start(options):
    """Seconds to the first line of output."""
    folder = arrays(options)
    if not is_trained(folder, "float32"):
        run(training_run(folder, "float32"), folder)
    python = [sys.executable, "-u", "-c"]
    commands = {
        "import cv2, numpy, tqdm": [*python, "import cv2, numpy, tqdm; print()"],
        "preprocess.py": preprocessing(folder),
        "import keras": [*python, "import keras; print()"],
        "training.py": ours("training.py", folder, *network(folder, "start")),
        "test.py": testing(folder, "float32"),
    }
    for what, command in commands.items():
        row(f"start of {what}", [first_line(command) for _ in range(options.rounds)])


def first_line(command):
    begin = time.perf_counter()
    command = [command[0], "-u", *command[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        line = process.stdout.readline()
        seconds = time.perf_counter() - begin
        process.kill()
    if not line:
        sys.exit(f"{' '.join(map(str, command))}\nended without a line of output")
    return seconds


def part_growth(options):
    """The cost of 1, 2 and 4 times the photographs."""
    for times in (1, 2, 4):
        folder = case(options, times)
        commands = article(options, "preprocess.py") | {"ours": preprocessing(folder, times)}
        what = f"{9000 * times:,} photographs"
        compare(options, f"preprocess, {what}", commands, folder, 9000 * times, rounds=1)
        three_steps(options, folder, what, 6000 * times, 750 * times)


def part_letters(options):
    """The three steps on an archive of many letters."""
    if not options.letters:
        return
    folder = options.work / "letters"
    folder.mkdir(exist_ok=True)
    more = ("--data", options.letters, "--classes", "all")
    command = {"ours": ours("preprocess.py", folder, *more)}
    dataset = folder / "ours" / "Numpy_folder"
    with zipfile.ZipFile(options.letters) as archive:
        number = len(preprocess.list_images(archive.namelist()))
    compare(options, f"preprocess, {number:,} of all letters", command, folder, number, rounds=1)
    rows = preprocess.load_dataset(dataset)["rows"]
    what = f"{len(rows['train']):,} + {len(rows['validation']):,} of all letters"
    three_steps(options, folder, what, len(rows["train"]), len(rows["test"]))


def three_steps(options, folder, what, train, test):
    precision = PRECISIONS[-1]
    command = {f"ours, {precision}": training_run(folder, precision)}
    compare(options, f"first epoch, {what}", command, folder, train, epoch_seconds, rounds=1)
    command = {f"ours, {precision}": testing(folder, precision)}
    compare(options, f"test, {test:,} of {what}", command, folder, test, rounds=1)


def part_checkpoint(options):
    """What the writing of a checkpoint takes."""
    import training

    dataset = preprocess.load_dataset(arrays(options) / "ours" / "Numpy_folder")
    logs = dict(accuracy=0, loss=0, val_accuracy=0, val_loss=0)
    model = compiled()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        folders = ["--checkpoint", folder, "--weights-full", folder]
        callback = training.Run(training.parse_options(folders), dataset)
        callback.set_model(model)
        seconds = [timed(lambda: callback.on_epoch_end(0, logs)) for _ in range(options.rounds)]
    row("checkpoint", seconds)


def part_feed(options):
    """How fast batches come: read alone, and through fit with a network that sees one pixel."""
    import keras
    import training

    train, validation = batches(options)
    train.order = np.random.default_rng(0).permutation(6000)
    seconds = [timed(lambda: [None for _ in train]) for _ in range(options.rounds + 1)]
    row("feed, batches read", seconds[1:], 6000)
    layers = [keras.Input((224, 224, 3), dtype="uint8"), keras.layers.Cropping2D(((0, 223),) * 2)]
    layers += [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(24)]
    model = keras.Sequential(layers)
    model.compile(loss="mse", optimizer="sgd")
    rates = epochs(model, train, validation, options.rounds + 1)["images/s"]
    row("feed, batches through fit", [6000 / rate for rate in rates[1:]], 6000)
    rows = preprocess.load_dataset(arrays(options) / "ours" / "Numpy_folder")["rows"]
    varied = training.Varied(train, rows["train"], training.parse_options(["--vary"]))
    seconds = []
    for epoch in range(options.rounds):
        varied.draw(0, 49 - epoch)  # at full strength
        seconds.append(timed(lambda: [None for _ in varied]))
    row("feed, varied batches read", seconds, 6000)


def part_limits(options):
    """What a step can't be faster than on this machine, and how far it is from that."""
    source = preprocess.Folder(case(options, 1) / "asl_data" / "new")
    print_limit("preprocess, ours", decoding(source) + writing(options.work, len(source.names)))
    model = compiled()
    forward = flop(model)
    for precision, dtype in zip(PRECISIONS, ("float32", "bfloat16")):
        rate = product_rate(dtype)
        print(f"a matrix product in {dtype}: {rate / 1e9:,.0f} GFLOP/s", file=sys.stderr)
        print_limit(f"second epoch, ours, {precision}", (3 * 6000 + 2250) * forward / rate)
        start = medians.get("start of import keras", 0)
        print_limit(f"test, ours, {precision}", start + 750 * forward / rate)


def print_limit(what, seconds):
    ratio = f", {what} takes {medians[what] / seconds:.2f} times it" if what in medians else ""
    row(f"limit of {what}{ratio}", [seconds])


def decoding(source):
    """Seconds to decode and resize, in one thread a core, each with a share of its own."""
    cores = os.cpu_count()
    shares = [source.names[core::cores] for core in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        read = partial(preprocess.read_block, source)
        return timed(lambda: list(pool.map(read, shares)))


def writing(folder, number):
    """Seconds to write so many resized images."""
    image = np.zeros((224, 224, 3), np.uint8)
    with tempfile.TemporaryFile(dir=folder) as file:
        return timed(lambda: [file.write(image) for _ in range(number)])


def flop(model):
    """Floating point operations of one image's way through the convolutions and dense layers."""
    total = 0
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            places = np.prod(layer.output.shape[1:-1])  # 1 for a dense layer
            total += 2 * places * np.prod(layer.kernel.shape)
    return total


def product_rate(dtype, side=4096):
    """Floating point operations per second of a square matrix product."""
    import keras

    matrix = keras.ops.ones((side, side), dtype)
    seconds = [
        timed(lambda: keras.ops.convert_to_numpy(keras.ops.matmul(matrix, matrix)[:1]))
        for _ in range(5)
    ]
    return 2 * side**3 / min(seconds)


def part_device(options):
    """The epoch from the second on, for each way to feed and to launch."""
    ways = {
        "as it is": {},
        "steps_per_execution 8": {"steps_per_execution": 8},
        "steps_per_execution 47": {"steps_per_execution": 47},
        "without XLA": {"jit_compile": False},
        "1 thread feeds": {"workers": 1},
        "4 threads feed": {"workers": 4},
        "the set on the device": {"on_device": True},
    }
    for precision in PRECISIONS:
        for way, changes in ways.items():
            feeding = {"workers": None, "on_device": False}
            feeding = {name: changes.pop(name, default) for name, default in feeding.items()}
            model = compiled(precision, **changes)
            logs = epochs(model, *batches(options, **feeding), options.rounds + 1)
            what = f"epoch, {precision}, {way}, GPU busy {logs['busy']}"
            row(what, logs["seconds"][1:], 6000)


def batches(options, workers=None, on_device=False):
    """(training, validation) Batches of the case of the given photographs."""
    import keras
    import training

    class OnDevice(training.Batches):
        def __getitem__(self, index):
            rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
            return keras.ops.take(self.images, rows, axis=0), np.asarray(self.labels[rows])

    folder = arrays(options) / "ours" / "Numpy_folder"
    dataset = preprocess.load_dataset(folder)
    made = []
    for split in ("train", "validation"):
        images, labels = preprocess.load_split(folder, split, dataset)
        if on_device:
            made.append(OnDevice(keras.ops.convert_to_tensor(images), labels, 32))
        else:
            made.append(training.Batches(images, labels, 32))
        if workers:
            made[-1].workers = workers
    return made


def compiled(precision="float32", **changes):
    """The network as training.py compiles it, but for the changes."""
    import keras
    import training

    keras.config.set_dtype_policy(precision)
    model = training.build_model(24, 0)
    model.compile(
        loss="categorical_crossentropy",
        optimizer=training.SGD(learning_rate=0.001),
        metrics=["accuracy"],
        **changes,
    )
    return model


def epochs(model, train, validation, number):
    """fit as training.py does: {"seconds": of each epoch, "images/s": of each epoch, "busy": mean
    use of the GPU from the second epoch on, as nvidia-smi tells it}."""
    import keras
    import training

    seconds, sampling = [], []

    def begin(epoch, logs):
        if epoch == 1 and shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
            sampling.append(subprocess.Popen([*query, "-lms", "50"], stdout=subprocess.PIPE))
        seconds.append(-time.perf_counter())

    def end(epoch, logs):
        seconds[-1] += time.perf_counter()

    clock = keras.callbacks.LambdaCallback(on_epoch_begin=begin, on_epoch_end=end)
    history = model.fit(
        train,
        validation_data=validation,
        epochs=number,
        shuffle=False,
        verbose=0,
        callbacks=[clock, training.Chance(train, 0), training.Speed(6000)],
    )
    busy = "unknown"
    for process in sampling:
        process.terminate()
        samples = [int(line) for line in process.communicate()[0].split() if line.isdigit()]
        busy = f"{statistics.mean(samples):.0f} %"
    return {"seconds": seconds, "images/s": history.history["images/s"], "busy": busy}


def timed(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


PARTS = {name[5:]: function for name, function in list(globals().items()) if name[:5] == "part_"}

if __name__ == "__main__":
    main()
