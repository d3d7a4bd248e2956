"""What a rank holds between two steps: its part of the network, velocities, how far the run is."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_prep.errors import UserError
from data_prep.files import sha256_of_file
from data_prep.shards import DataSet, open_data_set
from replica.distributed.gradients import bucket_layout
from replica.distributed.heartbeat import beat
from replica.distributed.mesh import Mesh, Rank
from replica.feed.feed import TrainFeed
from replica.feed.images import mean_image_of
from replica.network.alexnet import AlexNet, whole_shapes
from replica.network.initialization import initialize_
from replica.network.own_network import build_own
from replica.network.products import resolved_products
from replica.recipes import to_record
from replica.recipes.recipe import layer_of
from replica.training.allocator import keep_large_blocks
from replica.training.checkpoint import Checkpoint, load_checkpoint, with_weights
from replica.training.control_log import hand_changes
from replica.training.loss_scale import LossScale
from replica.training.numerics import NumericsInForce, parameter_dtype
from replica.training.run import Run
from replica.training.run_record import DataRecord, RankRecord, RunRecord, describe_machine
from replica.training.schedule import HandChange, Settings, last_epoch, settings_at
from replica.training.torch_optimizers import TorchOptimizer, has_second_moments
from replica.training.weights import converted, open_weights


@dataclass
class RunState:
    """What a rank holds between two steps.

    Attributes:
        model: the network, or the tower of this rank.
        velocities: one tensor per parameter, under the parameter's name.
        step: how many steps are done.
        val_errors: top-1 error after each epoch, which the schedule reads.
        by_hand: what was set by hand, of steps to come too (in a resumed or replayed run).
        captured, numbers: what `step.py` keeps: steps as CUDA graphs; rates and decays, and the
            tensors of them on the device.
        end_error: top-1 error where a session ends in mid-epoch. Not part of a checkpoint, so that
            a run that goes on from there is the uninterrupted one.
    """

    run: Run
    rank: Rank
    mesh: Mesh
    data: DataSet
    feed: TrainFeed
    model: AlexNet
    velocities: dict[str, torch.Tensor]
    step: int
    val_errors: list[float]
    by_hand: list[HandChange] = field(default_factory=list)
    captured: dict[Any, Any] = field(default_factory=dict)
    numbers: tuple[Any, list[torch.Tensor]] | None = None
    end_error: float | None = None

    @cached_property
    def forward(self) -> Callable[..., torch.Tensor]:
        """The network in training: itself, or what `torch.compile` made of it."""
        if self.run.numerics.compile != "default":
            return self.model
        return torch.compile(self.model, fullgraph=True, dynamic=False)

    @cached_property
    def loss_scale(self) -> LossScale | None:
        """That of the next step, in float16; None in the other precisions."""
        return LossScale.first(self.rank.device) if self.run.numerics.precision == "fp16" else None

    @cached_property
    def averages(self) -> dict[str, torch.Tensor]:
        """The averaged weights by name, at first the first weights; empty without `--ema`."""
        if self.run.recipe.ema is None:
            return {}
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    @cached_property
    def buckets(self) -> list[list[str]] | None:
        """How gradients travel to the other copies during backward.

        None where there are none, and where backward is one compiled or captured graph: it gives
        all gradients at its end, and they are added up then.
        """
        if self.mesh.copies is None or self.run.numerics.compile != "off":
            return None
        return bucket_layout(self.weights, num_copies=self.rank.devices.num_copies)

    @cached_property
    def second_moments(self) -> dict[str, torch.Tensor]:
        """Of Adam, by name, at first zero; empty for the other optimizers."""
        if not has_second_moments(self.run.recipe):
            return {}
        return {name: torch.zeros_like(weight) for name, weight in self.weights.items()}

    @cached_property
    def torch_optimizer(self) -> TorchOptimizer | None:
        """The one of `torch.optim` that the recipe names; None for the paper's update."""
        recipe, moments = self.run.recipe, self.second_moments
        if recipe.optimizer == "paper":
            return None
        return TorchOptimizer(recipe, self.weights, self.velocities, moments)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The parameters by name."""
        return dict(self.model.named_parameters())

    @property
    def last_step(self) -> int:
        """How many steps the whole run has, as far as the validation errors tell."""
        epochs = last_epoch(self.run.recipe, val_errors=self.val_errors) or self.run.recipe.epochs
        steps = epochs * self.feed.steps_per_epoch
        return steps if self.run.steps is None else min(steps, self.run.steps)

    @property
    def epoch(self) -> int:
        """The epoch of the next step, counted from 1."""
        return self.epochs_done + 1

    @property
    def epochs_done(self) -> int:
        """How many epochs are complete."""
        return self.step // self.feed.steps_per_epoch

    @property
    def is_validation_due(self) -> bool:
        """Whether an epoch has ended whose validation error is not known yet."""
        return len(self.val_errors) < self.epochs_done

    @property
    def best_step(self) -> int | None:
        """After how many steps the validation error was lowest; None before the first one."""
        of_epochs = enumerate(self.val_errors, start=1)
        errors = {epoch * self.feed.steps_per_epoch: error for epoch, error in of_epochs}
        if self.end_error is not None:
            errors[self.step] = self.end_error
        return min(errors, key=errors.__getitem__) if errors else None

    def settings(self, step: int) -> Settings:
        """Learning rates and color noise at a step, counted from 1."""
        return settings_at(
            self.run.recipe,
            self.velocities,
            step=step,
            steps_per_epoch=self.feed.steps_per_epoch,
            val_errors=self.val_errors,
            by_hand=self.by_hand,
        )


def begin(run: Run, rank: Rank) -> RunState:
    """The state before the first step: drawn from the seed, or read from a checkpoint."""
    mesh = Mesh(rank)
    data = open_data_set(run.data_dir)
    if run.model_file is not None:
        model: AlexNet = build_own(
            run.model_file, run.recipe, num_classes=run.num_classes, seed=run.seed
        )
    else:
        placement = rank.placement(run.recipe.towers, add_over_copies=mesh.add_over_copies)
        model = AlexNet(run.recipe, num_classes=run.num_classes, placement=placement)
    # The machine of rank 0 decides for all, as the record has one way for a layer.
    asked, kind, split = run.numerics.convolution, rank.devices.kind, rank.devices.split
    ways = run.convolution_ways or resolved_products(run.recipe, asked, kind=kind, split=split)
    model.set_products_(mesh.of_rank_0(ways))
    if run.resume_from is None and run.model_file is None:
        initialize_(model, seed=run.seed)
    model.to(rank.device, parameter_dtype(run.numerics.precision))
    velocities = {name: torch.zeros_like(w) for name, w in model.named_parameters()}
    feed = TrainFeed(data, run.recipe, run.seed, rank.copy, rank.devices.num_copies)
    changes = hand_changes(run.run_dir, run.recipe) if rank.index == 0 else []
    by_hand = [HandChange(**change) for change in mesh.of_rank_0([vars(x) for x in changes])]
    state = RunState(run, rank, mesh, data, feed, model, velocities, 0, [], by_hand)
    if run.resume_from is not None:
        _restore_(state, load_checkpoint(run.resume_from))
    elif run.init is not None:
        _take_over_(state, Path(run.init.checkpoint), run.init.new_layers)
    steps = mesh.gather(state.step)
    if len(set(steps)) > 1:
        raise RuntimeError(
            f"expected every process to find the same checkpoint, got steps {steps}: does every "
            f"machine see {run.run_dir}?"
        )
    return state


@torch.no_grad()
def _take_over_(state: RunState, path: Path, new_layers: Sequence[str]) -> None:
    """Takes this rank's part of another network's weights, but for the new layers'."""
    source, _ = converted(with_weights(open_weights(path).checkpoint, None), state.run.recipe)
    for name, tensor in state.model.state_dict().items():
        if name in new_layers:  # a single tensor that the file lacks
            continue
        if layer_of(name) not in new_layers:
            stored = source.model[name]
            tensor.copy_(stored[state.model.placement.own(len(stored))])


@torch.no_grad()
def _restore_(state: RunState, saved: Checkpoint) -> None:
    """Takes this rank's part of a checkpoint's tensors, and how far the run was."""
    model = state.model.state_dict()  # running statistics, too
    for stored, tensors in ((saved.model, model), (saved.velocities, state.velocities)):
        _take_own_(state, tensors, stored)
    _take_own_(state, state.averages, saved.averages or {})
    _take_own_(state, state.second_moments, saved.second_moments or {})
    if state.loss_scale is not None:
        if saved.loss_scale is None:
            raise UserError(
                f"{state.run.resume_from}: expected the loss scale of --precision fp16, found "
                "none: use another checkpoint of the run"
            )
        state.loss_scale.take_(saved.loss_scale)
    state.step, state.val_errors = saved.step, list(saved.val_errors)


def _take_own_(
    state: RunState, tensors: dict[str, torch.Tensor], stored: dict[str, torch.Tensor]
) -> None:
    """Takes this rank's part of whole tensors of the same type."""
    for name, tensor in tensors.items():
        whole = stored[name]
        if whole.dtype != tensor.dtype:
            raise UserError(
                f"{state.run.resume_from}: {name} is {whole.dtype}, this run needs "
                f"{tensor.dtype}: give the --precision that it was trained with"
            )
        # A user's network may hold single numbers.
        tensor.copy_(whole[state.model.placement.own(len(whole))] if whole.dim() else whole)


def whole_checkpoint(state: RunState) -> Checkpoint | None:
    """The state of the whole network in rank 0, None elsewhere; every rank must call it.

    It is gathered from the first copy; the others hold the same, and do nothing for it.

    Raises:
        RuntimeError: a weight is not finite.
    """
    beat("gathering the network's halves")
    if state.rank.copy != 0:
        return None
    with _beside_training(state.rank.device):
        model = _whole_tensors(state, state.model.state_dict())
        velocities = _whole_tensors(state, state.velocities)
        averages = _whole_tensors(state, state.averages)
        second_moments = _whole_tensors(state, state.second_moments)
    if state.rank.index != 0:
        return None
    for name, tensor in model.items():
        if not torch.isfinite(tensor.sum()):
            raise RuntimeError(
                f"{name} is not finite after step {state.step}: the learning rate is too high for "
                "this recipe, or the data is damaged; the last checkpoint is kept"
            )
    statistics = state.data.statistics
    mean_image = mean_image_of(state.run.recipe, statistics.mean_image)
    statistics = replace(statistics, mean_image=mean_image)
    return Checkpoint(
        model=model,
        velocities=velocities,
        averages=averages or None,
        second_moments=second_moments or None,
        loss_scale=None if state.loss_scale is None else state.loss_scale.values(),
        step=state.step,
        epoch=state.epoch,
        val_errors=state.val_errors,
        best_step=state.best_step,
        recipe=state.run.recipe,
        num_classes=state.run.num_classes,
        seed=state.run.seed,
        wnids=state.data.wnids,
        class_names=state.data.class_names,
        mean_image=torch.from_numpy(statistics.mean_image),
        eigenvalues=torch.from_numpy(statistics.eigenvalues.copy()),
        eigenvectors=torch.from_numpy(statistics.eigenvectors.copy()),
        model_file=state.run.model_file,
    )


@contextmanager
def _beside_training(device: torch.device) -> Iterator[None]:
    """A block whose copies go on a CUDA stream of their own, and have ended when it is left."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def _copied_to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the host; of a CUDA device it is there when the current stream has come so far."""
    if tensor.device.type != "cuda":
        return tensor.clone()
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _whole_tensors(state: RunState, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of the first copy in rank 0, to which its second tower sends its halves."""
    run, is_cut = state.run, state.rank.devices.split == 2
    if is_cut and state.rank.tower == 1:
        for tensor in tensors.values():
            dist.send(tensor.detach().contiguous(), dst=0)
        return {}
    shapes = whole_shapes(run.recipe, num_classes=run.num_classes, statistics=True)
    whole = {}
    for name, tensor in tensors.items():
        own = tensor.detach()
        if is_cut:
            other = own.new_empty((shapes[name][0] - len(own), *own.shape[1:]))
            dist.recv(other, src=1)
            own = torch.cat((own, other))
        whole[name] = _copied_to_host(own)
    return whole


def describe(state: RunState, numerics: NumericsInForce) -> RunRecord:
    """What run.json says of a run; every rank must call it."""
    run, rank, data = state.run, state.rank, state.data
    own = RankRecord(
        rank=rank.index,
        host=os.uname().nodename,
        pid=os.getpid(),
        device=str(rank.device),
        data_index=rank.copy,
        tower=rank.tower if rank.devices.split == 2 else None,
        parameters=sum(w.numel() for w in state.weights.values()),
        threads=torch.get_num_threads(),
        memory=keep_large_blocks(),
    )
    path = run.resume_from
    resumed = {"checkpoint": path.name, "sha256": sha256_of_file(path)} if path else None
    return RunRecord(
        recipe_record=to_record(run.recipe),
        num_classes=run.num_classes,
        seed=run.seed,
        command=run.command,
        started_at_step=state.step,
        resumed_from=resumed,
        initialized_from=run.init,
        steps=run.steps,
        checkpoint_steps=run.checkpoint_steps,
        keep=run.keep,
        loader_threads=run.loader_threads,
        data=DataRecord(
            directory=str(run.data_dir.resolve()),
            manifest_sha256=data.manifest_sha256,
            train_images=len(data.train),
            val_images=len(data.val),
            test_images=len(data.test),
        ),
        devices=rank.devices,
        gradient_buckets=state.buckets,
        convolution_ways=state.model.products,
        numerics=numerics,
        model_file=run.model_file,
        ranks=[RankRecord(**record) for record in state.mesh.gather(vars(own))],
        machine=describe_machine(rank.devices.kind),
    )
