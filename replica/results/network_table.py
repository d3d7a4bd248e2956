"""Each network of a test beside their mean and the paper's: what each erred, took and ran on."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.progress import duration
from replica import paper
from replica.recipes.expected import EXPECTED
from replica.results.comparison import compared_run
from replica.results.members import Member
from replica.training.evaluation import Counts

NOT_KNOWN = "not known"


def network_rows(
    members: Sequence[Member], each: Sequence[Counts], together: Counts, *, images: str
) -> list[dict[str, Any]]:
    """A row for each network, with several one for their mean, and the paper's (Table 2, 1 CNN).

    Args:
        members: what was tested.
        each: of them, what is right.
        together: of the mean of their probabilities.
        images: which were tested, and how, in words.

    Returns:
        network, epochs, time and devices of the whole run, images; errors, fractions.
    """
    rows = [
        {
            "network": str(member.path),
            **_training(member.path),
            **_errors(images, counts.top1_error, counts.top5_error),
        }
        for member, counts in zip(members, each, strict=True)
    ]
    if len(members) > 1:
        rows.append(
            {
                "network": f"{len(members)} networks, averaged",
                **dict.fromkeys(("epochs", "time", "devices"), ""),
                **_errors(images, together.top1_error, together.top5_error),
            }
        )
    published = EXPECTED["paper"]
    top1, top5 = paper.ERRORS_2012_VAL
    of_paper = {
        "network": published.evidence,
        "epochs": str(paper.NUM_EPOCHS),
        "time": paper.TRAINING_TIME,
        "devices": paper.TRAINING_DEVICES,
        **_errors(f"{published.data}, {published.views}", top1, top5),
    }
    return [*rows, of_paper]


def _errors(images: str, top1_error: float, top5_error: float) -> dict[str, Any]:
    return {"images": images, "top1_error": top1_error, "top5_error": top5_error}


def _training(checkpoint: Path) -> dict[str, str]:
    """Of the run that a checkpoint lies in, where it lies in one that was validated."""
    with contextlib.suppress(UserError):
        run = compared_run(checkpoint.parent)
        # A run that goes on has more behind it.
        epochs = f"{run.epochs}{'' if run.is_complete else '...'}"
        return {"epochs": epochs, "time": duration(run.seconds), "devices": run.devices}
    return dict.fromkeys(("epochs", "time", "devices"), NOT_KNOWN)
