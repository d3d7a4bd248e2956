"""What is found about a claim: one sentence, what was expected, what came out, the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data_prep.shards import DataSet
from replica.claims.statistics import Difference
from replica.claims.trials import Outcome

REPRODUCED, CONTRADICTED = "reproduced", "contradicted"
WITHIN_NOISE, NOT_RUN = "within noise", "not run here"
VERDICTS = (CONTRADICTED, WITHIN_NOISE, NOT_RUN, REPRODUCED)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a claim says, and what was found.

    Attributes:
        expected, got: in words, with units.
        why: of a verdict that the figures do not explain.
        is_aside: not what the claim is about, such as a constant that the recipe repeats; where it
            contradicts, it counts all the same.
        difference: of trained claims, in points; None where nothing was trained.
        paper: the paper's figure for that difference, in points.
        scale: that something was trained at, `small` or `full`; else nothing.
    """

    what: str
    expected: str
    got: str
    verdict: str
    why: str = ""
    is_aside: bool = False
    difference: Difference | None = None
    paper: float | None = None
    scale: str = ""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What verdicts are made of: finished trials by experiment, and the data at hand."""

    outcomes: Mapping[str, Mapping[str, Outcome]] = field(default_factory=dict)
    data: DataSet | None = None
    scale: str = "small"

    def of(self, experiment: str) -> Mapping[str, Outcome]:
        """The finished trials of an experiment, by name."""
        return self.outcomes.get(experiment, {})


def overall(findings: Sequence[Finding]) -> str:
    """The verdict on a claim: of its findings the first in the order of `VERDICTS`."""
    return next(v for v in VERDICTS if any(x.verdict == v for x in counted(findings)))


def counted(findings: Sequence[Finding]) -> list[Finding]:
    """Those that the verdict on a claim is made of."""
    return [x for x in findings if not x.is_aside or x.verdict == CONTRADICTED]


def not_run(what: str, expected: str, why: str, *, is_aside: bool = False) -> Finding:
    """Of what cannot be judged here."""
    return Finding(
        what=what, expected=expected, got="", verdict=NOT_RUN, why=why, is_aside=is_aside
    )


def equal(what: str, expected: float, got: float, *, tolerance: float = 0.0) -> Finding:
    """Judges a number, within a fraction of it."""
    is_equal = abs(got - expected) <= tolerance * abs(expected)
    about = f" (within {tolerance:.0%})" if tolerance else ""
    return Finding(
        what=what,
        expected=f"{expected:,}{about}",
        got=f"{got:,}",
        verdict=REPRODUCED if is_equal else CONTRADICTED,
    )
