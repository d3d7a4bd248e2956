"""Recipes as records: older versions keep their meaning, newer ones are refused."""

import dataclasses
import json

import pytest
from golden_values import OLD_RUN

from data_prep.errors import UserError
from replica.recipes import MINI, PAPER, from_record, to_record, with_changes
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


def test_differences_are_named_by_layer():
    other = with_changes(PAPER, ["conv3.num_kernels=192", "momentum=0.8", "without=conv4"])
    lines = differing_fields(PAPER, other)
    assert "conv3.num_kernels: 384 against 192" in lines
    assert "momentum: 0.9 against 0.8" in lines
    assert "conv4.num_kernels: 384 against None" in lines
    assert differing_fields(PAPER, dataclasses.replace(PAPER)) == []
