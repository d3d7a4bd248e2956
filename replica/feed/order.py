"""In which order an epoch goes through the images, and what blocks cost in randomness."""

import numpy as np

from data_prep.shards import Part
from replica.network.draws import permutation, places_in_order, words_to_sort_by
from replica.recipes import Recipe


def order_of_epoch(recipe: Recipe, part: Part, *, epoch: int, seed: int) -> np.ndarray:
    """The order of `image_order=reshuffle` and `image_order=block`: int64 (N,), rows of the part.

    A pure function of the seed and the epoch. With blocks, the images of a block follow each other
    in a random order, and so do the blocks: a network disk is read a block at a time.

    Args:
        recipe: its `image_order` and `block_images`.
        part: that is trained on.
        epoch: counted from 1.
        seed: of the run.
    """
    if recipe.image_order == "reshuffle":
        return permutation(seed, len(part), purpose="order", epoch=epoch)
    starts = block_starts(recipe, part)
    places = np.empty(len(starts), np.int64)  # of each block, among the blocks of this epoch
    places[permutation(seed, len(starts), purpose="blocks", epoch=epoch)] = np.arange(len(starts))
    blocks = np.searchsorted(starts, np.arange(len(part)), side="right") - 1
    words = words_to_sort_by(seed, len(part), purpose="order", epoch=epoch)
    shuffled = places_in_order(words)
    kind = np.uint16 if len(starts) <= 1 << 16 else np.int64  # which NumPy sorts by its digits
    return shuffled[np.argsort(places[blocks[shuffled]].astype(kind), kind="stable")]


def block_starts(recipe: Recipe, part: Part) -> np.ndarray:
    """The first row of each block: int64; a block is a shard where `block_images` is None."""
    if recipe.block_images is not None:
        return np.arange(0, len(part), recipe.block_images)
    counts = [shard.num_images for shard in part.shards if shard.num_images]
    return np.cumsum([0, *counts[:-1]])


def cost_of_blocks(recipe: Recipe, part: Part, *, seed: int) -> str:
    """In words: how many classes meet in a batch of the first epoch, and in one without blocks."""
    labels, size = part.labels.astype(np.int64), min(recipe.batch_size, len(part))
    batches = np.arange(len(part)) // size
    whole = permutation(seed, len(part), purpose="order", epoch=1)
    in_blocks = order_of_epoch(recipe, part, epoch=1, seed=seed)
    classes = [
        len(np.unique(batches * (labels.max() + 1) + labels[order])) / (batches[-1] + 1)
        for order in (in_blocks, whole)
    ]
    starts = block_starts(recipe, part)
    largest = int(np.diff(np.append(starts, len(part))).max())
    return (
        f"shuffled within blocks of {largest:,} stored images ({len(starts):,} blocks): a batch of "
        f"{size:,} has {classes[0]:.1f} classes on average, of the whole set shuffled "
        f"{classes[1]:.1f}"
    )
