"""Updates by PyTorch's own optimizers in the place of the paper's: `optimizer=sgd` and `adam`.

Where they are, the velocities of a run are PyTorch's momentum buffers and first moments; second
moments stand beside them. Rates, decays and the number of updates are set anew at every step, so
what is in force is the same function of the run as for the paper's update.
"""

from dataclasses import dataclass, field

import torch

from data_prep.errors import UserError
from replica.recipes import Recipe
from replica.training.numerics import Numerics

# Adam's own defaults; its first is the recipe's momentum.
SECOND_BETA, EPSILON = 0.999, 1e-8


def has_second_moments(recipe: Recipe) -> bool:
    """Whether a run of the recipe keeps them."""
    return recipe.optimizer == "adam"


def check_optimizer(recipe: Recipe, numerics: Numerics) -> None:
    """Refuses, with a UserError, what only the paper's update can do."""
    if recipe.optimizer == "paper":
        return
    for option, value in (("--precision", numerics.precision), ("--compile", numerics.compile)):
        if value in ("fp16", "cuda-graphs"):
            raise UserError(
                f"{option} {value}: expected optimizer=paper, got {recipe.optimizer}: choose "
                "another one, or leave --set optimizer out"
            )


@dataclass
class TorchOptimizer:
    """An optimizer of `torch.optim` on tensors that the run keeps.

    Attributes:
        recipe: says which, and its momentum.
        weights, velocities, second_moments: by name; the last is empty but for Adam.
    """

    recipe: Recipe
    weights: dict[str, torch.Tensor]
    velocities: dict[str, torch.Tensor]
    second_moments: dict[str, torch.Tensor]
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        groups = [{"params": [weight]} for weight in self.weights.values()]
        momentum = self.recipe.momentum
        if self.recipe.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum)
        else:
            betas = (momentum, SECOND_BETA)
            self.optimizer = torch.optim.Adam(groups, lr=0.0, betas=betas, eps=EPSILON)
        for name, weight in self.weights.items():
            state = self.optimizer.state[weight]
            if self.recipe.optimizer == "sgd":
                state["momentum_buffer"] = self.velocities[name]
                continue
            state["step"] = torch.zeros(())
            state["exp_avg"] = self.velocities[name]
            state["exp_avg_sq"] = self.second_moments[name]

    def step_(
        self,
        gradients: dict[str, torch.Tensor],
        *,
        rates: list[float],
        weight_decays: list[float],
        updates: int,
    ) -> None:
        """One update, in place, of the tensors that have a gradient.

        Args:
            gradients: by name.
            rates, weight_decays: of these tensors, in their order.
            updates: how many came before, which Adam's corrections count.
        """
        now = dict(zip(gradients, zip(rates, weight_decays, strict=True), strict=True))
        groups = self.optimizer.param_groups
        for group, (name, weight) in zip(groups, self.weights.items(), strict=True):
            weight.grad = gradients.get(name)
            if name in now:
                group["lr"], group["weight_decay"] = now[name]
            if "step" in self.optimizer.state[weight]:
                self.optimizer.state[weight]["step"].fill_(updates)
        self.optimizer.step()
        for weight in self.weights.values():
            weight.grad = None
