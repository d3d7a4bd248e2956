"""The experiments of earlier projects: what runs, what is tested, and the tables of the page."""

import argparse
import csv
import json
import re
import subprocess
from statistics import fmean

import pytest
import torch
from conftest import PROJECT_DIR
from runs import colored_pictures

from benchmarks import earlier
from benchmarks import earlier_plans as plans
from benchmarks.earlier_tables import DOCUMENT, PUBLISHED_GRID, tables, with_tables
from data_prep.errors import UserError
from data_prep.pairs import write_shards
from data_prep.pictures import PictureFormat
from replica.claims import queue
from replica.recipes import RECIPES

RECORDS = PROJECT_DIR / earlier.RECORDS


def test_earlier_experiments_are_tested_by_what_nothing_chose_and_never_repeated(
    tmp_path, monkeypatch
):
    """From scratch, then the last layer alone from its best epoch, each tested on the test part."""
    pairs = colored_pictures(side=64)
    data = write_shards(
        {"train": pairs(12), "val": pairs(2), "test": pairs(3)},
        tmp_path / "shards",
        picture_format=PictureFormat(image_size=64),
    )
    monkeypatch.setattr(plans, "SEEDS", (1,))
    monkeypatch.setattr(plans, "CIFAR10_EPOCHS", 3)
    of = plans.CIFAR10
    wanted = {x: e for x, e in earlier.EVALUATIONS.items() if x.startswith(of) and x[-1] == "1"}
    last = earlier.Evaluation(of, ["scratch-seed-1", "new-head-seed-1"], True, "val")
    monkeypatch.setattr(earlier, "EVALUATIONS", {**wanted, "both": last})
    options = {"many_classes": None, "ten_classes": None, "tables": False}
    arguments = argparse.Namespace(
        cifar10=data.directory, records=tmp_path / "records", work=tmp_path / "runs", **options
    )
    rows = earlier.measure(arguments)
    assert {row.name for row in rows} == {f"{of}/scratch-seed-1", f"{of}/new-head-seed-1"}
    scratch, new = (arguments.work / of / f"{arm}-seed-1" for arm in ("scratch", "new-head"))
    best, (head,) = torch.load(scratch / "best.pt"), [*new.glob("checkpoint-*6.pt")]
    for name, tensor in torch.load(head)["model"].items():
        assert torch.equal(tensor, best["model"][name]) != name.startswith("fc8"), name
    (record,) = (arguments.records / of).glob("new-head-*.json")
    command = json.loads(record.read_text())["command"]
    assert command[command.index("--init") + 1] == str(scratch / "best.pt")
    tests = {x.stem: json.loads(x.read_text()) for x in (arguments.records / "tests").iterdir()}
    assert tests.keys() == {"cifar10-scratch-1", "cifar10-new-head-1", "both"}
    assert tests["cifar10-scratch-1"]["num_images"] == 30
    assert tests["cifar10-scratch-1"]["command"][4:] == [
        str(scratch / "best.pt"),
        "--part",
        "test",
        "--json",
    ]
    assert tests["both"]["num_images"] == 20
    assert [x for x in tests["both"]["command"] if x.endswith(".pt")] == [
        str(run / "checkpoint-00000006.pt") for run in (scratch, new)
    ]
    monkeypatch.setattr(subprocess, "run", None)
    monkeypatch.setattr(queue, "run_trial", None)
    assert earlier.measure(arguments) == rows


def test_earlier_experiments_are_those_of_the_narrow_recipes():
    names = {trial.recipe for trial in plans.variants({})}
    assert names == {name for name in RECIPES if name.startswith("tiny-") and name.endswith("-64")}
    assert len(names) == 8
    assert {trial.seed for trial in plans.variants({})} == {1, 2, 3}
    assert [trial.trained().epochs for trial in plans.epochs({})] == [50, 50, 100, 100]
    chosen = [trial.trained().optimizer for trial in plans.optimizers({})]
    assert chosen == ["paper", "sgd", "adam", "adam"] * 3
    assert {trial.trained().epochs for trial in plans.ninety({})} == {90}


# --- The tables


def table_of(name):
    """The rows of a table of the document, cells by the names of their columns."""
    text = (PROJECT_DIR / DOCUMENT).read_text()
    block = re.search(rf"<!-- table {name} -->\n(.*?)<!-- end of table -->", text, re.S)[1]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for line in block.split("\n")
        if line
    ]
    return [dict(zip(head, row, strict=True)) for row in rows]


def records_of(experiment):
    paths = sorted((RECORDS / experiment).glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def test_the_documents_tables_are_those_of_the_records():
    text = (PROJECT_DIR / DOCUMENT).read_text()
    assert with_tables(text, tables(RECORDS)) == text
    with pytest.raises(UserError, match="expected a place for the table grid, found none"):
        with_tables("no table", {"grid": ""})


def test_variants_are_shown_at_their_lowest_error_with_each_seed():
    records, rows = records_of(plans.VARIANTS), table_of("variants")
    assert len(rows) == 8
    for row in rows:
        arm = row["recipe"].strip("`").removeprefix("tiny-").removesuffix("-64")
        runs = [records[f"{arm}-seed-{seed}"] for seed in row["seeds"].split(", ")]
        assert len(runs) >= 2
        lowest = [min(run["val_top1"]) for run in runs]
        assert row["top-1 error, best"] == ", ".join(f"{100 * x:.1f}" for x in lowest)
        assert row["mean top-1 error, best"] == f"{100 * fmean(lowest):.1f}"
        epochs = [1 + run["val_top1"].index(x) for run, x in zip(runs, lowest, strict=True)]
        assert row["best epoch"] == ", ".join(map(str, epochs))
        at = [epoch - 1 for epoch in epochs]
        top5 = [run["val_top5"][i] for run, i in zip(runs, at, strict=True)]
        assert row["top-5 error, best"] == ", ".join(f"{100 * x:.1f}" for x in top5)
        minutes = [run["cpu_seconds"] / 60 for run in runs]
        assert row["CPU minutes"] == ", ".join(f"{x:.1f}" for x in minutes)
        assert max(minutes) < 10


def test_the_grid_has_the_published_accuracies_as_errors():
    """Of the twelve, the best and the worst as they stand in that project's file."""
    rows = {(x["rate"], x["momentum"], x["factor"]): x for x in table_of("grid")}
    assert rows.keys() == PUBLISHED_GRID.keys()
    best = rows["0.001", "0.9", "0.1"]
    names = [f"published {part} error" for part in ("train", "val", "test")]
    assert [best[name] for name in names] == [f"{100 - x:.1f}" for x in (77.85, 53.8, 54.6)]
    worst = rows["0.0001", "0.5", "0.01"]
    assert [worst[name] for name in names] == [f"{100 - x:.1f}" for x in (10.325, 9.8, 9.8)]
    with (RECORDS / "grid" / "results.csv").open(newline="") as file:
        for trial in csv.DictReader(file):
            row = rows[trial["learning_rate"], trial["momentum"], trial["drop_factor"]]
            assert float(row["val error here"]) == pytest.approx(
                100 * float(trial["val_top1_error"])
            )


def test_two_networks_and_new_heads_are_shown_with_their_tests():
    tests = records_of("tests")
    rows = {row["network"]: row for row in table_of("one-gpu")}
    assert len(rows) == 6
    for name, test in (("seed 1", "1"), ("seed 2", "2"), ("both", "both")):
        row, record = rows[f"here, narrow, {name}"], tests[f"one-gpu-{test}"]
        assert record["num_images"] == 1200
        assert row["top-1 error"] == f"{100 * record['top1_error']:.1f}"
        assert row["top-5 error"] == f"{100 * record['top5_error']:.1f}"
    assert (
        rows["the paper's, one network"]["top-1 error"],
        rows["published, two networks"]["top-5 error"],
    ) == (
        "40.7",
        "29.3",
    )
    for row, arm in zip(table_of("cifar10"), ("scratch", "new-head"), strict=True):
        records = [tests[f"cifar10-{arm}-{seed}"] for seed in row["seeds"].split(", ")]
        assert all(record["num_images"] == 5000 for record in records)
        errors = [f"{100 * record['top1_error']:.1f}" for record in records]
        assert row["test error"] == ", ".join(errors)
