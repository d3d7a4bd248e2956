"""Loss scaling for float16 (`--precision fp16`), whose small gradients would otherwise be zero.

The loss is multiplied by a scale, and the gradients are divided by it in float32. Nothing here goes
to the host, where `torch.amp.GradScaler` asks whether to step: so a GPU can be behind, and the step
can be captured. The rules are those of `GradScaler`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

# As in `torch.amp.GradScaler`: the first scale, and its factors after a gradient that is not finite
# and after so many steps without one.
FIRST_SCALE, BACKOFF, GROWTH, STEPS_TO_GROW = 65536.0, 0.5, 2.0, 2000
# Below it no scale helps: 30 steps in a row were skipped from the first one on.
LEAST_SCALE = 2.0**-14


@dataclass(frozen=True)
class LossScale:
    """The scale of the next step and what led to it, on the device of a rank; alike in every rank.

    Attributes:
        scale: float32 (), what the loss is multiplied by.
        good_steps: int32 (), steps since the scale changed.
        skipped_steps: int64 (), of the whole run.
    """

    scale: torch.Tensor
    good_steps: torch.Tensor
    skipped_steps: torch.Tensor

    @classmethod
    def first(cls, device: torch.device) -> "LossScale":
        """That of the first step."""
        return cls(
            torch.full((), FIRST_SCALE, device=device),
            torch.zeros((), dtype=torch.int32, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )

    def unscale_(
        self,
        gradients: list[torch.Tensor],
        *,
        sum_over_all_: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Divides gradients by the scale, in place, and gives the scale of the next step.

        Args:
            gradients: of the scaled loss, float32; those of this rank's tower, summed over copies.
            sum_over_all_: adds up over all ranks, in place: one that overflows stops all.

        Returns:
            float32 (): 1 where all gradients of all ranks are finite, else 0: then this step is
            not to change anything.
        """
        overflow = torch.zeros_like(self.scale)
        if gradients:
            # In float64, where 1 / scale has no subnormal numbers.
            inverse = self.scale.double().reciprocal().float()
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, overflow, inverse)
        overflow = sum_over_all_(overflow)
        torch._amp_update_scale_(
            self.scale, self.good_steps, overflow, GROWTH, BACKOFF, STEPS_TO_GROW
        )
        self.skipped_steps.add_(overflow > 0)
        return (overflow == 0).float()

    def values(self) -> dict[str, torch.Tensor]:
        """As a checkpoint has them: on the CPU."""
        return {name: tensor.cpu().clone() for name, tensor in vars(self).items()}

    def take_(self, values: dict[str, torch.Tensor]) -> None:
        """Takes over those of a checkpoint."""
        for name, tensor in vars(self).items():
            tensor.copy_(values[name])


def problems_of(values: dict[str, torch.Tensor]) -> list[str]:
    """What is wrong with the values of a checkpoint."""
    right = LossScale.first(torch.device("cpu")).values()
    problems = [f"loss_scale has an unknown {name}" for name in values if name not in right]
    for name, like in right.items():
        got = values.get(name)
        if got is None or (got.shape, got.dtype) != (like.shape, like.dtype):
            problems.append(f"loss_scale lacks {name} as a single {like.dtype}")
        elif not 0 <= got < torch.inf:
            problems.append(f"loss_scale has {name} {got:g}")
    return problems
