"""A training step that a GPU can run ahead of: what it does, and what is known of it late."""

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import last_checkpoint, lines_of, train
from test_survival import assert_went_on_as_if_nothing_had_been
from torch.utils._python_dispatch import TorchDispatchMode

from replica.distributed.devices import Devices
from replica.distributed.mesh import Mesh, Rank
from replica.feed.feed import Batch
from replica.network.alexnet import AlexNet
from replica.recipes import MINI, PAPER
from replica.training import loop
from replica.training import state as state_module
from replica.training import step as step_module
from replica.training.checkpoint import checkpoints_of
from replica.training.numerics import Numerics
from replica.training.run import Run
from replica.training.schedule import settings_at
from replica.training.state import RunState, whole_checkpoint
from replica.training.step import train_step_

# Of a step of `paper` on one device, forward, backward, update and what is counted of it.
MOST_OPERATIONS = 120


class Operations(TorchDispatchMode):
    """Counts what PyTorch is asked to do."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names[str(operation)] += 1
        return operation(*args, **(kwargs or {}))


def state_of(recipe, device="cpu", **numerics):
    """A run's state without data."""
    rank = Rank(0, Devices(device, 1, 1))
    with torch.device(device):
        model = AlexNet(recipe, num_classes=10)
    velocities = {name: torch.zeros_like(w) for name, w in model.named_parameters()}
    run = Run(
        recipe=recipe,
        num_classes=10,
        data_dir=Path(),
        run_dir=Path(),
        devices=rank.devices,
        numerics=Numerics(**numerics),
        seed=1,
        steps=None,
        checkpoint_steps=None,
        resume_from=None,
        command=[],
    )
    return RunState(run, rank, Mesh(rank), None, None, model, velocities, 0, [])


def batch_of(recipe, num=2, step=0):
    generator = torch.Generator().manual_seed(step)
    x = 50 * torch.randn(num, 3, recipe.crop_size, recipe.crop_size, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last)
    return Batch(step, x, torch.arange(num), torch.arange(num), num)


def one_step(state, batch):
    recipe = state.run.recipe
    settings = settings_at(recipe, state.velocities, step=1, steps_per_epoch=9, val_errors=[])
    return train_step_(state, batch, settings=settings)


def test_a_step_of_paper_is_few_operations():
    """108; there were 358 before masks, update and pooling were one operation each."""
    state, batch = state_of(PAPER), batch_of(PAPER)
    one_step(state, batch)
    with Operations() as operations:
        one_step(state, batch)
    assert operations.names["replica.philox_dropout.default"] == 4
    assert operations.names["replica.momentum_sgd_.default"] == 1
    assert operations.names.total() <= MOST_OPERATIONS, operations.names


@pytest.mark.parametrize("precision", ["float32", "fp16"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_nothing_in_a_step_asks_for_a_value(ema, precision, monkeypatch):
    """On tensors that have none, which refuse `item`, `tolist` and `bool`."""
    monkeypatch.setattr(step_module, "compute_precision", lambda *_, **__: nullcontext())
    state = state_of(replace(MINI, ema=ema), "meta", precision=precision)
    measured = one_step(state, batch_of(MINI))
    assert measured.sums.is_meta
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        measured.counts()


@pytest.mark.parametrize(("ema", "precision"), [(None, "float32"), (0.9, "fp16")])
def test_a_captured_step_is_the_step(ema, precision, monkeypatch):
    """With a graph of Python: what is read and written are the tensors of the capture."""
    recipe = replace(MINI, ema=ema)

    class Graph:
        def replay(self):
            again = self.again()
            for name in ("sums", "losses", "scaling"):
                if getattr(again, name) is not None:
                    getattr(self.measured, name).copy_(getattr(again, name))

    captures = []

    def captured(self, state, inputs, names, batch_size):
        real_init(self, state, inputs, names, batch_size)
        captures.append(self)
        self._graph.measured = self._measured
        self._graph.again = lambda: step_module._compute_(state, self._inputs, names, batch_size)

    class Context:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            self.before = [t.clone() for t in tensors]

        def __exit__(self, *_):
            for tensor, value in zip(tensors, self.before, strict=True):
                tensor.detach().copy_(value)  # a capture computes nothing

    class Stream:
        def wait_stream(self, other):
            pass

    real_init = step_module.CapturedStep.__init__
    monkeypatch.setattr(step_module.CapturedStep, "__init__", captured)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: Operations())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Context)
    torch.manual_seed(0)
    plain = state_of(recipe, precision=precision)
    state = state_of(recipe, precision=precision, compile="cuda-graphs")
    for parameter in plain.model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    state.model.load_state_dict(plain.model.state_dict())
    tensors = [*state.model.parameters(), *state.velocities.values(), *state.averages.values()]
    tensors += vars(state.loss_scale).values() if state.loss_scale else ()
    for one in (plain, state) if precision == "fp16" else ():
        one.loss_scale.good_steps.fill_(1998)  # the scale doubles at the second step
    kept = []
    for step, num in enumerate((3, 3, 2, 3)):
        batch = batch_of(recipe, num, step)
        expected, got = one_step(plain, batch), one_step(state, batch)
        kept.append((expected.sums, got.sums))
        if precision == "fp16":
            kept.append((expected.scaling, got.scaling))
            assert state.loss_scale.values() == plain.loss_scale.values()
        for name, average in plain.averages.items():
            assert torch.equal(state.averages[name], average), (step, name)
        for name, weight in plain.weights.items():
            assert torch.equal(state.weights[name], weight), (step, name)
            assert torch.equal(state.velocities[name], plain.velocities[name])
    assert len(captures) == 2  # batches of three and of two
    assert all(torch.equal(expected, got) for expected, got in kept)


# --- What a checkpoint is gathered from


@pytest.mark.parametrize(
    ("index", "split", "num_sent"), [(1, 1, 0), (2, 2, 0), (3, 2, 0), (1, 2, 32)]
)
def test_only_the_first_copy_does_anything_for_a_checkpoint(index, split, num_sent, monkeypatch):
    state, sent = state_of(MINI), []
    monkeypatch.setattr(torch.distributed, "send", lambda _, dst: sent.append(dst))
    state.rank = Rank(index, Devices("cpu", 4 if split == 2 else 2, split))
    with Operations() as operations:
        assert whole_checkpoint(state) is None
    assert sent == [0] * num_sent
    assert operations.names.keys() <= {"aten.detach.default"}


def test_a_cuda_checkpoint_is_copied_on_a_stream_of_its_own_and_is_there_in_the_end(monkeypatch):
    seen = []

    class Stream:
        def __init__(self, device):
            assert device.type == "cuda"

        def wait_stream(self, other):
            seen.append(f"wait for {other}")

        def synchronize(self):
            seen.append("synchronize")

    class Current:
        def __init__(self, stream):
            assert isinstance(stream, Stream)

        def __enter__(self):
            seen.append("begin")

        def __exit__(self, *_):
            seen.append("end")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: "training")
    monkeypatch.setattr(torch.cuda, "stream", Current)
    with state_module._beside_training(torch.device("cuda", 0)):
        seen.append("copy")
    assert seen == ["wait for training", "begin", "copy", "end", "synchronize"]


# --- What is known late

LENGTH = ("--gpus", "1", "--epochs", "7", "--steps", "26")


@pytest.fixture(params=[0, 3], ids=["at once", "three steps late"])
def late(request, monkeypatch):
    monkeypatch.setitem(loop.STEPS_LATE, "cpu", request.param)
    return request.param


def test_a_run_that_is_told_late_is_the_same(shards_dir, tmp_path, monkeypatch):
    for name, steps in (("now", 0), ("late", 3)):
        monkeypatch.setitem(loop.STEPS_LATE, "cpu", steps)
        out = tmp_path / name
        result = train(shards_dir, out, *LENGTH, "--checkpoint-steps", "3")
        assert result.returncode == 0, result.stderr
    assert_went_on_as_if_nothing_had_been(tmp_path / "late", tmp_path / "now", "1")
    speeds = [line["images_per_second"] for line in lines_of(tmp_path / "late", "step")]
    assert min(speeds) > 0


def test_a_lost_loss_is_named_with_its_own_step_and_nothing_of_it_is_saved(
    late, shards_dir, tmp_path
):
    out = tmp_path / "run"
    assert train(shards_dir, out, "--gpus", "1", "--steps", "2").returncode == 0
    line = {"name": "1-1.json", "step": 4, "changes": {"learning_rate": 1e9}, "actions": []}
    (out / "control.jsonl").write_text(json.dumps(line) + "\n")
    options = ("--resume", "--steps", "20", "--checkpoint-steps", "1" if not late else "7")
    result = train(shards_dir, out, *options)
    assert result.returncode == 1
    record = json.loads(next(out.glob("lost-loss-*.json")).read_text())
    step = record["step"]
    assert lines_of(out, "step")[-1]["step"] == step
    assert lines_of(out, "step")[-1]["loss"] is None
    assert f"at step {step}," in result.stderr
    assert step in (5, 6)  # the rate of step 4 shows in the losses that follow
    assert last_checkpoint(out)["step"] < step
    assert all(torch.isfinite(x).all() for x in last_checkpoint(out)["model"].values())


def test_requests_are_answered_late_and_what_they_ask_for_is_done(late, shards_dir, tmp_path):
    out = tmp_path / "run"
    assert train(shards_dir, out, *LENGTH, "--steps", "2").returncode == 0
    requests = out / "requests"
    requests.mkdir(exist_ok=True)
    request = {"changes": {"learning_rate": 0.001}, "actions": ["checkpoint"], "reason": ""}
    (requests / "1-1.json").write_text(json.dumps(request))
    assert train(shards_dir, out, "--resume", "--steps", "10", "--keep", "9").returncode == 0
    (logged,) = map(json.loads, (out / "control.jsonl").read_text().splitlines())
    # The session's first step is the third; an epoch ends, and all is known, after the fourth.
    step = 5 if late else 4
    assert logged["step"] == step
    rates = {line["step"]: line["learning_rate"] for line in lines_of(out, "step")}
    assert (rates[step - 1], rates[step]) == (0.005, 0.001)
    assert step - 1 in [int(path.stem.split("-")[1]) for path in checkpoints_of(out)]
