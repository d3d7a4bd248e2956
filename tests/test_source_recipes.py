"""The recipes of the 2012 source against the facts of its files (S, with the facts' section)."""

import pytest
import torch

from data_prep.errors import UserError
from replica.network.alexnet import AlexNet
from replica.recipes import PAPER, RECIPES, SOURCE_2012, find_recipe, with_changes
from replica.recipes.geometry import geometry

# Of each layer before pooling, and behind it, side by side (S, sections 1 and 3).
SIDES = {
    "source-2012": [(55, 27), (27, 13), (13, 13), (13, 13), (13, 6)],
    "source-2010": [(55, 27), (27, 13), (13, 13), (13, 13), (13, 6)],
    "source-2012-half": [(55, 27), (27, 13), (13, 13), (13, 13), (13, 6)],
    "source-2012-no-overlap": [(55, 28), (26, 13), (13, 13), (13, 13), (11, 6)],
    "source-2012-no-norm": [(55, 27), (27, 13), (13, 13), (13, 13), (13, 6)],
    "source-2012-no-communication": [(55, 27), (27, 13), (13, 13), (13, 13), (13, 6)],
    "source-2012-conv6": [(55, 27), (27, 13), (13, 13), (13, 13), (13, 6), (6, 6)],
    "source-2011-conv6": [(55, 27), (27, 13), (13, 13), (13, 13), (13, 6), (6, 6)],
}
# Kernels and units of the whole layer, parameters and multiply-adds where the facts have them (S,
# sections 1 and 9); by hand where they follow from the widths: None where the facts have no sum.
WIDTHS = {
    "source-2012": ([96, 256, 384, 384, 256, 4096, 4096, 1000], 60_965_224, 724_406_816),
    "source-2010": ([96, 256, 384, 384, 256, 4096, 4096, 1000], 60_965_224, 724_406_816),
    "source-2012-half": ([48, 128, 192, 192, 256, 4096, 4096, 1000], 59_798_312, 391_514_384),
    "source-2012-no-overlap": ([96, 256, 384, 384, 256, 4096, 4096, 1000], 60_965_224, None),
    "source-2012-no-norm": (
        [96, 256, 384, 384, 256, 4096, 4096, 1000],
        60_965_224,
        724_406_816,
    ),
    "source-2012-no-communication": (
        [96, 320, 384, 384, 256, 8192, 8192, 1000],
        None,
        None,
    ),
    "source-2012-conv6": ([96, 256, 384, 384, 256, 256, 4096, 4096, 1000], 61_555_304, None),
    "source-2011-conv6": (
        [96, 256, 384, 384, 256, 256, 4096, 4096, 2048, 21_843],
        61_555_304 - 1000 * 4097 + 2048 * 4097 + 21_843 * 2049,
        None,
    ),
}
# The layers that read both columns (S, section 7); the half net has one.
MEETINGS = {
    "source-2012-half": [],
    "source-2012-no-communication": ["fc8"],
    "source-2012-conv6": ["conv3", "conv6", "fc6", "fc7", "fc8"],
    "source-2011-conv6": ["conv3", "conv6", "fc6", "fc7", "bottleneck", "fc8"],
}
SOURCES = sorted(name for name in RECIPES if name.startswith("source-"))


def test_every_recipe_of_the_source_is_compared_with_the_facts():
    assert sorted(SIDES) == sorted(WIDTHS) == SOURCES


@pytest.mark.parametrize("name", SOURCES)
def test_a_recipe_has_the_shapes_and_counts_of_the_source(name):
    table = geometry(find_recipe(name))
    convs = [row for row in table if row.kernel_size]
    assert [(row.output_shape[1], row.handed_on[1]) for row in convs] == SIDES[name]
    widths, parameters, macs = WIDTHS[name]
    assert [row.output_shape[0] for row in table] == widths
    assert parameters in (None, sum(row.parameters for row in table))
    assert macs in (None, sum(row.macs for row in table))
    both = ["conv3", "fc6", "fc7", "fc8"]
    meetings = [row.name for row in table if row.reads == "both towers"]
    assert meetings == MEETINGS.get(name, both)


@pytest.mark.parametrize("name", SOURCES)
def test_the_network_gives_what_the_table_says(name):
    recipe = find_recipe(name)
    with torch.device("meta"):
        model = AlexNet(recipe, num_classes=recipe.fully_connected[-1].num_units)
        x = torch.zeros(2, 3, 224, 224)
    for row in geometry(recipe):
        pooling = dict(model.named_children()).get(f"{row.name}_pooling")
        if pooling is not None:
            # Where windows divide a map exactly, the fused pass of three layers stays.
            assert pooling.ceil_mode == (row.output_shape[1] in (55, 11) and "overlap" in name)
    assert sum(p.numel() for p in model.parameters()) == sum(
        row.parameters for row in geometry(recipe)
    )
    assert model.eval()(x).shape == (2, recipe.fully_connected[-1].num_units)


@pytest.mark.parametrize("ties", ["first", "all"])
@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2), (5, 3), (4, 3)])
def test_rounding_up_cuts_windows_off_at_the_border(window, stride, kind, ties):
    """S, section 3: ceil((side - window) / stride) + 1 windows, clipped at the border."""
    changes = ["pool_rounding=up", f"pool_ties={ties}", f"conv1.pooling={kind}", "towers=1"]
    changes += [f"conv1.pool_window={window}", f"conv1.pool_stride={stride}", "crop_size=96"]
    changes += [f"conv1.kernel_size={4}", "conv1.padding=0,0"]
    recipe = with_changes(PAPER, changes)
    pooling = dict(AlexNet(recipe, num_classes=2).named_children())["conv1_pooling"]
    side = geometry(recipe)[0].output_shape[1]
    assert side == 24
    x = torch.randint(-9, -6, (2, 3, side, side)).double().requires_grad_()
    y = pooling(x)
    starts = [start for start in range(0, side, stride) if start < side - window + stride]
    assert y.shape[2:] == (len(starts), len(starts)) == geometry(recipe)[0].handed_on[1:]
    expected = torch.zeros_like(x)
    for i, top in enumerate(starts):
        for j, left in enumerate(starts):
            part = x[:, :, top : top + window, left : left + window].flatten(2)
            if kind == "average":
                assert torch.allclose(y[:, :, i, j], part.mean(2), rtol=1e-12)
            else:
                assert torch.equal(y[:, :, i, j], part.amax(2))
                where = part == part.amax(2, keepdim=True)
                if ties == "first":
                    where &= where.cumsum(2) == 1
                shape = x[:, :, top : top + window, left : left + window].shape
                expected[:, :, top : top + window, left : left + window] += where.view(shape)
    y.sum().backward()
    if kind == "max":
        assert torch.equal(x.grad, expected)


def test_pooling_rounds_down_where_nothing_is_said():
    assert (PAPER.pool_rounding, SOURCE_2012.pool_rounding) == ("down", "up")


def test_a_window_that_would_lie_beyond_the_map_is_refused():
    with pytest.raises(UserError) as error:
        with_changes(SOURCE_2012, ["conv2.pool_stride=4"])
    rule = "conv2: expected a pool_stride of at most its window, got 4"
    assert str(error.value) == f"recipe source-2012: {rule}"
    with_changes(PAPER, ["conv2.pool_stride=4"])
