"""The layer shapes and counts of the paper (3.5, Figure 2) and of facts derived from the source."""

import json

import pytest
import torch
from conftest import assert_user_error, run_here

from cuda_ext import convolution_ways
from replica import paper
from replica.distributed.exchange import TwoDevices
from replica.info import main, totals
from replica.network.alexnet import AlexNet, whole_shapes
from replica.network.layers import SplitConv2d, SplitLinear
from replica.recipes import MINI, PAPER, PAPER_CONV6
from replica.recipes.geometry import geometry

# name: output shape, weights, biases, multiply-adds
EXPECTED = {
    "conv1": ((96, 55, 55), 34_848, 96, 105_415_200),
    "conv2": ((256, 27, 27), 307_200, 256, 223_948_800),
    "conv3": ((384, 13, 13), 884_736, 384, 149_520_384),
    "conv4": ((384, 13, 13), 663_552, 384, 112_140_288),
    "conv5": ((256, 13, 13), 442_368, 256, 74_760_192),
    "fc6": ((4096,), 37_748_736, 4_096, 37_748_736),
    "fc7": ((4096,), 16_777_216, 4_096, 16_777_216),
    "fc8": ((1000,), 4_096_000, 1_000, 4_096_000),
}


def outputs_of(recipe, num_classes):
    """Runs the real network once; the outputs of convolutions and linear layers, by layer."""
    model = AlexNet(recipe, num_classes=num_classes)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    shapes = {}
    for name, module in model.named_children():
        if isinstance(module, (SplitConv2d, SplitLinear)):

            def record(_, __, y, name=name):
                shapes[name] = tuple(y.shape[1:])

            module.register_forward_hook(record)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, recipe.crop_size, recipe.crop_size))
    return shapes


def test_every_layer_has_the_output_shape_of_the_paper():
    shapes = outputs_of(PAPER, 1000)
    assert shapes == {name: expected[0] for name, expected in EXPECTED.items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_layer_has_the_parameters_of_the_source(name):
    shapes = whole_shapes(PAPER, num_classes=1000)
    assert shapes[f"{name}.weight"].numel() == EXPECTED[name][1]
    assert shapes[f"{name}.bias"].numel() == EXPECTED[name][2]


def test_the_table_says_what_the_network_does():
    table = geometry(PAPER)
    for layer in table:
        shape, weights, biases, macs = EXPECTED[layer.name]
        assert layer.output_shape == shape
        assert layer.parameters == weights + biases
        assert layer.macs == macs
    assert [layer.name for layer in table if layer.reads == "both towers"] == list(
        paper.READS_BOTH_TOWERS
    )
    assert totals(table) == {
        "total_parameters": 60_965_224,
        "total_neurons": 659_272,
        "total_macs": 724_406_816,
    }
    assert {layer.name: layer.output_shape for layer in geometry(MINI)} == outputs_of(
        MINI, 1000
    ) | {"fc8": (10,)}


def test_the_sixth_convolution_has_the_shapes_of_the_source():
    conv6 = geometry(PAPER_CONV6)[5]
    assert (conv6.name, conv6.weight_shape) == ("conv6", (256, 256, 3, 3))
    assert conv6.output_shape == (256, 6, 6)
    assert totals(geometry(PAPER_CONV6))["total_parameters"] == 61_555_304


def test_neurons_are_those_of_figure_2_but_for_conv1():
    differing = [
        layer.name
        for layer in geometry(PAPER)
        if layer.neurons != paper.CLAIMED_LAYER_NEURONS[layer.name]
    ]
    assert differing == ["conv1"]
    assert sum(paper.CLAIMED_LAYER_NEURONS.values()) == 622_312


@pytest.mark.parametrize("tower", [0, 1])
def test_each_tower_holds_half_of_every_parameter(tower):
    with torch.device("meta"):
        half = AlexNet(PAPER, num_classes=1000, placement=TwoDevices(tower=tower, peer=1 - tower))
    assert sum(p.numel() for p in half.parameters()) == 30_482_612
    whole = whole_shapes(PAPER, num_classes=1000)
    for name, parameter in half.named_parameters():
        assert parameter.shape == (whole[name][0] // 2, *whole[name][1:])


@pytest.mark.parametrize(("tower", "logits"), [(0, 3), (1, 4)])
def test_the_first_tower_has_the_smaller_half_of_an_odd_class_count(tower, logits):
    with torch.device("meta"):
        half = AlexNet(MINI, num_classes=7, placement=TwoDevices(tower=tower, peer=1 - tower))
    assert half.get_parameter("fc8.bias").shape == (logits,)


def test_info_prints_the_papers_counts_as_json():
    result = run_here("-m", "replica.info", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["total_parameters"] == 60_965_224
    assert report["total_neurons"] == 659_272
    assert report["total_macs"] == 724_406_816
    assert report["layers"][0]["name"] == "conv1"
    assert report["layers"][0]["output_shape"] == [96, 55, 55]
    assert {"name", "output_shape", "parameters", "neurons", "macs"} <= set(report["layers"][3])


def test_info_explains_every_discrepancy_with_the_paper():
    text = run_here("-m", "replica.info").stdout
    for figure in ("60,965,224", "60,000,000", "659,272", "650,000", "622,312", "253,440", "2178"):
        assert figure in text


def test_info_says_what_the_network_is_shown():
    changes = ("image_order=block", "block_images=1024", "shared_crops=32", "mean=center")
    sets = [word for change in changes for word in ("--set", change)]
    lines = run_here("-m", "replica.info", *sets).stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("images: "))
    assert line == (
        "images: image_order=block, block_images=1024, random_crops=True, random_flips=True, "
        "shared_crops=32, color_noise=0.1, color_scale=eigenvalues, color_division=False, "
        "mean=center, pixel_mean=none, pixel_divisor=none, channels=rgb"
    )
    images = json.loads(run_here("-m", "replica.info", "--json").stdout)["images"]
    assert images["image_order"] == "cycle"
    assert images["block_images"] is None
    assert (images["shared_crops"], images["mean"]) == (1, "place")


def test_info_refuses_an_unknown_recipe():
    assert_user_error(run_here("-m", "replica.info", "--recipe", "papr"), "papr", "mini64, paper")
    assert_user_error(run_here("-m", "replica.info", "--set", "lrm_n=3"), "lrm_n", "lrn_n")


def test_info_compares_the_papers_own_network_alone_with_the_paper():
    assert "paper's neurons" in run_here("-m", "replica.info").stdout
    changed = run_here("-m", "replica.info", "--set", "without=conv4").stdout
    assert "conv5" in changed
    assert "conv4" not in changed
    assert "paper 60,000,000" not in changed


def test_info_says_which_operator_computes_each_layer_and_why(monkeypatch, capsys):
    monkeypatch.setattr(convolution_ways, "processor_family", lambda: "GenuineIntel 6, AMX")
    assert main(["--operators"]) == 0
    first, header, conv1, conv2, *_, fc8 = capsys.readouterr().out.splitlines()
    assert first.startswith("recipe paper on a CPU of the kind GenuineIntel 6, AMX; on CUDA every")
    assert header.split() == ["layer", "operator", "forward", "weight", "gradient", "why"]
    for text in ("split_conv2d, towers=1 ", "  library  ", "  blocks of pixels  ", "337 ms"):
        assert text in conv1
    assert "split_conv2d, towers=2 " in conv2
    assert "blocks of pixels are for a stride and at most 16 channels" in conv2
    assert fc8.split(maxsplit=1) == ["fc8", "PyTorch's linear"]
    assert main(["--operators", "--json", "--set", "conv4.is_local=true"]) == 0
    rows = {row["layer"]: row for row in json.loads(capsys.readouterr().out)["operators"]}
    assert rows["conv3"]["operator"] == "split_conv2d, towers=1"
    assert rows["conv4"]["operator"] == "PyTorch's unfold and einsum"
    assert rows["conv1"]["weight gradient"] == "blocks of pixels"
