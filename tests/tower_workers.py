"""What the processes of the tests in test_towers.py run; spawned processes import this module."""

from pathlib import Path

import torch

from replica import model as model_module
from replica import towers
from replica.launch import Rank
from replica.process import Run, begin, whole_tensors
from replica.train import add_up, train_step_, validate

NUM_STEPS = 20
# A wrong exchange is seen at once.
NUM_STEPS_WRONG = 3


def train_and_dump(rank: Rank, argument: tuple[Run, str, str], stop) -> None:
    """Trains some steps with the real training code; rank 0 writes what came out.

    The second item of the argument names a wrong version of the exchange, or is empty.
    """
    run, wrong, path = argument
    break_exchange(wrong, rank)
    state = begin(run, rank)
    recorded = {}
    losses = []
    for batch in state.feed.batches(0, NUM_STEPS_WRONG if wrong else NUM_STEPS):
        counts = train_step_(state, batch, settings=state.settings(batch.step + 1))
        counts, _ = add_up(counts, state=state)
        losses.append(counts.mean_loss)
        if batch.step == 0:
            # Without momentum yet: v = -rate * (gradient + weight_decay * w before the step).
            recorded["first"] = whole_tensors(state)
    recorded["last"] = whole_tensors(state)
    counts, _ = validate(state, stop)
    if rank.index == 0:
        torch.save({**recorded, "losses": losses, "val_loss": counts.mean_loss}, Path(path))


def break_exchange(wrong: str, rank: Rank) -> None:
    """Makes one of the mistakes that a cut network invites."""
    if wrong in ("gradient doubled", "gradient halved"):
        right = towers._ReadBoth.backward
        factor = 2.0 if wrong == "gradient doubled" else 0.5

        def backward(ctx, gradient):
            return right(ctx, gradient * factor)

        towers._ReadBoth.backward = staticmethod(backward)
    if wrong == "conv3 gradient doubled":
        right_convolution = towers._ConvolveBoth.backward

        def backward_of_convolution(ctx, gradient):
            of_x, *others = right_convolution(ctx, gradient)
            return 2.0 * of_x, *others

        towers._ConvolveBoth.backward = staticmethod(backward_of_convolution)
    if wrong == "conv3 halves swapped" and rank.index == 1:
        right_halves = towers._halves
        towers._halves = lambda weight, tower: right_halves(weight, 1 - tower)
    if wrong == "another dropout seed" and rank.index == 1:
        right_mask = model_module.dropout_mask

        def mask(keys, **options):
            other = model_module.DropoutKeys(keys.seed + 1, keys.step, keys.rows)
            return right_mask(other, **options)

        model_module.dropout_mask = mask  # a network takes it when it is made


def count_traffic(rank: Rank, argument: tuple[Run, str], stop) -> None:
    """One training step; rank 0 writes the bytes that each process sent, by layer and direction."""
    run, path = argument
    state = begin(run, rank)
    for batch in state.feed.batches(0, 1):
        train_step_(state, batch, settings=state.settings(1))
    sent = state.mesh.gather_objects(dict(state.model.placement.sent))
    if rank.index == 0:
        torch.save(sent, Path(path))
