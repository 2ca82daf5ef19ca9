"""Test the trained network on the images that it has not seen, or let it read pictures.

Reads Weights_Full/model.json and weights: the checkpoint in Checkpoint/ with the lowest val_loss
(after training.py --augment the last one) or, if there is none, Weights_Full/model_weights.h5.
Tests on Numpy_folder/test_*.npy, prints the accuracy and writes
    Weights_Full/confusion.png    the answers for each letter, counted
    Weights_Full/mistakes.jpg     the wrong answers, the highest probability first

    python test.py
    python test.py hand.jpg my_test/      # print the letter of each picture
    python test.py --page                 # show a page that reads a camera
"""

import argparse
import math
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from asl_data.camera_page import show_page
from asl_data.find_images import UNREADABLE, Images, UserError, possible_classes, run_main
from preprocess import IMAGE_SIZE, load_dataset, load_split, resize
from training import add_folders, load_weights, read_json, settings_beside, tested_epoch

from keras.layers import Rescaling  # after training.py, which sets TF's variables
from keras.models import model_from_json
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, recall_score


def main(argv=None):
    options = parse_options(argv)
    model, settings = load_network(options)
    if options.page:
        read = partial(read_letter, model, settings, options.tta)
        return show_page(read, settings["classes"], options.page, options.record)
    if options.pictures:
        return read_pictures(model, settings, options)

    dataset = load_dataset(options.numpy_folder)
    check_data(settings, dataset, options.weights)
    images, labels = load_split(options.numpy_folder, "test", dataset)
    model.summary()
    probabilities = predict(model, images, options.tta)
    predicted, expected = probabilities.argmax(axis=1), labels.argmax(axis=1)
    columns, folder = settings["columns"], options.weights_full
    what = f"{dataset['split']} split" + (f", {len(VIEWS)} views" if options.tta else "")
    print_accuracy(columns, expected, predicted, what)
    draw_confusion(folder / "confusion.png", columns, expected, predicted)
    names = dataset["rows"]["test"]
    draw_mistakes(folder / "mistakes.jpg", columns, names, images, expected, probabilities)


def parse_options(argv):
    parser = argparse.ArgumentParser(description="Test the network, or let it read pictures.")
    add = parser.add_argument
    about = "pictures to read, folders or zips of them (default: test on Numpy_folder)"
    add("pictures", nargs="*", type=Path, metavar="PICTURE", help=about)
    about = "show a page for a camera on PORT of this machine (default: no page; PORT: 7860)"
    add("--page", nargs="?", const=7860, type=int, metavar="PORT", help=about)
    about = "with --page: keep the pictures that you record there in DIR (default: keep none)"
    add("--record", type=Path, metavar="DIR", help=about)
    about = "with PICTURE: cut its hand out (default: as preprocess.py did for the training)"
    add("--find-hand", action=argparse.BooleanOptionalAction, help=about)
    about = "test-time augmentation: the mean of seven views of each image (default: one view)"
    add("--tta", action="store_true", help=about)
    about = "weights to use (default: the best checkpoint, after --augment the last)"
    add("--weights", type=Path, metavar="FILE", help=about)
    add_folders(parser)
    return parser.parse_args(argv)


# ---- the network ----


def load_network(options):
    """(the model with its weights, the settings that these were trained with)"""
    path = options.weights_full / "class_names.json"
    saved, run = read_json(path), read_json(options.checkpoint / "run.json")
    if not saved:
        alone = path.with_name("model.json").exists()  # as in the article's own repository
        others = ", the model.json there is of another program" if alone else ""
        raise UserError(f"{path} is missing: run training.py first{others}")
    if options.weights:
        weights = options.weights
    elif run.get("epochs") and run["settings"] == saved["settings"]:
        row = tested_epoch(run["epochs"], run["settings"]["augment"])
        weights = options.checkpoint / row["file"]
    elif saved["trained"]:  # the training has come to its end
        print(f"{options.checkpoint} has no run of this network: its last epoch is taken")
        weights = options.weights_full / "model_weights.h5"
    else:
        where = f"{options.checkpoint} has no checkpoint of the network in {options.weights_full}"
        raise UserError(f"{where}: run training.py")
    model = model_from_json((options.weights_full / "model.json").read_text(encoding="utf-8"))
    settings = settings_beside(weights)
    # The article's own model.json has no Rescaling: its images would stay undivided.
    scaled, outputs = isinstance(model.layers[0], Rescaling), model.output_shape[-1]
    if not scaled or outputs != len(settings["columns"]):
        wrong = f"model.json is not the network of {weights}"
        raise UserError(f"{wrong}: run training.py, or give its folder by --weights-full")
    load_weights(model, weights)
    print(f"weights {weights}")
    return model, settings


def check_data(settings, dataset, weights_are_named):
    """Refuse data with other letters, or data that the network may have been trained on."""
    known, wanted = settings["classes"], dataset["classes"]
    if settings["columns"] != dataset["columns"] or not set(wanted) <= set(known):
        letters = f"the network knows {' '.join(known)}, the data has {' '.join(wanted)}"
        raise UserError(f"{letters}: run training.py --fresh on this data")
    if settings["data"] != dataset["id"]:
        maybe = "these weights were trained on other data, perhaps on some of these test images"
        if not weights_are_named:
            raise UserError(f"{maybe}: run training.py --fresh, or give the weights by --weights")
        print(maybe)
    if settings["start_from"]:
        print(f"fine-tuned from {settings['start_from']}, which may have seen these test images")


# (scale, pixels to the right, pixels down) of each view of --tta
VIEWS = ((1, 0, 0), (1.15, 0, 0), (0.87, 0, 0), (1, -12, 0), (1, 12, 0), (1, 0, -12), (1, 0, 12))


def predict(model, images, tta=False):
    """Probabilities, float32 (n, columns), of images, uint8 (n, 224, 224, 3).

    With tta the mean over the VIEWS of each image, as AlexNet was tested with ten crops
    (Krizhevsky et al. 2012, 4.1).
    """
    answers = []
    for start in range(0, len(images), 32):
        batch = np.asarray(images[start : start + 32])
        views = [shift(batch, *view) for view in VIEWS] if tta else [batch]
        answers.append(np.mean([model.predict_on_batch(view) for view in views], axis=0))
    return np.concatenate(answers)


def shift(images, scale, dx, dy):
    """Images enlarged around their middle and moved, uint8; border pixels repeat."""
    offset = (1 - scale) * (IMAGE_SIZE - 1) / 2  # keeps the middle in its place
    matrix = np.array([(scale, 0, offset + dx), (0, scale, offset + dy)])
    size, border = (IMAGE_SIZE, IMAGE_SIZE), cv2.BORDER_REPLICATE
    return np.stack([cv2.warpAffine(image, matrix, size, borderMode=border) for image in images])


# ---- results of the test ----


def print_accuracy(columns, expected, predicted, what):
    """Print the accuracy, and right / total of each letter."""
    print("##################")
    print(f"Accuracy: {accuracy_score(expected, predicted):.4f} ({what})")
    letters, counts = np.unique(expected, return_counts=True)
    if counts.max() > 5 * counts.min():  # then accuracy is that of the most frequent letter
        balanced = recall_score(expected, predicted, labels=letters, average="macro")
        print(f"Balanced accuracy: {balanced:.4f} (the mean of the letters below)")
    print("##################")
    for index in letters:
        right = predicted[expected == index] == index
        print(f"{columns[index]}  {right.sum()}/{len(right)}")


def draw_confusion(path, columns, expected, predicted):
    indices = sorted({*expected, *predicted})
    side = 3.5 + 0.4 * len(indices)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    letters = {"labels": indices, "display_labels": [columns[index] for index in indices]}
    look = {"ax": axes, "cmap": "Blues", "colorbar": False}
    ConfusionMatrixDisplay.from_predictions(expected, predicted, **letters, **look)
    axes.set(xlabel="the network says", ylabel="the letter is")
    figure.savefig(path)


def draw_mistakes(path, columns, names, images, expected, probabilities):
    """Draw up to 24 of the wrong answers, the highest probability first."""
    predicted, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != expected)
    if not len(wrong):
        path.unlink(missing_ok=True)  # of an earlier test
        return print("no mistakes")
    shown = wrong[np.argsort(-sure[wrong], kind="stable")][:24]
    rows = math.ceil(len(shown) / 6)
    figure = Figure(figsize=(13, 0.5 + 2.6 * rows), layout="constrained")
    for place, index in enumerate(shown):
        axes = figure.add_subplot(rows, 6, place + 1)
        axes.imshow(images[index][:, :, ::-1])  # BGR
        axes.set_axis_off()
        letter, said = columns[expected[index]], columns[predicted[index]]
        axes.set_title(f"{letter}, said {said} {sure[index]:.2f}\n{Path(names[index]).name}")
    figure.savefig(path)
    print(f"{len(wrong):,} mistakes: see {path}")


# ---- pictures ----


def read_letter(model, settings, tta, picture):
    """{class: its probability} of a picture, uint8 (height, width, 3), BGR, for the page."""
    answers = dict(zip(settings["columns"], predict(model, resize(picture)[None], tta)[0]))
    return {label: float(answers[label]) for label in settings["classes"]}


def read_pictures(model, settings, options):
    """Print one line per picture, then the accuracy."""
    columns, classes = settings["columns"], settings["classes"]
    find = settings.get("find_hand") if options.find_hand is None else options.find_hand
    if find:
        print("each picture is cut to its hand, to its middle where none is found")
    sources = [Images(path) for path in options.pictures]  # a wrong path ends this first
    results = []  # (path, class by its name, the network's class)
    for source in sources:
        for name in source.names:
            path, image = source.path / name, source.read(name)
            if image is None:
                print(f"{path}: {UNREADABLE}")
                continue
            probabilities = predict(model, resize(image, find)[None], options.tta)[0]
            first, second = probabilities.argsort()[::-1][:2]
            # The folder that was given counts, as in `test.py my_test/A`; those above it do not.
            found = possible_classes(f"{source.path.resolve().name}/{name}", classes)
            label = found[0] if len(found) == 1 else None
            said = columns[first]
            but = f", but it is {label}" if label and label != said else ""
            print(f"{path}: {said} {probabilities[first]:.3f}, ", end="")
            print(f"then {columns[second]} {probabilities[second]:.3f}{but}")
            results.append((path, label, first))
    if not results:
        raise UserError("there is no image")
    print_known(columns, results)


def print_known(columns, results):
    """Print the accuracy of the pictures whose class is known."""
    known = [(path.parent, columns.index(label), first) for path, label, first in results if label]
    unknown = [path for path, label, _ in results if not label]
    if unknown and len(results) > 1:
        print(f"not counted {len(unknown):,}: letter unknown (such as {unknown[0]})")
    if known:
        folders, expected, predicted = zip(*known)
        what = f"{len(known):,} of {len(results):,} pictures; folders: {len(set(folders)):,}"
        print_accuracy(columns, np.array(expected), np.array(predicted), what)


if __name__ == "__main__":
    run_main(main)
