"""One training step (paper 5), as a device computes it: nothing in it waits for a value.

So the processor runs ahead of a GPU, and the whole step can be captured as one CUDA graph. What a
step measured stays where it was computed until it is asked for.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from cuda_ext import momentum_sgd_
from replica.distributed.gradients import summed_gradients
from replica.feed.feed import Batch
from replica.training.evaluation import Counts, count_on_device
from replica.training.numerics import compute_precision, parameter_dtype
from replica.training.schedule import Settings
from replica.training.state import RunState

# Steps before a capture, in which libraries choose their algorithms and take their memory.
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Measured:
    """What a step measured on the images of this rank, on its device.

    Attributes:
        num_images: that this rank had.
        sums: float64 (3,): right within top-1 and top-5, and the losses.
        losses: (N,), of each image.
        scaling: float64 (2,) with a loss scale: 1 where the step was skipped, and the next scale.
    """

    num_images: int
    sums: torch.Tensor
    losses: torch.Tensor
    scaling: torch.Tensor | None = None

    def counts(self) -> Counts:
        """On the host; waits for the step."""
        return Counts(self.num_images, *self.sums.tolist())


class Later:
    """A small tensor on its way to the host, where it is waited for when it is asked for."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._host, self._arrived = tensor, None
        if tensor.device.type == "cuda":
            self._host = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def values(self) -> list[float]:
        """Its values."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[float] = self._host.tolist()
        return values


@dataclass(frozen=True)
class _Inputs:
    """What differs from step to step, on the device; a captured step reads the same tensors anew.

    `rates` and `weight_decays` are float64, one number per tensor that is trained.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    step: torch.Tensor
    rates: torch.Tensor
    weight_decays: torch.Tensor


def train_step_(state: RunState, batch: Batch, *, settings: Settings) -> Measured:
    """One step of stochastic gradient descent (paper 5), in place, on this rank's images."""
    # A frozen tensor has no gradient: neither it nor its velocity moves.
    names = tuple(name for name, rate in settings.rates.items() if rate)
    inputs = _inputs(state, batch, settings, names)
    if state.run.numerics.compile == "cuda-graphs":
        key = (names, inputs.images.shape, batch.batch_size)
        if key not in state.captured:
            state.captured[key] = CapturedStep(state, inputs, names, batch.batch_size)
        measured: Measured = state.captured[key](inputs)
    else:
        measured = _compute_(state, inputs, names, batch.batch_size)
    state.step += 1
    return measured


def to_device(values: Any, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A small tensor on the device, without waiting for what the device is doing."""
    tensor = torch.tensor(values, dtype=dtype)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _inputs(state: RunState, batch: Batch, settings: Settings, names: tuple[str, ...]) -> _Inputs:
    device, numerics = state.rank.device, state.run.numerics
    images = batch.images.to(device, parameter_dtype(numerics.precision), non_blocking=True)
    numbers = tuple(
        tuple(of[name] for name in names) for of in (settings.rates, settings.weight_decays)
    )
    if state.numbers is None or state.numbers[0] != numbers:  # they seldom change
        on_device = [to_device(values, device, torch.float64) for values in numbers]
        state.numbers = numbers, on_device
    return _Inputs(
        images.contiguous(memory_format=numerics.torch_memory_format),
        batch.labels.to(device, non_blocking=True),
        batch.rows.to(device, non_blocking=True),
        to_device([batch.step], device, torch.int64),
        *state.numbers[1],
    )


def _compute_(
    state: RunState, inputs: _Inputs, names: tuple[str, ...], batch_size: int
) -> Measured:
    precision = state.run.numerics.precision
    parameters, averages = state.weights, state.averages  # at first the weights before any update
    trained = {name: parameters[name] for name in names}
    weights = list(trained.values())
    masks = state.model.dropout_masks(inputs.rows, seed=state.run.seed, step=inputs.step)
    with compute_precision(precision, kind=state.rank.device.type):
        logits = state.forward(inputs.images, masks=masks).to(parameter_dtype(precision))
    losses = F.cross_entropy(logits, inputs.labels, reduction="none")
    loss = losses.sum() / batch_size
    loss_scale, rates, applied = state.loss_scale, inputs.rates, None
    if loss_scale is not None:
        loss = loss * loss_scale.scale
    if weights and state.buckets and state.mesh.copies is not None:
        group = state.mesh.copies
        gradients = summed_gradients(loss, trained, buckets=state.buckets, group=group)
    else:
        gradients = list(torch.autograd.grad(loss, weights)) if weights else []
        gradients = state.mesh.sum_over_copies(gradients)
    if loss_scale is not None:
        # DEVIATION D15: where a gradient overflows float16, the step changes no weight; the paper
        # computes in float32. A rate of zero is what leaves weights and velocities as they are.
        applied = loss_scale.unscale_(gradients, sum_over_all_=state.mesh.sum_over_all_)
        rates = rates * applied
    if state.torch_optimizer is not None:
        state.torch_optimizer.step_(
            dict(zip(names, gradients, strict=True)),
            rates=rates.tolist(),
            weight_decays=inputs.weight_decays.tolist(),
            updates=state.step,
        )
    else:
        momentum_sgd_(
            weights,
            [state.velocities[name] for name in names],
            gradients,
            learning_rates=rates,
            momentum=state.run.recipe.momentum,
            weight_decays=inputs.weight_decays,
        )
    if averages:
        average_(averages, parameters, keep=state.run.recipe.ema or 0.0, applied=applied)
    losses = losses.detach()
    right = count_on_device(logits.detach().softmax(dim=1), inputs.labels)
    # Not from the probabilities, which end at the smallest number that is not zero.
    sums = torch.cat([right, losses.double().sum(0, keepdim=True)])
    if loss_scale is None or applied is None:
        return Measured(len(losses), sums, losses)
    scaling = torch.stack([1 - applied, loss_scale.scale]).double()
    return Measured(len(losses), sums, losses, scaling)


@torch.no_grad()
def average_(
    averages: dict[str, torch.Tensor],
    weights: dict[str, torch.Tensor],
    *,
    keep: float,
    applied: torch.Tensor | None,
) -> None:
    """Moves the averages by one update, in place: average <- keep * average + (1 - keep) * weight.

    DEVIATION D16: the paper tests the weights of the last update.

    Args:
        averages, weights: by the parameters' names.
        keep: D of `--ema D`.
        applied: float32 (): 0 where the step was skipped and the averages stay; None where no step
            is ever skipped.
    """
    theirs = [weights[name] for name in averages]
    share: Any = 1 - keep if applied is None else [(1 - keep) * applied] * len(theirs)
    torch._foreach_lerp_(list(averages.values()), theirs, share)


class CapturedStep:
    """A step as one CUDA graph: forward, backward and update, on tensors of its own.

    It serves batches of one size. The steps that warm up change nothing in the end.
    """

    def __init__(
        self, state: RunState, inputs: _Inputs, names: tuple[str, ...], batch_size: int
    ) -> None:
        self._inputs = _Inputs(**{name: x.clone() for name, x in vars(inputs).items()})
        changed = [*state.model.state_dict().values(), *state.velocities.values()]
        changed += state.averages.values()
        changed += vars(state.loss_scale).values() if state.loss_scale is not None else ()
        before = [tensor.clone() for tensor in changed]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                _compute_(state, self._inputs, names, batch_size)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad():
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
        self._graph = torch.cuda.CUDAGraph()
        # Feed threads go on taking memory and asking for events, which is no part of it.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._measured = _compute_(state, self._inputs, names, batch_size)

    def __call__(self, inputs: _Inputs) -> Measured:
        """Does the step; what it measured is a copy that later steps leave alone."""
        for name, own in vars(self._inputs).items():
            own.copy_(getattr(inputs, name), non_blocking=True)
        self._graph.replay()
        measured = self._measured
        scaling = None if measured.scaling is None else measured.scaling.clone()
        return Measured(
            measured.num_images, measured.sums.clone(), measured.losses.clone(), scaling
        )
