"""Which outputs are dropped, as a pure function of (seed, step, layer, row, unit) (paper 4.2)."""

from dataclasses import dataclass

import torch

from replica.network.draws import UINT32_RANGE, key_of, philox


@dataclass(frozen=True)
class DropoutKeys:
    """What the dropout masks of one training step are a function of (paper 4.2).

    Attributes:
        seed: of the run.
        step: counted from 0.
        rows: int64 (N,), the rows that this process has of the whole batch.
    """

    seed: int
    step: int
    rows: torch.Tensor


def dropout_mask(
    keys: DropoutKeys, *, layer: int, units: slice, keep: float, device: torch.device
) -> torch.Tensor:
    """Which outputs stay: bool (N, units), True with probability `keep`.

    Any cut of the batch or of the units over processes gives the same masks.
    """
    first_word, last_word = units.start // 4, (units.stop + 3) // 4
    words = torch.arange(first_word, last_word, device=device)[None, :]
    rows = keys.rows.to(device)[:, None]
    step, number = torch.full_like(rows, keys.step), torch.full_like(rows, layer)
    draws = philox(key_of(keys.seed, "dropout"), (step, number, rows, words))
    in_order = torch.stack(draws, dim=-1).flatten(1)
    offset = units.start - 4 * first_word
    length = units.stop - units.start
    return in_order[:, offset : offset + length] < round(keep * UINT32_RANGE)
