"""What a run must hold in memory, and what its towers send each other: arithmetic, no measurement.

All numbers follow from the recipe; `tests/test_costs.py` compares them with what is counted.
"""

from dataclasses import dataclass

from replica.network.alexnet import output_side, whole_shapes
from replica.network.placement import tower_slice
from replica.recipes import Recipe

# max_pool2d keeps the place of each maximum as an int64; a dropout mask is one byte a unit.
INDEX_BYTES, MASK_BYTES = 8, 1


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


def training_memory(
    recipe: Recipe, *, num_classes: int, images: int, towers_here: int, precision: str
) -> Memory:
    """What a process with these towers needs for a step with so many images.

    Activations are what the gradient needs: the input of each layer, the outputs of ReLU and of
    the normalisation, the places of the maxima, the masks.

    Args:
        recipe: of the network.
        num_classes: of the run.
        images: of the batch that this process has.
        towers_here: 1 of 2, or all that there are.
        precision: bf16 halves the activations; weights stay in float32.
    """
    shapes = whole_shapes(recipe, num_classes=num_classes)
    value = 8 if precision == "float64" else 4
    kept = 2 if precision == "bf16" else value
    share = towers_here / recipe.towers
    parameters = round(share * sum(shape.numel() for shape in shapes.values()))
    side, first = recipe.crop_size, recipe.convs[0]
    values = float(3 * (side + sum(first.padding)) ** 2)
    indices = 0.0
    for conv in recipe.convs:
        if conv.reads_both_towers and towers_here < recipe.towers:
            # The other tower's half, which was received.
            values += share * _channels_before(recipe, conv.name) * side**2
        conv_side = (side + sum(conv.padding) - conv.kernel_size) // conv.stride + 1
        outputs = share * conv.num_kernels * conv_side**2
        values += outputs * (2 if conv.normalised else 1)
        side = output_side(recipe, conv, side)
        if conv.pooled:
            pooled = share * conv.num_kernels * side**2
            values += pooled
            indices += pooled
    masks = 0.0
    width = recipe.convs[-1].num_kernels * side**2
    for layer in recipe.fully_connected[:-1]:
        if towers_here < recipe.towers:
            values += width  # both halves, joined
        units = share * layer.num_units
        values += units * (2 if layer.dropout else 1)
        masks += units if layer.dropout else 0
        width = layer.num_units
    activations = images * (values * kept + indices * INDEX_BYTES + masks * MASK_BYTES)
    return Memory(parameters * value, parameters * value, parameters * value, round(activations))


def _channels_before(recipe: Recipe, name: str) -> int:
    names = [conv.name for conv in recipe.convs]
    return recipe.convs[names.index(name) - 1].num_kernels


def exchanged_values(
    recipe: Recipe, *, num_classes: int, images: int, tower: int
) -> dict[tuple[str, str], int]:
    """How many values a tower sends to the other one in a training step (paper, Figure 2).

    Returns:
        By (layer, "forward" or "backward"): its half of what each layer reads that reads both
        towers, the gradient of the other's half, and its logits, whose gradient both compute.
    """
    values: dict[tuple[str, str], int] = {}
    side = recipe.crop_size
    channels = 3
    for conv in recipe.convs:
        if conv.reads_both_towers:
            half = images * channels // 2 * side**2
            values[conv.name, "forward"] = values[conv.name, "backward"] = half
        side = output_side(recipe, conv, side)
        channels = conv.num_kernels
    width = channels * side**2
    for layer in recipe.fully_connected:
        half = images * width // 2
        values[layer.name, "forward"] = values[layer.name, "backward"] = half
        width = layer.num_units
    logits = tower_slice(num_classes, tower=tower, towers=2)
    values["loss", "forward"] = images * (logits.stop - logits.start)
    return values
