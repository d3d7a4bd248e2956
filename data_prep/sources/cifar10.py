"""CIFAR-10: python pickles, the binary version, or class folders of PNG or JPEG files.

From a directory or a tar. The 32 x 32 pictures of the first two keep their exact pixels with
`--size 32`. The parts are train and test, as the data set has them; the labels are the ten names in
alphabetical order in every version.
"""

import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from data_prep.errors import UserError
from data_prep.sources import folder
from data_prep.sources.picture_set import Picture, Pictures, PictureSet
from data_prep.sources.places import Pixels
from data_prep.sources.text import read_bytes, read_text
from data_prep.sources.trees import Tree, visible_names

LAYOUT = "data_batch_1 or data_batch_1.bin, or train/{airplane,...,truck}: CIFAR-10"
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
SIDE = 32
PICTURE_BYTES = 3 * SIDE * SIDE
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
# A genuine batch is 31 MB.
MAX_BATCH_BYTES = 256 << 20
# What the published pickles are made of, under the names of old and new NumPy and Python.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _Unpickler(pickle.Unpickler):
    """Makes arrays, and refuses everything else that a pickle could call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no such file needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def is_here(tree: Tree) -> bool:
    """Whether the tree looks like this layout."""
    return (
        tree.is_file("data_batch_1")
        or tree.is_file("data_batch_1.bin")
        or set(visible_names(tree, "train")) == set(CLASSES)
    )


def find(tree: Tree) -> PictureSet:
    """Lists the train and test pictures with their labels."""
    if tree.is_file("data_batch_1"):
        return _batches(tree, "", _read_pickle, _names_of_meta(tree))
    if tree.is_file("data_batch_1.bin"):
        return _batches(tree, ".bin", _read_binary, _names_of_text(tree))
    found = folder.find(tree)
    if found.wnids != CLASSES:
        raise UserError(
            f"{tree.title}: expected data_batch_1, data_batch_1.bin, or train/ with the ten "
            f"classes {', '.join(CLASSES)}, found train/ with {len(found.wnids)} other folders"
        )
    return replace(found, source="cifar10")


Batch = tuple[np.ndarray, list[int]]


def _batches(
    tree: Tree, suffix: str, read: Callable[[Tree, str], Batch], names: tuple[str, ...]
) -> PictureSet:
    if names != CLASSES:
        raise UserError(f"{tree.title}: expected the classes {', '.join(CLASSES)}, got {names}")
    parts: dict[str, Pictures] = {}
    absent = []
    for part, batches in BATCHES.items():
        pictures: list[Picture] = []
        for batch in batches:
            path = f"{batch}{suffix}"
            if not tree.is_file(path):
                absent.append(path)
                continue
            planes, labels = read(tree, path)
            pictures += [
                Picture(f"{path}/{row:05d}", label, Pixels(planes[row].tobytes(), SIDE))
                for row, label in enumerate(labels)
            ]
        parts[part] = tuple(pictures)
    notes = (f"absent: {', '.join(absent)}",) if absent else ()
    return PictureSet("cifar10", tree.title, CLASSES, CLASSES, parts, notes=notes)


def _read_pickle(tree: Tree, path: str) -> Batch:
    content = _unpickled(tree, path)
    planes, labels = content.get(b"data"), content.get(b"labels")
    if (
        not isinstance(planes, np.ndarray)
        or planes.dtype != np.uint8
        or planes.ndim != 2
        or planes.shape[1] != PICTURE_BYTES
        or not isinstance(labels, list)
        or len(labels) != len(planes)
        or not all(type(label) is int and 0 <= label < len(CLASSES) for label in labels)
    ):
        raise UserError(
            f"{tree.title}/{path}: expected data, uint8 of shape (N, {PICTURE_BYTES}), and as many "
            "labels of 0 to 9; the file is damaged"
        )
    return planes, labels


def _unpickled(tree: Tree, path: str) -> dict[Any, Any]:
    title = f"{tree.title}/{path}"
    data = read_bytes(tree, path, "a batch of CIFAR-10", limit=MAX_BATCH_BYTES)
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise UserError(f"{title}: expected a pickle of CIFAR-10, but {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{title}: expected a dictionary, got {type(content).__name__}")
    return content


def _names_of_meta(tree: Tree) -> tuple[str, ...]:
    if not tree.is_file("batches.meta"):
        return CLASSES
    names = _unpickled(tree, "batches.meta").get(b"label_names")
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise UserError(f"{tree.title}/batches.meta: expected label_names, a list of ten names")
    return tuple(name.decode("utf-8", "replace") for name in names)


def _read_binary(tree: Tree, path: str) -> Batch:
    title = f"{tree.title}/{path}"
    data = read_bytes(tree, path, "a batch of CIFAR-10", limit=MAX_BATCH_BYTES)
    row_bytes = 1 + PICTURE_BYTES
    if not data or len(data) % row_bytes:
        raise UserError(
            f"{title}: expected rows of {row_bytes} bytes, a label and a picture, got "
            f"{len(data)} bytes"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, row_bytes)
    labels = rows[:, 0].tolist()
    if max(labels) >= len(CLASSES):
        raise UserError(f"{title}: expected labels of 0 to 9, got {max(labels)}")
    return rows[:, 1:], labels


def _names_of_text(tree: Tree) -> tuple[str, ...]:
    if not tree.is_file("batches.meta.txt"):
        return CLASSES
    return tuple(read_text(tree, "batches.meta.txt", "the ten names, one per line").split())
