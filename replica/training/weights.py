"""Weights to begin with: a checkpoint of this project, an export of one, or another system's."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data_prep.errors import UserError
from replica import paper
from replica.network.alexnet import AlexNet, whole_shapes
from replica.network.other_weights import OtherWeights, read_other_weights
from replica.network.own_network import ModelFile, build_own, same_model_file
from replica.recipes import Recipe
from replica.training.checkpoint import Checkpoint, load_checkpoint
from replica.training.safetensors_file import is_safetensors, read_safetensors


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a file holds.

    Attributes:
        checkpoint: what was read; of another system, what such a file lacks is empty, its classes
            are named by their numbers, and the mean image has one color.
        title: in words what it is; None for a network that this project trained.
        num_classes: that its last layer has; None where the file has none of this name.
        is_partial: whether the system publishes no more than this: what lacks is to be drawn.
    """

    checkpoint: Checkpoint
    title: str | None = None
    num_classes: int | None
    is_partial: bool = False

    def lacking(self, recipe: Recipe, *, num_classes: int) -> list[str]:
        """Layers that the file has nothing of, and single tensors, such as `conv1.bias`."""
        shapes = whole_shapes(recipe, num_classes=num_classes, statistics=True)
        absent = [name for name in shapes if name not in self.checkpoint.model]
        layers = [layer.name for layer in recipe.layers if f"{layer.name}.weight" in absent]
        return [*(x for x in absent if x.partition(".")[0] not in layers), *layers]


def open_weights(path: Path, *, mapped: bool = False) -> Weights:
    """Opens a checkpoint, a network that was exported, or weights of torchvision's or Caffe's.

    Args:
        path: of the file.
        mapped: as for `load_checkpoint`; other files are read.

    Raises:
        UserError: it is none of them, it is damaged, or it does not fit its own network.
    """
    if path.is_file() and is_safetensors(path):
        checkpoint, title = read_safetensors(path)
        return Weights(checkpoint=checkpoint, title=title, num_classes=checkpoint.num_classes)
    try:
        others = read_other_weights(path) if path.is_file() else None
    except OSError:  # `load_checkpoint` says so
        others = None
    if others is not None:
        return Weights(
            checkpoint=_as_checkpoint(others),
            title=others.title,
            num_classes=others.num_classes,
            is_partial=others.is_partial,
        )
    checkpoint = load_checkpoint(path, mapped=mapped)
    return Weights(checkpoint=checkpoint, num_classes=checkpoint.num_classes)


def network_of(path: Path, checkpoint: Checkpoint, given: ModelFile | None) -> AlexNet:
    """The network that a checkpoint's weights are of, without them: a recipe's, or a user's own.

    Raises:
        UserError: it is of a file, and that was not given or fails; or one was given for nothing.
    """
    model_file = same_model_file(path, checkpoint.model_file, given)
    if model_file is None:
        return AlexNet(checkpoint.recipe, num_classes=checkpoint.num_classes)
    network = build_own(model_file, checkpoint.recipe, num_classes=checkpoint.num_classes)
    here = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if here != {name: tensor.shape for name, tensor in checkpoint.model.items()}:
        raise UserError(
            f"--model {model_file}: makes another network now than for {path}: expected the same "
            "tensors at each call"
        )
    return network


def _as_checkpoint(others: OtherWeights) -> Checkpoint:
    num_classes = others.num_classes or others.recipe.fully_connected[-1].num_units
    names = [f"class {label}" for label in range(num_classes)]
    color = torch.tensor(others.mean_color, dtype=torch.float32)
    return Checkpoint(
        model=others.model,
        velocities={},
        step=0,
        epoch=1,
        val_errors=[],
        best_step=None,
        recipe=others.recipe,
        num_classes=num_classes,
        seed=0,
        wnids=names,
        class_names=names,
        mean_image=color.expand(paper.IMAGE_SIZE, paper.IMAGE_SIZE, 3).contiguous(),
        eigenvalues=torch.zeros(3),
        eigenvectors=torch.eye(3),
    )


def converted(source: Checkpoint, recipe: Recipe) -> tuple[Checkpoint, list[str]]:
    """A network's weights as another recipe reads the same pixels and drops the same outputs.

    So that the first layer gives the same products where the recipes divide the pixels by other
    numbers or read the channels in another order, and a layer behind dropout where one of them
    multiplies at test and the other in training.

    Returns:
        The checkpoint with other weights of these layers, and in words what was done.
    """
    began, model, done = source.recipe, dict(source.model), []
    first = recipe.layers[0].name
    weight = model.get(f"{first}.weight")
    if weight is not None and weight.dim() >= 2 and weight.shape[1] == 3:
        if began.channels != recipe.channels:
            weight = weight.flip(1)
            done.append(f"{first} from {began.channels} to {recipe.channels}")
        if began.pixel_divisor != recipe.pixel_divisor:
            here, there = (torch.tensor(x.pixel_divisor or (1.0,) * 3) for x in (recipe, began))
            ratio = (here / there).flip(0) if recipe.channels == "bgr" else here / there
            weight = weight * ratio.view(-1, *[1] * (weight.dim() - 2)).to(weight)
            done.append(f"{first} to pixels divided by {_shown(recipe.pixel_divisor)}")
        model[f"{first}.weight"] = weight
    if began.dropout_scale != recipe.dropout_scale:
        before, after = _at_test(began), _at_test(recipe)
        for name in (x for x in after if before.get(x, 1.0) != after[x]):
            if (stored := model.get(f"{name}.weight")) is not None:
                model[f"{name}.weight"] = stored * (before.get(name, 1.0) / after[name])
                done.append(f"{name} to dropout that multiplies {_WHEN[recipe.dropout_scale]}")
    return replace(source, model=model), done


_WHEN = {"test": "at test", "training": "in training"}


def _shown(numbers: Iterable[float]) -> str:
    return ", ".join(f"{x:g}" for x in numbers) or "nothing"


def _at_test(recipe: Recipe) -> dict[str, float]:
    """By what the inputs of each layer are multiplied at test."""
    scale = recipe.dropout_keep if recipe.dropout_scale == "test" else 1.0
    return {
        after.name: scale if before.dropout else 1.0
        for before, after in itertools.pairwise(recipe.layers)
    }
