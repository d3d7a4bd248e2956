"""The recipes of earlier projects against those projects' networks in plain PyTorch."""

from functools import partial

import pytest
import torch
from conftest import PROJECT_DIR
from runs import train
from torch import nn

from replica.network.alexnet import AlexNet
from replica.network.initialization import initialize_
from replica.recipes import PAPER, RECIPES, find_recipe
from replica.recipes.differences import differences, listed
from replica.recipes.earlier_projects import EARLIER_PROJECTS
from replica.recipes.evidence import evidence_of
from replica.recipes.expected import EXPECTED
from replica.recipes.geometry import geometry
from replica.recipes.record import fields_by_name, from_record, to_record
from replica.results.report_records import _of_expected

NAMES = [recipe.name for recipe in EARLIER_PROJECTS]
VARIANTS = ("baseline", "crop", "pixels", "dropout", "batch-norm", "large", "small")
VARIANTS += ("average-pooling",)


# --- The projects' networks: of layers, the products alone have the names that recipes give them


def convolutions(channels, first, *, batch_norm=(), pool_last=True, normalization=None):
    """Five of them with ReLU; pooling behind the first, second and last."""
    c1, c2, c3, c4, c5 = channels
    modules = []
    for i, conv in enumerate(
        (
            nn.Conv2d(3, c1, **first),
            nn.Conv2d(c1, c2, 5, padding=2),
            nn.Conv2d(c2, c3, 3, padding=1),
            nn.Conv2d(c3, c4, 3, padding=1),
            nn.Conv2d(c4, c5, 3, padding=1),
        )
    ):
        modules += [conv, nn.ReLU()]
        if i in batch_norm:
            modules.append(nn.BatchNorm2d(channels[i]))
        if normalization and i < 2:
            modules.append(normalization())
        if i < 2 or (i == 4 and pool_last):
            modules.append(nn.MaxPool2d(3, 2))
    return modules


def head(inputs, *units):
    modules = [nn.Flatten()]
    for number, width in enumerate(units):
        modules += [nn.ReLU()] if number else []
        modules.append(nn.Linear(inputs, width))
        inputs = width
    return modules


WIDE = {
    "third": ((96, 256, 384, 384, 256), {"kernel_size": 11, "stride": 4}, 6, (4096, 4096, 200)),
    "small": (2000, 200),
}
NARROW = {
    "third": (
        *((24, 64, 96, 96, 64), {"kernel_size": 5, "stride": 2, "padding": 2}),
        *(2, (512, 512, 200)),
    ),
    "small": (250, 200),
}


def third(variant, widths):
    channels, first, pooled, units = widths["third"]
    combined = variant in ("large", "small", "average-pooling")
    batch_norm = (0, 1) if variant == "batch-norm" or combined else ()
    if variant == "average-pooling":
        return nn.Sequential(
            *convolutions(channels, first, batch_norm=batch_norm, pool_last=False),
            nn.AdaptiveAvgPool2d(1),
            *head(channels[-1], units[-1]),
        )
    units = widths["small"] if variant == "small" else units
    inputs = channels[-1] * pooled**2
    return nn.Sequential(
        *convolutions(channels, first, batch_norm=batch_norm), *head(inputs, *units)
    )


ONE_WEIRD_TRICK = (64, 192, 384, 256, 256), {"kernel_size": 11, "stride": 4, "padding": 2}
QUARTER = (16, 48, 96, 64, 64), {"kernel_size": 5, "stride": 2, "padding": 2}


def network_of(name):
    """What the project defined, or the narrow member of the same family."""
    if name.startswith("tiny-"):
        is_narrow = name.endswith("-64")
        variant = name.removeprefix("tiny-").removesuffix("-64")
        return third(variant, NARROW if is_narrow else WIDE)
    if name.startswith("imagenet-one-gpu"):
        lrn = partial(nn.LocalResponseNorm, 5, alpha=1e-4, beta=0.75, k=2.0)
        if name.endswith("-64"):  # the whole picture: maps of 32, 15, 7, 3
            layers = convolutions(*NARROW["third"][:2], normalization=lrn)
            return nn.Sequential(*layers, *head(64 * 3 * 3, 512, 512, 1000))
        first = {"kernel_size": 11, "stride": 4}
        layers = convolutions((96, 256, 384, 384, 256), first, normalization=lrn)
        # Maps of 55 x 55, as the paper has them.
        return nn.Sequential(nn.ZeroPad2d((0, 3, 0, 3)), *layers, *head(9216, 4096, 4096, 1000))
    units = {
        "tiny10": (256 * 3 * 3, 4096, 4096, 10),
        "tiny10-64": (64 * 2 * 2, 512, 512, 10),
        "cifar10-transfer": (9216, 4096, 1024, 10),
        "cifar10-transfer-64": (64 * 2 * 2, 512, 128, 10),
    }[name]
    family = QUARTER if name.endswith("-64") else ONE_WEIRD_TRICK
    return nn.Sequential(*convolutions(*family), *head(*units))


@pytest.mark.parametrize("name", NAMES)
def test_there_are_as_many_parameters_as_in_the_projects_network(name):
    recipe = find_recipe(name)
    with torch.device("meta"):
        theirs = network_of(name)
        ours = AlexNet(recipe, num_classes=recipe.fully_connected[-1].num_units)
    assert [x.shape for x in ours.parameters()] == [x.shape for x in theirs.parameters()]


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-64")])
def test_logits_are_those_of_the_projects_layers(name):
    """Pixels are divided; the order of ReLU, normalization and pooling is theirs."""
    recipe = find_recipe(name)
    torch.manual_seed(5)
    ours = AlexNet(recipe, num_classes=recipe.fully_connected[-1].num_units)
    initialize_(ours, seed=3)
    ours, theirs = ours.double().eval(), network_of(name).double().eval()
    with torch.no_grad():
        for tensor in ours.state_dict().values():
            if tensor.is_floating_point():  # biases, scales and running statistics, too
                tensor.add_(0.02 * torch.rand_like(tensor))
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.copy_(mine)
        of_theirs = [x for x in theirs.buffers() if x.is_floating_point()]  # not their count
        statistics = [x for name, x in ours.named_buffers() if not name.startswith("input.")]
        for mine, other in zip(statistics, of_theirs, strict=True):
            other.copy_(mine)
        size = 64 if name == "imagenet-one-gpu-64" else 56
        pixels = 60 * torch.randn(2, 3, size, size, dtype=torch.float64)
        deviations = torch.tensor([58.395, 57.12, 57.375])
        expected = theirs(pixels / deviations.view(3, 1, 1))
        torch.testing.assert_close(ours(pixels), expected, rtol=1e-9, atol=0)


# --- The trainings

PIXELS = {"pixel_mean": "123.675,116.28,103.53", "pixel_divisor": "58.395,57.12,57.375"}
CROPS, FLIPS = {"random_crops": "true"}, {"random_flips": "true"}
JITTER = {"color_jitter": "0.2,0.2,0.2,0.02", "pixel_noise": "5.0"}
NARROW_JITTER = {"color_noise": "0.1", "pixel_noise": "5.0"}
BATCH_NORM = {"conv1.normalization": "batch", "conv2.normalization": "batch"}
HALVES = {
    "drop_rule": "plateau",
    "drop_factor": "0.5",
    "plateau_patience": "4",
    "max_drops": "13",
}
FC6, FC7 = {"fc6.dropout": "true"}, {"fc7.dropout": "true"}
COMBINED = {**CROPS, **FLIPS, **JITTER, **BATCH_NORM, **HALVES}
NARROW_COMBINED = {**CROPS, **FLIPS, **NARROW_JITTER, **BATCH_NORM}
AVERAGES = {
    "conv5.dropout": "true",
    "conv5.pooling": "average",
    "conv5.pool_stride": "1",
    "fc6": "no such layer",
    "fc7": "no such layer",
}
SMALL = {**FC6, "fc7": "no such layer"}
AGAINST_BASELINE = {
    "crop": CROPS,
    "pixels": JITTER,
    "dropout": {**FC6, **FC7},
    "batch-norm": BATCH_NORM,
    "large": {**COMBINED, **FC6, **FC7},
    "small": {**COMBINED, **SMALL, "fc6.num_units": "2000"},
    "average-pooling": {**COMBINED, **AVERAGES, "conv5.pool_window": "13"},
    "pixels-64": NARROW_JITTER,
    "large-64": {**NARROW_COMBINED, **FC6, **FC7},
    "small-64": {**NARROW_COMBINED, **SMALL, "fc6.num_units": "250"},
    "average-pooling-64": {**NARROW_COMBINED, **AVERAGES, "conv5.pool_window": "6"},
    **{f"{x}-64": y for x, y in (("crop", CROPS), ("batch-norm", BATCH_NORM))},
    "dropout-64": {**FC6, **FC7},
}
# What is the same in all five.
ONE_TOWER = {
    "towers": "1",
    "dropout_scale": "training",
    "image_order": "reshuffle",
    "decay_biases": "true",
    "color_noise": "0.0",
    **{f"{layer}.bias": "0.0" for layer in ("conv2", "conv4", "conv5", "fc6", "fc7")},
    **PIXELS,
}
NO_LRN = {"conv1.normalization": "none", "conv2.normalization": "none"}
BEFORE_FC6 = {"conv5.dropout": "true", "fc7.dropout": "false"}
WEIRD = {
    **{"conv1.num_kernels": "64", "conv2.num_kernels": "192", "conv4.num_kernels": "256"},
    "conv1.padding": "2,2",
}
AGAINST_PAPER = {
    "imagenet-one-gpu": {
        **ONE_TOWER,
        **BEFORE_FC6,
        "lrn_alpha": "2e-05",
        "random_crops": "false",
        "color_jitter": "0.2,0.2,0.2,0.1",
        "batch_size": "32",
        "epochs": "22",
    },
    "tiny10": {
        **(ONE_TOWER | NO_LRN | BEFORE_FC6 | WEIRD),
        "crop_size": "150",
        "random_crops": "false",
        "fc8.num_units": "10",
        "batch_size": "12",
        "weight_decay": "0.0",
        "learning_rate": "0.001",
        "epochs": "35",
        "drop_epochs": "31,61",
        "plateau_improvement": "0.0",
    },
    "tiny-baseline": {
        **(ONE_TOWER | NO_LRN),
        "crop_size": "227",
        "conv1.padding": "0,0",
        "fc6.dropout": "false",
        "fc7.dropout": "false",
        "random_crops": "false",
        "random_flips": "false",
        "fc8.num_units": "200",
        "batch_size": "64",
        "epochs": "30",
        "drop_rule": "epochs",
        "drop_epochs": "none",
    },
    "cifar10-transfer": {
        **(ONE_TOWER | NO_LRN | BEFORE_FC6 | WEIRD),
        "random_crops": "false",
        "resized_crops": "0.08,1.0",
        "fc7.num_units": "1024",
        "fc8.num_units": "10",
        "batch_size": "256",
        "weight_decay": "0.0",
        "epochs": "40",
        "drop_rule": "epochs",
        "drop_epochs": "none",
    },
}


def changed(first, second):
    rows = {row.field: row.values[1] for row in differences(first, second)}
    return {k: v for k, v in rows.items() if not k.endswith("weight_standard_deviation")}


@pytest.mark.parametrize("name", AGAINST_PAPER)
def test_a_project_differs_from_the_paper_where_its_files_do(name):
    assert changed(PAPER, find_recipe(name)) == AGAINST_PAPER[name]


@pytest.mark.parametrize("name", AGAINST_BASELINE)
def test_a_variant_differs_from_its_baseline_as_its_name_says(name):
    base = "tiny-baseline-64" if name.endswith("-64") else "tiny-baseline"
    assert changed(find_recipe(base), find_recipe(f"tiny-{name}")) == AGAINST_BASELINE[name]


def test_all_eight_variants_are_there_wide_and_narrow():
    expected = [f"tiny-{variant}{size}" for size in ("", "-64") for variant in VARIANTS]
    assert [name for name in RECIPES if name.startswith("tiny-")] == expected


@pytest.mark.parametrize("name", NAMES)
def test_first_weights_are_pytorchs_or_keep_a_signals_size(name):
    recipe = find_recipe(name)
    for row in geometry(recipe):
        fan_in = row.num_inputs if not row.kernel_size else row.weight_shape[1] * row.kernel_size**2
        expected = (3 * fan_in) ** -0.5
        if name.endswith("-64"):
            expected = 0.01 if row.name == "fc8" else (2 / fan_in) ** 0.5
        assert recipe.layer(row.name).weight_standard_deviation == pytest.approx(expected)
        assert recipe.layer(row.name).bias == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_value_has_evidence_and_the_record_keeps_it(name):
    recipe = find_recipe(name)
    assert [x for x in fields_by_name(recipe) if evidence_of(recipe, x) is None] == [
        "name",
        "claim",
    ]
    assert from_record(to_record(recipe)) == recipe
    if not name.endswith("-64"):
        assert "mended" in recipe.claim
        assert "lack of a GPU" in recipe.claim
        assert listed(recipe)["expected"]["views"] == "central crop"


def test_a_report_says_what_was_not_published():
    who, top1, top5, _ = _of_expected("that project", EXPECTED["tiny-crop"]).cells()
    assert (who, top5) == ("that project", "not published")
    assert "64.51" in str(top1)


def test_a_narrow_one_is_trained_by_its_name_alone(tiny_shards, tmp_path):
    for name in ("tiny-large-64", "tiny-average-pooling-64"):
        result = train(tiny_shards, tmp_path / name, "--recipe", name, "--steps", "1")
        assert result.returncode == 0, result.stderr


def test_the_documents_name_every_recipe():
    for document in ("README.md", "docs/training.md"):
        text = (PROJECT_DIR / document).read_text()
        missing = [x for x in NAMES if f"`{x.removesuffix('-64')}`" not in text]
        assert [x for x in missing if not x.startswith("tiny-")] == []
        assert all(f"`-{variant}`" in text for variant in VARIANTS[1:])
