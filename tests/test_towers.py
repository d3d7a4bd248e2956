"""One process and two compute the same network: gradients, velocities, losses."""

import dataclasses

import pytest
import torch
from tower_workers import NUM_STEPS, train_and_dump

from replica.devices import Devices, Numerics, choose_devices
from replica.launch import run_processes
from replica.model import AlexNet, initialise_
from replica.process import Run
from replica.recipes import MINI
from replica.towers import tower_slice

# Enlarged, so that gradients dominate the decay in every layer.
WIDER = 3.0


def enlarged(layers):
    return tuple(
        dataclasses.replace(x, weight_standard_deviation=WIDER * x.weight_standard_deviation)
        for x in layers
    )


RECIPE = dataclasses.replace(
    MINI,
    convs=enlarged(MINI.convs),
    fully_connected=enlarged(MINI.fully_connected),
    batch_size=7,  # divides neither the images nor the shares of a batch
    learning_rate=1e-4,
    num_classes=11,  # the towers' halves of the logits differ in size
)


def trained(shards_dir, tmp_path, devices: Devices, wrong=""):
    run = Run(
        recipe=RECIPE,
        num_classes=11,
        data_dir=shards_dir,
        run_dir=tmp_path,
        devices=devices,
        numerics=Numerics(precision="float64"),
        seed=3,
        steps=None,
        checkpoint_steps=None,
        resume_from=None,
        command=[],
    )
    path = tmp_path / f"{devices.num_processes}-{devices.split}-{wrong}.pt"
    assert run_processes(train_and_dump, (run, wrong, str(path)), devices, timeout=300) == 0
    return torch.load(path, weights_only=True)


def cpu(gpus, split=None):
    return choose_devices(gpus=gpus, num_gpus_present=0, split=split, device="cpu", towers=2)


@pytest.fixture(scope="module")
def one_process(shards_dir, tmp_path_factory):
    return trained(shards_dir, tmp_path_factory.mktemp("one"), cpu(None))


def largest_difference(one, other, moment):
    """The largest relative difference over all tensors of a moment."""
    worst = {}
    for kind in ("model", "velocities"):
        assert one[moment][kind].keys() == other[moment][kind].keys()
        for name, a in one[moment][kind].items():
            b = other[moment][kind][name]
            assert a.shape == b.shape
            assert a.norm() > 0
            worst[kind, name] = ((a - b).norm() / a.norm()).item()
    return max(worst.values())


def test_gradients_dominate_the_decay(one_process, shards_dir):
    """Else the comparison of velocities would be one of decay terms."""
    before = AlexNet(RECIPE, num_classes=11).double()
    initialise_(before, seed=3)
    for name, weight in before.named_parameters():
        velocity = one_process["first"]["velocities"][name]
        decay = -RECIPE.weight_decay * RECIPE.learning_rate * weight.detach()
        if name.endswith("bias"):
            decay = decay * 0
        gradient_part = velocity - decay
        assert gradient_part.norm() > 10 * decay.norm(), name


@pytest.mark.parametrize(
    "devices",
    [
        pytest.param(cpu(2), id="two towers"),
        pytest.param(cpu(4), id="two pairs", marks=pytest.mark.slow),
        pytest.param(cpu(4, split=1), id="four copies", marks=pytest.mark.slow),
    ],
)
def test_any_placement_gives_the_same_gradients_and_velocities(
    devices, one_process, shards_dir, tmp_path
):
    other = trained(shards_dir, tmp_path, devices)
    assert largest_difference(one_process, other, "first") < 1e-9
    assert largest_difference(one_process, other, "last") < 1e-9
    assert len(other["losses"]) == NUM_STEPS
    assert other["losses"] == pytest.approx(one_process["losses"], rel=1e-12)
    assert other["val_loss"] == pytest.approx(one_process["val_loss"], rel=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        "gradient doubled",
        "conv3 gradient doubled",
        pytest.param("gradient halved", marks=pytest.mark.slow),
        pytest.param("conv3 halves swapped", marks=pytest.mark.slow),
        "another dropout seed",
    ],
)
def test_a_wrong_exchange_is_seen(wrong, one_process, shards_dir, tmp_path):
    other = trained(shards_dir, tmp_path, cpu(2), wrong)
    assert largest_difference(one_process, other, "first") > 1e-3


def test_halves_cover_a_layer_once_and_the_first_has_the_smaller_half():
    for width in (1, 2, 7, 1000, 21843):
        first, second = (tower_slice(width, tower=t, towers=2) for t in (0, 1))
        assert (first.start, second.stop) == (0, width)
        assert first.stop == second.start == width // 2
