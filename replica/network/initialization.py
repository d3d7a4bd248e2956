"""The first weights (paper 5)."""

import math

import torch

from replica.network.alexnet import AlexNet
from replica.network.draws import normal_entries
from replica.network.layers import BatchNorm
from replica.recipes.geometry import geometry


@torch.no_grad()
def initialize_(model: AlexNet, *, seed: int) -> None:
    """Draws the weights from a zero-mean Gaussian and sets the biases (paper 5).

    Every draw is a function of the seed and its place in the whole tensor, so a process with one
    tower gets its half of what a process with both gets.
    """
    whole = {row.name: row for row in geometry(model.recipe, num_classes=model.num_classes)}
    for number, (name, parameter) in enumerate(model.named_parameters()):
        module, kind = name.split(".")
        if isinstance(model.get_submodule(module), BatchNorm):
            continue  # ones and zeros, as they were made
        layer = model.recipe.layer(module)
        if kind == "bias":
            parameter.fill_(layer.bias)
            continue
        shape = whole[module].weight_shape
        entries = normal_entries(
            seed=seed,
            parameter=number,
            first=model.placement.own(shape[0]).start * math.prod(shape[1:]),
            count=parameter.numel(),
        )
        draws = torch.from_numpy(entries).view(parameter.shape)
        parameter.copy_(draws * layer.weight_standard_deviation)
