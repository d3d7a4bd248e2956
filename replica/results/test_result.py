"""What a test found: error rates, and how sure they are (paper 4.1, 6)."""

from dataclasses import dataclass

from replica import paper

CONFIDENCE = 0.95
ILSVRC_CLASSES = 1000
# Their images and classes differ, so their error rates cannot be compared.
BENCHMARKS = {
    "ILSVRC-2010": "the images of the paper's Table 1, whose error rates are no ILSVRC-2012 ones",
    "ILSVRC-2012": "the images of the paper's Table 2, whose error rates are no ILSVRC-2010 ones",
}


@dataclass(frozen=True)
class TestResult:
    """Error rates, of what and on what: the keys of `replica.test --json`.

    Attributes:
        checkpoint: the first one; with several, `checkpoints` has all, and `shares` what each
            counts in the mean of their probabilities.
        benchmark: the ILSVRC of the images; None for other data.
        num_classes: how many classes the scores are over.
        calibration_error: the expected calibration error, a fraction.
    """

    checkpoint: str
    data: str
    manifest_sha256: str
    recipe: str
    step: int
    part: str
    views: int
    num_images: int
    loss: float
    top1_error: float
    top1_interval: tuple[float, float]
    top5_error: float
    top5_interval: tuple[float, float]
    weights: str = "last"
    checkpoints: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    benchmark: str | None = None
    num_classes: int = 0
    calibration_error: float = 0.0

    @property
    def images(self) -> str:
        """How many of which, and how much of each: `500 test images, ten crops`."""
        named = {1: "the central crop", paper.TEST_VIEWS: "ten crops"}
        views = named.get(self.views, f"{self.views} evenly spaced crops")
        return f"{self.num_images} {self.part} images, {views}"

    def __str__(self) -> str:
        lines = []
        for name, error, (low, high) in (
            ("top-1", self.top1_error, self.top1_interval),
            ("top-5", self.top5_error, self.top5_interval),
        ):
            lines.append(f"{name} error {error:.2%} (95 % interval {low:.2%} to {high:.2%})")
        averaged = ", averaged weights" if self.weights == "averaged" else ""
        where = f"on {self.images}"
        if len(self.checkpoints) > 1:
            shares = ", ".join(f"{share:.4g}" for share in self.shares)
            lines.append(f"{where}, {len(self.checkpoints)} networks by {shares}{averaged}")
        else:
            lines.append(f"{where}, step {self.step}{averaged}")
        if self.benchmark:
            lines.append(f"{self.benchmark}: {BENCHMARKS[self.benchmark]}")
        return "\n".join(lines)


def confidence_interval(error: float, num_images: int) -> tuple[float, float]:
    """The 95 % interval of an error rate (Wilson): what a repetition on new images may give."""
    from scipy.stats import binomtest  # takes half a second to import, in every process

    errors = round(error * num_images)
    interval = binomtest(errors, num_images).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
