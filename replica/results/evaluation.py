"""The error rates of a checkpoint, or of several as one (paper 4.1, 6)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from data_prep.errors import UserError, command_for
from data_prep.manifest import PARTS
from data_prep.progress import progress_bar
from data_prep.shards import DataSet, open_data_set
from replica.distributed.devices import Devices, choose_devices
from replica.network.own_network import ModelFile
from replica.results.details import Details
from replica.results.ensemble import SEARCH, read_weights, search_weights, weighted_mean
from replica.results.members import (
    CommonLabels,
    Member,
    Network,
    Share,
    batches_of,
    common_labels,
    places_of,
    rows_of,
)
from replica.results.nearest_images import evenly
from replica.results.network_table import network_rows
from replica.results.prediction import checkpoint_file
from replica.results.test_result import ILSVRC_CLASSES, TestResult, confidence_interval
from replica.training import evaluation
from replica.training.allocator import keep_large_blocks
from replica.training.checkpoint import (
    Checkpoint,
    last_whole_checkpoint,
    weights_in,
    with_weights,
)
from replica.training.evaluation import Counts
from replica.training.numerics import Numerics, check_precision, set_numerics
from replica.training.options import DEFAULT_DATA, Say, say_nothing
from replica.training.run import say_what_computes
from replica.training.run_directory import newest_run
from replica.training.run_record import RUN_FILE, read_run_record
from replica.training.weights import network_of, open_weights


class NothingCountedError(Exception):
    """A rank has no result of a test."""


def test_network(
    checkpoint_paths: Sequence[Path],
    data_dir: Path | None,
    part: str | None,
    *,
    views: str,
    device: str,
    precision: str,
    weights: str | None,
    weights_of: str,
    keeps: bool,
    most_images: int | None,
    model_source: str | None,
    say: Say,
    share: Share | None,
) -> tuple[TestResult, Details]:
    """Tests a checkpoint, or several as one, on a part of a data set.

    Args:
        checkpoint_paths: files of `replica.train`, exports of them as `.safetensors`, or run
            directories, whose best one is meant; none for the last whole one of the newest run.
        data_dir: None for the data of the first checkpoint's run.
        part: None for the part that is held out.
        views: of an image, which are averaged: a name that `view_places` knows.
        device: `auto`, `cpu` or `cuda`.
        precision: of `PRECISIONS`.
        weights: of `WEIGHTS`; None for the averaged ones where the checkpoint has them.
        weights_of: what each checkpoint counts: `equal`, `search` or numbers between commas.
        model_source: `FILE:FUNCTION` of the checkpoints with a user's own network.
        keeps: whether the details keep all probabilities.
        most_images: where there are more, so many of them are tested, evenly over all.
        say: called with a line for each default that is taken.
        share: of the rank that this is, where several test together; None where one does. The
            result is the same.

    Raises:
        UserError: there is no such checkpoint, data or part, or they do not fit each other.
        NothingCountedError: rank 0 counts, not this one, or the ranks were asked to stop.
    """
    keep_large_blocks()  # before the first tensor is read
    if weights_of != SEARCH:
        shares = read_weights(weights_of, max(1, len(checkpoint_paths)))
    members = [_member(*x, weights, say) for x in _choose_checkpoints(checkpoint_paths, say)]
    if share:
        check_all_have(members, share)
    first = members[0]
    given = None if model_source is None else ModelFile.read(model_source)
    has_own = any(x.checkpoint.model_file for x in members)
    data = choose_data(data_dir, first.path, say)
    labels = common_labels(members, data, say)
    for member in members:
        side = member.checkpoint.mean_image.shape[0]
        if side != data.image_size:
            raise UserError(
                f"{data.directory}: has images of {data.image_size} pixels, but {member.path} was "
                f"trained on {side}: give such data with --data"
            )
        crops = places_of(views, side, member.checkpoint.recipe.crop_size)
    part = _choose_part(part, data, say)
    rows = rows_of(data.part(part), labels)
    if not rows:
        raise UserError(f"{data.directory}: expected {part} images of classes in common, got none")
    if most_images is not None:
        rows = [rows[place] for place in evenly(len(rows), most_images)]
    here = share.rank.device if share else torch.device(devices_of_test(None, device).kind)
    check_precision(precision, kind=here.type)
    set_numerics(Numerics(precision=precision, deterministic=here.type == "cpu"))
    say_what_computes(data, say)
    models = [
        network_of(x.path, x.checkpoint, given if x.checkpoint.model_file or not has_own else None)
        for x in members
    ]
    networks = [
        Network(x.checkpoint, labels, model=model, device=here, precision=precision)
        for x, model in zip(members, models, strict=True)
    ]
    if weights_of == SEARCH:
        shares = _searched(networks, data, part, labels, views=views, say=say, share=share)
    counts, details = Counts(), _details(first.checkpoint, labels, keeps=keeps)
    each = [Counts() for _ in members]
    details.images = rows
    batches = batches_of(networks, data.part(part), rows, labels, views=views, share=share)
    with progress_bar(len(rows), " images", disable=_is_silent(share)) as progress:
        for several, labels_N in batches:
            mean_NK = weighted_mean(several, shares)
            counts += evaluation.count(mean_NK, labels_N)
            if len(several) > 1:
                own = [evaluation.count(one, labels_N) for one in several]
                each = [x + y for x, y in zip(each, own, strict=True)]
            details.add(mean_NK, labels_N)
            progress.update(len(labels_N))
    if _is_silent(share) or (share and share.is_stopped):
        raise NothingCountedError
    counts.check(len(rows))
    result = TestResult(
        checkpoint=str(first.path),
        data=str(data.directory),
        manifest_sha256=data.manifest_sha256,
        recipe=first.checkpoint.recipe.name,
        step=first.checkpoint.step,
        part=part,
        views=len(crops.flips),
        num_images=counts.num_images,
        loss=counts.mean_loss,
        top1_error=counts.top1_error,
        top1_interval=confidence_interval(counts.top1_error, counts.num_images),
        top5_error=counts.top5_error,
        top5_interval=confidence_interval(counts.top5_error, counts.num_images),
        weights=first.weights,
        checkpoints=tuple(str(member.path) for member in members),
        shares=tuple(shares),
        benchmark=_benchmark(data),
        num_classes=len(details.wnids),
        calibration_error=details.calibration_error(),
    )
    each = each if len(members) > 1 else [counts]
    details.networks = partial(network_rows, members, each, counts, images=result.images)
    return result, details


def devices_of_test(gpus: int | None, device: str, *, say: Say = say_nothing) -> Devices:
    """What is tested on: one process per device, with the whole network each.

    Raises:
        UserError: the machine does not have it.
    """
    return choose_devices(
        gpus=gpus,
        num_gpus_present=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        split=1,
        device=device,
        towers=1,
        say=say_nothing if gpus is None else say,
    )


def check_all_have(members: list[Member], share: Share) -> None:
    """Refuses ranks that found other checkpoints, as beside a run that saves one.

    Raises:
        UserError: they did, in each of them.
    """
    own = [[str(member.path), member.checkpoint.step] for member in members]
    for other in share.mesh.gather(own):
        if other != own:
            raise UserError(
                "--gpus: the processes found other checkpoints, as a run saved one meanwhile: name "
                "one that stays with --checkpoint"
            )


def _is_silent(share: Share | None) -> bool:
    """Whether another rank shows and counts."""
    return share is not None and share.rank.index > 0


def _member(path: Path, checkpoint: Checkpoint, weights: str | None, say: Say) -> Member:
    which = weights_in(checkpoint, weights, path=path)
    if weights is None and which == "averaged":
        say("weights: averaged, as the checkpoint has them (no --weights given)")
    return Member(path, with_weights(checkpoint, which), which)


def _benchmark(data: DataSet) -> str | None:
    """Which ILSVRC a whole data set is; Kaggle has that of 2012."""
    if len(data.wnids) != ILSVRC_CLASSES:
        return None
    return {"ilsvrc2010": "ILSVRC-2010", "ilsvrc2012": "ILSVRC-2012", "kaggle": "ILSVRC-2012"}.get(
        data.manifest.plan.source
    )


def _details(checkpoint: Checkpoint, labels: CommonLabels, *, keeps: bool) -> Details:
    names = dict(zip(checkpoint.wnids, checkpoint.class_names, strict=False))
    return Details(labels.wnids, [names.get(wnid, wnid) for wnid in labels.wnids], keeps)


def _searched(
    networks: list[Network],
    data: DataSet,
    part: str,
    labels: CommonLabels,
    *,
    views: str,
    say: Say,
    share: Share | None,
) -> list[float]:
    """Weights by the validation images, of which all probabilities are held; [] in other ranks."""
    searched = "val" if len(data.val) else part
    rows = rows_of(data.part(searched), labels)
    if not rows:
        raise UserError(f"{data.directory}: expected val images of classes in common, got none")
    same = ", the ones that are tested: their error is too low by it" if searched == part else ""
    say(
        f"weights of the networks: searched on {len(rows)} {searched} images for the lowest top-5 "
        f"error{same}"
    )
    found: list[tuple[list[torch.Tensor], torch.Tensor]] = []
    batches = batches_of(networks, data.part(searched), rows, labels, views=views, share=share)
    silent = _is_silent(share)
    with progress_bar(len(rows), " images", desc="search", disable=silent) as progress:
        for several, labels_N in batches:
            found.append((several, labels_N))
            progress.update(len(labels_N))
    if silent or (share and share.is_stopped):
        return []
    each = [torch.cat(one) for one in zip(*(several for several, _ in found), strict=True)]
    return search_weights(each, torch.cat([labels_N for _, labels_N in found]))


def _choose_checkpoints(named: Sequence[Path], say: Say) -> list[tuple[Path, Checkpoint]]:
    """The named checkpoints, or the last whole one of the newest run."""
    if named:
        return [_opened(checkpoint_file(path)) for path in named]
    path, checkpoint, passed_over = last_whole_checkpoint(newest_run(purpose="test"))
    for line in passed_over:
        say(f"passed over {line}")
    say(f"checkpoint: {path} (no --checkpoint given: the last one of the newest run)")
    return [(path, checkpoint)]


def _opened(path: Path) -> tuple[Path, Checkpoint]:
    """A checkpoint, or a network that was exported from one."""
    opened = open_weights(path)
    if opened.title is not None:
        raise UserError(
            f"{path}: is {opened.title}, which does not name its classes: a test needs a "
            f"checkpoint, or an export of one; `{command_for('replica.predict')}` reads the file"
        )
    return path, opened.checkpoint


def choose_data(named: Path | None, checkpoint: Path, say: Say) -> DataSet:
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
