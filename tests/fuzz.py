"""Run the scripts, in process, on inputs that are damaged at random from a seed.

Each must end in success or in one line, in time, and leave no half of an output and no wrong label.
What does not is kept in a folder, and the exit status is 1.

    python tests/fuzz.py --inputs 2000
"""

import argparse
import contextlib
import faulthandler
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from conftest import ROOT, folder_options, load_script, preprocess, script
from harms import refused_images, used_images

import training

cv2 = preprocess.cv2  # under the limit of pixels that preprocess.py sets
test_script = load_script(ROOT / "test.py")
SECONDS = 120  # more is a hang
ODD = used_images() | refused_images()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=2000, help="how many (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    parser.add_argument("--only", type=int, help="the number of one input (default: all)")
    options = parser.parse_args()
    faulthandler.enable()
    signal.signal(signal.SIGALRM, hang)
    findings = Path(tempfile.mkdtemp(prefix="fuzz-findings-"))
    ends = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as work:
        base = make_base(Path(work))
        for number in range(options.inputs) if options.only is None else [options.only]:
            kind = ORDER[number % len(ORDER)]
            folder = Path(work) / "case"
            folder.mkdir()
            draw = random.Random(f"{options.seed} {number}")
            faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # a hang outside Python
            try:
                end = KINDS[kind](draw, base, folder)
            except (Exception, Hang, SystemExit):
                end = "FOUND"
                shutil.move(folder, findings / str(number))
                (findings / f"{number}.txt").write_text(traceback.format_exc())
                print(f"input {number}, {kind}: {traceback.format_exc().splitlines()[-1]}")
            ends[f"{kind}: {end}"] += 1
            if number % 100 == 99:
                print(f"{number + 1:,} inputs", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    for end, number in sorted(ends.items()):
        print(f"{number:6,}  {end}")
    if any(findings.iterdir()):
        sys.exit(f"what was found lies in {findings}")
    findings.rmdir()


class Hang(BaseException):
    """Not an Exception: the scripts must not take it for an error of theirs."""


def hang(signum, frame):
    raise Hang(f"more than {SECONDS} seconds")


def make_base(work):
    """Drawings, a data set and a trained network to damage copies of."""
    base = work / "base"
    script("asl_data/draw_hands.py", "--output", base / "images", "--count", "6", check=True)
    data = ("--data", base / "images", "--numpy-folder", base / "numpy")
    script("preprocess.py", *data, check=True)
    arguments = ("--numpy-folder", base / "numpy", *folder_options(base), *TRAINING)
    script("training.py", *arguments, check=True)
    outputs = {}
    for path in [*base.rglob("*.hdf5"), *base.rglob("*.h5")]:
        _, output = run(test_script.main, testing(base, "--weights", path))
        outputs[path.name] = after_weights(output)
    assert len(set(outputs.values())) > 1
    (base / "outputs.json").write_text(json.dumps(outputs))
    return base


TRAINING = ("--epochs", "2", "--batch-size", "8", "--learning-rate", "0.01")


def testing(folder, *more):
    return ["--numpy-folder", folder / "numpy", *folder_options(folder), *more]


def after_weights(output):
    """What test.py prints after the name of the weights, up to the name of a picture."""
    return re.search(r"^weights .*?: (epoch.*?)(: see|\Z)", output, re.MULTILINE | re.DOTALL)[1]


def run(main, arguments):
    """(whether it went well, what it printed); anything but success or one line is raised."""
    output = io.StringIO()
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(output):
            main([str(argument) for argument in arguments])
    except (preprocess.UserError, OSError) as error:  # those that run_main makes a line of
        line = str(error)
        assert line and ("\n" not in line or "; put there" in line), "not one line"
        return False, output.getvalue()
    finally:
        signal.alarm(0)
    return True, output.getvalue()


# ---- damage ----


def damage(draw, path):
    """Change a file in one to three of the ways in which files break."""
    size = path.stat().st_size
    for _ in range(draw.choice([1, 1, 2, 3])):
        how = draw.choice(["bit", "byte", "zeros", "cut", "empty", "insert", "remove", "swap"])
        # HDF5 and zip keep their structure at both ends, .npy at the start
        place = draw.choice([draw.randrange(min(size, 9000)), draw.randrange(size), size - 1])
        place = max(0, place - draw.choice([0, 0, draw.randrange(200)]))
        with open(path, "rb+") as file:
            file.seek(place)
            if how == "bit":
                value = file.read(1) or b"\0"
                file.seek(place)
                file.write(bytes([value[0] ^ 1 << draw.randrange(8)]))
            elif how == "byte":
                file.write(bytes([draw.randrange(256)]))
            elif how == "zeros":
                file.write(bytes(draw.choice([4, 100, 5000])))
            elif how == "cut":
                file.truncate(place)
            elif how == "empty" and draw.random() < 0.3:
                file.truncate(0)
            elif how in ("insert", "remove", "swap"):
                rest = file.read()
                some = draw.randbytes(draw.choice([1, 8, 100]))
                rest = {"insert": some + rest, "remove": rest[len(some) :]}.get(
                    how, rest[8:16] + rest[:8] + rest[16:]
                )
                file.seek(place)
                file.truncate()
                file.write(rest)
        size = max(1, path.stat().st_size)


# ---- the kinds of input ----


def check_dataset(folder, listing, read):
    """Each image has the label of its name and the pixels that OpenCV reads; all are there."""
    dataset = preprocess.load_dataset(folder)
    seen = set()
    for split in preprocess.SPLITS:
        images, labels = preprocess.load_split(folder, split, dataset)
        for name, image, label in zip(dataset["rows"][split], images, labels, strict=True):
            assert dataset["columns"][label.argmax()] == listing[name], f"label of {name}"
            assert np.array_equal(image, read(name)), f"pixels of {name}"
            seen.add(name)
    assert seen | dataset["skipped"].keys() == listing.keys()
    assert not seen & dataset["skipped"].keys()


def with_old_set(base, folder):
    """A folder that holds the old set, and a function that tells whether it still does."""
    shutil.copytree(base / "numpy", folder / "out")

    def contents():
        paths = (folder / "out").glob("[!.]*")  # .partial is of a killed run
        return {path.name: path.read_bytes() for path in paths}

    before = contents()
    return lambda: contents() == before


def fuzz_images(draw, base, folder):
    """Photographs, some of them damaged, odd, or under odd names."""
    data = folder / "data"
    shutil.copytree(base / "images", data)
    for number in range(3):
        name = draw.choice(["A_{}.jpg", "B ({}).png", "C/{}\n.jpg", "A{}\x1b[31m.jpeg", "é_{}.bmp"])
        path = data / name.format(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(draw.choice(list(ODD.values())))
    for path in draw.sample(sorted(data.glob("*.*")), 4):
        if path.stat().st_size:
            damage(draw, path)
    unchanged = with_old_set(base, folder)
    arguments = ["--data", data, "--numpy-folder", folder / "out"]
    done, output = run(preprocess.main, arguments)
    assert "\x1b" not in output
    if not done:
        assert unchanged(), "the old set has changed"
        return "refused"
    files = [path.relative_to(data).as_posix() for path in data.rglob("*.*")]
    listing = {name: label for name in files if (label := name[0]) in "ABC" and "/" not in name}
    check_dataset(folder / "out", listing, lambda name: article_image(data / name))
    return "done"


def article_image(path):
    return cv2.resize(cv2.imread(os.fspath(path)), (224, 224))


def fuzz_archives(draw, base, folder):
    """A zip, damaged."""
    archive = folder / "data.zip"
    method = draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    with zipfile.ZipFile(archive, "w", method) as file:
        for path in sorted((base / "images").iterdir()):
            name = draw.choice(["{}", "{}", "{}", "../{}", "/{}"])
            file.writestr(name.format(path.name), path.read_bytes())
    damage(draw, archive)
    unchanged = with_old_set(base, folder)
    before = {path for path in folder.rglob("*") if "out" not in path.parts}
    arguments = ["--data", archive, "--numpy-folder", folder / "out"]
    done, _ = run(preprocess.main, arguments)
    assert {path for path in folder.rglob("*") if "out" not in path.parts} == before, "unpacked"
    if not done:
        assert unchanged(), "the old set has changed"
        return "refused"
    letters = {article_image(path).tobytes(): path.name[0] for path in (base / "images").iterdir()}
    dataset = preprocess.load_dataset(folder / "out")
    for split in preprocess.SPLITS:
        for image, label in zip(*preprocess.load_split(folder / "out", split, dataset)):
            column = dataset["columns"][label.argmax()]
            assert letters[image.tobytes()] == column, "the CRC-32 in the zip holds"
    return "done"


def fuzz_layouts(draw, base, folder):
    """Photographs laid out in some way, in a folder or a zip, with others that lie elsewhere."""
    flat = draw.random() < 0.5
    top = draw.choice(["", "", "photos/", "my photos/all of them/", "asl_alphabet_train/"])
    style = draw.choice(["{0}_{1}.jpg", "{0}{1}.JPG", "{0} ({1}).jpeg", "{0}-{1}.jfif"])
    style = style if flat else draw.choice(["{0}/{1}.jpg", "{0}/{0}{1}.Jpg", "{0}/x y {1}.jfif"])
    strays = ["{0}/extra/{1}.jpg", "aside/{0}/{1}.jpg", "asl_alphabet_test/{0}_test.jpg"]
    strays += ["{0}/{1}.heic", "c {1}/{0}.mov"]
    leftovers = ["__MACOSX/{0}_{1}.jpg", "{0}/._{1}.jpg", "Thumbs.db", "notes.txt"]
    as_zip = draw.random() < 0.5
    leftovers += ["../{0}_1.jpg", "/{0}/1.jpg", "/"] * as_zip
    files, listing, left = {}, {}, set()
    for number, path in enumerate(sorted((base / "images").iterdir())):
        name = top + style.format(path.name[0], number)
        files[name] = path.read_bytes()
        listing[name] = path.name[0]
    for number in range(draw.randrange(5)):
        label = draw.choice("ABC")
        name = top + draw.choice(strays).format(label, f"s{number}")
        left |= {name} - files.keys()
        files.setdefault(name, f"stray {number}".encode())
        files.setdefault(draw.choice(leftovers).format(label, number), b"a leftover")
    data = folder / "data"
    if as_zip:
        data = folder / draw.choice(["DATA.ZIP", "in it/data.zip"])
        data.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(data, "w") as archive:
            for name, content in files.items():
                back = draw.random() < 0.1
                archive.writestr(name.replace("/", "\\") if back else name, content)
    else:
        for name, content in files.items():
            (data / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (data / "in" / name).write_bytes(content)
        files = {os.path.normpath(f"in/{name}"): content for name, content in files.items()}
        listing = {f"in/{name}": label for name, label in listing.items()}
    given = data.parent if as_zip and data.parent != folder else data
    done, output = run(preprocess.main, ["--data", given, "--numpy-folder", folder / "out"])
    assert done, "refused"
    pixels = {name: decoded(content) for name, content in files.items() if name in listing}
    check_dataset(folder / "out", listing, pixels.get)
    said = [int(number) for number in re.findall(r"^left out (\d+) image", output, re.MULTILINE)]
    assert sum(said) == len(left), f"{left} left out"
    return "done"


def decoded(content):
    return cv2.resize(cv2.imdecode(np.frombuffer(content, np.uint8), 1), (224, 224))


def fuzz_surroundings(draw, base, folder):
    """preprocess.py as a command, with little memory, few files, no streams, no language."""
    unchanged = with_old_set(base, folder)
    limits = draw.sample(
        [
            (resource.RLIMIT_AS, draw.randrange(10**8, 10**9)),
            (resource.RLIMIT_NOFILE, draw.randrange(4, 40)),
            (resource.RLIMIT_FSIZE, draw.randrange(1, 10**7)),
            (resource.RLIMIT_CORE, 0),
        ],
        draw.choice([1, 1, 2]),
    )
    closed = draw.choice(["", "", ">&-", "2>&-", "<&-", ">&- 2>&-", "| true"])
    words = draw.choice([{}, {"LANG": "C"}, {"PYTHONIOENCODING": "ascii"}, {"HOME": "/nowhere"}])
    arguments = ["--data", base / "images", "--numpy-folder", folder / "out"]
    done = subprocess.run(
        ["bash", "-c", f'"$@" {closed}; exit ${{PIPESTATUS[0]}}', "bash"]
        + [sys.executable, ROOT / "preprocess.py", *map(str, arguments), "--seed", "1"],
        capture_output=True,
        preexec_fn=lambda: [resource.setrlimit(kind, (most, most)) for kind, most in limits],
        env=os.environ | words,
        cwd=draw.choice([folder, "/"]),
        timeout=SECONDS,
    )
    said = done.stderr.decode().splitlines()
    if done.returncode == 0:
        letters = {path.name: path.name[0] for path in (base / "images").iterdir()}
        check_dataset(folder / "out", letters, lambda name: article_image(base / "images" / name))
        assert not preprocess.load_dataset(folder / "out")["skipped"], "skipped for no fault"
        return "done"
    assert unchanged(), "the old set has changed"
    if done.returncode > 1 or re.search("OpenBLAS|Fatal Python error", "".join(said)):
        return "ended by the system or a library"  # before our first line, or by a signal
    said = [line for line in said if "qdm" not in line and line != "can't start new thread"]
    assert len(said) == 1 or "2>&-" in closed, f"not one line: {said}"
    return "refused"


def fuzz_arrays(draw, base, folder):
    """A file of Numpy_folder/, damaged, before training.py or test.py."""
    return damage_one(draw, base, folder, draw.choice(sorted((base / "numpy").glob("*.*[ny]"))))


def fuzz_networks(draw, base, folder):
    """A file of Checkpoint/ or Weights_Full/, damaged, before training.py or test.py."""
    return damage_one(draw, base, folder, draw.choice(network_files(base)))


def network_files(folder):
    """What training.py wrote; the pictures of test.py are written anew each time."""
    names = ("class_names.json", "model.json", "model_weights.h5")
    files = [path for path in (folder / "Checkpoint").glob("*.*") if path.name != ".lock"]
    return sorted([*files, *(folder / "Weights_Full" / name for name in names)])


def damage_one(draw, base, folder, path):
    shutil.copytree(base, folder, copy_function=os.link, dirs_exist_ok=True)
    damaged = folder / path.relative_to(base)
    damaged.unlink()
    shutil.copyfile(path, damaged)
    damage(draw, damaged)
    name = draw.choice(["training.py", "test.py"])
    main = {"training.py": training.main, "test.py": test_script.main}[name]
    training.keras.utils.clear_session()
    done, output = run(main, testing(folder, *(TRAINING if name == "training.py" else ())))
    if not done:
        return f"{name} refused"
    splits = {"test.py": ["test"], "training.py": ["train", "validation"]}[name]
    for file in [f"numpy/{split}_{what}.npy" for split in splits for what in ("set", "classes")]:
        assert same(base / file, folder / file), f"another {file}"
    assert preprocess.load_dataset(folder / "numpy") == preprocess.load_dataset(base / "numpy")
    if name == "test.py":
        used = re.search("^weights .*/((.*)/(.*)): epoch", output, re.MULTILINE)
        assert same(base / used[1], folder / used[1]), f"another {used[1]}"
        assert after_weights(output) == json.loads((base / "outputs.json").read_text())[used[3]]
        for file in ("model.json", "class_names.json"):
            assert same(base / "Weights_Full" / file, folder / "Weights_Full" / file), file
    else:
        last = training.load_run(base / "Checkpoint")["epochs"][-1]["file"]
        for file in network_files(base):
            if file != path or file.suffix != ".hdf5" or file.name == last:  # others are not read
                other = folder / file.relative_to(base)
                assert file.read_bytes() == other.read_bytes(), f"another {file.name}"
    return f"{name} done"


def same(some, other):
    """Whether two files hold the same; JSON may hold it in other bytes."""
    if some.suffix == ".json":
        return json.loads(some.read_text()) == json.loads(other.read_text())
    return some.read_bytes() == other.read_bytes()


KINDS = {
    "images": fuzz_images,
    "archives": fuzz_archives,
    "layouts": fuzz_layouts,
    "surroundings": fuzz_surroundings,
    "arrays": fuzz_arrays,
    "networks": fuzz_networks,
}

# A network takes a hundred times as long as an image.
ORDER = ["images", "archives", "layouts", "surroundings"] * 3 + ["networks", "networks", "arrays"]

if __name__ == "__main__":
    main()
