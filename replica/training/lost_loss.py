"""The end of a run whose loss is not a number: which images, at which step, and what is left."""

import json
from typing import NoReturn

import torch

from data_prep.files import write_whole
from replica.feed.feed import Batch
from replica.training.checkpoint import checkpoints_of
from replica.training.schedule import Settings
from replica.training.state import RunState

# How many images the message names.
NAMES_SHOWN = 5


def stop_at_lost_loss(state: RunState, batch: Batch, settings: Settings) -> NoReturn:
    """Ends a run whose loss is not a number, naming the images of the batch.

    Raises:
        RuntimeError: always, in every rank.
    """
    run, train = state.run, state.data.train
    assert state.losses is not None
    finite = torch.isfinite(state.losses).tolist()
    rows = state.feed.image_rows(batch.step)[batch.rows.numpy()]
    own = [(train.picture(int(row)), ok) for row, ok in zip(rows, finite, strict=True)]
    # Both towers of a copy have the same images.
    gathered = state.mesh.gather_objects(own if state.rank.tower == 0 else [])
    pictures = [picture for of_rank in gathered for picture in of_rank]
    lost = [name for name, ok in pictures if not ok]
    path = run.run_dir / f"lost-loss-{state.step:08d}.json"
    if state.rank.index == 0:
        record = {
            "step": state.step,
            "rates": settings.rates,
            "images_without_a_finite_loss": lost,
            "images": [name for name, _ in pictures],
        }
        write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
    good = checkpoints_of(run.run_dir)
    more = f" and {len(lost) - NAMES_SHOWN} more" if len(lost) > NAMES_SHOWN else ""
    raise RuntimeError(
        f"the loss is not finite at step {state.step}, for {len(lost)} of {len(pictures)} images "
        f"({', '.join(lost[:NAMES_SHOWN])}{more}; all are in {path}): the learning rate "
        f"{settings.learning_rate:g} is too high for this recipe, or the data is damaged; the last "
        f"good checkpoint is {good[-1] if good else 'none: the run had saved nothing yet'}"
    )
