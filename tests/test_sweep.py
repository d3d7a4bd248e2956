"""A sweep: its trials are real trainings of a tiny set, chosen by validation and tested once."""

import csv
import dataclasses
import json
import os
import sys

import numpy as np
import pytest
from conftest import assert_user_error, run_here
from runs import all_lines_of, colored_pictures, started

from data_prep.files import locked
from data_prep.pairs import write_shards
from data_prep.pictures import PictureFormat
from replica.results.followed_run import Curve, log_of
from replica.sweeps import outcome, pictures, queue
from replica.sweeps.study import FINISHED, PRUNED, Asked

pytest.importorskip("optuna", reason="needs the extra sweep")

EPOCHS, BATCH_SIZE, NUM_TRAIN, NUM_VAL = 2, 16, 40, 20
SIZES = (16, 16, 8)
GRID = ("lr=0.001,0.003", "momentum=0.9")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Ten classes of 32 pixels, told apart by their color: 40 + 20 + 10 pictures."""
    pairs = colored_pictures()
    directory = tmp_path_factory.mktemp("colors") / "shards"
    parts = {"train": pairs(4), "val": pairs(2), "test": pairs(1)}
    write_shards(parts, directory, picture_format=PictureFormat(image_size=32))
    return directory


def command(shards, out, *options, grid=GRID, epochs=EPOCHS):
    places = ["--data", str(shards), "--out", str(out), "--device", "cpu", "--no-tensorboard"]
    named = ["--recipe", "figure1-relu", "--set", f"batch_size={BATCH_SIZE}"]
    named += ["--epochs", str(epochs), "--seed", "3", "--grid", *grid]
    return ["-m", "replica.sweep", *places, *named, *options]


@pytest.fixture(scope="module")
def swept(shards, tmp_path_factory):
    """A sweep of two trials as a user starts it, and what it printed."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("replica.results.followed_run.POLL_SECONDS", 0.1)
        result = run_here(*command(shards, out))
    assert result.returncode == 0, result.stderr
    return out, result


@pytest.fixture
def in_process(monkeypatch):
    """Trials run within this process, which has imported PyTorch; counts them."""
    started = []

    def run(words, run_dir, *, until):
        started.append(words)
        result = run_here(*words)
        log_of(run_dir).write_text(result.stderr + result.stdout)
        until()
        return result.returncode

    monkeypatch.setattr("replica.sweeps.trials.run_followed", run)
    return started


def rows_of(out):
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


def expected_of(run_dir):
    """What metrics.jsonl says of a run, by its lines alone: a row of results.csv."""
    lines = all_lines_of(run_dir)
    steps = [x for x in lines if x["kind"] == "step"]
    validations = [x for x in lines if x["kind"] == "val"]
    errors = [x["top1_error"] for x in validations]
    best = errors.index(min(errors))
    of_epoch = steps[3 * best : 3 * best + 3]
    assert {x["epoch"] for x in of_epoch} == {best + 1}

    def mean(name):
        return sum(n * x[name] for n, x in zip(SIZES, of_epoch, strict=True)) / NUM_TRAIN

    seconds = sum(n / x["images_per_second"] for n, x in zip(SIZES * EPOCHS, steps, strict=True))
    seconds += sum(NUM_VAL / x["images_per_second"] for x in validations)
    return {
        "epochs": EPOCHS,
        "best_epoch": best + 1,
        "train_loss": mean("loss"),
        "train_top1_error": mean("top1_error"),
        "val_loss": validations[best]["loss"],
        "val_top1_error": errors[best],
        "val_top5_error": validations[best]["top5_error"],
        "seconds": round(seconds, 1),
    }


# --- What a sweep leaves


def test_the_table_has_what_the_runs_say(swept):
    out, result = swept
    rows = rows_of(out)
    assert [row["trial"] for row in rows] == ["trial-000", "trial-001"]
    assert {row["learning_rate"] for row in rows} == {"0.001", "0.003"}
    for row in rows:
        assert (row["state"], row["seed"], row["momentum"]) == ("finished", "3", "0.9")
        expected = expected_of(out / row["trial"])
        found = {name: float(row[name]) for name in expected}
        assert found == pytest.approx(expected, rel=1e-12)
        assert f"{row['trial']}  {row['learning_rate']}" in result.stdout


def test_a_trial_is_the_run_that_its_values_say(swept, shards, tmp_path):
    out, _ = swept
    for row in rows_of(out):
        record = json.loads((out / row["trial"] / "run.json").read_text())
        recipe = record["recipe"]
        assert recipe["learning_rate"] == float(row["learning_rate"])
        assert (recipe["momentum"], recipe["epochs"]) == (0.9, EPOCHS)
        assert recipe["batch_size"] == BATCH_SIZE
    words = ["--data", str(shards), "--recipe", "figure1-relu", "--batch-size", str(BATCH_SIZE)]
    words += ["--lr", row["learning_rate"], "--momentum", "0.9", "--epochs", str(EPOCHS)]
    words += ["--seed", "3", "--device", "cpu", "--out", str(tmp_path), "--no-tensorboard"]
    assert run_here("-m", "replica.train", *words).returncode == 0
    names = ("kind", "step", "loss", "top1_error")
    one, other = (
        [[line[name] for name in names] for line in all_lines_of(run_dir)]
        for run_dir in (tmp_path, out / row["trial"])
    )
    assert one == other


def test_the_best_trial_is_that_of_the_lowest_validation_error_and_is_tested(swept, shards):
    out, result = swept
    record = json.loads((out / "best.json").read_text())
    rows = {row["trial"]: row for row in rows_of(out)}
    keys = {x: (float(y["val_top1_error"]), float(y["val_loss"])) for x, y in rows.items()}
    assert record["trial"] == min(keys, key=keys.__getitem__)
    assert record["val_top1_error"] == keys[record["trial"]][0]
    assert record["values"]["learning_rate"] == rows[record["trial"]]["learning_rate"]
    best = out / record["checkpoint"]
    words = ["--checkpoint", str(best), "--data", str(shards), "--device", "cpu", "--json"]
    tested = run_here("-m", "replica.test", "--part", "test", "--table", "classes", *words)
    expected = json.loads(tested.stdout)
    assert expected["step"] == 3 * record["best_epoch"]
    assert {name: expected[name] for name in record["test"]} == record["test"]
    assert record["labels"] == expected["classes"]
    assert (record["test"]["num_images"], record["labels_of"]) == (10, "test")
    assert f"top-1 error {expected['top1_error']:.2%}" in result.stdout


def test_a_finished_sweep_runs_and_tests_nothing_again(swept, shards, in_process, monkeypatch):
    out, first = swept
    before = (out / "best.json").read_bytes()
    monkeypatch.setattr(outcome, "test_network", None)
    again = run_here(*command(shards, out))
    assert (again.returncode, in_process) == (0, [])
    assert (out / "best.json").read_bytes() == before
    assert [x for x in again.stdout.splitlines() if x.startswith("best: ")] == [
        x for x in first.stdout.splitlines() if x.startswith("best: ")
    ]
    (out / "best.json").write_text("{")
    assert_user_error(run_here(*command(shards, out)), "best.json: damaged", "remove it")
    (out / "best.json").write_bytes(before)


def test_another_sweep_is_refused_by_the_storage(swept, shards, in_process, tmp_path):
    out, _ = swept
    lock = out / "sweep.lock"
    before = {x: x.stat().st_mtime_ns for x in out.rglob("*") if x != lock}
    for options, words in (
        ({"grid": ("lr=0.001",)}, ("grid: ", "'learning_rate': '0.001'")),
        ({"epochs": 3}, ("set: ", "epochs=2", "epochs=3")),
    ):
        result = run_here(*command(shards, out, **options))
        assert_user_error(result, f"--storage {out / 'optuna.log'}", "another sweep", *words)
    result = run_here(*command(shards, tmp_path / "new", "--storage", str(out / "optuna.log")))
    assert_user_error(result, "another sweep", "trials are in: .")
    result = run_here(*command(shards, out, "--storage", str(tmp_path / "other.db")))
    assert_user_error(result, f"--out {out}: has trial-000 of another sweep")
    assert not in_process
    assert list(tmp_path.iterdir()) == []
    assert {x: x.stat().st_mtime_ns for x in out.rglob("*") if x != lock} == before


def test_a_directory_that_is_in_use_is_refused_as_it_is(shards, in_process, tmp_path):
    """That of a run, say; what another process of the same sweep has just left there is none."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text("{}")
    assert_user_error(run_here(*command(shards, out)), f"--out {out}: in use", "run.json")
    assert [path.name for path in out.iterdir()] == ["run.json"]
    (out / "run.json").unlink()
    (out / "optuna.log.lock").symlink_to(out / "optuna.log")
    asked = queue.Sweep(
        **dict.fromkeys(("data", "recipe", "fixed", "space", "sampler", "pruner", "seed")),
        **dict.fromkeys(("num_trials", "precision", "devices", "tensorboard")),
        out=out,
        storage=out / "optuna.log",
    )
    queue.check_is_free(asked)
    assert not in_process


@pytest.mark.parametrize("name", ["x.db", "x.log"])
def test_a_storage_that_cannot_be_written_is_refused(
    name, shards, in_process, tmp_path, monkeypatch
):
    """Whoever runs the tests may write anywhere, so access is what says that it is not allowed."""
    place, out = tmp_path / "closed", tmp_path / "out"
    place.mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != place and access(path, mode))
    result = run_here(*command(shards, out, "--storage", str(place / name)))
    assert_user_error(result, f"--storage {place / name}", "you may not write in")
    assert not in_process
    assert not out.exists()


def test_an_interrupted_trial_goes_on_and_is_the_same(swept, shards, in_process, tmp_path):
    """What is left behind: a trial that was asked for, whose run ended after its first epoch."""
    out = tmp_path / "out"
    words = command(shards, out)
    one_epoch = []

    def interrupted(words, run_dir, *, until):
        one_epoch.append(run_here(*words, "--steps", "3").returncode)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("replica.sweeps.trials.run_followed", interrupted)
        result = run_here(*words)
    assert one_epoch == [0]
    assert (result.returncode, result.stderr.splitlines()[-1]) == (
        130,
        "replica.sweep: interrupted; the same command goes on",
    )
    assert not (out / "results.csv").exists()
    result = run_here(*words)
    assert result.returncode == 0, result.stderr
    assert ["--resume" in words for words in in_process] == [True, False]
    timed = ("seconds",)
    one, other = (
        [{k: v for k, v in row.items() if k not in timed} for row in rows_of(x)]
        for x in (out, swept[0])
    )
    assert one == other


def test_a_trial_that_another_process_runs_is_left_to_it(shards, in_process, tmp_path):
    out = tmp_path / "out"
    queue.open_study(sweep_of(shards, out)).ask()
    with locked(out / "trial-000.lock", title="", when_held=""):
        result = run_here(*command(shards, out))
    assert result.returncode == 0, result.stderr
    assert "trials that other processes run: 1; the last of them finishes" in result.stderr
    assert [path.name for path in out.glob("trial-*") if path.is_dir()] == ["trial-001"]
    assert not (out / "results.csv").exists()


def sweep_of(shards, out, *options, **values):
    """What the command makes of its options."""
    from replica.sweep import checked_sweep, parse_arguments

    return checked_sweep(parse_arguments(command(shards, out, *options, **values)[2:]))


def test_a_run_that_fails_leaves_the_others_and_is_tried_again(
    shards, in_process, tmp_path, monkeypatch
):
    out, tried = tmp_path / "out", []
    run = sys.modules["replica.sweeps.trials"].run_followed

    def fail(words, run_dir, *, until):
        tried.append(run_dir.name)
        if run_dir.name == "trial-000":
            log_of(run_dir).write_text("first\nout of memory\n")
            return status
        return run(words, run_dir, until=until)

    with monkeypatch.context() as patch:
        patch.setattr("replica.sweeps.trials.run_followed", fail)
        status = 2
        result = run_here(*command(shards, out))
        assert result.returncode == 2
        assert "trial-000: replica.train ended with 2: out of memory" in result.stderr
        status = -9
        result = run_here(*command(shards, out))
    assert tried == ["trial-000", "trial-000", "trial-001"]
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "replica.sweep: 1 trials failed; the same command goes on with them: trial-000: "
        "replica.train ended with -9: out of memory"
    )
    assert [row["state"] for row in rows_of(out)] == ["not finished", "finished"]
    assert json.loads((out / "best.json").read_text())["trial"] == "trial-001"
    result = run_here(*command(shards, out))
    assert (result.returncode, len(in_process)) == (0, 2)
    assert [row["state"] for row in rows_of(out)] == ["finished", "finished"]


def test_a_run_whose_loss_is_lost_is_no_candidate(shards, in_process, tmp_path):
    """A rate of 1e30: the loss of the second step is no number."""
    out = tmp_path / "out"
    result = run_here(*command(shards, out, grid=("lr=1e30",)))
    assert result.returncode == 1
    assert "no trial was finished, so there is no best one" in result.stderr
    (row,) = rows_of(out)
    assert (row["state"], row["best_epoch"], row["val_loss"]) == ("diverged", "", "")
    assert not (out / "best.json").exists()
    result = run_here(*command(shards, out, grid=("lr=1e30",)))
    assert (result.returncode, len(in_process)) == (1, 1)


def test_the_pruner_ends_a_run_that_is_behind(shards, tmp_path, monkeypatch):
    """Five trials that were never wrong are on record; the sixth would run for 300 epochs."""
    monkeypatch.setattr("replica.results.followed_run.POLL_SECONDS", 0.1)
    rates = ",".join(f"1e-{number}" for number in range(10, 16))
    options = {"grid": (f"lr={rates}",), "epochs": 300}
    out = tmp_path / "out"
    sweep = sweep_of(shards, out, "--pruner", "median", **options)
    study = queue.open_study(sweep)
    for _ in range(5):
        trial = study.ask()
        assert not study.report(trial.number, [0.0, 0.0])
        study.finish(trial.number, FINISHED, 0.0)
    assert queue.run_trials(sweep, study) == {}
    assert [x.state for x in study.trials()] == [*5 * [FINISHED], PRUNED]
    assert outcome.show_trials(sweep, study.trials()[5:])[0].found.epochs < 150


def of_two_classes(directory, *parts):
    rng = np.random.default_rng(1)
    pictures = [(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8), i % 2) for i in range(4)]
    picture_format = PictureFormat(image_size=32)
    write_shards(dict.fromkeys(parts, pictures), directory, picture_format=picture_format)
    return directory


def test_without_a_val_part_nothing_could_choose(tmp_path):
    data = of_two_classes(tmp_path / "data", "train", "test")
    result = run_here(*command(data, tmp_path / "out"))
    assert_user_error(result, "expected a val part to choose by", "--val-fraction")


def test_without_a_test_part_the_labels_are_those_of_val(in_process, tmp_path):
    data = of_two_classes(tmp_path / "data", "train", "val")
    result = run_here(*command(data, tmp_path / "out", grid=("lr=0.001",)))
    assert result.returncode == 0, result.stderr
    assert "test: the data has no test part; the validation error is too low by the choice" in (
        result.stdout
    )
    record = json.loads((tmp_path / "out" / "best.json").read_text())
    assert (record["test"], record["labels_of"]) == (None, "val")
    right = 1 - sum(row["top1_error"] for row in record["labels"]) / 2
    assert right == pytest.approx(1 - record["val_top1_error"])


def test_without_optuna_one_line_says_how_to_get_it(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = run_here(*command(shards, tmp_path / "out"))
    assert_user_error(result, "a sweep needs optuna: `pip install 'replica-alexnet[sweep]'`")
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_the_table_is_there(swept, shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run_here(*command(shards, swept[0]))
    assert result.returncode == 0, result.stderr
    assert "no pictures: figures need matplotlib" in result.stdout
    assert "curves.png" not in result.stdout


# --- Pictures


def test_the_curves_are_those_of_all_trials_and_the_best_is_bold(swept):
    pytest.importorskip("matplotlib")
    out, _ = swept
    trials = []
    for number in range(2):
        curve = Curve(num_images=NUM_TRAIN, batch_size=BATCH_SIZE)
        curve.read(out / f"trial-{number:03d}")
        trials.append(outcome.Shown(Asked(number, {"rate": str(number)}, FINISHED), curve, None))
    figure = pictures.curves_figure(trials, trials[1])
    panels = figure.axes
    assert [axes.get_ylabel() for axes in panels] == [
        *("training loss (nats)", "validation loss (nats)"),
        *("training top-1 error (%)", "validation top-1 error (%)"),
    ]
    for number, one in enumerate(trials):
        lines = [x for x in all_lines_of(out / one.trial.name) if x["kind"] != "resume"]
        for axes, kind, name in zip(
            panels,
            ("step", "val", "step", "val"),
            ("loss", "loss", "top1_error", "top1_error"),
            strict=True,
        ):
            values = [line[name] for line in lines if line["kind"] == kind]
            if kind == "step":
                values = [
                    sum(n * v for n, v in zip(SIZES, values[i : i + 3], strict=True)) / NUM_TRAIN
                    for i in (0, 3)
                ]
            scale = 100 if name == "top1_error" else 1
            line = axes.lines[number]
            assert list(line.get_ydata()) == pytest.approx([scale * v for v in values])
            assert list(line.get_xdata()) == ([0.5, 1.5] if kind == "step" else [1, 2])
            assert line.get_linewidth() == (2.6 if number == 1 else 0.7)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["trial-000: rate=0", "trial-001: rate=1 (best)"]
    # A loss far above the best trial's leaves the picture, and the others are seen.
    steps = [dataclasses.replace(line, loss=1e30) for line in trials[0].curve.steps]
    trials[0].curve.steps[:] = steps
    trials[0].trial.values["rate"] = "0.00123456789"
    figure = pictures.curves_figure(trials, trials[1])
    assert figure.axes[0].get_ylim() == (0, 2 * max(panels[0].lines[1].get_ydata()))
    assert figure.legends[0].get_texts()[0].get_text() == "trial-000: rate=0.00123"
    # One epoch is a dot.
    assert {x.get_marker() for axes in panels for x in axes.lines} == {""}
    for one in trials:
        del one.curve.steps[3:], one.curve.validations[1:]
    figure = pictures.curves_figure(trials, trials[1])
    for axes in figure.axes:
        assert [(len(x.get_ydata()), x.get_marker()) for x in axes.lines] == [(1, ".")] * 2
        assert all(place == int(place) for place in axes.get_xticks())
    assert all(axes.get_ylim()[1] <= 100 for axes in figure.axes[2:])


# --- Slow: a grid of 2 x 2, as two processes share it, one of which is killed


@pytest.mark.slow
def test_two_processes_share_a_grid_and_one_that_is_killed_loses_nothing(shards, tmp_path):
    pytest.importorskip("tensorboard")
    out = tmp_path / "out"
    grid = ("lr=0.001,0.002", "momentum=0.9,0.5")
    words = command(shards, out, "--storage", str(tmp_path / "x.db"), grid=grid, epochs=8)
    words.remove("--no-tensorboard")
    killed = started(words, out / "trial-000", least_steps=2)
    killed.kill()  # its run goes on alone
    killed.communicate()
    others = [started(words, out / f"trial-00{number}", least_steps=1) for number in (0, 1)]
    said = [process.communicate()[1] for process in others]
    assert [process.returncode for process in others] == [0, 0], said
    for number in range(4):
        assert sum(f"trial-00{number}: finished" in text for text in said) == 1, said
    rows = rows_of(out)
    cells = {(row["learning_rate"], row["momentum"]) for row in rows}
    assert cells == {(x, y) for x in ("0.001", "0.002") for y in ("0.9", "0.5")}
    for row in rows:
        assert row["state"] == "finished"
        lines = all_lines_of(out / row["trial"])
        assert [x["step"] for x in lines if x["kind"] == "step"] == list(range(1, 25))
        values = hyper_parameters(out / row["trial"])
        assert values == {
            "learning_rate": float(row["learning_rate"]),
            "momentum": float(row["momentum"]),
        }
    for name in ("curves.png", "labels.png"):
        assert (out / name).stat().st_size > 10_000


def hyper_parameters(run_dir):
    """What TensorBoard's tab HPARAMS reads of a run, which has its curves, too."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(run_dir)).Reload()
    assert {"hparam/val_top1_error", "val/top1_error"} <= set(events.Tags()["scalars"])
    metadata = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    content = HParamsPluginData.FromString(metadata.content)
    return {name: x.number_value for name, x in content.session_start_info.hparams.items()}
