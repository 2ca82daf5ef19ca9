"""Measure the three scripts, by turns with the article's own where their folder is given. Linux.

    python tests/benchmark.py --data PHOTOGRAPHS.zip
    python tests/benchmark.py --data PHOTOGRAPHS.zip --article FOLDER --parts preprocess

Prints a Markdown table: the median seconds of the rounds, and the largest peak memory. Memory is
anonymous memory of all processes; the pages of mapped files, which the system may drop, are not
in it. Without --data it draws 3,000 hands a letter.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from asl_data import find_images  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, metavar="ZIP", help="photographs of A, B, C (default: drawings)")
    add("--article", type=Path, metavar="DIR", help="the article's scripts (default: ours alone)")
    add("--rounds", type=int, default=3, help="runs of each command (default: 3)")
    parts = {"preprocess": part_preprocess, "training": part_training, "feed": part_feed}
    add("--parts", nargs="+", choices=parts, default=parts, help="(default: all)")
    options = parser.parse_args()
    for name in ("data", "article"):  # the commands run in another folder
        setattr(options, name, getattr(options, name) and getattr(options, name).resolve())
    cpu = re.search("model name\\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    print(f"{os.cpu_count()} cores of {cpu}, Python {sys.version.split()[0]}\n")
    print("| what | seconds | least to most | memory, MB |\n|--|--|--|--|", flush=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        options.folder = Path(folder)
        copy_images(options)
        for part in options.parts:
            parts[part](options)


def copy_images(options):
    """The images as the article's flat folder, A_34.jpg ..."""
    new = options.folder / "asl_data" / "new"
    new.mkdir(parents=True)
    if not options.data:
        draw = [sys.executable, ROOT / "asl_data" / "draw_hands.py", "--count", "3000"]
        subprocess.run([*draw, "--output", new], check=True)
        return
    images = find_images.Images(options.data)
    for name in images.names:
        if "asl_alphabet_test/" in name:
            continue
        (label,), number = find_images.possible_classes(name, "ABC"), re.findall(r"\d+", name)[-1]
        (new / f"{label}_{number}.jpg").write_bytes(images.zip.read(name))


# ---- the parts ----


def part_preprocess(options):
    commands = {"ours": ours(options, "preprocess.py", "--data", options.folder / "asl_data/new")}
    if options.data:
        commands["ours, from the zip"] = ours(options, "preprocess.py", "--data", options.data)
    if options.article:
        commands["the article's"] = [sys.executable, options.article / "preprocess.py"]
    by_turns(options, "preprocess", commands)


def part_training(options):
    """Two epochs, of which the second counts; then the test."""
    make_arrays(options)
    trainings, tests = {}, {}
    for precision in ("float32", "mixed_bfloat16"):
        network = ["--checkpoint", options.folder / precision, "--weights-full"]
        network.append(options.folder / precision)
        more = (*network, "--fresh", "--epochs", "2", "--precision", precision)
        trainings[f"ours, {precision}"] = ours(options, "training.py", *more)
        tests[f"ours, {precision}"] = ours(options, "test.py", *network)
    if options.article:
        run([sys.executable, options.article / "preprocess.py"], options.folder)
        trainings["the article's"] = [sys.executable, options.article / "training.py", "2"]
        tests["the article's"] = [sys.executable, options.article / "test.py", "scaled"]
    by_turns(options, "second epoch", trainings, second_epoch)
    by_turns(options, "test", tests)


def part_feed(options):
    """Augmented images at full strength, without a network."""
    from asl_data.augment_hands import Augmentation, Pool

    make_arrays(options)
    folder = options.folder / "Numpy"
    augmentation, count = Augmentation(folder, 0), os.cpu_count()
    pool, total = Pool(augmentation, count), len(augmentation.images) // 32 * 32
    batches = [range(start, start + 32) for start in range(0, total, 32)]
    for epoch in range(options.rounds + 1):
        begin = time.perf_counter()
        with ThreadPoolExecutor(count) as threads:
            done = threads.map(partial(pool.images, epoch, strength=1), batches)
            assert sum(map(len, done)) == total
        seconds = time.perf_counter() - begin
        if epoch:  # in the first one the processes still start
            print(f"| {total / seconds:,.0f} augmented images/s | {seconds:.1f} | | |", flush=True)


def make_arrays(options):
    if not (options.folder / "Numpy").exists():
        new = options.folder / "asl_data" / "new"
        run(ours(options, "preprocess.py", "--data", new), options.folder)


def ours(options, name, *more):
    return [sys.executable, ROOT / name, "--numpy-folder", options.folder / "Numpy", *more]


def second_epoch(seconds, output):
    return float(re.findall(r"^\d+/\d+ - (\d+)s", output, re.MULTILINE)[1])


def by_turns(options, what, commands, take=lambda seconds, output: seconds):
    runs = {who: [] for who in commands}
    for _ in range(options.rounds):
        for who, command in commands.items():
            seconds, memory, output = run(command, options.folder)
            runs[who].append((take(seconds, output), memory))
    for who, found in runs.items():
        times, most = [each for each, _ in found], max(memory for _, memory in found)
        print(f"| {what}, {who} | {statistics.median(times):.3g} ", end="")
        print(f"| {min(times):.3g} to {max(times):.3g} | {most / 1e6:,.0f} |", flush=True)


# ---- running ----


def run(command, folder):
    """Run a command to its end: (seconds, peak anonymous memory in bytes, output)."""
    os.sync()  # what the run before has left to write must not slow this one
    begin, most = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as file:
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file)
        while process.poll() is None:
            most = max(most, memory(process.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - begin
        file.seek(0)
        output = file.read()
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{output}")
    return seconds, most, output


def memory(number):
    """Anonymous memory of a process and of all that it started, in bytes."""
    try:
        status = Path(f"/proc/{number}/status").read_text()
        total = int((re.findall(r"RssAnon:\s+(\d+)", status) or [0])[0]) * 1024
        for path in Path(f"/proc/{number}/task").glob("*/children"):
            total += sum(memory(child) for child in path.read_text().split())
        return total
    except FileNotFoundError:  # it has ended
        return 0


if __name__ == "__main__":
    main()
