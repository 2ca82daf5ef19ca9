"""Test the trained network on the images that it has not seen.

Reads Numpy_folder/test_*.npy, the network in Weights_Full/model.json and the weights with the
lowest val_loss in Checkpoint/, else Weights_Full/model_weights.h5. Prints the accuracy.

    python test.py
    python test.py --weights Checkpoint/weights.12-0.05.hdf5
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # python -I leaves it out
from preprocess import UserError, crc32, importing, load_dataset, load_split, reading
from preprocess import run_main, shown
from training import Batches, add_folders, best_intact, is_intact, load_class_names
from training import load_run

with importing():
    from keras.models import Sequential, model_from_json  # after training, which hushes keras
    from sklearn.metrics import accuracy_score, confusion_matrix


def main(argv=None):
    options = parse_options(argv)
    dataset = load_dataset(options.numpy_folder)
    images, labels = load_split(options.numpy_folder, "test", dataset)

    network = load_class_names(options.weights_full)
    if options.weights:
        weights, run, epoch = options.weights, *origin(options.weights)
    else:
        weights, run, epoch = best_weights(options.checkpoint, options.weights_full, network)
    check_classes(run or network, dataset)
    check_data(weights, run, dataset, named=options.weights)

    model = load_model(options.weights_full, network)
    model.summary()
    with reading(weights, "training.py"):
        model.load_weights(weights)
    print_weights(weights, epoch)

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


def print_weights(path, epoch):
    if epoch:
        print(f"weights {path}: epoch {epoch['epoch']}, val_loss {epoch['val_loss']:.4g}")
    else:
        print(f"weights {path}: nothing beside them says what they were trained on")


def print_classes(columns, expected, predicted):
    """Print right / total of each class that the test set has."""
    confusion = confusion_matrix(expected, predicted, labels=range(len(columns)))
    for index, total in enumerate(confusion.sum(axis=1)):
        if total:
            print(f"{columns[index]}  {confusion[index, index]}/{total}")


# ---- the network and its weights ----


def load_model(folder, network):
    """The network of model.json, with no weights yet; network: class_names.json."""
    path = folder / "model.json"
    with reading(path, "training.py"):
        if crc32(path) != network["files"]["model.json"]:
            raise ValueError("CRC-32 does not fit")
        model = model_from_json(path.read_text(encoding="utf-8"))
        if not isinstance(model, Sequential):
            raise TypeError("no Sequential network")
    return model


def best_weights(checkpoint, weights_full, network):
    """(file, what is known of its run, its epoch): the lowest val_loss of the run of `network`,
    which is class_names.json; without checkpoints of that run, its last weights."""
    run = load_run(checkpoint) if (checkpoint / "run.json").exists() else {"settings": None}
    if run["settings"] == network["settings"]:
        if best := best_intact(checkpoint, run["epochs"]):
            return checkpoint / best["file"], run, best
    if not network["last"]:
        raise UserError(f"{weights_full} has no trained weights yet: run training.py")
    final = weights_full / "model_weights.h5"
    return final, *origin(final)


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


def check_classes(run, dataset):
    """Refuse data of letters that the network does not know."""
    if run["columns"] != dataset["columns"] or not set(dataset["classes"]) <= set(run["classes"]):
        raise UserError(
            f"the network was trained on {shown(run['classes'], 40, ' ')}, the data holds "
            f"{shown(dataset['classes'], 40, ' ')}: run training.py on this data"
        )


def check_data(path, run, dataset, named):
    """Refuse weights of other data, which may hold test images of now, unless they are named."""
    if run and run["settings"]["data"] != dataset["files"]:
        if not named:
            raise UserError(
                f"{path} was trained on other data than this, which may hold test images of now: "
                "run training.py, or name the weights with --weights"
            )
        print("these weights were trained on other data, which may hold some of the test images")


if __name__ == "__main__":
    run_main(main)
