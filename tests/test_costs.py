"""What costs.py works out is what a run counts: parameters, kept activations, exchanged bytes."""

import dataclasses

import pytest
import torch
from network_workers import count_traffic

from replica.distributed.costs import exchanged_values, training_memory
from replica.distributed.devices import Devices
from replica.distributed.exchange import TwoDevices
from replica.distributed.launch import run_processes
from replica.network.alexnet import AlexNet
from replica.recipes import MINI, PAPER, PAPER_CONV6
from replica.training.numerics import Numerics
from replica.training.run import Run


class AloneOfTwo(TwoDevices):
    """The real exchange, but for the process at the other end."""

    def begin_swap(self, mine, *, layer, direction, num_logits=None):
        shape = [len(mine), num_logits or mine.shape[1], *mine.shape[2:]]
        return lambda: mine.new_empty(shape)


def kept_bytes(recipe, images, num_classes, placement=None):
    """Bytes of distinct memory, without the parameters, that the gradient of a forward keeps."""
    model = AlexNet(recipe, num_classes=num_classes, placement=placement)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.01)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    x = torch.randn(images, 3, recipe.crop_size, recipe.crop_size)
    x = x.contiguous(memory_format=torch.channels_last)
    masks = model.dropout_masks(torch.arange(images), seed=1, step=0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(x, masks=masks)
    assert logits.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("recipe", [MINI, PAPER, PAPER_CONV6], ids=lambda recipe: recipe.name)
def test_the_activations_are_those_that_a_forward_pass_keeps(recipe):
    images = 4
    memory = training_memory(
        recipe, num_classes=10, images=images, towers_here=2, precision="float32"
    )
    assert memory.activations == pytest.approx(kept_bytes(recipe, images, 10), rel=0.02)


@pytest.mark.parametrize("recipe", [MINI, PAPER], ids=lambda recipe: recipe.name)
def test_the_activations_of_one_tower_are_those_that_its_exchange_keeps(recipe):
    memory = training_memory(recipe, num_classes=10, images=4, towers_here=1, precision="float32")
    kept = kept_bytes(recipe, 4, 10, AloneOfTwo(tower=0, peer=1))
    assert memory.activations == pytest.approx(kept, rel=0.005)


def test_weights_velocities_and_gradients_are_the_parameters():
    memory = training_memory(PAPER, num_classes=1000, images=1, towers_here=2, precision="float32")
    assert memory.weights == memory.velocities == memory.gradients == 4 * 60_965_224
    half = training_memory(PAPER, num_classes=1000, images=1, towers_here=1, precision="float64")
    assert half.weights == 8 * 30_482_612
    assert half.total == half.weights * 3 + half.activations


def test_the_papers_towers_send_what_the_source_sends():
    """Per image, a tower of the source sends 21,632 values before conv3, 4,608 and 2,048 later."""
    values = exchanged_values(PAPER, num_classes=1000, images=1, tower=0)
    forward = {layer: n for (layer, direction), n in values.items() if direction == "forward"}
    assert forward == {"conv3": 21_632, "fc6": 4_608, "fc7": 2_048, "fc8": 2_048, "loss": 500}
    backward = {layer: n for (layer, direction), n in values.items() if direction == "backward"}
    assert backward == {"conv3": 21_632, "fc6": 4_608, "fc7": 2_048, "fc8": 2_048}


def test_two_processes_send_what_the_wiring_says_and_nothing_else(shards_dir, tmp_path):
    devices = Devices("cpu", 2, 2)
    run = Run(
        recipe=dataclasses.replace(MINI, batch_size=7, num_classes=11),
        num_classes=11,
        data_dir=shards_dir,
        run_dir=tmp_path,
        devices=devices,
        numerics=Numerics(),
        seed=3,
        steps=None,
        checkpoint_steps=None,
        resume_from=None,
        command=[],
    )
    path = tmp_path / "traffic.pt"
    assert run_processes(count_traffic, (run, str(path)), devices, timeout=300) == 0
    for tower, sent in enumerate(torch.load(path, weights_only=False)):
        values = exchanged_values(MINI, num_classes=11, images=7, tower=tower)
        assert dict(sent) == {key: 4 * count for key, count in values.items()}
    assert {layer for layer, _ in values} == {"conv3", "fc6", "fc7", "fc8", "loss"}
