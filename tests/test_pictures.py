"""test.py's pictures: those that it reads, those that it draws, and the page."""

import glob
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress

import cv2
import numpy as np
import pytest
from conftest import ROOT, environment, folder_options, load, load_script, script

import preprocess
import training

test_script = load_script(ROOT / "test.py")
LINE = re.compile(r"^(.*): (\S+) ([\d.]+), then (\S+) ([\d.]+)(, but it is (\S+))?$", re.MULTILINE)


def read(folder, *pictures, tell=()):
    options = [*pictures, *folder_options(folder), "--numpy-folder", folder / "nowhere", *tell]
    test_script.main([str(option) for option in options])


@pytest.fixture
def by_class(drawings, tmp_path):
    """12 drawings, four in a folder for each of A, B, C."""
    for path in drawings.iterdir():
        label, _, number = path.stem.partition("_")
        if int(number) <= 4:
            (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "photos" / label / f"{number}.jpg")
    return tmp_path / "photos"


# ---- pictures that it reads ----


def test_reads_what_preprocess_would_have_stored(drawings, dataset, trained, capsys):
    """Letter and probability are those of the network on the arrays."""
    images, _ = load(dataset, "train")
    names = preprocess.load_dataset(dataset)["rows"]["train"]
    run = training.load_run(trained / "Checkpoint")
    best = training.best_first(run["epochs"], run["settings"])[0]
    model = training.keras.models.load_model(trained / "Checkpoint" / best["file"])
    expected = model.predict(np.asarray(images), verbose=0)
    read(trained, *(drawings / name for name in names))
    lines = LINE.findall(capsys.readouterr().out)
    assert [line[0] for line in lines] == [str(drawings / name) for name in names]
    for (_, letter, sure, second, less, *_), row in zip(lines, expected, strict=True):
        first, other = np.argsort(-row)[:2]
        assert (letter, second) == (preprocess.LETTERS[first], preprocess.LETTERS[other])
        assert float(sure) == pytest.approx(row[first], abs=2e-3)
        assert float(less) == pytest.approx(row[other], abs=2e-3)


def test_seven_looks(drawings, dataset, copy, capsys, monkeypatch):
    """The mean of the network's answers to the image, larger, smaller and shifted, moved by OpenCV;
    of pictures and of the test. The network is a small one, unsure, that sees what is where."""
    layers, rng = training.keras.layers, np.random.default_rng(3)
    stored = training.keras.Input((224, 224, 3), dtype="uint8")
    of_parts = [layers.Rescaling(1.0), layers.AveragePooling2D(8), layers.Flatten()]
    model = training.keras.Sequential([stored, *of_parts, layers.Dense(24, "softmax")])
    model.set_weights([rng.normal(0, 0.002, (28 * 28 * 3, 24)), np.zeros(24)])
    monkeypatch.setattr(test_script, "load_model", lambda *_: model)
    images, answers = np.asarray(load(dataset, "test")[0]), []
    sizes, sides = [(1, 0, 0), (1.15, 0, 0), (0.87, 0, 0)], [(-12, 0), (12, 0), (0, -12), (0, 12)]
    for larger, *shift in [*sizes, *((1, *side) for side in sides)]:
        move = cv2.getRotationMatrix2D((111.5, 111.5), 0, larger)
        move[:, 2] += shift
        how = {"dsize": (224, 224), "borderMode": cv2.BORDER_REPLICATE}
        looks = [cv2.warpAffine(image.astype(np.float32), move, **how) for image in images]
        answers.append(model.predict(np.stack(looks).round().astype(np.uint8), verbose=0))
    expected = np.mean(answers, axis=0)
    assert np.abs(expected - answers[0]).max() > 0.05  # one look would not do

    names = preprocess.load_dataset(dataset)["rows"]["test"]
    read(copy, *(drawings / name for name in names), tell=["--looks"])
    output = capsys.readouterr().out
    assert "(these pictures, 7 looks at each)\n" in output
    for line, row in zip(LINE.findall(output), expected, strict=True):
        assert line[1] == preprocess.LETTERS[row.argmax()]
        assert float(line[2]) == pytest.approx(row.max(), abs=2e-3)

    seen = []
    monkeypatch.setattr(test_script, "draw_mistakes", lambda *given: seen.append(given[-1]))
    tell = ["--looks", "--numpy-folder", str(dataset), *map(str, folder_options(copy))]
    test_script.main(tell)
    np.testing.assert_allclose(seen[0], expected, atol=2e-4)
    right = (expected.argmax(axis=1) == load(dataset, "test")[1].argmax(axis=1)).mean()
    assert f"Accuracy: {right:.4f} (random split, 7 looks at each)\n" in capsys.readouterr().out
    report = json.loads((copy / "Weights_Full" / "report.json").read_text())
    assert report["looks"] == 7 and report["accuracy"] == pytest.approx(right)


@pytest.mark.parametrize("kind", ["folder", "zip", "flat files"])
def test_accuracy_where_the_classes_are_known(by_class, trained, tmp_path, capsys, kind):
    given = [by_class]
    if kind == "zip":
        given = [shutil.make_archive(tmp_path / "photos", "zip", tmp_path, "photos")]
    if kind == "flat files":
        given = []
        for path in sorted(by_class.rglob("*.jpg")):
            given.append(path.rename(tmp_path / f"{path.parent.name}_{path.name}"))
    read(trained, *given)
    output = capsys.readouterr().out
    lines = LINE.findall(output)
    right = [line for line in lines if not line[-1]]
    assert len(lines) == 12 and f"Accuracy: {len(right) / 12:.4f} (these pictures)\n" in output
    for label in "ABC":
        count = sum(line[1] == label for line in right)
        assert f"\n{label}  {count}/4" in output


def test_classes_that_the_network_does_not_know_do_not_count(by_class, trained, capsys):
    (by_class / "C").rename(by_class / "D")
    read(trained, by_class)
    output = capsys.readouterr().out
    assert "not counted: D, not among A, B, C\n" in output
    assert len(re.findall(r"^[A-Z]  \d/4$", output, re.MULTILINE)) == 2
    assert len(LINE.findall(output)) == 12


def test_a_hand_of_no_known_letter_has_no_accuracy(drawings, trained, tmp_path, capsys):
    shutil.copy(drawings / "A_1.jpg", tmp_path / "hand.jpg")
    read(trained, tmp_path / "hand.jpg")
    output = capsys.readouterr().out
    assert len(LINE.findall(output)) == 1 and "Accuracy" not in output and "class" not in output


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(by_class, trained, tmp_path):
    (by_class / "A" / "1.jpg").write_bytes(b"no image")
    (by_class / "A" / "2.heic").write_bytes(b"of a telephone")
    pictures = [by_class, tmp_path / "absent.jpg"]
    done = script("test.py", *pictures, *folder_options(trained))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.endswith("test.py: 3 pictures can't be read\n")
    assert f"{tmp_path / 'absent.jpg'}: No such file or directory\n" in done.stdout
    assert f"{by_class / 'A' / '1.jpg'}: damaged, no image, or over" in done.stdout
    assert len(LINE.findall(done.stdout)) == 11 and "A  " in done.stdout
    assert not list(tmp_path.rglob("*.json"))


def test_json_and_nothing_else(by_class, trained, tmp_path):
    (by_class / "A" / "1.jpg").write_bytes(b"")
    done = script("test.py", "--json", by_class, *folder_options(trained))
    assert done.returncode == 1
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 12
    assert found[0] == {"picture": str(by_class / "A" / "1.jpg"), "error": "empty"}
    for facts in found[1:]:
        assert facts["letter"] == next(iter(facts["best"])) and len(facts["best"]) == 3
        assert facts["class"] in "ABC" and 0 < facts["probability"] <= 1
    assert "weights " in done.stderr and "Accuracy: " in done.stderr


@pytest.mark.parametrize("wrong", [["--json"], ["--page", "0"], ["--page", "8000", "--json"]])
def test_wrong_usage(wrong):
    with pytest.raises(SystemExit) as ended:
        test_script.main(wrong)
    assert ended.value.code == 2


def test_a_folder_without_pictures(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(preprocess.UserError, match="no picture in .*empty"):
        read(trained, tmp_path / "empty")


# ---- pictures that it draws ----


def test_what_the_test_leaves_to_look_at(dataset, copy, capsys):
    options = ["--numpy-folder", dataset, *folder_options(copy)]
    test_script.main([str(option) for option in options])
    output = capsys.readouterr().out
    folder = copy / "Weights_Full"
    report = json.loads((folder / "report.json").read_text())
    assert f"Accuracy: {report['accuracy']:.4f}" in output
    assert report["counts"] == {"A": 1, "B": 1, "C": 1} and report["epoch"]["file"] in output
    assert report["data"]["files"] == preprocess.load_dataset(dataset)["files"]
    for label in "ABC":
        right = int(re.search(rf"^{label}  (\d)/1$", output, re.MULTILINE)[1])
        assert report["classes"][label]["recall"] == right
    assert min(cv2.imread(str(folder / "confusion.png")).shape[:2]) > 400
    wrong = round(3 * (1 - report["accuracy"]))
    assert wrong and f"{wrong} mistakes: see {folder / 'mistakes.jpg'}\n" in output.replace(
        "1 mistake:", "1 mistakes:"
    )
    assert cv2.imread(str(folder / "mistakes.jpg")).std() > 20


def test_the_class_of_a_single_picture_is_its_own_affair(drawings, trained, tmp_path, capsys):
    """By its name, or else by its folder; whatever else is given, and once."""
    for name in ("C/mine.jpg", "C/A_1.jpg", "x/B_1.jpg", "x/mine.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(drawings / "A_1.jpg", tmp_path / name)
    given = sorted(tmp_path.rglob("*.jpg"))
    read(trained, *given, *given)
    output = capsys.readouterr().out
    assert len(LINE.findall(output)) == 4 and "not counted" not in output
    totals = dict(re.findall(r"^([ABC])  \d/(\d)$", output, re.MULTILINE))
    assert totals == {"A": "1", "B": "1", "C": "1"}


def test_a_broken_zip_is_told_before_the_first_letter(drawings, trained, tmp_path, capsys):
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    with pytest.raises(preprocess.UserError, match="broken.zip is neither a folder nor"):
        read(trained, drawings / "A_1.jpg", tmp_path / "broken.zip")
    assert not LINE.findall(capsys.readouterr().out)


def test_heic_is_named_as_such():
    with pytest.raises(preprocess.NoImage, match="HEIC, which OpenCV does not read: convert"):
        preprocess.decode(b"\0\0\0\x18ftypheic" + bytes(100))


def answers(classes, images, wrong=()):
    """Made-up answers to a test: (dataset, images, expected, probabilities)."""
    names = [f"{classes[i % len(classes)]}/{'long name ' * 5}{i}.jpg" for i in range(images)]
    dataset = {"columns": classes, "rows": {"test": names}}
    expected = np.arange(images) % len(classes)
    probabilities = np.full((images, len(classes)), 0.01)
    for index, column in enumerate(expected):
        probabilities[index, column + (1 if index in wrong else 0)] = 0.5 + index / 1000
    pixels = np.tile(np.arange(images, dtype=np.uint8)[:, None, None, None], (1, 224, 224, 3))
    return dataset, pixels, expected, probabilities


def test_the_surest_mistakes_come_first(tmp_path, monkeypatch, capsys):
    """Of 30 mistakes the 24 surest, with true letter, said letter, probability and name."""
    import matplotlib.axes

    titles = []
    monkeypatch.setattr(matplotlib.axes.Axes, "set_title", lambda axes, t, **o: titles.append(t))
    dataset, images, expected, probabilities = answers(["A", "B", "C"], 90, range(0, 90, 3))
    test_script.draw_mistakes(tmp_path, dataset, images, expected, probabilities)
    assert len(titles) == 24 and capsys.readouterr().out.startswith("30 mistakes: see ")
    assert titles[0].startswith("A, said B 0.59\n") and titles[0].endswith("87.jpg")
    assert titles[1].startswith("A, said B 0.58\n") and titles[1].endswith("84.jpg")


def test_no_mistakes_says_so(tmp_path, capsys):
    (tmp_path / "mistakes.jpg").write_bytes(b"of an earlier test")
    test_script.draw_mistakes(tmp_path, *answers(["A", "B"], 6))
    assert capsys.readouterr().out == "no mistakes\n" and not list(tmp_path.iterdir())


def test_confusion_of_29_classes(tmp_path):
    """All names are there, as high as the picture allows, and no zero hides a number."""
    classes = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "del", "nothing", "space"]
    _, _, expected, probabilities = answers(classes, 290, {3, 4, 5})
    test_script.draw_confusion(tmp_path, classes, expected, probabilities.argmax(axis=1))
    assert min(cv2.imread(str(tmp_path / "confusion.png")).shape[:2]) > 1000


@pytest.mark.filterwarnings("error")
def test_names_that_are_hard_to_draw(tmp_path, monkeypatch, capsys):
    """Formulas, letters that the font lacks, a class of 120 characters; Jupyter's backend."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    classes = [r"$\frac{$", "$x_{y}$", "手", "x" * 120]
    dataset, images, expected, probabilities = answers(classes, 12, {0, 4, 5, 6})
    predicted = probabilities.argmax(axis=1)
    test_script.draw_confusion(tmp_path, classes, expected, predicted)
    test_script.draw_mistakes(tmp_path, dataset, images, expected, probabilities)
    assert "warning" not in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"confusion.png", "mistakes.jpg"}


def test_pictures_that_cannot_be_written_cost_a_line(dataset, copy, capsys):
    (copy / "Weights_Full" / "confusion.png").mkdir()
    options = ["--numpy-folder", dataset, *folder_options(copy)]
    test_script.main([str(option) for option in options])
    output = capsys.readouterr().out
    assert re.search("warning: .*confusion.png can't be written .*Is a directory", output)
    assert output.count("warning") == 1 and "Accuracy: " in output
    assert {path.name for path in (copy / "Weights_Full").glob("*.jp*g")} == {"mistakes.jpg"}


# ---- the page ----


def test_page_without_gradio(trained, tmp_path):
    (tmp_path / "gradio.py").write_text("raise ImportError('no gradio')")
    done = subprocess.run(
        [sys.executable, ROOT / "test.py", "--page", *folder_options(trained)],
        env=environment() | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("test.py: --page needs Gradio: pip install gradio==6.31.0\n")


def test_page_on_a_port_in_use(trained):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = script("test.py", "--page", str(port), *folder_options(trained))
    assert done.returncode == 1 and "http://" not in done.stdout
    said = f"test.py: port {port} is in use; name another with --page PORT\n"
    assert done.stderr.endswith(said) and "Traceback" not in done.stderr


@pytest.fixture
def page(trained, tmp_path):
    """The port of a running page, which ends with the test and leaves no file. The proxy that its
    user has set is not asked."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = set(glob.glob("/tmp/asl-page-*"))
    command = [sys.executable, ROOT / "test.py", "--page", str(port), *folder_options(trained)]
    with open(tmp_path / "said", "w+") as said:
        process = subprocess.Popen(
            command,
            stdout=said,
            stderr=said,
            env=environment() | dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:1"),
        )
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, "no page"
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield port
        process.terminate()
        process.wait(timeout=60)
        said.seek(0)
        assert "Traceback" not in said.read()
    assert set(glob.glob("/tmp/asl-page-*")) == before


def listeners(port):
    """Addresses that listen on a port, as /proc tells."""
    found = set()
    for name in ("tcp", "tcp6"):
        with open(f"/proc/net/{name}") as file:
            for line in list(file)[1:]:
                address, _, number = line.split()[1].partition(":")
                if int(number, 16) == port and line.split()[3] == "0A":
                    found.add(address)
    return found


def test_page(page, drawings, tmp_path):
    """A browser whose camera shows a drawn hand: a letter appears, nothing leaves the machine, and
    what is no picture or too large is refused."""
    playwright = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium") or pytest.skip("chromium is not on this machine")
    assert listeners(page) == {"0100007F"}  # 127.0.0.1
    (tmp_path / "noise.jpg").write_bytes(b"no image")
    (tmp_path / "large.jpg").write_bytes(bytes(21 * 2**20))
    picture = cv2.resize(cv2.imread(str(drawings / "B_1.jpg")), (480, 480))
    frame = cv2.copyMakeBorder(picture, 0, 0, 80, 80, cv2.BORDER_CONSTANT)
    (tmp_path / "camera.mjpeg").write_bytes(cv2.imencode(".jpg", frame)[1].tobytes() * 60)
    arguments = [
        *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", "--use-fake-ui-for-media-stream"),
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={tmp_path / 'camera.mjpeg'}",
    ]
    hosts, errors = set(), []
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=arguments)
        tab = chromium.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(60_000)
        tab.on("request", lambda r: hosts.add(r.url.split("/")[2] if "//" in r.url else ""))
        tab.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(f"http://127.0.0.1:{page}/")
        tab.get_by_text("Click to Access Webcam").click()
        tab.get_by_text("Record").click()
        letters = tab.get_by_test_id("label-output-value")
        letters.first.wait_for()
        assert letters.first.inner_text() in preprocess.LETTERS
        upload = tab.locator("input[type=file]").last
        upload.set_input_files(drawings / "A_1.jpg")
        letters.nth(1).wait_for()
        tab.screenshot(path=tmp_path / "page.png")
        tab.get_by_label("Clear").last.click()
        letters.nth(1).wait_for(state="detached")
        upload = tab.locator("input[type=file]").last
        upload.set_input_files(tmp_path / "noise.jpg")
        tab.get_by_text("not read: damaged, no image").wait_for()
        assert letters.count() == 1
        tab.get_by_label("Clear").last.click()
        assert not errors  # the browser counts the refusal that follows as one
        tab.locator("input[type=file]").last.set_input_files(tmp_path / "large.jpg")
        tab.get_by_text("exceed the maximum allowed size").wait_for()
        chromium.close()
    assert {host for host in hosts if host} <= {f"127.0.0.1:{page}"}
