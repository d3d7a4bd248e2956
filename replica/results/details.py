"""Which classes a network is wrong about, for which it takes them, and how sure it is.

N images, K classes, B bins.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.errors import printable
from data_prep.files import whole_file
from replica.training.evaluation import shares_on_device

TABLES = ("classes", "confusion", "calibration", "networks")
NUM_BINS = 15
MOST_SHOWN = 20  # rows of confusions in text; CSV and JSON have all
Rows = list[dict[str, Any]]


@dataclass
class Details:
    """Exact counts, added up batch by batch.

    Attributes:
        wnids, class_names: of the K classes, in the order of the labels.
        right: float64 (K, 3), of each class: images, and those right within top-1 and top-5, ties
            by their share as in `Counts`.
        confusions: int64 (K, K), images by their class and by the most probable one.
        bins: float64 (B, 3), by the highest probability: images, the sum of that probability, and
            images whose most probable class is right.
        kept: the probabilities and labels of the batches, where they are kept.
        images: rows of the part that is tested, in the order in which they are added.
        networks: makes the rows of `network_rows`.
    """

    wnids: list[str]
    class_names: list[str]
    keeps: bool = False
    kept: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    images: Sequence[int] = ()
    networks: Callable[[], Rows] = list

    def __post_init__(self) -> None:
        num_classes = len(self.wnids)
        self.right = torch.zeros(num_classes, 3, dtype=torch.float64)
        self.confusions = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.bins = torch.zeros(NUM_BINS, 3, dtype=torch.float64)

    def add(self, probabilities_NK: torch.Tensor, labels_N: torch.Tensor) -> None:
        """Counts a batch: float (N, K) and int64 (N,)."""
        shares = shares_on_device(probabilities_NK, labels_N)
        ones = torch.ones(len(labels_N), dtype=torch.float64)
        self.right.index_add_(0, labels_N, torch.stack([ones, *shares.double()], dim=1))
        confidences, chosen = probabilities_NK.max(dim=1)
        places = labels_N * len(self.wnids) + chosen
        self.confusions.view(-1).index_add_(0, places, torch.ones_like(places))
        bins = (confidences.double() * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        is_right = (chosen == labels_N).double()
        self.bins.index_add_(0, bins, torch.stack([ones, confidences.double(), is_right], dim=1))
        if self.keeps:
            self.kept.append((probabilities_NK, labels_N))

    def calibration_error(self) -> float:
        """The mean over images of |share that is right - mean confidence| of their bin."""
        counts, confidences, right = self.bins.T
        return float((right - confidences).abs().sum() / counts.sum())

    def save(self, path: Path) -> None:
        """Writes what was kept: `probabilities` float (N, K), `labels` int64 (N,), `wnids` (K,).

        Raises:
            UserError: the file system refuses; nothing is left behind.
        """
        each = [torch.cat(one).numpy() for one in zip(*self.kept, strict=True)]
        with whole_file(path) as file:
            np.savez(file, probabilities=each[0], labels=each[1], wnids=np.array(self.wnids))

    def rows(self, table: str) -> Rows:
        """A table of `TABLES`, as records."""
        return {
            "classes": self._classes,
            "confusion": self._confusions,
            "calibration": self._calibration,
            "networks": self.networks,
        }[table]()

    def _classes(self) -> Rows:
        """Of each class that has images: its errors, and the class that it is most taken for."""
        rows = []
        for label, (images, top1, top5) in enumerate(self.right.tolist()):
            if not images:
                continue
            others = self.confusions[label].clone()
            others[label] = 0
            other = int(others.argmax())
            rows.append(
                {
                    "wnid": self.wnids[label],
                    "class": self.class_names[label],
                    "images": int(images),
                    "top1_error": 1 - top1 / images,
                    "top5_error": 1 - top5 / images,
                    "most_taken_for": self.class_names[other] if others[other] else "",
                    "times": int(others[other]),
                }
            )
        return rows

    def _confusions(self) -> Rows:
        """The pairs of classes that are confused, the most frequent first."""
        wrong = self.confusions.clone().fill_diagonal_(0)
        labels, chosen = wrong.nonzero(as_tuple=True)
        counts = wrong[labels, chosen]
        order = counts.argsort(descending=True, stable=True)
        return [
            {
                "class": self.class_names[label],
                "taken_for": self.class_names[other],
                "wnid": self.wnids[label],
                "taken_for_wnid": self.wnids[other],
                "times": count,
            }
            for label, other, count in zip(
                *(x[order].tolist() for x in (labels, chosen, counts)), strict=True
            )
        ]

    def _calibration(self) -> Rows:
        """Of each bin that has images: how sure the network is, and how often it is right."""
        return [
            {
                "from": number / NUM_BINS,
                "to": (number + 1) / NUM_BINS,
                "images": int(images),
                "mean_confidence": confidence / images,
                "top1_right": right / images,
            }
            for number, (images, confidence, right) in enumerate(self.bins.tolist())
            if images
        ]


def as_csv(rows: Rows) -> str:
    """The rows with a line of names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def as_markdown(rows: Rows) -> str:
    """The rows as a table; what would end a cell is escaped."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    for row in rows:
        cells = (_cell(x).replace("|", "\\|") for x in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_text(rows: Rows) -> str:
    """The rows in columns."""
    if not rows:
        return ""
    table = [list(rows[0]), *([_cell(x) for x in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        for cells in table
    )
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else printable(str(value))
