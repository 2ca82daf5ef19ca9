"""Test the trained network on the images that it has not seen.

Reads Numpy_folder/test_*.npy, Weights_Full/model.json and model_weights.h5, and over these, as in
the article, the best weights of Checkpoint/; prints the accuracy and writes nothing.

    python test.py
    python test.py --weights Checkpoint/weights.12-0.05.hdf5
"""

import argparse
from pathlib import Path

from preprocess import UserError, load_dataset, load_split, reading, run_main
from training import (  # ahead of keras, to hush it
    Batches,
    add_folders,
    checkpoints,
    is_whole,
    load_columns,
    load_weights,
)

from keras.models import Sequential, model_from_json
from sklearn.metrics import accuracy_score, confusion_matrix


def main(argv=None):
    options = parse_options(argv)
    dataset = load_dataset(options.numpy_folder)
    images, labels = load_split(options.numpy_folder, "test", dataset)

    columns = load_columns(options.weights_full)
    if columns != dataset["columns"]:
        raise UserError(
            f"the network reads {' '.join(columns)}, "
            f"the data holds {' '.join(dataset['columns'])}: run training.py on this data"
        )
    model = load_model(options.weights_full / "model.json")
    model.summary()
    final = options.weights_full / "model_weights.h5"
    trained = load_weights(model, final)
    best = options.weights or best_weights(final, trained, options.checkpoint, dataset)
    if best != final:
        trained = load_weights(model, best)
    print_weights(best, trained, dataset)

    predicted = model.predict(Batches(images, labels, 32), verbose=0).argmax(axis=1)
    expected = labels.argmax(axis=1)
    print("##################")
    print(f"Accuracy: {accuracy_score(expected, predicted):.4f}")
    print("##################")
    print_classes(dataset["columns"], expected, predicted)


def parse_options(argv):
    parser = argparse.ArgumentParser(
        description="Test the trained network on the test images.", allow_abbrev=False
    )
    about = "weights to test (default: the checkpoint with the lowest val_loss)"
    parser.add_argument("--weights", type=Path, metavar="FILE", help=about)
    add_folders(parser)
    return parser.parse_args(argv)


def load_model(path):
    """The network of model.json, with no weights yet."""
    with reading(path, "training.py"):
        model = model_from_json(path.read_text(encoding="utf-8"))
        if not isinstance(model, Sequential):
            raise TypeError("no Sequential network")
    return model


def best_weights(final, trained, checkpoint_folder, dataset):
    """The checkpoint with the lowest val_loss of the run that ended in `final`, else `final`.

    trained is what `read_run` tells of `final`.
    """
    settings = trained["settings"]
    if settings["data"] != dataset["files"]:
        raise UserError(
            f"{final} was trained on other data than this, which may hold test images of now: "
            "run training.py, or name the weights with --weights"
        )
    found = checkpoints(checkpoint_folder)
    for path, run in sorted(found, key=lambda each: each[1]["history"][-1]["val_loss"]):
        if run["settings"] == settings and is_whole(path, run):
            return path
    return final


def print_weights(path, trained, dataset):
    """Say which weights are tested; trained is what `read_run` tells of them."""
    last = trained["history"][-1]
    print(f"weights {path}: epoch {last['epoch']}, val_loss {last['val_loss']:.4g}")
    if trained["settings"]["data"] != dataset["files"]:
        print("these were trained on other data, which may hold some of the test images")


def print_classes(columns, expected, predicted):
    """Print right / total of each class that the test set has."""
    confusion = confusion_matrix(expected, predicted, labels=range(len(columns)))
    for index, total in enumerate(confusion.sum(axis=1)):
        if total:
            print(f"{columns[index]}  {confusion[index, index]}/{total}")


if __name__ == "__main__":
    run_main(main)
