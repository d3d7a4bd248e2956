"""The paper's stochastic gradient descent (paper 5)."""

import torch


@torch.no_grad()
def sgd_step_(
    weights: list[torch.Tensor],
    velocities: list[torch.Tensor],
    gradients: list[torch.Tensor],
    *,
    learning_rate: float,
    momentum: float,
    weight_decays: list[float],
) -> None:
    """One update of all parameters, in place (paper 5).

        v <- momentum * v - weight_decay * learning_rate * w - learning_rate * gradient
        w <- w + v

    The learning rate is inside the velocity: after a drop the old, larger velocity lives on and
    fades with the momentum. `torch.optim.SGD` keeps the rate outside, so there a drop shrinks the
    velocity at once.

    Args:
        weights: the parameters, changed.
        velocities: one tensor a parameter, zero before the first step, changed.
        gradients: of the loss averaged over the batch.
        learning_rate: epsilon of the paper.
        momentum: 0.9 in the paper.
        weight_decays: one number a parameter: 0.0005 in the paper, 0 for biases.
    """
    for w, v, gradient, weight_decay in zip(
        weights, velocities, gradients, weight_decays, strict=True
    ):
        v.mul_(momentum)
        if weight_decay:
            v.add_(w, alpha=-weight_decay * learning_rate)
        v.add_(gradient, alpha=-learning_rate)
        w.add_(v)
