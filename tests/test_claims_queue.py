"""The queue of experiments: real trainings of a tiny set, interrupted, repeated, tampered with."""

import dataclasses
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import run_here
from runs import colored_pictures

from data_prep.errors import UserError
from data_prep.pairs import write_shards
from data_prep.pictures import PictureFormat
from replica.claims import queue
from replica.claims.queue import Places, code_digest, read_outcomes, run_queue
from replica.claims.trials import Trial, read_outcome, write_outcome
from replica.results.followed_run import Curve

EPOCHS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten classes of 32 pixels, told apart by their color: 20 + 1 pictures each."""
    pairs = colored_pictures()
    return write_shards(
        {"train": pairs(20), "val": pairs(1)},
        tmp_path_factory.mktemp("colors") / "shards",
        picture_format=PictureFormat(image_size=32),
        images_per_shard=64,
    )


def trial_of(arm, *, seed=1, rate=0.001, towers=1, **others):
    return Trial(
        experiment="colors",
        arm=arm,
        recipe="figure1-relu",
        changes=(f"learning_rate={rate:g}", "batch_size=64", f"towers={towers}"),
        seed=seed,
        epochs=EPOCHS,
        **others,
    )


SLOW = trial_of("slow", towers=2, colors=True)
TRIALS = [SLOW, trial_of("ended", rate=0.002, until=1.0)]


def plan_of(trials):
    return lambda _: list(trials)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A queue of two trials that ran to its end; the second ends at its target."""
    root = tmp_path_factory.mktemp("queue")
    places = Places(records=root / "records", work=root / "work", devices=["--device", "cpu"])
    assert run_queue("colors", plan_of(TRIALS), data=data, places=places)
    return places


def test_a_finished_trial_leaves_a_small_record_of_what_it_was(finished, data):
    outcomes = read_outcomes(finished.records, "colors")
    assert outcomes.keys() == {"slow-seed-1", "ended-seed-1"}
    slow = outcomes["slow-seed-1"]
    assert slow.trial == TRIALS[0]
    assert (slow.outcome, slow.steps, slow.steps_per_epoch) == ("finished", 4 * EPOCHS, 4)
    assert len(slow.train_errors) == len(slow.val_top1) == EPOCHS
    assert slow.first_losses[0] == pytest.approx(math.log(10), rel=1e-3)
    assert (slow.train_images, slow.held_out_images) == (200, 10)
    assert slow.manifest_sha256 == data.manifest_sha256
    assert slow.code == code_digest()
    path = finished.records / "colors" / "slow-seed-1.json"
    assert path.stat().st_size < 10_000
    assert str(finished.work) not in path.read_text()
    lines = (finished.work / "colors" / "slow-seed-1" / "metrics.jsonl").read_text().splitlines()
    steps = [x for x in map(json.loads, lines) if x["kind"] == "step"]
    sizes = [64, 64, 64, 8]
    for epoch in range(EPOCHS):
        errors = [x["top1_error"] for x in steps[4 * epoch : 4 * epoch + 4]]
        mean = sum(s * e for s, e in zip(sizes, errors, strict=True)) / 200
        assert slow.train_errors[epoch] == pytest.approx(mean)
    assert slow.first_losses == [x["loss"] for x in steps[:10]]


def test_the_colors_of_the_first_kernels_are_kept_tower_by_tower(finished):
    """The share of a kernel's squares that is not in its mean over red, green and blue."""
    slow = read_outcomes(finished.records, "colors")["slow-seed-1"]
    run_dir = finished.work / "colors" / "slow-seed-1"
    (path,) = run_dir.glob(f"checkpoint-*{4 * EPOCHS}.pt")
    weights = torch.load(path, weights_only=True)["model"]["conv1.weight"].double().numpy()
    gray = weights.mean(axis=1, keepdims=True)
    shares = ((weights - gray) ** 2).sum((1, 2, 3)) / (weights**2).sum((1, 2, 3))
    assert [len(x) for x in slow.color_energy] == [16, 16]
    assert np.concatenate(slow.color_energy) == pytest.approx(shares)
    assert read_outcomes(finished.records, "colors")["ended-seed-1"].color_energy is None


def test_a_trial_ends_at_its_target(finished):
    ended = read_outcomes(finished.records, "colors")["ended-seed-1"]
    assert (ended.outcome, ended.reached_at) == ("reached", 1.0)


def test_a_finished_queue_runs_nothing_again(finished, data, monkeypatch):
    monkeypatch.setattr(queue, "run_trial", None)
    assert run_queue("colors", plan_of(TRIALS), data=data, places=finished)


def test_what_was_interrupted_goes_on_and_is_the_same(finished, data, tmp_path, monkeypatch):
    """A deadline after the first steps; the record is that of the run in one go."""
    monkeypatch.setattr("replica.results.followed_run.POLL_SECONDS", 0.05)
    places = dataclasses.replace(finished, records=tmp_path / "records", work=tmp_path / "work")
    run_dir = places.work / "colors" / "slow-seed-1"

    class Clock:
        """After the first step, the deadline is over."""

        @staticmethod
        def monotonic():
            metrics = run_dir / "metrics.jsonl"
            has_begun = metrics.exists() and b'"step",' in metrics.read_bytes()
            return math.inf if has_begun else 0.0

    monkeypatch.setattr("replica.claims.trials.time", Clock)
    plan = plan_of(TRIALS[:1])
    done = run_queue("colors", plan, data=data, places=places)
    monkeypatch.undo()
    if not done:  # else the run was over before it could be ended
        assert read_outcomes(places.records, "colors") == {}
        assert run_queue("colors", plan, data=data, places=places)
    one, other = (read_outcomes(p.records, "colors")["slow-seed-1"] for p in (places, finished))
    for name in ("first_losses", "train_losses", "train_errors", "val_top1", "val_losses"):
        assert getattr(one, name) == getattr(other, name), name


def test_no_minutes_run_nothing(data, tmp_path):
    places = Places(records=tmp_path / "records", work=tmp_path / "work")
    assert not run_queue("colors", plan_of(TRIALS), data=data, places=places, minutes=-1)
    assert not (tmp_path / "records").exists()


def copied(finished, tmp_path):
    places = dataclasses.replace(finished, records=tmp_path / "records")
    for name, outcome in read_outcomes(finished.records, "colors").items():
        write_outcome(places.records / "colors" / f"{name}.json", outcome)
    return places


def changed(places, name="slow-seed-1", **values):
    path = places.records / "colors" / f"{name}.json"
    write_outcome(path, dataclasses.replace(read_outcome(path), **values))


def test_records_of_other_code_stay_where_it_repeats_their_losses(finished, data, tmp_path):
    places = copied(finished, tmp_path)
    changed(places, code="another")
    assert run_queue("colors", plan_of(TRIALS), data=data, places=places)
    losses = read_outcomes(places.records, "colors")["slow-seed-1"].first_losses
    changed(places, first_losses=[*losses[:-1], losses[-1] * 1.01], git_revision="abc")
    rule = "was made at revision abc, whose first losses this one does not repeat"
    with pytest.raises(UserError, match=rule):
        run_queue("colors", plan_of(TRIALS), data=data, places=places)


def test_other_data_other_settings_and_damage_are_refused(finished, data, tmp_path):
    start = partial(run_queue, "colors", plan_of(TRIALS), data=data)
    places = copied(finished, tmp_path / "data")
    changed(places, manifest_sha256="0" * 64)
    with pytest.raises(UserError, match=r"slow-seed-1.json: is of other data"):
        start(places=places)
    places = copied(finished, tmp_path / "settings")
    changed(places, trial=trial_of("slow", towers=2, colors=True, rate=0.5))
    with pytest.raises(UserError, match="is of a trial with other settings"):
        start(places=places)
    for text in ("{", "[]", '{"version": 2}', '{"version": 1}'):
        (places.records / "colors" / "slow-seed-1.json").write_text(text)
        with pytest.raises(UserError, match="damaged: expected the record of a trial"):
            start(places=places)


def test_a_run_that_others_hold_is_left_to_them(data, tmp_path):
    places = Places(records=tmp_path / "records", work=tmp_path / "work")
    lock = places.work / "colors" / "slow-seed-1.lock"
    with queue.locked(lock, title="", when_held=""):
        assert not run_queue("colors", plan_of(TRIALS[:1]), data=data, places=places)


def test_the_code_that_computes_is_told_from_the_code_that_shows():
    """Else each commit would begin every experiment anew."""
    text = (queue.Path(queue.__file__)).read_text()
    assert '"claims"' not in text.split("_FOLDERS = ")[1].splitlines()[0]
    assert len(code_digest()) == 16


def line(kind, step, error=0.0):
    values = {"loss": 1.0, "top1_error": error, "images_per_second": 5.0}
    return json.dumps({"kind": kind, "step": step, "epoch": 1, **values}) + "\n"


def test_the_target_is_the_mean_over_the_last_images_of_an_epochs_number(tmp_path):
    """Seven images in threes: the last batch of an epoch has one, and counts as one."""
    errors = [1, 1, 1, 1 / 3, 0, 0, 0, 0]
    text = "".join(line("step", i, e) for i, e in enumerate(errors, start=1))
    (tmp_path / "metrics.jsonl").write_text(text)
    curve = Curve(num_images=7, batch_size=3)
    assert curve.sizes == [3, 3, 1]
    assert curve.read(tmp_path) == 8
    # Wrong images in the last three steps, from the third on: 7, 5, 2, 1, 0, 0.
    assert [curve.reached_at(x) for x in (1, 5 / 7, 4 / 7, 2 / 7, 1 / 7, 0)] == [
        *(1, 4 / 3, 5 / 3, 5 / 3, 2, 7 / 3)
    ]
    assert curve.reached_at(-1) is None
    # What comes later is added; a file that was cut back is read anew.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line("step", 9) + line("val", 9) + '{"kind": "st')
    assert curve.read(tmp_path) == 9
    assert len(curve.validations) == 1
    (tmp_path / "metrics.jsonl").write_text(line("step", 1, 1.0))
    assert curve.read(tmp_path) == 1


def test_the_command_runs_what_is_missing_and_prints_the_verdict(data, tmp_path, monkeypatch):
    """All of Figure 1, with runs of one epoch, in which nothing learns."""
    for name, value in (("SCAN_EPOCHS", 1), ("MOST_EPOCHS", 1), ("FIRST_RATES", (0.001,))):
        monkeypatch.setattr(f"replica.claims.figure1.{name}", value)
    monkeypatch.setattr("replica.claims.figure1.MOST_RATES", 1)
    places = ("--records", str(tmp_path / "records"), "--work", str(tmp_path / "work"))
    command = ("-m", "replica.reproduce", "figure-1", "--data", str(data.directory), "--seeds", "1")
    result = run_here(*command, *places, "--device", "cpu", "--json")
    assert result.returncode == 0, result.stderr
    assert "figure1: 0 runs on record" in result.stderr
    (claim,) = json.loads(result.stdout)["claims"]
    assert claim["verdict"] in ("within noise", "contradicted", "reproduced")
    assert claim["findings"][0]["got"]
    assert len(list((tmp_path / "records" / "figure1").glob("*.json"))) == 4
