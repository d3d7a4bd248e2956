"""Gradients of copies travel in buckets during backward, with the bits of an exchange of each."""

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from network_workers import NUM_CLASSES, gather_files
from test_step import batch_of, one_step, state_of

from replica.distributed import gradients
from replica.distributed.devices import Devices
from replica.distributed.gradients import bucket_layout, summed_gradients
from replica.distributed.launch import run_processes
from replica.distributed.mesh import Mesh, Rank
from replica.network.alexnet import AlexNet
from replica.network.initialization import initialize_
from replica.recipes import MINI, PAPER, with_changes

RECIPE = with_changes(
    PAPER,
    [
        *("crop_size=96", "conv1.num_kernels=16", "conv2.num_kernels=16", "conv3.num_kernels=32"),
        *("conv4.num_kernels=32", "conv5.num_kernels=32", "fc6.num_units=512"),
        *("fc7.num_units=1024", "conv2.normalization=batch"),
    ],
)
FROZEN = ("conv3.weight", "fc8.bias")
# Of three copies the last has none.
NUM_IMAGES = 2


def network():
    model = AlexNet(RECIPE, num_classes=NUM_CLASSES)
    initialize_(model, seed=5)
    return model


def loss_of(model, rows):
    images = torch.randn(NUM_IMAGES, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    images = (60 * images).contiguous(memory_format=torch.channels_last)
    masks = model.dropout_masks(rows, seed=1, step=3)
    logits = model(images[rows], masks=masks)
    return F.cross_entropy(logits, rows % NUM_CLASSES, reduction="sum") / NUM_IMAGES


def trained_of(model):
    return {name: w for name, w in model.named_parameters() if name not in FROZEN}


class Done:
    """An exchange that has ended."""

    def wait(self):
        return True


@pytest.fixture
def events(monkeypatch):
    """In order: which gradient was ready, and that a bucket left, with its size."""
    seen = []

    def all_reduce(tensor, group, async_op):
        assert async_op
        seen.append(("left", tensor.numel()))
        return Done()

    def add(self, name, gradient):
        seen.append(("ready", name))
        real_add(self, name, gradient)

    real_add = gradients._Sums.add
    monkeypatch.setattr(gradients._Sums, "add", add)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    return seen


def compute(rank: Rank, path: str, stop) -> None:
    """The gradients in buckets and those of an exchange of each after backward."""
    mesh = Mesh(rank)
    model = network()
    model.placement.add_over_copies = mesh.add_over_copies
    weights = trained_of(model)
    rows = torch.arange(NUM_IMAGES)[rank.copy :: rank.devices.num_copies]
    expected = torch.autograd.grad(loss_of(model, rows), list(weights.values()))
    expected = mesh.sum_over_copies(list(expected))
    buckets = bucket_layout(dict(model.named_parameters()), num_copies=rank.devices.num_copies)
    got = summed_gradients(loss_of(model, rows), weights, buckets=buckets, group=mesh.copies)
    assert all(w.grad is None for w in model.parameters())
    both = {name: pair for name, *pair in zip(weights, got, expected, strict=True)}
    parts = gather_files(both, path, rank)
    if rank.index == 0:
        torch.save(parts, path)
    dist.barrier()


@pytest.mark.parametrize("num_copies", [2, 3])
def test_a_sum_in_buckets_has_the_bits_of_each_gradients_own(num_copies, tmp_path):
    path = tmp_path / "both.pt"
    assert run_processes(compute, str(path), Devices("cpu", num_copies, 1), timeout=120) == 0
    parts = torch.load(path)
    for part in parts:
        for name, (got, expected) in part.items():
            assert torch.equal(got, expected), name
            assert torch.equal(got, parts[0][name][0]), name
            assert got.any(), name


def sum_layouts(rank: Rank, path: str, stop) -> None:
    """A copy with images has gradients in channels last, one without has its zeros as they come."""
    values = torch.arange(2.0 * 3 * 5 * 7).view(2, 3, 5, 7)
    layout = (torch.channels_last, torch.contiguous_format)[rank.copy]
    gradient = values.clone(memory_format=layout)
    (total,) = Mesh(rank).sum_over_copies([gradient])
    parts = gather_files(torch.equal(total, 2 * values), path, rank)
    if rank.index == 0:
        torch.save(parts, path)
    dist.barrier()


def test_copies_add_up_gradients_of_other_layouts_place_by_place(tmp_path):
    path = tmp_path / "equal.pt"
    assert run_processes(sum_layouts, str(path), Devices("cpu", 2, 1), timeout=120) == 0
    assert torch.load(path) == [True, True]


def test_large_gradients_travel_alone_and_small_ones_of_two_copies_together():
    with torch.device("meta"):
        weights = dict(AlexNet(PAPER, num_classes=1000).named_parameters())
    two = bucket_layout(weights, num_copies=2)
    assert [names[0] for names in two[:-1]] == [
        *("fc8.weight", "fc7.weight", "fc6.weight", "conv5.weight", "conv4.weight"),
        *("conv3.weight", "conv2.weight"),
    ]
    assert {len(names) for names in two[:-1]} == {1}
    assert two[-1] == [f"{name}.bias" for name in ("fc8", "fc7", "fc6")] + [
        *("conv5.bias", "conv4.bias", "conv3.bias", "conv2.bias", "conv1.bias", "conv1.weight")
    ]
    # The order in which more than two numbers are added depends on where they lie.
    assert bucket_layout(weights, num_copies=3) == [[name] for name in reversed(weights)]


def test_buckets_leave_in_the_order_of_the_layout_whatever_is_ready_first(events):
    layout = [["c"], ["b"], ["a", "d"]]
    parts = {"a": torch.ones(1), "b": torch.ones(2, 1), "c": torch.ones(4), "d": torch.ones(2, 4)}
    for order in itertools.permutations(parts):
        events.clear()
        sums = gradients._Sums(layout, None)
        for name in order:
            sums.add(name, parts[name])
        assert [size for what, size in events if what == "left"] == [4, 2, 9]
        assert {name: x.shape for name, x in sums.wait().items()} == {
            name: x.shape for name, x in parts.items()
        }


def test_buckets_leave_while_backward_runs(events):
    model = network()
    weights = trained_of(model)
    buckets = bucket_layout(dict(model.named_parameters()), num_copies=2)
    rows = torch.arange(NUM_IMAGES)
    got = summed_gradients(loss_of(model, rows), weights, buckets=buckets, group=None)
    assert [x.shape for x in got] == [w.shape for w in weights.values()]
    assert events.index(("left", weights["fc7.weight"].numel())) < events.index(
        ("ready", "conv5.weight")
    )
    assert [what for what, _ in events[-2:]] == ["ready", "left"]
    assert {name for what, name in events if what == "ready"} == set(weights)


def test_a_later_backward_of_the_network_sends_nothing(events):
    model = network()
    buckets = bucket_layout(dict(model.named_parameters()), num_copies=2)
    rows = torch.arange(NUM_IMAGES)
    summed_gradients(loss_of(model, rows), trained_of(model), buckets=buckets, group=None)
    events.clear()
    loss_of(model, rows).backward()
    assert not events


def test_a_training_step_of_copies_sends_during_backward(events):
    state, batch = state_of(MINI), batch_of(MINI)
    state.mesh.copies = "the other copies"
    assert state.buckets is not None
    one_step(state, batch)
    ready = [name for what, name in events if what == "ready"]
    assert set(ready) == set(state.weights)
    assert ("left", state.weights["fc8.weight"].numel()) in events[: len(ready) // 2]


@pytest.mark.parametrize("compile_mode", ["default", "cuda-graphs"])
def test_one_compiled_or_captured_graph_has_no_hooks(compile_mode):
    state = state_of(MINI, compile=compile_mode)
    assert state.buckets is None
    state.mesh.copies = "the other copies"
    del state.buckets
    assert state.buckets is None
    assert state_of(MINI).buckets is None
