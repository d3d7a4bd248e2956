"""Who multiplies in each convolution of a run: what was asked for, and what it comes to."""

from cuda_ext import compiled_state
from cuda_ext.convolution_ways import Products, way_of
from replica.recipes import Recipe
from replica.recipes.geometry import geometry


def resolved_products(
    recipe: Recipe, products: Products, *, kind: str, split: int
) -> dict[str, Products]:
    """What `products` comes to on this machine, in words that mean the same on every machine.

    Args:
        recipe: of the network.
        products: "measured" depends on the kind of processor, on CUDA it is the library.
        kind: of the devices, "cpu" or "cuda".
        split: over how many of them a network is cut.

    Returns:
        By the name of each convolution, in the order of the network.
    """
    resolved: dict[str, Products] = {}
    for layer in geometry(recipe):
        if not layer.kernel_size or len(layer.weight_shape) == 6:
            continue  # fully connected, or other kernels at each place
        if kind != "cpu" or not compiled_state().is_live:
            resolved[layer.name] = "library" if products == "measured" else products
            continue
        # What one call sees: the towers that are here, and one half at a time where the other is
        # in another process.
        towers = recipe.towers // split if layer.reads == "own tower" else 1
        parts = 1 if layer.reads == "image" else split
        way = way_of(
            channels=layer.input_shape[0] // parts,
            stride=layer.stride,
            towers=towers,
            products=products,
        )
        resolved[layer.name] = way.products
    return resolved
