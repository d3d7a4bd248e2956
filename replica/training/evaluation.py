"""Error rates: exact counts over a part of a data set, for one view or more of each image.

N images, V views, C channels, H rows, W columns, K classes.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # a prediction needs no feed, whose imports take a tenth of a second
    from replica.feed.feed import Batch

TOP_K = 5


@dataclass(frozen=True)
class Counts:
    """Sums over images; error rates come from them, never from means of means.

    A tie counts by the share of its orders that is right; `loss` sums -log(probability of the
    label).
    """

    num_images: int = 0
    top1_correct: float = 0.0
    top5_correct: float = 0.0
    loss: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: x + getattr(other, name) for name, x in vars(self).items()})

    @property
    def top1_error(self) -> float:
        """Fraction of images whose label is not the most probable class."""
        return 1.0 - self.top1_correct / self.num_images

    @property
    def top5_error(self) -> float:
        """Fraction of images whose label is not among the five most probable classes."""
        return 1.0 - self.top5_correct / self.num_images

    @property
    def mean_loss(self) -> float:
        """Mean of -log(probability of the label)."""
        return self.loss / self.num_images

    def check(self, num_images: int) -> None:
        """Raises a RuntimeError where images are missing or were counted twice."""
        if self.num_images != num_images:
            raise RuntimeError(
                f"error rates need all {num_images} images; the data gave {self.num_images}"
            )


def count(
    probabilities_NK: torch.Tensor, labels_N: torch.Tensor, logits: torch.Tensor | None = None
) -> Counts:
    """Counts a batch: float (N, K) and int64 (N,).

    Where the label's probability is below what its type holds, the loss is that of `logits`,
    (N * V, K) as of `mean_probabilities`, where they are given; else it is infinite.
    """
    own = probabilities_NK.gather(1, labels_N[:, None])
    right = count_on_device(probabilities_NK, labels_N)
    top1, top5 = right.tolist()
    log = own.double().log()
    is_lost = own == 0
    if logits is not None and is_lost.any():
        log = torch.where(is_lost, _log_probabilities(logits.cpu(), labels_N), log)
    return Counts(len(labels_N), top1, top5, float(-log.sum()))


def _log_probabilities(logits: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Logarithm of the label's probability, averaged over views: (N * V, K) to float64 (N, 1)."""
    num_views = len(logits) // len(labels_N)
    each = logits.double().log_softmax(dim=1)
    own = each.gather(1, labels_N.repeat_interleave(num_views)[:, None])
    return own.view(-1, num_views).logsumexp(dim=1, keepdim=True) - math.log(num_views)


def count_on_device(probabilities_NK: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """How many of a batch are right within top-1 and top-5: float64 (2,) on its device."""
    return shares_on_device(probabilities_NK, labels_N).sum(1)


def shares_on_device(probabilities_NK: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Whether each image is right within top-1 and top-5: float64 (2, N), a tie by its share.

    DEVIATION D12: the text does not speak of ties; as in the source, classes that tie with the
    label at the border of the top k count by the share of orders in which the label is inside. So a
    network without an opinion is right as often as chance.
    """
    own = probabilities_NK.gather(1, labels_N[:, None])
    higher = (probabilities_NK > own).sum(1)
    # Counts the label itself; NaN equals nothing, so it is never correct.
    tied = (probabilities_NK == own).sum(1)
    k = torch.arange(1, TOP_K + 1, TOP_K - 1, device=own.device)[:, None]
    share = (k - higher).clamp(min=0).double() / tied.clamp(min=1)
    return share.clamp(max=1) * (tied > 0)


def mean_probabilities(
    crops: torch.Tensor, predict: Callable[[torch.Tensor], torch.Tensor], *, num_images: int
) -> torch.Tensor:
    """Softmax of every view, then the mean over each image's views (paper 4.1).

    Args:
        crops: float32 (N * V, C, H, W), preprocessed, the views of the first image first.
        predict: such crops to logits (N * V, K).
        num_images: N.

    Returns:
        (N, K) on the CPU, of the logits' type.
    """
    num_views = len(crops) // num_images
    with torch.inference_mode():
        probabilities = predict(crops).softmax(dim=1).cpu()
    return probabilities.view(num_images, num_views, -1).mean(dim=1)


def evaluate(
    batches: Iterable["Batch"],
    *,
    predict: Callable[[torch.Tensor], torch.Tensor],
    on_progress: Callable[[int], object] = lambda _: None,
) -> Counts:
    """Counts the errors of a network; views of an image are averaged after the softmax.

    Args:
        batches: of `view_batches`: all views of N images, and N labels.
        predict: float32 (N * V, C, H, W) to logits (N * V, K), float32 or float64.
        on_progress: called with the number of images after each batch.
    """
    counts = Counts()
    for batch in batches:
        labels_N = batch.labels
        with torch.inference_mode():
            logits = predict(batch.images)
        mean_NK = mean_probabilities(logits, lambda own: own, num_images=len(labels_N))
        counts += count(mean_NK, labels_N, logits)
        on_progress(len(labels_N))
    return counts


def probabilities_of(
    batches: Iterable["Batch"], *, predict: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What a network says of the images of batches; arguments as of `evaluate`.

    Yields:
        Probabilities averaged over views, (N, K) on the CPU, and the labels, int64 (N,).
    """
    for batch in batches:
        yield mean_probabilities(batch.images, predict, num_images=len(batch.labels)), batch.labels
