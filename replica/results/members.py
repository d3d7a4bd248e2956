"""Networks that are tested together, and the classes that are scored (paper 6).

N images, K scored classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_prep.errors import UserError
from data_prep.shards import DataSet, Part
from replica import paper
from replica.distributed.mesh import Mesh, Rank
from replica.distributed.worker import StopRequest
from replica.feed.augment import Crops, view_places
from replica.feed.views import view_batches
from replica.network.alexnet import AlexNet
from replica.training import evaluation
from replica.training.checkpoint import Checkpoint, check_fits_classes
from replica.training.numerics import compute_precision, parameter_dtype
from replica.training.options import Say


@dataclass(frozen=True)
class Member:
    """A checkpoint of an ensemble: where it is, and with the weights that are tested."""

    path: Path
    checkpoint: Checkpoint
    weights: str


@dataclass(frozen=True)
class CommonLabels:
    """How the labels of data and of a network's classes meet.

    Attributes:
        wnids: the classes that are scored, in the order of the first checkpoint.
        of_data: int64 (K,), the new label of each label of the data, or -1.
        is_all: whether data and networks have the same classes in the same order.
    """

    wnids: list[str]
    of_data: np.ndarray
    is_all: bool


def common_labels(members: list[Member], data: DataSet, say: Say) -> CommonLabels:
    """The classes that the data and all networks have.

    Raises:
        UserError: there is none.
    """
    sets = [data.wnids, *(member.checkpoint.wnids for member in members)]
    for member in members:
        have = len(member.checkpoint.wnids)
        if have != member.checkpoint.num_classes:
            raise UserError(
                f"{member.path}: has {have} class identifiers for {member.checkpoint.num_classes} "
                "classes: use another checkpoint of the run"
            )
    common = [wnid for wnid in sets[1] if all(wnid in others for others in sets)]
    is_all = all(others == common for others in sets)
    # One class alone would always be right.
    if len(common) < 2:
        if len([wnid for wnid in sets[1] if all(wnid in others for others in sets[2:])]) < 2:
            each = ", ".join(f"{x.path} of {len(x.checkpoint.wnids)}" for x in members)
            raise UserError(
                f"--checkpoint: the networks have no two classes in common ({each}): test each "
                "alone"
            )
        for member in members:
            check_fits_classes(member.path, member.checkpoint.wnids, data.wnids, data.directory)
        raise UserError(f"{data.directory}: expected classes that all --checkpoint have, got none")
    if not is_all:
        say(
            f"classes: scored on the {len(common)} in common of {len(data.wnids)} of the data and "
            f"{', '.join(str(len(x)) for x in sets[1:])} of the networks"
        )
    place = {wnid: label for label, wnid in enumerate(common)}
    of_data = np.array([place.get(wnid, -1) for wnid in data.wnids])
    return CommonLabels(common, of_data, is_all)


def rows_of(images: Part, labels: CommonLabels) -> Sequence[int]:
    """The images of a part whose class is scored."""
    if labels.is_all:
        return range(len(images))
    rows: list[int] = np.flatnonzero(labels.of_data[images.labels] >= 0).tolist()
    return rows


@dataclass
class Share:
    """One of several ranks that test together.

    Attributes:
        rank: of `num_processes` with the whole networks each.
        mesh: of all.
        stop: whether this rank was asked to stop.
        is_stopped: whether the ranks agreed to.
    """

    rank: Rank
    mesh: Mesh
    stop: StopRequest
    is_stopped: bool = False


def batches_of(
    networks: list["Network"],
    images: Part,
    rows: Sequence[int],
    labels: CommonLabels,
    *,
    views: str,
    share: Share | None = None,
) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
    """What each network says of the same images, (N, K) each, and their labels.

    With a share, each rank computes its own of the batches that one process would make, and rank 0
    yields all of them in their order: the same numbers for any number of ranks. The others yield
    nothing.
    """
    of_data = torch.from_numpy(labels.of_data)
    if share is None:
        for several, labels_N in _own_batches(networks, images, rows, views=views):
            yield several, of_data[labels_N]
        return
    size, num_ranks = networks[0].images_per_batch(views), share.rank.devices.num_processes
    batches = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
    mine = [row for batch in batches[share.rank.index :: num_ranks] for row in batch]
    own = _own_batches(networks, images, mine, views=views)
    shape = (len(networks), size, len(labels.wnids))
    for first in range(0, len(batches), num_ranks):
        found = torch.zeros(shape, dtype=networks[0].dtype)
        if first + share.rank.index < len(batches):
            several, _ = next(own)
            found[:, : len(several[0])] = torch.stack(several)
        stops = torch.tensor([int(share.stop.is_set())], device=share.mesh.device)
        if int(share.mesh.sum_over_all_(stops)):
            share.is_stopped = True
            return
        gathered = share.mesh.gather_tensors(found)
        if share.rank.index == 0:
            for batch, numbers in zip(batches[first : first + num_ranks], gathered, strict=False):
                here = torch.from_numpy(images.labels[np.asarray(batch)].astype(np.int64))
                yield list(numbers[:, : len(batch)]), of_data[here]


def _own_batches(
    networks: list["Network"], images: Part, rows: Sequence[int], *, views: str
) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
    """What each network says of images, and the labels of the data."""
    each = [network.probabilities(images, rows, views=views) for network in networks]
    for several in zip(*each, strict=True):
        yield [probabilities for probabilities, _ in several], several[0][1]


class Network:
    """A checkpoint's network, and the way of images to it.

    The mean image is the one that the network was trained with, not that of the data; `model` is
    what the checkpoint's weights are put into.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        labels: CommonLabels,
        *,
        model: AlexNet,
        device: torch.device,
        precision: str,
    ) -> None:
        self._recipe, self._mean = checkpoint.recipe, checkpoint.mean_image.numpy()
        self._columns: torch.Tensor | None = None
        if not labels.is_all:
            places = [checkpoint.wnids.index(wnid) for wnid in labels.wnids]
            self._columns = torch.tensor(places)
        self._model = model.eval()
        self._model.load_state_dict(checkpoint.model)
        self._device, self._precision = device, precision
        self.dtype = parameter_dtype(precision)
        self._model.to(device, self.dtype)

    def images_per_batch(self, views: str) -> int:
        """How many images' views are one batch."""
        return max(1, paper.BATCH_SIZE // len(self._places(views).flips))

    def _places(self, views: str) -> Crops:
        return places_of(views, len(self._mean), self._recipe.crop_size)

    def probabilities(
        self, images: Part, rows: Sequence[int], *, views: str
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Of the scored classes, (N, K), and the labels of the data, int64 (N,), by batches."""
        batches = view_batches(
            images,
            rows,
            views=self._places(views),
            mean_image=self._mean,
            mean=self._recipe.mean,
            crop_size=self._recipe.crop_size,
            images_per_batch=self.images_per_batch(views),
            device=self._device,
        )
        for mean_NK, labels_N in evaluation.probabilities_of(batches, predict=self._predict):
            if self._columns is not None:
                some = mean_NK[:, self._columns]
                mean_NK = some / some.sum(dim=1, keepdim=True)
            yield mean_NK, labels_N

    def _predict(self, crops: torch.Tensor) -> torch.Tensor:
        dtype = parameter_dtype(self._precision)
        with compute_precision(self._precision, kind=self._device.type):
            logits: torch.Tensor = self._model(crops.to(self._device, dtype))
        return logits.to(dtype)


def places_of(views: str, image_size: int, crop_size: int) -> Crops:
    """The places of views, which are all different."""
    num_places = image_size - crop_size + 1
    kind, _, per_side = views.partition(":")
    if kind == "grid" and int(per_side) > num_places:
        raise UserError(
            f"--views {views}: expected at most grid:{num_places}, as crops of {crop_size} pixels "
            f"have so many places per side in images of {image_size}"
        )
    return view_places(views, (image_size, image_size), crop_size=crop_size)
