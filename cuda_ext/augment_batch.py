"""From stored pixels to a batch in one pass: schema and checks (paper 2, 4.1).

The loops are in `csrc`; where none is built for a device, `reference` serves.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cuda_ext import library, reference

SCHEMA = (
    "(Tensor[] images, Tensor places, Tensor? mean_image, Tensor? shifts, Tensor(a!) out, "
    "bool parallel, bool is_central=False, float divisor=1.0) -> ()"
)
MEANS = ("place", "center")
DTYPES = (torch.float32, torch.bfloat16, torch.uint8)
MEMORY_FORMATS = (torch.channels_last, torch.contiguous_format)
Images = torch.Tensor | np.ndarray


def augment_batch(
    images: Images | Sequence[Images],
    places: torch.Tensor,
    *,
    crop_size: int,
    mean_image: torch.Tensor | None = None,
    mean: str = MEANS[0],
    shifts: torch.Tensor | None = None,
    divisor: float = 1.0,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
    out: torch.Tensor | None = None,
    parallel: bool = True,
) -> torch.Tensor:
    """Cuts crops, reflects them, subtracts the mean image and adds shifts (paper 2, 4.1).

    A value is ((pixel - mean) + shift) / divisor, each rounded to float32, and at the end to
    `dtype`. The mean image is subtracted at each pixel's own place, or its central part from every
    crop. The result is the same bit for bit whatever the threads, the processor's instructions and
    the device.

    With `dtype=torch.uint8` the crops are only cut and reflected. Crops that were cut without
    being reflected are finished by a second call, on a GPU say, with the same places: images that
    are smaller than the mean image are taken as cut already.

    Args:
        images: uint8 (M, H, W, 3), red first: a tensor, a memory map, or a sequence of them, all of
            one H and W, whose images are counted through. On a GPU one tensor.
        places: int64 (N, 4), a row per image of the batch: its number among the images, the first
            row and the first column of its crop, and 1 where it is reflected left to right, else 0.
        crop_size: side S of a crop in pixels.
        mean_image: float32 (H, W, 3); nothing is subtracted without it.
        mean: `place` subtracts it at each pixel's own place. `center` subtracts its central part
            wherever a crop lies, and does not reflect it with the crop.
        shifts: float32 (N, 3), added to all pixels of an image; nothing is added without it.
        divisor: of all values, above 0, rounded to float32.
        dtype: float32, bfloat16 or uint8.
        memory_format: `torch.channels_last` or `torch.contiguous_format` (NCHW).
        out: where to write the result; its type and format are then those of the result.
        parallel: on the CPU, spread the images over PyTorch's threads; else the calling thread does
            them all, without the interpreter's lock.

    Returns:
        (N, 3, S, S) of `dtype`.

    Raises:
        ValueError: an argument is outside of these rules.
        RuntimeError: a place is (on a GPU, where the host does not know it, the result is NaN).
    """
    if library.SWITCH_PROBLEM:
        raise ValueError(library.SWITCH_PROBLEM)
    given = [images] if isinstance(images, torch.Tensor | np.ndarray) else images
    parts = [part if isinstance(part, torch.Tensor) else as_tensor(part) for part in given]
    if not parts:
        raise _expected("images", "none")
    device: torch.device = parts[0].device
    height, width = _checked_size(parts)
    if places.dtype != torch.int64 or places.dim() != 2 or places.shape[1] != 4:
        raise _expected("places of int64, (N, 4)", _kind_of(places))
    if mean not in MEANS:
        raise _expected("a mean of place or center", mean)
    if not 0 < divisor < math.inf:
        raise _expected("a divisor above 0", divisor)
    whole = height, width
    if mean_image is not None:
        if mean_image.dtype != torch.float32 or mean_image.dim() != 3 or mean_image.shape[2] != 3:
            raise _expected("a mean image of float32, (H, W, 3)", _kind_of(mean_image))
        whole = mean_image.shape[0], mean_image.shape[1]
    if not 1 <= crop_size <= min(whole):
        raise _expected(f"a crop_size of 1 to {min(whole)}", crop_size)
    if whole != (height, width) and (height, width) != (crop_size, crop_size):
        rule = "images of {} x {}, as the mean image, or crops of {} x {}"
        got = f"{height} x {width}"
        raise _expected(rule.format(*whole, crop_size, crop_size), got)
    shape = (len(places), 3, crop_size, crop_size)
    if shifts is not None and (shifts.dtype, shifts.shape) != (torch.float32, (len(places), 3)):
        raise _expected(f"shifts of float32, ({len(places)}, 3)", _kind_of(shifts))
    if out is None:
        if memory_format not in MEMORY_FORMATS:
            raise _expected("channels_last or contiguous_format", memory_format)
        out = torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)
    elif out.shape != shape or not any(out.is_contiguous(memory_format=x) for x in MEMORY_FORMATS):
        raise _expected(f"out of {shape}, NCHW or channels last", _kind_of(out))
    if out.dtype not in DTYPES:
        raise _expected("float32, bfloat16 or uint8", out.dtype)
    is_changed = mean_image is not None or shifts is not None or divisor != 1
    if out.dtype == torch.uint8 and is_changed:
        raise _expected("no mean_image, shifts or divisor for a result of uint8", "one of them")
    for tensor in (*parts, places, mean_image, shifts, out):
        if tensor is not None and tensor.device != device:
            raise _expected(f"all tensors on {device}", tensor.device)
    if len(parts) > 1 and device.type != "cpu":
        raise _expected(f"one tensor of images on {device}", len(parts))
    torch.ops.replica.augment_batch_(
        parts,
        places.contiguous(),
        None if mean_image is None else mean_image.contiguous(),
        None if shifts is None else shifts.contiguous(),
        out,
        parallel,
        mean == "center",
        divisor,
    )
    return out


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """An array as a tensor on the same memory, a read-only one too: such a tensor is only read."""
    # PyTorch has no read-only tensors, and warns; of an address it makes one.
    return torch.from_numpy(np.asarray(_AddressOf(array)))


class _AddressOf:
    """An array as NumPy finds it by its address; holds what has the memory."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def _checked_size(parts: Sequence[torch.Tensor]) -> tuple[int, int]:
    """H and W of all images."""
    for part in parts:
        if part.dtype != torch.uint8 or part.dim() != 4 or part.shape[3] != 3:
            raise _expected("images of uint8, (M, H, W, 3)", _kind_of(part))
        if part.shape[1:] != parts[0].shape[1:]:
            raise _expected(f"images of {tuple(parts[0].shape[1:])}", tuple(part.shape[1:]))
        if not part.is_contiguous():
            raise _expected("images without gaps in memory", f"strides {part.stride()}")
    return parts[0].shape[1], parts[0].shape[2]


def _kind_of(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype}, {tuple(tensor.shape)}"


def _expected(rule: str, got: object) -> ValueError:
    return library.expected("augment_batch", rule, got)


_NAME = "replica::augment_batch_"
torch.library.define(_NAME, SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
torch.library.impl(_NAME, "default")(reference.augment_batch_)


@torch.library.register_fake(_NAME)
def _no_result(*arguments: Any) -> None:
    pass
