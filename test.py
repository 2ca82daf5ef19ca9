"""Test the trained network on the images that it has not seen.

Reads Numpy_folder/test_*.npy, Weights_Full/model.json and model_weights.h5, and over these, as in
the article, the best weights of Checkpoint/; prints the accuracy and writes nothing.

    python test.py
    python test.py --weights Checkpoint/weights.12-0.05.hdf5
"""

import argparse
from pathlib import Path

from preprocess import UserError, load_dataset, load_split, run
from training import Batches, add_folders, checkpoints, read_run  # ahead of keras, to hush it

from keras.models import model_from_json
from sklearn.metrics import accuracy_score, confusion_matrix


def main(argv=None):
    options = parse_options(argv)
    dataset = load_dataset(options.numpy_folder)
    images, labels = load_split(options.numpy_folder, "test")

    model = load_model(options.weights_full / "model.json")
    model.summary()
    if model.output_shape[-1] != labels.shape[1]:
        raise UserError(
            f"the network has {model.output_shape[-1]} outputs, the labels have "
            f"{labels.shape[1]} columns: run training.py on this {options.numpy_folder}"
        )
    final = options.weights_full / "model_weights.h5"
    load_weights(model, final)
    load_weights(model, options.weights or best_weights(final, options.checkpoint, dataset))

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
    try:
        return model_from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run training.py first, to its end") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged or of another Keras ({error})") from None


def load_weights(model, path):
    """Load the weights of an HDF5 file of training.py, a checkpoint or the last weights."""
    last = read_run(path)["history"][-1]
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} does not fit the network ({error})") from None
    print(f"weights of {path}: epoch {last['epoch']}, val_loss {last['val_loss']:.4g}")


def best_weights(final, checkpoint_folder, dataset):
    """The checkpoint with the lowest val_loss of the run that ended in `final`, else `final`."""
    settings = read_run(final)["settings"]
    if settings["data"] != dataset["files"]:
        raise UserError(
            f"{final} was trained on other data than what Numpy_folder holds: its test images may "
            "have been training images. Run training.py, or name the weights with --weights"
        )
    ours = [
        (run["history"][-1]["val_loss"], path)
        for path, run in checkpoints(checkpoint_folder)
        if run["settings"] == settings
    ]
    return min(ours)[1] if ours else final


def print_classes(columns, expected, predicted):
    """Print right / total of each class that the test set has."""
    confusion = confusion_matrix(expected, predicted, labels=range(len(columns)))
    for index, total in enumerate(confusion.sum(axis=1)):
        if total:
            print(f"{columns[index]}  {confusion[index, index]}/{total}")


if __name__ == "__main__":
    run(main)
