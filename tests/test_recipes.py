"""Recipes as records: older versions keep their meaning, newer ones are refused."""

import dataclasses
import json

import pytest
from golden_values import OLD_RUN

from data_prep.errors import UserError
from replica.recipes import MINI, PAPER, EpochChange, from_record, to_record, with_changes
from replica.recipes.recipe import target_problem
from replica.recipes.record import differing_fields


def test_a_record_without_a_version_has_the_meaning_that_it_had():
    """run.json of the golden run, which an earlier version wrote."""
    record = json.loads((OLD_RUN / "run.json").read_text())["recipe"]
    assert "version" not in record
    assert record["convs"][0]["normalised"]
    recipe = from_record(record)
    assert [conv.normalization for conv in recipe.convs] == [("lrn",), ("lrn",), (), (), ()]
    assert [conv.pooling for conv in recipe.convs] == ["max", "max", "none", "none", "max"]
    assert all(layer.activation is None for layer in recipe.layers)
    assert recipe.order == ("activation", "normalization", "pooling")
    assert all(fc.reads_both_towers for fc in recipe.fully_connected)
    assert recipe.keeps_gain  # it is `mini`, whose deviations followed the rule


def test_the_old_record_of_mini_is_mini():
    """So a run of an older version goes on with `--recipe mini`."""
    record = json.loads((OLD_RUN / "run.json").read_text())["recipe"]
    ours = to_record(MINI)
    for old, new in zip(record["convs"], ours["convs"], strict=True):
        old["num_kernels"] = new["num_kernels"]
        old["weight_standard_deviation"] = new["weight_standard_deviation"]
    for old, new in zip(record["fully_connected"], ours["fully_connected"], strict=True):
        old |= {name: new[name] for name in ("num_units", "weight_standard_deviation")}
    changed = ("crop_size", "batch_size", "epochs", "learning_rate", "drop_epochs", "claim")
    record |= {name: ours[name] for name in changed}
    assert from_record(record) == MINI


@pytest.mark.parametrize("recipe", [PAPER, MINI], ids=lambda recipe: recipe.name)
def test_a_recipe_is_the_same_after_it_was_written_down(recipe):
    changed = with_changes(recipe, ["conv2.normalization=lrn,same-map", "changes=3:conv1=0.1"])
    for one in (recipe, changed):
        assert from_record(json.loads(json.dumps(to_record(one)))) == one


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(version=3), ("version 3", "at most 2", "newer version")),
        (lambda r: r.pop("momentum"), ("missing fields ['momentum']",)),
        (lambda r: r.update(momentun=1), ("unknown fields ['momentun']",)),
        (lambda r: r["convs"][1].pop("stride"), ("conv2.stride",)),
        (lambda r: r["convs"][1].update(strid=1), ("conv2.strid",)),
    ],
    ids=["version", "missing", "unknown", "missing in a layer", "unknown in a layer"],
)
def test_a_record_of_another_version_is_one_line(change, words):
    record = to_record(PAPER)
    change(record)
    with pytest.raises(UserError) as error:
        from_record(record)
    assert all(word in str(error.value) for word in words), error.value


def test_the_rules_of_images_that_a_record_lacks_are_those_it_had():
    """One cycle, a crop per image, eigenvalues, no division, the mean of the crop's place."""
    record = json.loads((OLD_RUN / "run.json").read_text())["recipe"]
    names = ("image_order", "block_images", "shared_crops", "color_scale", "color_division", "mean")
    assert not record.keys() & set(names)
    old = ("cycle", None, 1, "eigenvalues", False, "place")
    for recipe in (from_record(record), PAPER, MINI):
        assert tuple(getattr(recipe, name) for name in names) == old


def test_what_other_systems_do_is_off_in_an_older_record():
    record = json.loads((OLD_RUN / "run.json").read_text())["recipe"]
    names = ("lrn_scope", "dropout_scale", "pixel_mean", "pixel_divisor", "channels")
    assert not record.keys() & set(names)
    for recipe in (from_record(record), PAPER, MINI):
        assert tuple(getattr(recipe, name) for name in names) == ("tower", "test", (), (), "rgb")
        assert not any(conv.dropout for conv in recipe.convs)


def test_blocks_have_a_size_where_there_are_blocks():
    assert with_changes(PAPER, ["image_order=block", "block_images=1024"]).block_images == 1024
    message = refused(lambda: with_changes(PAPER, ["block_images=1024"]))
    rule = "block_images: expected none, or image_order=block, got 1024 with image_order=cycle"
    assert message == f"recipe paper: {rule}"


def test_differences_are_named_by_layer():
    other = with_changes(PAPER, ["conv3.num_kernels=192", "momentum=0.8", "without=conv4"])
    lines = differing_fields(PAPER, other)
    assert "conv3.num_kernels: 384 against 192" in lines
    assert "momentum: 0.9 against 0.8" in lines
    assert "conv4.num_kernels: 384 against None" in lines
    assert differing_fields(PAPER, dataclasses.replace(PAPER)) == []


# Field, the values at the border that are allowed, those beside them that are not, the rule.
RULES = [
    ("towers", (1, 2), (0, 3), "1 or 2"),
    ("num_classes", (None, 2, 1_000_000), (1, 1_000_001), "at least 2, at most 1,000,000"),
    ("crop_size", (256, 64), (257, 0), "1 to 256 pixels"),
    ("activation", ("relu", "tanh", "linear"), ("ReLU",), "relu or tanh or linear"),
    ("lrn_n", (1, 3), (0, 2), "an odd number >= 1"),
    ("lrn_k", (0.1,), (0, -1), "a number > 0"),
    ("lrn_alpha", (0, 0.5), (-0.1,), "a number >= 0"),
    ("lrn_beta", (0, 0.5), (-0.1,), "a number >= 0"),
    ("same_map_beta", (0, 0.5), (-0.1,), "a number >= 0"),
    ("same_map_n", (1, 3), (0, 2), "an odd number >= 1"),
    ("same_map_k", (0.1,), (0, -1), "a number > 0"),
    ("same_map_alpha", (0, 0.5), (-0.1,), "a number >= 0"),
    ("pool_window", (1, 2), (0,), "at least 1"),
    ("pool_stride", (1, 2), (0,), "at least 1"),
    ("pool_ties", ("first", "all"), ("none", "last"), "first or all"),
    ("pool_rounding", ("down", "up"), ("nearest",), "down or up"),
    ("dropout_keep", (0.1, 1), (0, 1.1), "more than 0, at most 1"),
    ("color_noise", (0, 0.5), (-0.1,), "a number >= 0"),
    ("color_scale", ("eigenvalues", "standard-deviations"), ("roots",), "eigenvalues or standard-"),
    ("mean", ("place", "center"), ("none",), "place or center"),
    ("lrn_scope", ("tower", "layer"), ("all",), "tower or layer"),
    ("dropout_scale", ("test", "training"), ("both",), "test or training"),
    ("channels", ("rgb", "bgr"), ("gbr",), "rgb or bgr"),
    ("pixel_mean", ((), (0, 255, 1)), ((1, 2), (-1, 2, 3), (1, 2, 256)), "none or three numbers"),
    ("pixel_divisor", ((), (1, 1e6, 0.1)), ((1, 2), (0, 1, 1), (1, 1, 2e6)), "none or three num"),
    ("image_order", ("cycle", "reshuffle", "block"), ("shuffle",), "cycle or reshuffle or block"),
    ("shared_crops", (1, 32, 1_000_000), (0, 1_000_001), "at least 1, at most 1,000,000"),
    ("block_images", (None,), (0, 1_000_001, 7), ""),
    ("batch_size", (1, 1_000_000), (0, 1_000_001), "at least 1, at most 1,000,000"),
    ("momentum", (0, 0.99), (-0.1, 1), "at least 0, less than 1"),
    ("optimizer", ("paper", "sgd", "adam"), ("rmsprop",), "paper or sgd or adam"),
    ("ema", (None, 0.001, 0.999), (0, -0.1, 1), "more than 0, less than 1"),
    ("weight_decay", (0, 0.5), (-0.1,), "a number >= 0"),
    ("learning_rate", (0, 0.5), (-0.1,), "a number >= 0"),
    ("bias_learning_rate", (None, 0, 0.5), (-0.1,), "a number >= 0"),
    ("epochs", (1, 1_000_000), (0, 1_000_001), "at least 1, at most 1,000,000"),
    ("drop_rule", ("plateau", "epochs"), ("never",), "plateau or epochs"),
    ("drop_factor", (0.1, 1), (0, 1.1), "more than 0, at most 1"),
    (
        "drop_epochs",
        ((), (1, 2)),
        ((0, 1), (2, 1), (2, 2), (1, 1, 2)),
        "rising epochs, counted from 1",
    ),
    ("plateau_patience", (1,), (0,), "at least 1"),
    ("plateau_improvement", (0, 0.5), (-0.1,), "a number >= 0"),
    ("max_drops", (0, 1), (-1,), "at least 0"),
    ("drop_every", (None,), (0, 1_000_001, 7), ""),
    ("stop_patience", (None, 1, 1_000_000), (0, 1_000_001), "at least 1, at most 1,000,000"),
    ("changes", ((EpochChange(1, "conv1", 0.0),),), ((EpochChange(0, "conv1", 0.0),),), "from 1"),
]
LAYER_RULES = [
    ("conv2", "num_kernels", (2,), (0, 3), ""),
    ("conv3", "kernel_size", (1,), (0,), "at least 1"),
    ("conv3", "stride", (1, 2), (0,), "at least 1"),
    (
        "conv2",
        "padding",
        ((0, 1), (1, 0), (2, 2)),
        ((-1, 2), (2, -1), (2,), (2, 2, 2)),
        "two numbers",
    ),
    ("conv2", "pooling", ("max", "average", "none"), ("min",), "max or average or none"),
    ("conv2", "pool_window", (None, 1), (0,), "at least 1"),
    ("conv2", "pool_stride", (None, 1), (0,), "at least 1"),
    ("conv2", "pool_ties", (None, "first", "all"), ("last",), "first or all"),
    ("conv2", "normalization", ((), ("lrn", "batch")), (("lrn", "lrn"), ("l2",)), "each once"),
    ("fc6", "normalization", ((), ("batch",)), (("lrn",),), "each once"),
    ("conv2", "weight_standard_deviation", (0, 0.1), (-0.1,), "a number >= 0"),
    ("conv2", "learning_rate", (None, 0, 0.1), (-0.1,), "a number >= 0"),
    ("conv2", "bias_learning_rate", (None, 0, 0.1), (-0.1,), "a number >= 0"),
    ("fc6", "weight_decay", (None, 0, 0.1), (-0.1,), "a number >= 0"),
    ("conv2", "activation", (None, "tanh"), ("sigmoid",), "relu or tanh or linear"),
    (
        "conv2",
        "order",
        (None, ("pooling", "activation", "normalization")),
        (("pooling",),),
        "order of",
    ),
    ("fc6", "num_units", (2,), (0, 3), ""),
    ("conv2", "name", ("conv2b",), ("conv_2", "conv.2", "conv1"), "names"),
]


def refused(make):
    with pytest.raises(UserError) as error:
        make()
    return str(error.value)


@pytest.mark.parametrize(("field", "good", "bad", "rule"), RULES, ids=lambda x: str(x)[:20])
def test_each_field_has_its_border(field, good, bad, rule):
    for value in good:
        dataclasses.replace(PAPER, **{field: value})
    for value in bad:
        message = refused(lambda value=value: dataclasses.replace(PAPER, **{field: value}))
        assert message.startswith(f"recipe paper: {field}: expected"), message
        assert rule in message


@pytest.mark.parametrize(
    ("layer", "field", "good", "bad", "rule"), LAYER_RULES, ids=lambda x: str(x)[:20]
)
def test_each_field_of_a_layer_has_its_border(layer, field, good, bad, rule):
    def changed(value):
        return dataclasses.replace(
            PAPER,
            **{
                kind: tuple(
                    dataclasses.replace(x, **{field: value}) if x.name == layer else x
                    for x in getattr(PAPER, kind)
                )
                for kind in ("convs", "fully_connected")
            },
        )

    for value in good:
        assert (
            getattr(changed(value).layers[[x.name for x in PAPER.layers].index(layer)], field)
            == value
        )
    for value in bad:
        message = refused(lambda value=value: changed(value))
        assert rule in message, message


def test_targets_of_rates_are_the_layers_their_tensors_and_three_words():
    for target in ("learning_rate", "bias_learning_rate", "color_noise", "conv1", "fc8.bias"):
        assert target_problem(PAPER, target, 0.0) is None
        assert ">= 0" in target_problem(PAPER, target, -0.1)
        assert ">= 0" in target_problem(PAPER, target, float("inf"))
    for target in ("conv6", "conv1.gain", "momentum"):
        assert "expected learning_rate" in target_problem(PAPER, target, 0.0)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("num_classes=none", None),
        ("num_classes=7", 7),
        ("bias_learning_rate=None", None),
        ("random_flips=FALSE", False),
        ("drop_epochs=3, 9", (3, 9)),
        ("drop_epochs=", ()),
        ("drop_epochs=none", ()),
        ("changes=3:conv1=0.5,4:color_noise=0", None),
        ("order=pooling,activation,normalization", ("pooling", "activation", "normalization")),
        ("learning_rate=1e-3", 0.001),
    ],
)
def test_a_text_is_read_as_the_type_of_its_field(change, value):
    field = change.partition("=")[0]
    got = getattr(with_changes(PAPER, [change]), field)
    expected = (EpochChange(3, "conv1", 0.5), EpochChange(4, "color_noise", 0.0))
    assert got == (expected if field == "changes" else value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("momentum", "expected field=value"),
        ("momentum=fast", "a number for momentum"),
        ("momentum=inf", "a number for momentum"),
        ("momentum=nan", "a number for momentum"),
        ("epochs=2.5", "an integer for epochs"),
        ("num_classes=two", "an integer or none for num_classes"),
        ("random_flips=1", "true or false for random_flips"),
        ("drop_epochs=a", "integers with commas between them for drop_epochs"),
        ("drop_epochs=,", "integers with commas between them for drop_epochs"),
        ("without=", "expected layers such as without=conv4"),
        ("changes=3:conv1", "changes such as"),
        ("changes=conv1=3", "changes such as"),
        ("claim=mine", "no field claim"),
    ],
)
def test_a_text_that_is_not_of_its_type_is_refused(change, words):
    assert words in refused(lambda: with_changes(PAPER, [change]))
