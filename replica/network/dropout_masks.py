"""Which outputs are dropped, as a pure function of (seed, step, layer, row, unit) (paper 4.2)."""

import torch

from replica.network.draws import UINT32_RANGE, key_of, philox


def dropout_mask(
    rows: torch.Tensor, *, seed: int, step: int, layer: int, units: slice, keep: float
) -> torch.Tensor:
    """Which outputs stay: bool (N, units), True with probability `keep`.

    Any cut of the batch or of the units over processes gives the same masks. `rows`, int64 (N,),
    and `units` are those of this process; `step` and `layer` (fully connected) count from 0.
    """
    words = torch.arange(units.start // 4, (units.stop + 3) // 4, device=rows.device)
    draws = philox(key_of(seed, "dropout"), (step, layer, rows[:, None], words[None, :]))
    in_order = torch.stack(draws, dim=-1).flatten(1)
    first = units.start % 4
    return in_order[:, first : first + units.stop - units.start] < round(keep * UINT32_RANGE)
