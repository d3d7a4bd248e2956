"""Schedules of other projects: drops of a fixed length, and early stopping."""

import dataclasses

import pytest
import torch
from conftest import assert_user_error
from runs import all_lines_of, train

from data_prep.errors import UserError
from replica.recipes import MINI, PAPER, from_record, to_record, with_changes
from replica.recipes.evidence import evidence_of
from replica.training.schedule import last_epoch, num_drops

EPOCH = 2  # steps, of ten images in batches of five
# Nothing is learned, so that no epoch is better than the first.
OPTIONS = ("--batch-size", "5", "--lr", "0", "--set", "crop_size=96", "--loader-threads", "0")
PATIENT = ("--set", "stop_patience=3")


def test_a_step_of_a_fixed_length_is_pytorchs():
    """`StepLR` counts epochs from 0, and the recipe from 1."""
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    steps = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
    recipe = with_changes(PAPER, ["drop_rule=fixed", "drop_every=3"])
    for epoch in range(1, 12):
        drops = num_drops(recipe, epoch=epoch, val_errors=[0.5] * 12)
        assert 0.5**drops == optimizer.param_groups[0]["lr"], epoch
        optimizer.step()
        steps.step()
    assert drops == 3 < num_drops(recipe, epoch=13, val_errors=[])  # `max_drops` is of plateaus


def stops(errors, patience, improvement):
    """The sentence, by looking back from each epoch."""
    bests = [0]
    for i in range(1, len(errors)):
        if errors[i] < errors[bests[-1]] - improvement:
            bests.append(i)
        if i - bests[-1] == patience:
            return i + 1
    return None


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_a_run_ends_after_epochs_without_a_new_best(patience):
    recipe = with_changes(PAPER, [f"stop_patience={patience}", "plateau_improvement=0.01"])
    generator = torch.Generator().manual_seed(5)
    ends = []
    for _ in range(50):
        falls = torch.rand(12, generator=generator).mul(0.05).sub(0.02)
        errors = (0.9 - falls.cumsum(0)).tolist()
        ends.append(last_epoch(recipe, val_errors=errors))
        assert ends[-1] == stops(errors, patience, 0.01)
        for known in range(12):  # what comes later changes nothing
            epoch = last_epoch(recipe, val_errors=errors[:known])
            assert epoch == (ends[-1] if ends[-1] is not None and ends[-1] <= known else None)
    assert len(set(ends)) > 3
    assert last_epoch(PAPER, val_errors=[0.5] * 99) is None


def test_a_drop_does_not_begin_the_count_of_the_end_anew():
    recipe = with_changes(PAPER, ["stop_patience=4", "plateau_patience=2"])
    errors = [0.5] * 5
    assert num_drops(recipe, epoch=4, val_errors=errors) == 1
    assert last_epoch(recipe, val_errors=errors) == 5


@pytest.fixture(scope="module")
def stopped(tiny_shards, tmp_path_factory):
    """A run whose error never falls."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    result = train(tiny_shards, out, *OPTIONS, *PATIENT, "--epochs", "9")
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def names(out):
    return sorted(path.name for path in out.glob("checkpoint-*.pt"))


def test_a_run_without_a_new_best_ends_and_says_so(stopped):
    out, printed = stopped
    assert printed.splitlines()[-1] == (
        "ended after epoch 4 of 9: no new best top-1 error in 3 epochs (stop_patience)"
    )
    lines = all_lines_of(out)
    assert [x["step"] for x in lines if x["kind"] == "step"] == list(range(1, 4 * EPOCH + 1))
    assert [x["epoch"] for x in lines if x["kind"] == "val"] == [1, 2, 3, 4]
    assert names(out)[-1] == f"checkpoint-{4 * EPOCH:08d}.pt"


def test_a_run_that_has_ended_is_complete(stopped, tiny_shards):
    out, _ = stopped
    before = names(out)
    result = train(tiny_shards, out, "--resume", "--batch-size", "5", "--lr", "0")
    assert_user_error(result, "is of another recipe")  # its --set is not repeated
    result = train(tiny_shards, out, *OPTIONS, *PATIENT, "--epochs", "9", "--resume")
    assert result.returncode == 0, result.stderr
    assert f"the run is complete at step {4 * EPOCH}; nothing to do" in result.stdout
    assert names(out) == before


@pytest.mark.parametrize("steps", [2 * EPOCH + 1, 3 * EPOCH], ids=["mid-epoch", "end-of-epoch"])
def test_a_resumed_run_ends_where_the_whole_one_does(steps, stopped, tiny_shards, tmp_path):
    out = tmp_path / "run"
    options = (*OPTIONS, *PATIENT, "--epochs", "9")
    assert train(tiny_shards, out, *options, "--steps", str(steps)).returncode == 0
    result = train(tiny_shards, out, *options, "--resume")
    assert result.returncode == 0, result.stderr
    assert "ended after epoch 4 of 9" in result.stdout
    whole, _ = stopped
    last = f"checkpoint-{4 * EPOCH:08d}.pt"
    one, other = (torch.load(path / last, weights_only=True) for path in (whole, out))
    assert one["val_errors"] == other["val_errors"]
    assert one["step"] == other["step"]
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["drop_rule=fixed"], r"drop_every: expected a number of epochs with drop_rule=fixed"),
        (["drop_every=5"], r"else none, got 5 with drop_rule=epochs"),
        (["drop_rule=fixed", "drop_every=0"], "drop_every: expected at least 1"),
        (["stop_patience=0"], "stop_patience: expected at least 1"),
        (["drop_rule=step"], "drop_rule: expected plateau or epochs or fixed, got step"),
    ],
    ids=["no-length", "other-rule", "zero-length", "no-patience", "unknown-rule"],
)
def test_a_wrong_schedule_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        with_changes(MINI, changes)


def test_older_records_have_none_of_it():
    for recipe in (PAPER, MINI):
        record = to_record(recipe)
        del record["drop_every"], record["stop_patience"]
        assert from_record(record) == recipe
    changed = with_changes(PAPER, ["drop_rule=fixed", "drop_every=30", "stop_patience=7"])
    assert from_record(to_record(changed)) == changed
    assert dataclasses.replace(changed, drop_rule="plateau", drop_every=None).stop_patience == 7
    assert evidence_of(PAPER, "stop_patience") == "nothing of the kind"
