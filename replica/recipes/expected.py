"""What each recipe is expected to reach: figures of the paper, of the source, of other projects."""

from dataclasses import dataclass

from replica import paper

VALIDATION_2012, TEST_2010 = "ILSVRC-2012 validation", "ILSVRC-2010 test"
TINY_IMAGENET = "Tiny ImageNet validation"


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Errors of one run.

    Attributes:
        data: that was tested on.
        top1_error, top5_error: fractions; None where it was not published.
        evidence: where they stand.
        views: whose probabilities are averaged.
    """

    data: str
    top1_error: float
    top5_error: float | None
    evidence: str
    views: str = "ten crops"

    def __str__(self) -> str:
        errors = {"top-1": self.top1_error, "top-5": self.top5_error}
        known = [f"{round(100 * x, 2)} % {name}" for name, x in errors.items() if x is not None]
        where = f"{self.views}, on {self.data} ({self.evidence})"
        return f"{' and '.join(known)} error, {where}"


def _of_2012(top1: float, top5: float, evidence: str) -> Expected:
    return Expected(data=VALIDATION_2012, top1_error=top1, top5_error=top5, evidence=evidence)


def _of_center(
    top1_accuracy: float,
    top5_accuracy: float | None,
    evidence: str,
    *,
    data: str = VALIDATION_2012,
) -> Expected:
    return Expected(
        data=data,
        top1_error=round(1 - top1_accuracy / 100, 5),
        top5_error=None if top5_accuracy is None else round(1 - top5_accuracy / 100, 5),
        evidence=evidence,
        views="central crop",
    )


def _of_tiny(top1_accuracy: float) -> Expected:
    return _of_center(top1_accuracy, None, "that project's readme.md", data=TINY_IMAGENET)


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
    # What earlier projects published of their own training, before what is mended here.
    "imagenet-one-gpu": _of_center(44.2, 70.1, "that project's README.md, in 22 epochs"),
    "tiny10": _of_center(
        54.6, None, "that project's results.csv, chosen on test", data="Tiny Image10 test"
    ),
    "tiny-baseline": _of_tiny(30.32),
    "tiny-crop": _of_tiny(35.49),
    "tiny-pixels": _of_tiny(33.31),
    "tiny-dropout": _of_tiny(33.57),
    "tiny-batch-norm": _of_tiny(31.4),
    "tiny-large": _of_tiny(48.22),
    "tiny-small": _of_tiny(46.83),
    "tiny-average-pooling": _of_tiny(49.64),
    "cifar10-transfer": _of_center(
        86.57, None, "that project's README.md, chosen on test", data="CIFAR-10 test"
    ),
}


def claim_of(name: str, what: str) -> str:
    """A recipe's claim: what it is, and what it is expected to reach where a figure is known."""
    return f"{what}: {EXPECTED[name]}" if name in EXPECTED else what
