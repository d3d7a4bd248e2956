"""The experiments of earlier projects: what runs, what is tested, and the tables of the page."""

import argparse
import json
import subprocess

import torch
from conftest import PROJECT_DIR
from runs import colored_pictures

from benchmarks import earlier
from benchmarks import earlier_plans as plans
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
