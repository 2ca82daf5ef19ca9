"""Test the trained network on the images that it has not seen, or let it read pictures.

Reads Numpy_folder/test_*.npy, the network in Weights_Full/model.json and the weights with the
lowest val_loss in Checkpoint/ (of training.py --vary the last ones), else the last ones, in
Weights_Full/model_weights.h5. Prints the accuracy and writes
    Weights_Full/confusion.png    which letter was taken for which, how often
    Weights_Full/mistakes.jpg     the wrong answers, the surest first
    Weights_Full/report.json      accuracy; precision, recall and F1 of each class; weights, data
Given pictures, folders or zips of them, it names the letter of each, and needs no Numpy_folder.
With --page it shows a page that reads the camera of whoever looks at it. With --looks it takes the
mean of seven looks at each image.

    python test.py
    python test.py --weights Checkpoint/weights.12-0.05.hdf5
    python test.py hand.jpg photos/ more.zip
    python test.py --page
"""

import argparse
import json
import math
import os
import signal
import sys
import tempfile
from contextlib import nullcontext, redirect_stdout
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).parent))  # python -I leaves it out
from preprocess import SUFFIXES, UNREAD, Archive, Folder, NoImage, UserError, between, crc32, decode
from preprocess import ending_in_one_line, fit, is_image, list_images, load_dataset, load_split
from preprocess import name_label, number, picture, read_images, reading, run_main, shown
from training import Batches, add_folders, best_intact, load_class_names, load_run, origin

with ending_in_one_line():
    import numpy as np
    from keras import Input, Model, ops
    from keras.layers import average
    from keras.models import Sequential, model_from_json
    from sklearn.metrics import accuracy_score, classification_report, confusion_matrix


def main(argv=None):
    options = parse_options(argv)
    if options.page or options.pictures:
        return read_letters(options)
    dataset = load_dataset(options.numpy_folder)
    images, labels = load_split(options.numpy_folder, "test", dataset)

    network = load_class_names(options.weights_full)
    weights, trained, epoch = choose_weights(options, network)
    check_classes(trained, dataset)
    if epoch:
        check_data(weights, trained, dataset, named=options.weights)

    model = load_model(options.weights_full, network, weights)
    model.summary()
    print_weights(weights, epoch, trained["settings"].get("start_from"))

    if options.looks > 1:
        model = with_looks(model)
    probabilities = model.predict(Batches(images, labels, 32), verbose=0)
    predicted, expected = probabilities.argmax(axis=1), labels.argmax(axis=1)
    what = f"{dataset['split']} split"
    print_accuracy(dataset["columns"], expected, predicted, what, options.looks)

    write_report(options.weights_full, dataset, expected, predicted, weights, epoch, options.looks)
    draw_confusion(options.weights_full, dataset["columns"], expected, predicted)
    draw_mistakes(options.weights_full, dataset, images, expected, probabilities)


def parse_options(argv):
    parser = argparse.ArgumentParser(
        description="Test the trained network, or let it read pictures.", allow_abbrev=False
    )
    about = "pictures to read, folders or zips of them (default: test on Numpy_folder)"
    parser.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE", help=about)
    about = "of pictures, print one JSON object a line (default: text)"
    parser.add_argument("--json", action="store_true", help=about)
    about = "show a page for a camera on this machine's PORT (default: no page; PORT: 7860)"
    parser.add_argument(
        "--page", nargs="?", const=7860, type=between(int, 1, 65535), metavar="PORT", help=about
    )
    about = "look at each image seven times, take the mean of what is read (default: once)"
    parser.add_argument("--looks", action="store_const", const=len(LOOKS), default=1, help=about)
    about = "weights to use (default: those of the lowest val_loss, of --vary the last)"
    parser.add_argument("--weights", type=Path, metavar="FILE", help=about)
    add_folders(parser)
    options = parser.parse_args(argv)
    if options.json and not options.pictures:
        parser.error("--json needs pictures")
    if options.page and options.pictures:
        parser.error("--page takes its pictures from whoever looks at it")
    return options


def print_weights(path, epoch, start=None):
    if epoch:
        print(f"weights {path}: epoch {epoch['epoch']}, val_loss {epoch['val_loss']:.4g}")
        if start:
            print(f"they began with {start}; on another split, that may have seen test images")
    else:
        print(f"weights {path}: nothing beside them says what they were trained on")


def print_accuracy(columns, expected, predicted, what, looks):
    """Print the accuracy, on what it is, and right / total of each class that there is."""
    if looks > 1:
        what += f", {looks} looks at each"
    print("##################")
    print(f"Accuracy: {accuracy_score(expected, predicted):.4f} ({what})")
    print("##################")
    confusion = confusion_matrix(expected, predicted, labels=range(len(columns)))
    for index, total in enumerate(confusion.sum(axis=1)):
        if total:
            print(f"{columns[index]}  {confusion[index, index]}/{total}")


# ---- what the test leaves to look at ----


def write_report(folder, dataset, expected, predicted, weights, epoch, looks):
    """report.json: scikit-learn's classification_report, and what was tested on what."""
    classes = sorted({*expected, *predicted})
    names = [dataset["columns"][index] for index in classes]
    scores = classification_report(
        expected, predicted, labels=classes, target_names=names, output_dict=True, zero_division=0
    )
    report = {
        "accuracy": accuracy_score(expected, predicted),
        "classes": {name: scores[name] for name in names},
        "macro avg": scores["macro avg"],
        "weights": str(weights),
        "epoch": epoch,
        "looks": looks,
        "data": {name: dataset[name] for name in ("source", "split", "seed", "files")},
        "counts": dataset["counts"]["test"],
    }
    with picture(folder / "report.json") as path:
        path.write_text(json.dumps(report, indent=1), encoding="utf-8")


def draw_confusion(folder, columns, expected, predicted):
    """confusion.png: a row for each letter, a column for each that it was taken for."""
    with picture(folder / "confusion.png") as path:
        from matplotlib.figure import Figure  # takes half a second
        from sklearn.metrics import ConfusionMatrixDisplay

        classes = sorted({*expected, *predicted})
        confusion = confusion_matrix(expected, predicted, labels=classes)
        side = 3.5 + 0.4 * len(classes)
        figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
        axes = figure.subplots()
        names = [drawable(columns[i], 12) for i in classes]
        display = ConfusionMatrixDisplay(confusion, display_labels=names)
        turned = "vertical" if max(map(len, names)) > 1 else "horizontal"
        display.plot(ax=axes, cmap="Blues", colorbar=False, xticks_rotation=turned)
        for text, count in zip(display.text_.flat, confusion.flat):
            text.set_text(count or "")  # many zeros hide the others
            text.set_fontsize(12)
        right = (expected == predicted).mean()
        axes.set_title(f"{len(expected):,} test images, {right:.1%} right", fontsize=13)
        axes.set_xlabel("the network says", fontsize=13)
        axes.set_ylabel("the letter is", fontsize=13)
        axes.tick_params(labelsize=13)
        for text in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
            text.set_parse_math(False)  # a class may be called $x$
        figure.savefig(path)


def drawable(name, most):
    """A name, its end if it is long, with what matplotlib's font lacks escaped."""
    name = name.encode("latin-1", "backslashreplace").decode("latin-1")
    return name if len(name) <= most else f"..{name[2 - most :]}"


def draw_mistakes(folder, dataset, images, expected, probabilities):
    """mistakes.jpg: up to 24 of the wrong answers, the surest first."""
    predicted, surest = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != expected)
    wrong = wrong[np.argsort(-surest[wrong], kind="stable")]
    if not len(wrong):
        (folder / "mistakes.jpg").unlink(missing_ok=True)
        print("no mistakes")
        return
    with picture(folder / "mistakes.jpg") as path:
        from matplotlib.figure import Figure

        columns, names = dataset["columns"], dataset["rows"]["test"]
        surest_wrong = wrong[:24]
        wide = min(6, len(surest_wrong))
        rows = math.ceil(len(surest_wrong) / wide)
        figure = Figure(figsize=(max(4, 2.1 * wide), 0.5 + 2.6 * rows), layout="constrained")
        figure.suptitle(f"{len(wrong):,} of {len(expected):,} wrong, the surest first", fontsize=13)
        for place, index in enumerate(surest_wrong):
            axes = figure.add_subplot(rows, wide, place + 1)
            axes.imshow(images[index][:, :, ::-1])  # BGR
            axes.set_axis_off()
            is_, said = (drawable(columns[i], 8) for i in (expected[index], predicted[index]))
            name = drawable(PurePosixPath(names[index]).name, 22)
            axes.set_title(
                f"{is_}, said {said} {surest[index]:.2f}\n{name}",
                fontsize=11,
                parse_math=False,
            )
        figure.savefig(path, dpi=130)
        print(f"{number(len(wrong), 'mistake')}: see {folder / 'mistakes.jpg'}")


# ---- letters of pictures ----


def read_letters(options):
    """Name the letters of the pictures, or of what a camera sees."""
    network = load_class_names(options.weights_full)
    output = sys.stdout
    with redirect_stdout(sys.stderr) if options.json else nullcontext():  # JSON and nothing else
        weights, trained, epoch = choose_weights(options, network)
        model = load_model(options.weights_full, network, weights)
        print_weights(weights, epoch)
        if options.looks > 1:
            model = with_looks(model)
        if options.page:
            show_page(model, trained, options.page)
        else:
            name_pictures(model, trained, options, output)


def name_pictures(model, trained, options, output):
    """Print a line a picture and, of those whose class is known, the accuracy."""
    columns, classes = trained["columns"], trained["classes"]
    expected, predicted, others, unread = [], [], set(), 0
    for source, names, labels in list(picture_sources(options.pictures, classes)):
        known = {name: label for name, label in labels.items() if label in classes}
        if known:
            others |= set(labels.values()) - set(classes)
        for name, ranking, why in rank_pictures(model, columns, source, names):
            print_picture(str(source.path / name), ranking, why, known.get(name), options, output)
            if why:
                unread += 1
            elif name in known:
                expected.append(columns.index(known[name]))
                predicted.append(columns.index(ranking[0][0]))
    if len(expected) > 1:
        if others:
            print(f"not counted: {shown(sorted(others))}, not among {shown(classes, 40)}")
        expected, predicted = np.array(expected), np.array(predicted)
        print_accuracy(columns, expected, predicted, "these pictures", options.looks)
    if unread:
        raise UserError(f"{number(unread, 'picture')} can't be read")


class Files(Folder):
    """Pictures that are given one by one; their names are their paths."""

    def __init__(self, paths):
        self.path, self.names = Path(), [path.as_posix() for path in paths]


def picture_sources(paths, classes):
    """Yield (Folder or Archive, [name of a picture], {name: label}) for what is given.

    Single files are one source; the class of each is told by its own name, or else its folder's.
    """
    paths = list(dict.fromkeys(paths))
    if files := [path for path in paths if not path.is_dir() and path.suffix.lower() != ".zip"]:
        source = Files(files)
        labels = {}
        for path in files:
            for label in (path.parent.name, name_label(path.name)):
                if label in classes:
                    labels[path.as_posix()] = label
        yield source, source.names, labels
    for path in paths:
        if path not in files:
            source = Folder(path) if path.is_dir() else Archive(path)
            names = sorted(name for name in source.names if is_image(name, SUFFIXES + UNREAD))
            if not names:
                raise UserError(f"no picture in {path}")
            yield source, names, dict(list_images(names, classes))


def rank_pictures(model, columns, source, names):
    """Yield (name, its ranking, None), or (name, None, why it can't be read)."""
    for start in range(0, len(names), 32):
        some = names[start : start + 32]
        found = list(read_images(source, some, skip=(NoImage, OSError)))
        images = [image for image, _ in found if image is not None]
        rankings = iter(rank(model, columns, images) if images else [])
        for name, (image, why) in zip(some, found):
            yield (name, None, why) if image is None else (name, next(rankings), None)


def rank(model, columns, images):
    """For each image, [(letter, probability)], the likeliest first."""
    return [
        [(columns[index], float(row[index])) for index in np.argsort(-row)]
        for row in np.asarray(model.predict_on_batch(np.stack(images)))
    ]


def print_picture(name, ranking, why, label, options, output):
    """Print what was read in a picture, or why it can't be read; label: its class, if known."""
    if why:
        facts, text = {"error": why}, why
    else:
        (letter, sure), (second, less) = ranking[:2]
        best = {each: round(probability, 6) for each, probability in ranking[:3]}
        facts = {"letter": letter, "probability": best[letter], "best": best, "class": label}
        text = f"{letter} {sure:.3f}, then {second} {less:.3f}"
        if label and label != letter:
            text += f", but it is {label}"
    if options.json:
        print(json.dumps({"picture": name} | facts), file=output, flush=True)
    else:
        print(f"{shown([name])}: {text}")


def show_page(model, trained, port):
    """A page on this machine alone, for the camera and the photographs of whoever looks at it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"  # where gradio asks itself
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else its pictures would stay
    try:
        import gradio
    except ImportError:
        raise UserError("--page needs Gradio: pip install gradio==6.31.0") from None

    def three_best(image):
        return dict(rank(model, trained["columns"], [image])[0][:3])

    def read_frame(frame):
        """The middle square, as the photographs are square, and its letters; frame: RGB."""
        if frame is None:
            return None, None
        side = min(frame.shape[:2])
        top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
        square = frame[top : top + side, left : left + side]
        return square, three_best(fit(np.ascontiguousarray(square[:, :, ::-1])))

    def read_file(data):
        """The picture in a file, squeezed as by preprocess.py, and its letters."""
        if data is None:
            return None, None
        try:
            image = decode(data)
        except NoImage as error:
            gradio.Warning(f"not read: {error}")
            return None, None
        return image[:, :, ::-1], three_best(image)

    with tempfile.TemporaryDirectory(prefix="asl-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        with gradio.Blocks(
            title="ASL letters", analytics_enabled=False, delete_cache=(60, 60)
        ) as page:
            gradio.Markdown(
                "# Which letter is it?\nShow one hand in the middle of the camera's picture, in "
                "front of a plain wall, or drop a photograph below. The network was trained on "
                f"{shown(trained['classes'], 40, ' ')}, and takes every hand for one of these."
            )
            with gradio.Row():
                webcam = gradio.WebcamOptions(mirror=False)
                camera = gradio.Image(
                    sources=["webcam"],
                    streaming=True,
                    webcam_options=webcam,
                    label="camera",
                    height=360,
                )
                square = gradio.Image(
                    label="the middle square, which is read",
                    interactive=False,
                    buttons=[],
                    height=360,
                )
                letter = gradio.Label(label="letter", num_top_classes=3)
            with gradio.Row():
                file = gradio.File(label="a photograph", file_types=["image"], type="binary")
                seen = gradio.Image(label="as the network sees it", interactive=False, buttons=[])
                its_letter = gradio.Label(label="its letter", num_top_classes=3)
            hidden = {"show_progress": "hidden", "api_visibility": "private"}
            camera.stream(
                read_frame, camera, [square, letter], stream_every=0.2, time_limit=None, **hidden
            )
            file.change(read_file, file, [seen, its_letter], **hidden)
        try:
            page.launch(
                server_name="127.0.0.1",
                server_port=port,
                share=False,
                quiet=True,
                footer_links=[],
                max_file_size="20mb",
                ssr_mode=False,
                prevent_thread_lock=True,
            )
        except OSError:
            raise UserError(f"port {port} is in use; name another with --page PORT") from None
        print(f"page http://127.0.0.1:{port} on this machine alone; from elsewhere, first")
        print(f"  ssh -L {port}:127.0.0.1:{port} THE_BOX")
        page.block_thread()


# ---- the network and its weights ----


def load_model(folder, network, weights):
    """The network of model.json with the weights of a file; network: class_names.json."""
    path = folder / "model.json"
    with reading(path, "training.py"):
        if crc32(path) != network["files"]["model.json"]:
            raise ValueError("CRC-32 does not fit")
        model = model_from_json(path.read_text(encoding="utf-8"))
        if not isinstance(model, Sequential):
            raise TypeError("no Sequential network")
    with reading(weights, "training.py"):
        model.load_weights(weights)
    return model


# of an image: so many times as large, so many pixels to the right, and down
LOOKS = (
    (1, 0, 0),
    (1.15, 0, 0),
    (0.87, 0, 0),
    (1, -12, 0),
    (1, 12, 0),
    (1, 0, -12),
    (1, 0, 12),
)


def with_looks(model):
    """A network that is shown each of LOOKS of an image, and answers with the mean of all answers.

    As the AlexNet of the paper was tested (Krizhevsky et al. 2012, 4.1, ten patches), but without
    mirrored ones. Takes uint8 (n, 224, 224, 3), and has no weights but those of the model.
    """
    stored = Input(model.input_shape[1:], dtype="uint8")
    images = ops.cast(stored, "float32")
    for_each = ops.zeros_like(images[:, 0, :1, 0])  # Keras on JAX wants a move for each image
    answers, middle = [], (model.input_shape[1] - 1) / 2  # as the first pixel is 0
    for larger, right, down in LOOKS:
        a, x, y = 1 / larger, middle - (middle + right) / larger, middle - (middle + down) / larger
        move = np.float32([a, 0, x, 0, a, y, 0, 0])  # where each pixel comes from
        look = ops.image.affine_transform(images, for_each + move, fill_mode="nearest")
        answers.append(model(ops.cast(ops.round(look), "uint8")))  # else cut off, not rounded
    return Model(stored, average(answers))


def choose_weights(options, network):
    """(file, what it was trained on, its epoch) of the named weights, or else of the best.

    network: class_names.json, which also says what weights were trained on of which nothing else
    is known; their epoch is None.
    """
    if options.weights:
        run, epoch = origin(options.weights)
        return options.weights, run or network, epoch
    return best_weights(options.checkpoint, options.weights_full, network)


def best_weights(checkpoint, weights_full, network):
    """(file, what is known of its run, its epoch): the best of the run of `network`, which is
    class_names.json; without checkpoints of that run, its last weights."""
    run = load_run(checkpoint) if (checkpoint / "run.json").exists() else {"settings": None}
    if run["settings"] == network["settings"]:
        if best := best_intact(checkpoint, run["epochs"], run["settings"]):
            return checkpoint / best["file"], run, best
    if not network["last"]:
        raise UserError(f"{weights_full} has no trained weights yet: run training.py")
    final = weights_full / "model_weights.h5"
    return final, *origin(final)


def check_classes(trained, dataset):
    """Refuse data of letters that the network does not know."""
    unknown = set(dataset["classes"]) - set(trained["classes"])
    if unknown or trained["columns"] != dataset["columns"]:
        raise UserError(
            f"the network was trained on {shown(trained['classes'], 40, ' ')}, the data holds "
            f"{shown(dataset['classes'], 40, ' ')}: run training.py on this data"
        )


def check_data(path, trained, dataset, named):
    """Refuse weights of other data, which may hold test images of now, unless they are named."""
    if trained["settings"]["data"] != dataset["files"]:
        if not named:
            raise UserError(
                f"{path} was trained on other data, which may contain some of these test images: "
                "run training.py, or name the weights with --weights"
            )
        print("these weights were trained on other data, which may hold some of the test images")


if __name__ == "__main__":
    run_main(main)
