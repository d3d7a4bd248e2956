"""What a training step must hold in memory, and what its towers send each other; nothing is run.

`tests/test_costs.py` compares both with what is counted in real steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from replica.distributed.exchange import TwoDevices
from replica.network.alexnet import AlexNet
from replica.network.placement import Placement, tower_slice
from replica.recipes import Recipe
from replica.recipes.geometry import geometry


@dataclass(frozen=True)
class Memory:
    """Bytes that one process holds at the end of the forward pass of a training step."""

    weights: int
    velocities: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.velocities + self.gradients + self.activations


class _AloneOfTwo(TwoDevices):
    """One tower whose other one sends tensors of the right shape at once."""

    def begin_swap(
        self, mine: torch.Tensor, *, layer: str, direction: str, num_logits: int | None = None
    ) -> Callable[[], torch.Tensor]:
        return lambda: mine.new_empty(len(mine), num_logits or mine.shape[1], *mine.shape[2:])


def training_memory(
    recipe: Recipe, *, num_classes: int, images: int, towers_here: int, precision: str
) -> Memory:
    """What a process with these towers, 1 of 2 or all, needs for a step with so many images.

    Activations are what autograd keeps of a forward pass, made with tensors that have shapes and no
    memory. In bf16 and fp16, of one size, weights stay in float32, and copies of them are kept.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # 1 s to import, for a dry run alone

    dtype = torch.float64 if precision == "float64" else torch.float32
    is_whole = towers_here == recipe.towers
    placement = Placement(recipe.towers) if is_whole else _AloneOfTwo(tower=0, peer=1)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with FakeTensorMode():
        model = AlexNet(recipe, num_classes=num_classes, placement=placement)
        parameters = {name: weight.to(dtype) for name, weight in model.named_parameters()}
        masks = model.dropout_masks(torch.arange(images), seed=0, step=0)
        shape = (images, 3, recipe.crop_size, recipe.crop_size)
        x = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=precision in ("bf16", "fp16")),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            logits = torch.func.functional_call(model, parameters, (x, masks))
        assert logits.requires_grad  # as long as it lives, what is kept does
        own = [weight.untyped_storage() for weight in parameters.values()]
        for storage in own:
            kept.pop(storage._cdata, None)
        weights = sum(storage.nbytes() for storage in own)
        activations = sum(storage.nbytes() for storage in kept.values())
    return Memory(weights, weights, weights, activations)


def exchanged_values(
    recipe: Recipe, *, num_classes: int, images: int, tower: int
) -> dict[tuple[str, str], int]:
    """How many values a tower sends to the other one in a training step (paper, Figure 2).

    By (layer, "forward" or "backward"): its half of what each layer reads that reads both towers,
    the gradient of the other's half, and its logits, whose gradient both compute.
    """
    logits = tower_slice(num_classes, tower=tower, towers=2)
    values = {("loss", "forward"): images * (logits.stop - logits.start)}
    for layer in geometry(recipe, num_classes=num_classes):
        if layer.reads == "both towers":
            half = images * layer.num_inputs // 2
            values[layer.name, "forward"] = values[layer.name, "backward"] = half
    return values
