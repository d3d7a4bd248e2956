"""Weights that other systems published, under this project's names.

Of torchvision's `alexnet` (a state dict), of Caffe's `bvlc_alexnet` and `bvlc_reference_caffenet`
(`.caffemodel`), and arrays of the latter (`.npz`). What such a file holds is data of unknown
origin: no code in it is run, and shapes are compared before memory is taken.
"""

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from data_prep.errors import UserError
from replica.network.alexnet import whole_shapes
from replica.network.caffemodel import is_caffemodel, read_caffemodel
from replica.recipes import Recipe
from replica.recipes.registry import RECIPES
from replica.recipes.rules import MOST

# Red first, of pixels of 0..255: of the mean image of ILSVRC-2012 that Caffe subtracts, the mean.
CAFFE_MEAN = (122.67892, 116.66877, 104.00699)
TORCHVISION = {
    **{f"features.{i}": f"conv{n}" for n, i in enumerate((0, 3, 6, 8, 10), start=1)},
    **{f"classifier.{i}": f"fc{n}" for n, i in enumerate((1, 4, 6), start=6)},
}
# What a state dict of torchvision's begins with, in both formats of torch.save.
_FIRST_NAME, _MOST_PICKLE_BYTES = b"features.0.weight", 1 << 20
_OWN_FORMAT = b"replica-checkpoint"
_ZIP, _OLD_FORMAT = b"PK", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# A message names so many tensors that do not fit.
_MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class OtherWeights:
    """What a file of another system holds.

    Attributes:
        title: what it is, in words.
        recipe: the network that it is of.
        model: parameter name -> tensor, float32.
        num_classes: that its last layer has; None where it has none of this name.
        is_partial: whether the system publishes no more than this: what lacks is to be drawn.
        mean_color: what is subtracted where there is no mean image, 0..255, red first.
    """

    title: str
    recipe: Recipe
    model: dict[str, Tensor]
    num_classes: int | None
    is_partial: bool = False
    mean_color: tuple[float, ...]


def read_other_weights(path: Path) -> OtherWeights | None:
    """Reads a file of one of these systems; None where it is of none of them.

    Raises:
        UserError: it is damaged, or of another network: the tensors are named.
    """
    if is_caffemodel(path):
        title, name, arrays = read_caffemodel(path)
        recipe = RECIPES[name]
        _check_fits(path, title, recipe, arrays)
        model = {x: torch.from_numpy(array.astype(np.float32)) for x, array in arrays.items()}
        return _checked(path, title, recipe, model, mean_color=CAFFE_MEAN)
    with path.open("rb") as file:
        head = file.read(_MOST_PICKLE_BYTES)
    if head.startswith(_OLD_FORMAT):
        return _torchvision(path) if _FIRST_NAME in head else None
    if not head.startswith(_ZIP):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith(".npy") for name in names):
                return _arrays(path, archive)
            pickles = [
                name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")
            ]
            if not pickles or archive.getinfo(pickles[0]).file_size > _MOST_PICKLE_BYTES:
                return None
            content = archive.read(pickles[0])
            if _FIRST_NAME not in content or _OWN_FORMAT in content:
                return None
            damaged = archive.testzip()
    except UserError:
        raise
    except Exception:  # whatever zipfile makes of a damaged file
        return None  # `load_checkpoint` says what is wrong with it
    if damaged is not None:
        raise UserError(f"{path}: damaged: {damaged} in it is not what was written: get it again")
    return _torchvision(path)


def _torchvision(path: Path) -> OtherWeights:
    title, recipe = "torchvision's alexnet", RECIPES["torchvision"]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever PyTorch makes of a damaged or hostile file
        raise UserError(
            f"{path}: expected {title}, as `torch.save(model.state_dict(), FILE)` writes it, got a "
            "file that PyTorch cannot open as tensors"
        ) from None
    tensors: dict[str, Tensor] = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        layer, _, kind = str(name).rpartition(".")
        if not isinstance(value, Tensor) or layer not in TORCHVISION:
            raise UserError(f"{path}: expected {title}, which has no {name}")
        tensors[f"{TORCHVISION[layer]}.{kind}"] = value
    _check_fits(path, title, recipe, tensors)
    model = {name: x.float() for name, x in tensors.items()}
    return _checked(path, title, recipe, model, mean_color=recipe.pixel_mean)


def _arrays(path: Path, archive: zipfile.ZipFile) -> OtherWeights:
    """Arrays of CaffeNet by the names of this project, such as `conv1.weight`."""
    title, recipe = "arrays of Caffe's bvlc_reference_caffenet", RECIPES["caffenet"]
    headers, damaged = {}, f"{path}: damaged: expected arrays of numbers as numpy.savez writes them"
    try:
        for name in archive.namelist():
            with archive.open(name) as member:
                version = npy.read_magic(member)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(member)
                headers[name.removesuffix(".npy")] = _Header(shape, dtype)
        _check_fits(path, title, recipe, headers)
        with np.load(path, allow_pickle=False) as arrays:
            model = {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in headers}
    except UserError:
        raise
    except Exception as error:  # whatever zipfile and NumPy make of a damaged file
        raise UserError(f"{damaged} ({error})") from None
    return _checked(path, title, recipe, model, is_partial=True, mean_color=CAFFE_MEAN)


@dataclass(frozen=True)
class _Header:
    """What an array is, before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


def _check_fits(path: Path, title: str, recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Refuses tensors, arrays or headers of which one does not fit the network.

    Raises:
        UserError: one is unknown, has another shape, or is not of floating-point numbers.
    """
    head = recipe.fully_connected[-1]
    last = given.get(f"{head.name}.weight")
    rows = last.shape[0] if last is not None and len(last.shape) else head.num_units
    shapes = whole_shapes(recipe, num_classes=rows if 2 <= rows <= MOST else 2)
    problems = [f"{name} is not of it" for name in given if name not in shapes]
    for name, shape in shapes.items():
        tensor = given.get(name)
        if tensor is None:
            continue
        if tuple(tensor.shape) != tuple(shape):
            problems.append(f"{name} is {tuple(tensor.shape)}, expected {tuple(shape)}")
        elif not _is_of_numbers(tensor):
            problems.append(f"{name} is of {tensor.dtype}, expected floating-point numbers")
    if problems:
        more = len(problems) - _MOST_NAMED
        named = "; ".join(problems[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(f"{path}: expected {title}, got another network: {named}")


def _is_of_numbers(tensor: Any) -> bool:
    if not isinstance(tensor, Tensor):
        return bool(tensor.dtype.kind == "f")
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    # One number in memory can pose as a tensor of any shape.
    return (
        is_plain
        and tensor.dtype.is_floating_point
        and tensor.untyped_storage().nbytes() >= math.prod(tensor.shape) * tensor.element_size()
    )


def _checked(
    path: Path, title: str, recipe: Recipe, model: dict[str, Tensor], **others: Any
) -> OtherWeights:
    """Weights that are numbers."""
    lost = [name for name, tensor in model.items() if not torch.isfinite(tensor).all()]
    if lost:
        raise UserError(f"{path}: damaged: {', '.join(lost)}: expected finite numbers")
    if not model:
        raise UserError(f"{path}: expected {title}, found no weights in it")
    last = model.get(f"{recipe.fully_connected[-1].name}.weight")
    num_classes = None if last is None else len(last)
    return OtherWeights(title=title, recipe=recipe, model=model, num_classes=num_classes, **others)
