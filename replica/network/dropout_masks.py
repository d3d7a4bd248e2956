"""Which outputs are dropped, as a pure function of (seed, step, layer, row, unit) (paper 4.2)."""

from dataclasses import dataclass

import torch

from cuda_ext import philox_dropout
from replica.network.draws import key_of


@dataclass(frozen=True)
class DropoutMask:
    """Which outputs of a layer stay in a step, each with probability `keep`; applied by calling it.

    Any cut of the batch or of the units over processes gives the same.

    Attributes:
        seed: of the run.
        step, layer: int64 (1,), of training, and the number of the layer, fully connected ones
            first; from 0.
        rows: int64 (N,), places in the whole batch; on the device of the activations, as `step`.
        units: of the whole layer, those of this process.
        keep: the probability of staying.
    """

    seed: int
    step: torch.Tensor
    layer: int
    rows: torch.Tensor
    units: slice
    keep: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(N, units) with zeros for what does not stay."""
        return philox_dropout(
            x,
            key=key_of(self.seed, "dropout"),
            step=self.step,
            layer=self.layer,
            rows=self.rows,
            units=self.units,
            keep=self.keep,
        )
