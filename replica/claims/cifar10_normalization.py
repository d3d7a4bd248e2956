"""CIFAR-10 with and without local response normalization (3.3), its confound taken apart.

The paper has 13 % and 11 % test error. The authors' released 11 % net is not the 13 % net with
normalization: it is wider in local3, too, and decays fc10 more. Here each of the two is trained
with and without: four arms, so that both changes have a figure of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replica import paper
from replica.claims.trials import Outcome, Trial

NAMES = {"small": "cifar10-normalization", "full": "cifar10-normalization-full"}
FULL_EPOCHS = 520
# So that it shows in minutes: the fastest rate of Figure 1's ReLU net, and its last epoch with a
# tenth of it.
SMALL_EPOCHS, SMALL_RATE = 10, 0.004
_LAST = f"{SMALL_EPOCHS}:bias_learning_rate={2 * SMALL_RATE * paper.LEARNING_RATE_FACTOR:g}"
_SMALL = (
    f"learning_rate={SMALL_RATE:g}",
    f"bias_learning_rate={2 * SMALL_RATE:g}",
    f"drop_epochs={SMALL_EPOCHS}",
    f"changes={_LAST}",
)
_NORMALIZED = (
    "conv1.normalization=lrn",
    "conv2.normalization=lrn",
    "conv2.order=activation,normalization,pooling",
)
_PLAIN = ("conv1.normalization=none", "conv2.normalization=none")
NARROW, NARROW_NORMALIZED = "narrow", "narrow-normalized"
WIDE, WIDE_NORMALIZED = "wide", "wide-normalized"
ARMS = {
    NARROW: ("cifar10-13pct", ()),
    NARROW_NORMALIZED: ("cifar10-13pct", _NORMALIZED),
    WIDE: ("cifar10-11pct", _PLAIN),
    WIDE_NORMALIZED: ("cifar10-11pct", ()),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two arms: by how much more the first errs.

    Attributes:
        what: in words.
        paper: by how many points, as the paper has it.
        is_aside: not what the paper speaks of.
    """

    what: str
    worse: str
    better: str
    paper: float | None = None
    is_aside: bool = False


COMPARISONS = (
    Comparison(
        what="test error without normalization, in the 13 % net",
        worse=NARROW,
        better=NARROW_NORMALIZED,
        paper=paper.POINTS_OF_NORMALIZATION_CIFAR10,
    ),
    Comparison(
        what="test error without normalization, in the released 11 % net",
        worse=WIDE,
        better=WIDE_NORMALIZED,
        paper=paper.POINTS_OF_NORMALIZATION_CIFAR10,
    ),
    Comparison(
        what="test error with the narrower local3, both without normalization",
        worse=NARROW,
        better=WIDE,
        is_aside=True,
    ),
)


def plan(finished: Mapping[str, Outcome], *, scale: str, seeds: Sequence[int]) -> list[Trial]:
    """Seed by seed the four arms."""
    return [
        Trial(
            experiment=NAMES[scale],
            arm=arm,
            recipe=recipe,
            changes=(*changes, *(_SMALL if scale == "small" else ())),
            seed=seed,
            epochs=SMALL_EPOCHS if scale == "small" else FULL_EPOCHS,
        )
        for seed in seeds
        for arm, (recipe, changes) in ARMS.items()
    ]
