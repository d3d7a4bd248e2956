"""Dropout whose masks are pure functions of named keys: schema, checks, gradient (paper 4.2).

The kernels are in `csrc`; where there is none for a device, `reference` serves.
"""

from typing import Any

import torch

from cuda_ext import library, reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WORDS = 1 << 32
SCHEMA = (
    "(Tensor x, int key0, int key1, Tensor step, int layer, Tensor rows, int first_unit, "
    "int threshold) -> Tensor"
)


def philox_dropout(
    x: torch.Tensor,
    *,
    key: tuple[int, int],
    step: int | torch.Tensor,
    layer: int,
    rows: torch.Tensor,
    units: slice,
    keep: float,
) -> torch.Tensor:
    """Zeroes outputs at random, in one pass over them (paper 4.2); what stays is not scaled.

    Unit u of the layer stays in row r where word u % 4 of Philox4x32-10 with this key, at the
    counter (step, layer, r, u // 4), is below keep * 2 ** 32. So any cut of the batch or of the
    units over processes and devices gives the same masks, and nothing is kept for the gradient,
    which draws them again. Zeroed values keep their sign; NaN and infinity become NaN.

    Args:
        x: (N, units), float32, float64, bfloat16 or float16, any strides.
        key: two words, 0..2**32 - 1.
        step: of training, from 0; a number, or an int64 tensor of one element on the device of x,
            which a captured graph reads anew each time.
        layer: its number, from 0.
        rows: int64 (N,), on the device of x: the place of each row in the whole batch.
        units: of the whole layer, those that x has.
        keep: the probability of staying, 0..1.

    Returns:
        (N, units), contiguous, of the type of `x`.

    Raises:
        ValueError: an argument is outside of these rules.
    """
    if library.SWITCH_PROBLEM:
        raise ValueError(library.SWITCH_PROBLEM)
    if x.dim() != 2:
        raise _expected("x of (N, units)", tuple(x.shape))
    if x.dtype not in DTYPES:
        raise _expected("float32, float64, bfloat16 or float16", x.dtype)
    if len(key) != 2 or not all(0 <= word < WORDS for word in key):
        raise _expected(f"a key of two words, 0 to {WORDS - 1}", key)
    if not isinstance(step, torch.Tensor):
        if not 0 <= step < WORDS:
            raise _expected(f"a step of 0 to {WORDS - 1}", step)
        step = torch.tensor(step, device=x.device)
    if step.dtype != torch.int64 or step.numel() != 1 or step.device != x.device:
        raise _expected(f"a step of one int64 on {x.device}", _kind_of(step))
    if not 0 <= layer < WORDS:
        raise _expected(f"a layer of 0 to {WORDS - 1}", layer)
    if rows.dtype != torch.int64 or rows.shape != x.shape[:1] or rows.device != x.device:
        raise _expected(f"rows of int64, ({len(x)},), on {x.device}", _kind_of(rows))
    first, stop = units.start or 0, units.stop
    if units.step not in (None, 1) or not 0 <= first <= stop or stop - first != x.shape[1]:
        raise _expected(f"units of the {x.shape[1]} columns of x", units)
    if not 0 <= keep <= 1:
        raise _expected("keep from 0 to 1", keep)
    result: torch.Tensor = torch.ops.replica.philox_dropout(
        x, *key, step, layer, rows.contiguous(), first, round(keep * WORDS)
    )
    return result


def _kind_of(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype}, {tuple(tensor.shape)}, {tensor.device}"


def _expected(rule: str, got: object) -> ValueError:
    return ValueError(f"philox_dropout: expected {rule}, got {got}")


_NAME = "replica::philox_dropout"
torch.library.define(_NAME, SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.impl(_NAME, "default")
def _plain(x: torch.Tensor, key0: int, key1: int, *arguments: Any) -> torch.Tensor:
    return reference.philox_dropout(x, (key0, key1), *arguments)


@torch.library.register_fake(_NAME)
def _shape(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return torch.empty_like(x.contiguous())


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, key0, key1, step, layer, rows, first_unit, threshold = inputs
    ctx.save_for_backward(step, rows)
    ctx.numbers = key0, key1, layer, first_unit, threshold


def _gradient(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    step, rows = ctx.saved_tensors
    key0, key1, layer, first_unit, threshold = ctx.numbers
    result = torch.ops.replica.philox_dropout(
        gradient, key0, key1, step, layer, rows, first_unit, threshold
    )
    return result, *[None] * 7


torch.library.register_autograd(_NAME, _gradient, setup_context=_save)
