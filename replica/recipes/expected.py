"""What each recipe is expected to reach: the figures of the paper and of the source's notes."""

from dataclasses import dataclass

from replica import paper

VALIDATION_2012, TEST_2010 = "ILSVRC-2012 validation", "ILSVRC-2010 test"


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Errors of one run.

    Attributes:
        data: that was tested on.
        top1_error, top5_error: fractions.
        evidence: where they stand.
        views: whose probabilities are averaged.
    """

    data: str
    top1_error: float
    top5_error: float
    evidence: str
    views: str = "ten crops"

    def __str__(self) -> str:
        top1, top5 = (f"{round(100 * x, 2)} %" for x in (self.top1_error, self.top5_error))
        where = f"{self.views}, on {self.data} ({self.evidence})"
        return f"{top1} top-1 and {top5} top-5 error, {where}"


def _of_2012(top1: float, top5: float, evidence: str) -> Expected:
    return Expected(data=VALIDATION_2012, top1_error=top1, top5_error=top5, evidence=evidence)


def _of_center(top1_accuracy: float, top5_accuracy: float, evidence: str) -> Expected:
    return Expected(
        data=VALIDATION_2012,
        top1_error=round(1 - top1_accuracy / 100, 5),
        top5_error=round(1 - top5_accuracy / 100, 5),
        evidence=evidence,
        views="central crop",
    )


def _of_2010(top1: float, top5: float, evidence: str) -> Expected:
    return Expected(data=TEST_2010, top1_error=top1, top5_error=top5, evidence=evidence)


# By the recipe's name. A file without a folder is of the source's layer files.
EXPECTED = {
    "paper": _of_2012(*paper.ERRORS_2012_VAL, "paper, Table 2, 1 CNN"),
    "paper-conv6": _of_2012(*paper.ERRORS_2012_VAL_CONV6, "paper, Table 2, 1 CNN*"),
    "source-2012": _of_2012(0.406640, 0.182100, "layer-params-145.cfg:182"),
    "source-2010": _of_2010(0.374727, 0.169987, "layer-params-145-2010.cfg:178"),
    "source-2012-half": _of_2010(0.391680, 0.182287, "layer-params-145-half.cfg:100"),
    "source-2012-no-overlap": _of_2012(0.410580, 0.185100, "layer-params-147.cfg:174"),
    "source-2012-no-norm": _of_2012(0.420340, 0.193620, "layer-params-148.cfg:148"),
    "source-2012-no-communication": _of_2012(0.418280, 0.193300, "layer-params-150.cfg:179"),
    "source-2012-conv6": _of_2012(0.389900, 0.166220, "layer-params-146-2012-2011.cfg:195"),
    # Of their published weights, not of this project's training.
    "torchvision": _of_center(56.522, 79.066, "models/alexnet.py, AlexNet_Weights"),
    "caffe-alexnet": _of_center(57.1, 80.2, "bvlc_alexnet/readme.md"),
    "caffenet": _of_center(57.4, 80.4, "bvlc_reference_caffenet/readme.md"),
}


def claim_of(name: str, what: str) -> str:
    """A recipe's claim: what it is, and what it is expected to reach where a figure is known."""
    return f"{what}: {EXPECTED[name]}" if name in EXPECTED else what
