"""test.py: which weights it takes, what it prints and draws, what it reads, the page."""

import glob
import re
import shutil
import socket
import tempfile

import cv2
import numpy as np
import pytest
from conftest import change_json, copy_images, copy_scripts, folders, last_line, load
from conftest import make, run_of, wait_until
from sklearn.metrics import accuracy_score

import preprocess
import test as test_script
import training
from asl_data import camera_page
from asl_data.find_images import Images, choose_classes
from preprocess import UserError

LINE = re.compile(r"^(.*): (\S+) ([\d.]+), then (\S+) ([\d.]+)(, but it is (\S+))?$", re.MULTILINE)


def run_test(folder, *arguments):
    test_script.main([*map(str, arguments), *map(str, folders(folder))])


def checkpoints(folder):
    return [folder / "Checkpoint" / row["file"] for row in run_of(folder)["epochs"]]


def weights(output):
    """The name of the file that the weights came from."""
    return re.search("^weights .*/(.*)", output, re.MULTILINE)[1]


# ---- the test ----


def test_output(dataset, copy, capsys):
    run_test(copy, "--numpy-folder", dataset)
    output = capsys.readouterr().out
    assert "Total params: 28,103,776" in output
    right = re.findall(r"^([ABC])  (\d)/1$", output, flags=re.MULTILINE)
    assert [label for label, _ in right] == ["A", "B", "C"]
    accuracy = sum(int(number) for _, number in right) / 3
    frame = "##################"
    assert f"\n{frame}\nAccuracy: {accuracy:.4f} (random split)\n{frame}\nA  " in output
    wrong = round(3 * (1 - accuracy))
    assert f"\n{wrong} mistakes: see {copy / 'Weights_Full' / 'mistakes.jpg'}\n" in output
    assert min(cv2.imread(str(copy / "Weights_Full" / "confusion.png")).shape[:2]) > 400
    assert cv2.imread(str(copy / "Weights_Full" / "mistakes.jpg")).std() > 20


def test_accuracy_is_that_of_the_weights(dataset, copy, capsys, monkeypatch):
    """The figure equals one computed apart: the article's predict and accuracy_score."""
    path, answers = checkpoints(copy)[0], []
    monkeypatch.setattr(test_script, "draw_mistakes", lambda *facts: answers.append(facts[-1]))
    run_test(copy, "--numpy-folder", dataset, "--weights", path)
    model = training.keras.models.load_model(path)
    images, labels = (np.asarray(array) for array in load(dataset, "test"))
    expected = model.predict(images, verbose=0)
    assert np.allclose(answers[0], expected, atol=1e-5)
    predicted = [np.argmax(row) for row in expected]
    accuracy = accuracy_score([np.argmax(row) for row in labels], predicted)
    output = capsys.readouterr().out
    assert weights(output) == path.name and f"Accuracy: {accuracy:.4f}" in output
    assert "other data" not in output


@pytest.mark.parametrize("augment, best", [(False, 0), (False, 1), (True, 1)])
def test_which_weights(dataset, copy, capsys, augment, best):
    """The lowest val_loss in full precision; after --augment the last epoch."""

    def change(facts):
        facts["settings"]["augment"] = augment
        for number, row in enumerate(facts.get("epochs", [])):
            row["val_loss"] = 0.123456 - 1e-6 * (number == (0 if augment else best))

    for path in (copy / "Checkpoint" / "run.json", copy / "Weights_Full" / "class_names.json"):
        change_json(path, change)
    run_test(copy, "--numpy-folder", dataset)
    assert weights(capsys.readouterr().out) == checkpoints(copy)[best].name


def test_without_checkpoints_of_this_run(dataset, copy, capsys):
    """The last weights, if the run came to its end."""
    path = copy / "Checkpoint" / "run.json"
    change_json(path, lambda run: run["settings"].update(seed=77))
    run_test(copy, "--numpy-folder", dataset)
    output = capsys.readouterr().out
    assert weights(output) == "model_weights.h5" and "its last epoch is taken\n" in output
    network = copy / "Weights_Full" / "class_names.json"
    change_json(network, lambda facts: facts.update(trained=False))
    with pytest.raises(UserError, match="has no checkpoint of the network in .*: run training.py"):
        run_test(copy, "--numpy-folder", dataset)


def test_other_data_is_refused_unless_the_weights_are_named(drawings, copy, tmp_path, capsys):
    make(tmp_path / "n", "--data", drawings, "--seed", "1")
    with pytest.raises(UserError, match="were trained on other data, perhaps on some of these"):
        run_test(copy, "--numpy-folder", tmp_path / "n")
    run_test(copy, "--numpy-folder", tmp_path / "n", "--weights", checkpoints(copy)[0])
    output = capsys.readouterr().out
    assert "\nthese weights were trained on other data, perhaps" in output
    assert "Accuracy: " in output


def test_weights_of_unknown_origin_are_refused(dataset, copy, tmp_path):
    """Else their letters would be guessed, and test images perhaps those that they know."""
    for alone in (tmp_path / "alone.hdf5", copy / "Checkpoint" / "a.hdf5"):
        alone.hardlink_to(checkpoints(copy)[0])
        with pytest.raises(UserError, match="is not among the weights that training.py has"):
            run_test(copy, "--numpy-folder", dataset, "--weights", alone)


@pytest.mark.parametrize("known, wanted", [("ABCJ", "ABC"), ("ABC", "DEF")])
def test_other_letters_are_refused(known, wanted):
    """In other columns, and in the same; also where the weights are named."""
    columns = [[*some] if "J" in some else [*preprocess.LETTERS] for some in (known, wanted)]
    network, data = (
        {"classes": [*some], "columns": names} for some, names in zip((known, wanted), columns)
    )
    message = f"the network knows {' '.join(known)}, the data has {' '.join(wanted)}: "
    message += "run training.py --fresh"
    with pytest.raises(UserError, match=message):
        test_script.check_data(network, data, weights_are_named=True)


def test_weights_that_do_not_fit(dataset, copy):
    path = checkpoints(copy)[0]
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} cannot be loaded into this network"):
        run_test(copy, "--numpy-folder", dataset, "--weights", path)
    small = training.keras.Sequential([training.Input((3,)), training.Dense(2)])
    small.save(path)
    with pytest.raises(UserError, match=f"{path.name} cannot be loaded into this network"):
        run_test(copy, "--numpy-folder", dataset, "--weights", path)


def test_nothing_in_model_json_is_executed(dataset, copy, tmp_path):
    """A Lambda with Python code in it: refused by Keras' safe mode."""
    harm, path = tmp_path / "harm", copy / "Weights_Full" / "model.json"
    code = training.keras.layers.Lambda(eval(f"lambda x: __import__('os').mkdir({str(harm)!r})"))

    def change(network):
        function = code.get_config()["function"]
        layer = {"class_name": "Lambda", "config": {"name": "x", "function": function}}
        network["config"]["layers"][2] |= layer

    change_json(path, change)
    with pytest.raises(ValueError, match="unsafe"):
        run_test(copy, "--numpy-folder", dataset)
    assert not harm.exists()


def test_the_surest_mistakes_come_first(tmp_path, monkeypatch, capsys):
    """Of 30 mistakes the 24 surest, with true letter, said letter, probability and name."""
    import matplotlib.axes

    titles = []
    monkeypatch.setattr(matplotlib.axes.Axes, "set_title", lambda axes, t, **o: titles.append(t))
    expected, probabilities = np.arange(90) % 3, np.full((90, 3), 0.01)
    for index, column in enumerate(expected):
        said = (column + 1) % 3 if index % 3 == 0 else column
        probabilities[index, said] = 0.5 + index / 1000
    names, images = [f"A/{i}.jpg" for i in range(90)], np.zeros((90, 224, 224, 3), np.uint8)
    path = tmp_path / "mistakes.jpg"
    test_script.draw_mistakes(path, ["A", "B", "C"], names, images, expected, probabilities)
    assert len(titles) == 24 and titles[:2] == ["A, said B 0.59\n87.jpg", "A, said B 0.58\n84.jpg"]
    assert capsys.readouterr().out == f"30 mistakes: see {path}\n"
    test_script.draw_mistakes(path, ["A"], names, images[:1], expected[:1], np.ones((1, 1)))
    assert capsys.readouterr().out == "no mistakes\n" and not path.exists()


def test_confusion_of_29_classes(tmp_path):
    classes = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "del", "nothing", "space"]
    expected = np.arange(290) % 29
    test_script.draw_confusion(tmp_path / "c.png", classes, expected, (expected * 2) % 29)
    assert min(cv2.imread(str(tmp_path / "c.png")).shape[:2]) > 1000


def test_balanced_accuracy(capsys):
    """Beside the accuracy, when letters differ by more than five times."""
    expected = np.array([0] * 15 + [1] * 2)
    test_script.print_accuracy("AB", expected, np.zeros(17, int), "x")
    output = capsys.readouterr().out
    assert "Accuracy: 0.8824 (x)\nBalanced accuracy: 0.5000 (the mean of" in output
    test_script.print_accuracy("AB", expected[10:], np.zeros(7, int), "x")
    assert "Balanced" not in capsys.readouterr().out


def test_a_network_of_another_program(dataset, copy):
    """As the article's own repository has: no Rescaling, three outputs."""
    path = copy / "Weights_Full" / "model.json"
    layers = training.keras.layers
    model = training.keras.Sequential([layers.Input((224, 224, 3)), layers.Dense(3)])
    path.unlink()
    path.write_text(model.to_json())
    with pytest.raises(UserError, match="model.json is not the network of .*: run training.py"):
        run_test(copy, "--numpy-folder", dataset)
    path.with_name("class_names.json").unlink()
    with pytest.raises(UserError, match="run training.py first, the model.json there is of ano"):
        run_test(copy, "--numpy-folder", dataset)
    path.unlink()
    with pytest.raises(UserError, match="class_names.json is missing: run training.py first$"):
        run_test(copy, "--numpy-folder", dataset)


# ---- pictures ----


def test_reads_what_preprocess_would_have_stored(drawings, dataset, trained, capsys):
    """Letter and probability are those of the network on the arrays."""
    names = preprocess.load_dataset(dataset)["rows"]["train"]
    row = training.tested_epoch(run_of(trained)["epochs"], augment=False)
    model = training.keras.models.load_model(trained / "Checkpoint" / row["file"])
    expected = model.predict(np.asarray(load(dataset, "train")[0]), verbose=0)
    run_test(trained, *(drawings / name for name in names))
    output = capsys.readouterr().out
    lines = LINE.findall(output)
    assert [line[0] for line in lines] == [str(drawings / name) for name in names]
    for (name, letter, sure, second, less, _, but), row in zip(lines, expected, strict=True):
        first, other = np.argsort(-row)[:2]
        assert letter == preprocess.LETTERS[first] and second != letter
        assert float(sure) == pytest.approx(row[first], abs=2e-3)
        assert float(less) == pytest.approx(row[other], abs=2e-3)
        its = name.rpartition("/")[2][0]
        assert but == ("" if letter == its else its)
    right = sum(not line[-1] for line in lines) / 24
    assert f"Accuracy: {right:.4f} (24 of 24 pictures; folders: 1)" in output


def test_folders_and_zips(drawings, trained, tmp_path, capsys):
    """Their letters are known where folders or names tell them; the rest does not count."""
    photos = copy_images(drawings, tmp_path / "photos", "{}/{}.jpg".format)
    (photos / "C").rename(photos / "unknown")
    (photos / "A" / "1.jpg").write_bytes(b"no image")
    (photos / "A" / "2.heic").write_bytes(b"of a telephone")
    (photos / "A" / "3.jpg").rename(photos / "A" / "3.HEIC")  # a JPEG with this name
    zipped = shutil.make_archive(tmp_path / "more", "zip", photos)
    run_test(trained, photos / "A", zipped)  # a folder of one letter, too
    output = capsys.readouterr().out
    damaged = "damaged, or no image that OpenCV can read: convert HEIC to .jpg"
    assert f"{photos / 'A' / '1.jpg'}: {damaged}\n" in output
    assert "not counted 12: letter unknown (such as" in output
    assert len(LINE.findall(output)) == 11 + 35
    assert "(34 of 46 pictures; folders: 3)" in output
    assert re.search(r"^A  \d+/22\nB  \d+/12$", output, re.MULTILINE)


def test_pictures_that_are_not_there(trained, tmp_path):
    for path, message in ((tmp_path / "nowhere.jpg", "is not there"), (tmp_path, "no image")):
        with pytest.raises(UserError, match=message):
            run_test(trained, path)


def test_seven_views(drawings, dataset, copy, capsys, monkeypatch):
    """--tta: the mean of the network's answers to the image, larger, smaller and moved, here by
    Keras' own layers. The network is a small one, unsure, that sees what is where."""
    layers, rng = training.keras.layers, np.random.default_rng(3)
    parts = [layers.Rescaling(1.0), layers.AveragePooling2D(8), layers.Flatten()]
    stored = training.keras.Input((224, 224, 3), dtype="uint8")
    model = training.keras.Sequential([stored, *parts, layers.Dense(24, "softmax")])
    model.set_weights([rng.normal(0, 0.001, (28 * 28 * 3, 24)), np.zeros(24)])
    images, answers = np.asarray(load(dataset, "test")[0]), []
    for scale, dx, dy in ((1, 0, 0), (1.15, 0, 0), (0.87, 0, 0), (1, -12, 0), (1, 12, 0)) + (
        (1, 0, -12),
        (1, 0, 12),
    ):
        a, x, y = 1 / scale, 111.5 - (111.5 + dx) / scale, 111.5 - (111.5 + dy) / scale
        move = np.tile(np.float32([a, 0, x, 0, a, y, 0, 0]), (len(images), 1))
        views = training.keras.ops.image.affine_transform(
            images.astype("float32"), move, fill_mode="nearest"
        )
        answers.append(model.predict(np.round(views).astype(np.uint8), verbose=0))
    assert np.abs(np.mean(answers, axis=0) - answers[0]).max() > 0.05  # one view would not do
    assert np.allclose(test_script.predict(model, images), answers[0], atol=1e-6)
    found = test_script.predict(model, images, tta=True)
    assert np.allclose(found, np.mean(answers, axis=0), atol=2e-3)
    monkeypatch.setattr(test_script, "model_from_json", lambda text: model)
    monkeypatch.setattr(test_script, "load_weights", lambda model, path: None)
    run_test(copy, "--tta", "--numpy-folder", dataset)
    right = (found.argmax(axis=1) == load(dataset, "test")[1].argmax(axis=1)).mean()
    assert f"Accuracy: {right:.4f} (random split, 7 views)\n" in capsys.readouterr().out
    run_test(copy, "--tta", drawings / preprocess.load_dataset(dataset)["rows"]["test"][0])
    assert f"{found[0].max():.3f}, then" in capsys.readouterr().out


# ---- the page ----


def test_spelling():
    """A letter that stays is added once; again after the hand was away, or was moved."""
    speller, square = camera_page.Speller(), (100, 50, 200)
    now = iter(np.arange(0, 60, 0.1))

    def show(letter, seconds, square=square, sure=0.9):
        for _ in range(round(10 * seconds)):
            answers = {x: sure if x == letter else (1 - sure) / 2 for x in "ABC"}
            mean = speller.see(next(now), square, answers if square else None)
        return speller.text, mean

    assert show("C", 0.9)[0] == "" and show("C", 3)[0] == "C"
    assert show("A", 0.2)[0] == "C" and show("C", 2)[0] == "C"  # some frames of another letter
    assert show("A", 3)[0] == "CA"
    assert show("A", 0.5, None) == ("CA", pytest.approx({"A": 0.9, "B": 0.05, "C": 0.05}))
    assert show("A", 3)[0] == "CA"  # the hand was lost for some frames
    assert show("A", 1, None) == ("CA", None) and show("A", 2)[0] == "CAA"
    assert show("A", 2, (150, 50, 200))[0] == "CAA" and show("A", 2, (210, 50, 200))[0] == "CAAA"
    assert show("A", 0.5, (210, 50, 200), sure=0.4)[0] == "CAAA"  # unsure for a while
    assert show("A", 3, (210, 50, 200))[0] == "CAAA"
    assert show("B", 3, sure=0.4)[0] == "CAAA"
    assert [speller.write(key) for key in ("space", "del", "nothing")] == ["CAAA ", *["CAAA"] * 2]
    assert speller.clear() == speller.text == ""


def test_recorded_pictures(tmp_path):
    """No file is replaced; small ones get 224 pixels."""
    folder = tmp_path / "new" / "my_photos"
    picture = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    assert camera_page.record(folder, "A", picture[:100, :100]) == "A: 1 pictures"
    (folder / "A" / "3.jpg").write_bytes(b"3")
    assert camera_page.record(folder, "A", picture) == "A: 3 pictures"
    assert camera_page.record(folder, "del", picture) == "del: 1 pictures"
    assert (folder / "A" / "3.jpg").read_bytes() == b"3"
    sides = [cv2.imread(str(folder / name)).shape for name in ("A/1.jpg", "A/4.jpg", "del/1.jpg")]
    assert sides == [(224, 224, 3), (300, 300, 3), (300, 300, 3)]
    for label in ("hand1", "i-love-you"):
        assert camera_page.record(folder, label, picture) == f"{label}: 1 pictures"
    _, labels = choose_classes(["A", "del", "hand1", "i-love-you"], Images(folder).names)
    assert all(name.startswith(f"{label}/") for name, label in labels.items())


def test_page_on_a_port_in_use(trained):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = last_line("test.py", "--page", port, *folders(trained))
    assert said == f"test.py: port {port} is in use: give another by --page PORT"


@pytest.fixture
def page(trained, tmp_path, start):
    """The port of a running page, which ends with the test and leaves no file."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = set(glob.glob(f"{tempfile.gettempdir()}/asl-page-*"))
    with open(tmp_path / "said", "w+") as said:
        record = ("--record", tmp_path / "my_photos")
        copy_scripts(tmp_path)  # without the hand detector
        options = ("--page", port, *record, *folders(trained))
        process = start(tmp_path / "test.py", *options, stdout=said, stderr=said)
        wait_until(lambda: listeners(port), process, seconds=120)
        yield port
        process.terminate()
        process.wait(timeout=60)
        said.seek(0)
        assert "Traceback" not in said.read()
    assert set(glob.glob(f"{tempfile.gettempdir()}/asl-page-*")) == before


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
    """A browser whose camera shows a drawn hand: a letter appears, the keys write, pictures are
    recorded; and a photograph is read. The page listens on this machine alone, and the browser
    asks no other host."""
    playwright = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium") or pytest.skip("chromium is not on this machine")
    assert listeners(page) == {"0100007F"}  # 127.0.0.1
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
        letter = tab.get_by_test_id("label-output-value").first
        letter.wait_for()  # the page begins by itself
        assert letter.inner_text() in list("ABC")
        tab.locator("#square rect").wait_for()
        text = tab.locator("#text textarea")
        for key, expected in (("space", " "), ("space", "  "), ("backspace", " "), ("clear", "")):
            tab.get_by_role("button", name=key, exact=True).click()
            wait_until(lambda expected=expected: text.input_value() == expected)
        button = tab.locator("#record")
        button.dispatch_event("pointerdown")
        wait_until(lambda: len(list((tmp_path / "my_photos" / "A").glob("*.jpg"))) > 2)
        button.dispatch_event("pointerup", {"bubbles": True})
        tab.get_by_role("tab", name="photograph").click()
        tab.locator("input[type=file]").last.set_input_files(drawings / "A_1.jpg")
        tab.get_by_test_id("label-output-value").last.wait_for()
        chromium.close()
    assert not errors
    assert {host for host in hosts if host} <= {f"127.0.0.1:{page}"}
    kept = [cv2.imread(str(path)) for path in (tmp_path / "my_photos").rglob("*.jpg")]
    assert len(kept) < 100 and all(image.shape == (480, 480, 3) for image in kept)
