"""The error rates of a checkpoint, and how sure they are (paper 4.1, 6)."""

from dataclasses import dataclass
from pathlib import Path

import torch

from data_prep.errors import UserError
from data_prep.manifest import PARTS
from data_prep.progress import progress_bar
from data_prep.shards import DataSet, Part, open_data_set
from replica import paper
from replica.distributed.devices import choose_devices
from replica.feed.augment import Crops, view_places
from replica.feed.views import view_batches
from replica.network.alexnet import AlexNet
from replica.training.allocator import keep_large_blocks
from replica.training.checkpoint import (
    Checkpoint,
    check_fits_classes,
    last_whole_checkpoint,
    load_checkpoint,
    weights_in,
    with_weights,
)
from replica.training.evaluation import Counts, evaluate
from replica.training.numerics import (
    Numerics,
    check_precision,
    compute_precision,
    parameter_dtype,
    set_numerics,
)
from replica.training.options import DEFAULT_DATA, Say, say_nothing
from replica.training.run import say_what_computes
from replica.training.run_directory import newest_run
from replica.training.run_record import RUN_FILE, read_run_record

CONFIDENCE = 0.95


@dataclass(frozen=True)
class TestResult:
    """Error rates, of what and on what: the keys of `replica.test --json`."""

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

    def __str__(self) -> str:
        lines = []
        for name, error, (low, high) in (
            ("top-1", self.top1_error, self.top1_interval),
            ("top-5", self.top5_error, self.top5_interval),
        ):
            lines.append(f"{name} error {error:.2%} (95 % interval {low:.2%} to {high:.2%})")
        named = {1: "the central crop", paper.TEST_VIEWS: "ten crops"}
        views = named.get(self.views, f"{self.views} evenly spaced crops")
        averaged = ", averaged weights" if self.weights == "averaged" else ""
        where = f"on {self.num_images} {self.part} images, {views}"
        lines.append(f"{where}, step {self.step}{averaged}")
        return "\n".join(lines)


def test_network(
    checkpoint_path: Path | None,
    data_dir: Path | None,
    part: str | None,
    *,
    views: str,
    device: str,
    precision: str,
    weights: str | None,
    say: Say,
) -> TestResult:
    """Tests a checkpoint on a part of a data set.

    Args:
        checkpoint_path: None for the last whole one of the newest run.
        data_dir: None for the data of the checkpoint's run.
        part: None for the part that is held out.
        views: of an image, which are averaged: a name that `view_places` knows.
        device: `auto`, `cpu` or `cuda`.
        precision: of `PRECISIONS`.
        weights: of `WEIGHTS`; None for the averaged ones where the checkpoint has them.
        say: called with a line for each default that is taken.

    Raises:
        UserError: there is no such checkpoint, data or part, or they do not fit each other.
    """
    keep_large_blocks()  # before the first tensor is read
    path, checkpoint = _choose_checkpoint(checkpoint_path, say)
    which = weights_in(checkpoint, weights, path=path)
    if weights is None and which == "averaged":
        say("weights: averaged, as the checkpoint has them (no --weights given)")
    data = _choose_data(data_dir, path, say)
    check_fits_classes(path, checkpoint.wnids, data.wnids, data.directory)
    side = checkpoint.mean_image.shape[0]
    if side != data.image_size:
        raise UserError(
            f"{data.directory}: has images of {data.image_size} pixels, but {path} was trained on "
            f"{side}: give such data with --data"
        )
    crops = _places(views, side, checkpoint.recipe.crop_size)
    part = _choose_part(part, data, say)
    devices = choose_devices(
        gpus=None,
        num_gpus_present=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        split=None,
        device=device,
        towers=checkpoint.recipe.towers,
        say=say_nothing,  # its notes are on --gpus, which is no option here
    )
    check_precision(precision, kind=devices.kind)
    set_numerics(Numerics(precision=precision, deterministic=devices.kind == "cpu"))
    say_what_computes(data, say)
    counts = count_errors(
        with_weights(checkpoint, which),
        data.part(part),
        views=crops,
        device=torch.device(devices.kind),
        precision=precision,
    )
    return TestResult(
        checkpoint=str(path),
        data=str(data.directory),
        manifest_sha256=data.manifest_sha256,
        recipe=checkpoint.recipe.name,
        step=checkpoint.step,
        part=part,
        views=len(crops.flips),
        num_images=counts.num_images,
        loss=counts.mean_loss,
        top1_error=counts.top1_error,
        top1_interval=confidence_interval(counts.top1_error, counts.num_images),
        top5_error=counts.top5_error,
        top5_interval=confidence_interval(counts.top5_error, counts.num_images),
        weights=which,
    )


def _choose_checkpoint(named: Path | None, say: Say) -> tuple[Path, Checkpoint]:
    """The named checkpoint, or the last whole one of the newest run."""
    if named is not None:
        return named, load_checkpoint(named)
    path, checkpoint, passed_over = last_whole_checkpoint(newest_run(purpose="test"))
    for line in passed_over:
        say(f"passed over {line}")
    say(f"checkpoint: {path} (no --checkpoint given: the last one of the newest run)")
    return path, checkpoint


def _choose_data(named: Path | None, checkpoint: Path, say: Say) -> DataSet:
    """The named data, or those of the checkpoint's run."""
    if named is not None:
        return open_data_set(named)
    if (checkpoint.parent / RUN_FILE).is_file():
        directory = Path(read_run_record(checkpoint.parent).data.directory)
        say(f"data: {directory} (no --data given: that of the run)")
    else:
        directory = DEFAULT_DATA
        say(f"data: {directory} (no --data given)")
    return open_data_set(directory)


def _places(views: str, image_size: int, crop_size: int) -> Crops:
    """The places of views, which are all different."""
    num_places = image_size - crop_size + 1
    kind, _, per_side = views.partition(":")
    if kind == "grid" and int(per_side) > num_places:
        raise UserError(
            f"--views {views}: expected at most grid:{num_places}, as crops of {crop_size} pixels "
            f"have so many places per side in images of {image_size}"
        )
    return view_places(views, (image_size, image_size), crop_size=crop_size)


def _choose_part(name: str | None, data: DataSet, say: Say) -> str:
    """The named part of the data, or the one that is held out."""
    if name is None:
        if data.held_out != "val":
            say(f"part: {data.held_out} (the data has no val)")
        return data.held_out
    if not len(data.part(name)):
        have = ", ".join(part for part in PARTS if len(data.part(part)))
        raise UserError(f"--part {name}: expected one of {have}, which {data.directory} has")
    return name


def count_errors(
    checkpoint: Checkpoint, images: Part, *, views: Crops, device: torch.device, precision: str
) -> Counts:
    """Counts the errors of a checkpoint's network on views of a part of a data set.

    The mean image is the one that the network was trained with, not that of the data.
    """
    recipe = checkpoint.recipe
    model = AlexNet(recipe, num_classes=checkpoint.num_classes).eval()
    model.load_state_dict(checkpoint.model)
    dtype = parameter_dtype(precision)
    model.to(device, dtype)

    def predict(crops: torch.Tensor) -> torch.Tensor:
        with compute_precision(precision, kind=device.type):
            logits: torch.Tensor = model(crops.to(device, dtype))
        return logits.to(dtype)

    batches = view_batches(
        images,
        range(len(images)),
        views=views,
        mean_image=checkpoint.mean_image.numpy(),
        mean=recipe.mean,
        crop_size=recipe.crop_size,
        images_per_batch=max(1, paper.BATCH_SIZE // len(views.flips)),
        device=device,
    )
    with progress_bar(len(images), " images") as progress:
        counts = evaluate(batches, predict=predict, on_progress=progress.update)
    counts.check(len(images))
    return counts


def confidence_interval(error: float, num_images: int) -> tuple[float, float]:
    """The 95 % interval of an error rate (Wilson): what a repetition on new images may give."""
    from scipy.stats import binomtest  # takes half a second to import, in every process

    errors = round(error * num_images)
    interval = binomtest(errors, num_images).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
