"""The first weights (paper 5)."""

import math

import torch

from replica.network.alexnet import AlexNet
from replica.network.draws import normal_entries
from replica.network.layers import BatchNorm
from replica.recipes import Recipe, find_recipe
from replica.recipes.geometry import geometry


def build(
    recipe: str | Recipe = "paper", *, num_classes: int | None = None, seed: int = 0
) -> AlexNet:
    """The network of a recipe with its first weights, as an `nn.Module` on the CPU.

    Args:
        recipe: a name of `replica.RECIPES`, or a recipe, such as one that
            `replica.with_changes(replica.RECIPES["paper"], ["activation=tanh"])` changed.
        num_classes: how many logits; by default as many as the recipe says (1,000 for `paper`).
        seed: the weights are a function of it.

    Returns:
        In training mode. It takes (N, 3, 224, 224), pixels of 0..255 minus the mean image, and
        gives logits (N, num_classes). Without masks, dropout draws by PyTorch's generator.

    Raises:
        UserError: there is no recipe of this name.
    """
    chosen = find_recipe(recipe) if isinstance(recipe, str) else recipe
    last = geometry(chosen, num_classes=num_classes)[-1]
    model = AlexNet(chosen, num_classes=last.weight_shape[0])
    initialize_(model, seed=seed)
    return model


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
