"""`replica.test` with several checkpoints, with tables, and on other data; by NumPy in float64."""

import csv
import io
import json
import shutil

import numpy as np
import oracles
import pytest
import torch
from conftest import assert_user_error, run_here
from runs import (
    CROP_SIZE,
    large_weights,
    mini_shapes_and_deviations,
    write_checkpoint,
    write_validated_run,
)

from data_prep.errors import UserError
from data_prep.shards import open_data_set
from replica.results.details import NUM_BINS, Details, as_csv, as_markdown, as_text
from replica.results.ensemble import read_weights, search_weights
from replica.results.evaluation import _benchmark

SEEDS = (7, 8)


@pytest.fixture(scope="module")
def members(tiny_shards, tmp_path_factory):
    """Two checkpoints that subtract different means, and what the oracle says of each."""
    directory = tmp_path_factory.mktemp("members")
    data, raw = open_data_set(tiny_shards), oracles.read_data(tiny_shards)
    found = []
    for seed in SEEDS:
        weights = large_weights(mini_shapes_and_deviations()[0], seed=seed)
        mean = np.random.default_rng(seed).uniform(0, 255, raw["mean_image"].shape)
        mean = mean.astype(np.float32)
        path = write_checkpoint(directory / f"{seed}.pt", weights, data, mean_image=mean)
        expected = {**raw, "mean_image": mean}
        scores, labels = oracles.evaluate(weights, expected, crop_size=CROP_SIZE)
        found.append((path, scores))
    return found, labels


def outcome(*words, data, of=()):
    command = ["-m", "replica.test", "--data", str(data), "--device", "cpu"]
    command += ["--precision", "float64"]
    for path in of:
        command += ["--checkpoint", str(path)]
    return run_here(*command, *words)


def errors_of(scores, labels):
    return [1 - oracles.correct(scores, labels, k) / len(labels) for k in (1, 5)]


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ([], (0.5, 0.5)),
        (["--weights-of", "equal"], (0.5, 0.5)),
        (["--weights-of", "1,3"], (0.25, 0.75)),
    ],
    ids=["nothing", "equal", "one to three"],
)
def test_several_checkpoints_are_the_mean_of_their_probabilities(
    given, weights, members, tiny_shards, tmp_path
):
    (first, second), labels = members
    saved = tmp_path / "x.npz"
    words = ("--json", *given, "--save-probabilities", str(saved))
    result = outcome(*words, data=tiny_shards, of=(first[0], second[0]))
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    expected = weights[0] * first[1] + weights[1] * second[1]
    assert [found["top1_error"], found["top5_error"]] == pytest.approx(errors_of(expected, labels))
    losses = -np.log(expected[np.arange(len(labels)), labels])
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-9)
    assert found["shares"] == list(weights)
    assert found["checkpoints"] == [str(first[0]), str(second[0])]
    with np.load(saved) as content:
        np.testing.assert_allclose(content["probabilities"], expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(content["labels"], labels)
        assert content["wnids"].tolist() == open_data_set(tiny_shards).wnids
    text = outcome(*given, data=tiny_shards, of=(first[0], second[0])).stdout
    assert f"2 networks by {weights[0]}, {weights[1]}" in text


def test_the_mean_of_one_network_twice_is_the_network(members, tiny_shards):
    (first, _), labels = members
    result = outcome("--json", data=tiny_shards, of=(first[0], first[0]))
    found = json.loads(result.stdout)
    assert [found["top1_error"], found["top5_error"]] == pytest.approx(errors_of(first[1], labels))


def test_each_network_stands_beside_their_mean_and_the_papers(members, tiny_shards, tmp_path):
    """What a run took is read beside its checkpoint; of a checkpoint alone it is not known."""
    (first, second), labels = members
    errors = [(2.0, 0.9, 0.6), (1.5, 0.7, 0.4)]  # of two epochs, of three that it is to have
    run_dir = tmp_path / "run"
    write_validated_run(run_dir, errors, speed=0.05)
    shutil.copy(first[0], run_dir / "best.pt")
    words = ("--table", "networks", "--json", "--weights-of", "1,3")
    result = outcome(*words, data=tiny_shards, of=(run_dir, second[0]))
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["networks"]
    both = 0.25 * first[1] + 0.75 * second[1]
    expected = [errors_of(x, labels) for x in (first[1], second[1], both)]
    expected.append([0.407, 0.182])
    for row, right in zip(rows, expected, strict=True):
        assert [row["top1_error"], row["top5_error"]] == pytest.approx(right)
    assert len({row["top1_error"] for row in rows}) > 2
    assert [row["network"] for row in rows] == [
        *(str(run_dir / "best.pt"), str(second[0])),
        *("2 networks, averaged", "paper, Table 2, 1 CNN"),
    ]
    # Two epochs of 10 images at 0.05 a second, and of 20 that are validated at 10 a second.
    of_run = {"epochs": "2...", "time": "06:44", "devices": "1 x AMD EPYC"}
    assert {name: rows[0][name] for name in of_run} == of_run
    assert {rows[1][name] for name in of_run} == {"not known"}
    assert [rows[3][name] for name in of_run] == ["90", "5 to 6 days", "2 x NVIDIA GTX 580"]
    num = len(labels)
    assert [row["images"] for row in rows] == [
        *[f"{num} val images, the central crop"] * 3,
        "ILSVRC-2012 validation, ten crops",
    ]
    alone = outcome("--table", "networks", "--csv", data=tiny_shards, of=(second[0],))
    lines = list(csv.DictReader(io.StringIO(alone.stdout)))
    assert [line["network"] for line in lines] == [str(second[0]), "paper, Table 2, 1 CNN"]


# --- Searched weights


def exhaustive(members, labels, grid):
    """The most images that any weights on the grid get right within top-5."""
    best = 0.0
    for one in grid:
        for other in grid:
            if one + other:
                mixed = (one * members[0] + other * members[1]) / (one + other)
                best = max(best, oracles.correct(mixed, labels, 5))
    return best


def test_the_search_finds_the_best_of_a_coordinate_and_never_less_than_equal_weights():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 20, 400)
    good, bad = rng.random((400, 20)), rng.random((400, 20))
    good[np.arange(400), labels] += 0.4
    members = [x / x.sum(axis=1, keepdims=True) for x in (bad, good)]
    found = search_weights([torch.from_numpy(x) for x in members], torch.from_numpy(labels))
    assert sum(found) == pytest.approx(1)
    mixed = found[0] * members[0] + found[1] * members[1]
    got = oracles.correct(mixed, labels, 5)
    assert got >= oracles.correct((members[0] + members[1]) / 2, labels, 5)
    # Of two members, one ratio is all that counts, and the first round tries it.
    grid = np.arange(21) / 20
    along = [oracles.correct(w * members[0] + members[1], labels, 5) for w in grid]
    assert got >= max(along)
    assert got <= exhaustive(members, labels, grid)
    assert found[0] < found[1]


def test_a_search_that_gains_nothing_keeps_equal_weights():
    same = torch.full((8, 10), 0.1, dtype=torch.float64)
    assert search_weights([same, same, same], torch.zeros(8, dtype=torch.int64)) == [1 / 3] * 3


def test_searched_weights_are_printed_with_what_they_were_searched_on(members, tiny_shards):
    (first, second), labels = members
    words = ("--weights-of", "search", "--json")
    result = outcome(*words, data=tiny_shards, of=(first[0], second[0]))
    assert (
        "searched on 20 val images for the lowest top-5 error, the ones that are" in result.stderr
    )
    found = json.loads(result.stdout)
    mixed = found["shares"][0] * first[1] + found["shares"][1] * second[1]
    assert found["top5_error"] == pytest.approx(errors_of(mixed, labels)[1])
    assert found["top5_error"] <= errors_of((first[1] + second[1]) / 2, labels)[1]


@pytest.mark.parametrize("text", ["1", "1,2,3", "0,0", "-1,2", "nan,1", "inf,1", "x", "1,"])
def test_weights_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="expected equal, search, or a number for each of 2"):
        read_weights(text, 2)


# --- Tables


def test_tables_are_counts_of_the_oracles_probabilities(members, tiny_shards):
    (first, _), labels = members
    tables = [
        word for name in ("classes", "confusion", "calibration") for word in ("--table", name)
    ]
    found = json.loads(outcome("--json", *tables, data=tiny_shards, of=(first[0],)).stdout)
    data = open_data_set(tiny_shards)
    scores = first[1]
    chosen, sure = scores.argmax(axis=1), scores.max(axis=1)
    assert [row["wnid"] for row in found["classes"]] == [data.wnids[i] for i in np.unique(labels)]
    for row in found["classes"]:
        own = labels == data.wnids.index(row["wnid"])
        assert row["images"] == own.sum()
        expected = errors_of(scores[own], labels[own])
        assert [row["top1_error"], row["top5_error"]] == pytest.approx(expected, abs=1e-12)
    pairs = {(row["wnid"], row["taken_for_wnid"]): row["times"] for row in found["confusion"]}
    wrong = {}
    for label, other in zip(labels, chosen, strict=True):
        if label != other:
            key = (data.wnids[label], data.wnids[other])
            wrong[key] = wrong.get(key, 0) + 1
    assert pairs == wrong
    assert list(pairs.values()) == sorted(pairs.values(), reverse=True)
    gap = 0.0
    for row in found["calibration"]:
        here = (sure >= row["from"]) & (sure < row["to"])
        assert row["images"] == here.sum()
        assert row["mean_confidence"] == pytest.approx(sure[here].mean())
        right = (chosen == labels)[here].mean()
        assert row["top1_right"] == pytest.approx(right)
        gap += here.sum() * abs(right - sure[here].mean())
    assert sum(row["images"] for row in found["calibration"]) == 20
    assert found["calibration_error"] == pytest.approx(gap / 20)


def test_a_sure_network_falls_into_the_last_bin():
    details = Details(["a", "b"], ["a", "b"])
    details.add(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([0, 1]))
    rows = details.rows("calibration")
    assert [row["images"] for row in rows] == [1, 1]
    assert rows[-1]["to"] == 1
    assert rows[0]["from"] == (NUM_BINS // 2) / NUM_BINS


def test_each_form_has_the_same_numbers(members, tiny_shards):
    (first, _), _ = members
    words = {"data": tiny_shards, "of": (first[0],)}
    rows = json.loads(outcome("--json", "--table", "classes", **words).stdout)["classes"]
    result = outcome("--csv", "--table", "classes", **words)
    read = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["wnid"] for row in read] == [row["wnid"] for row in rows]
    assert [float(row["top1_error"]) for row in read] == [row["top1_error"] for row in rows]
    (summary,) = csv.DictReader(io.StringIO(outcome("--csv", **words).stdout))
    assert summary["num_images"] == "20"
    markdown = outcome("--markdown", "--table", "classes", **words).stdout.splitlines()
    assert len(markdown) == 2 + len(rows)
    assert all(line.startswith("| ") or line.startswith("| ---") for line in markdown)
    text = outcome("--table", "classes", **words).stdout
    assert all(row["wnid"] in text for row in rows)
    assert "top-1 error" in text


def test_hostile_names_stay_in_their_cells():
    rows = [{"class": 'a|b",\nc', "times": 2}]
    assert next(csv.DictReader(io.StringIO(as_csv(rows)))) == {"class": 'a|b",\nc', "times": "2"}
    assert as_markdown(rows).splitlines()[2] == '| a\\|b",\\nc | 2 |'
    assert len(as_text(rows).splitlines()) == 2


# --- Other data


def renamed(checkpoint, path, wnids):
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "wnids": wnids, "class_names": wnids}, path)
    return path


def test_data_is_scored_on_the_classes_in_common(members, tiny_shards, tmp_path):
    """A network whose classes are in another order, and of which the data has seven."""
    (first, _), labels = members
    wnids = open_data_set(tiny_shards).wnids
    own = [*wnids[3:][::-1], "n1", "n2", "n3"]
    path = renamed(first[0], tmp_path / "x.pt", own)
    result = outcome("--json", "--table", "classes", data=tiny_shards, of=(path,))
    assert result.returncode == 0, result.stderr
    assert "scored on the 7 in common of 10 of the data and 10 of the networks" in result.stderr
    found = json.loads(result.stdout)
    kept = labels >= 3
    assert found["num_images"] == kept.sum()
    assert found["num_classes"] == 7
    scores = first[1][kept][:, :7]
    scores = scores / scores.sum(axis=1, keepdims=True)
    new = np.array([own.index(wnids[label]) for label in labels[kept]])
    assert [found["top1_error"], found["top5_error"]] == pytest.approx(errors_of(scores, new))
    losses = -np.log(scores[np.arange(len(new)), new])
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-9)
    assert [row["wnid"] for row in found["classes"]] == own[:7]


def test_data_with_no_classes_in_common_is_refused(members, tiny_shards, tmp_path):
    (first, _), _ = members
    path = renamed(first[0], tmp_path / "x.pt", [f"m{i}" for i in range(10)])
    assert_user_error(outcome(data=tiny_shards, of=(path,)), "class 0 is m0")
    path = renamed(first[0], tmp_path / "y.pt", ["m0", "m1"])
    result = outcome(data=tiny_shards, of=(path,))
    assert_user_error(result, "has 2 class identifiers for 10 classes")


def test_networks_with_no_classes_in_common_are_refused_as_such(members, tiny_shards, tmp_path):
    """No data would fit both."""
    (first, second), _ = members
    path = renamed(first[0], tmp_path / "x.pt", [f"m{i}" for i in range(10)])
    result = outcome(data=tiny_shards, of=(path, second[0]))
    have = f"no two classes in common ({path} of 10, {second[0]} of 10): test each alone"
    assert_user_error(result, "--checkpoint", have)


@pytest.mark.parametrize(
    ("source", "num_classes", "expected"),
    [
        ("ilsvrc2010", 1000, "ILSVRC-2010"),
        ("ilsvrc2012", 1000, "ILSVRC-2012"),
        ("kaggle", 1000, "ILSVRC-2012"),
        ("kaggle", 10, None),
        ("folder", 1000, None),
    ],
)
def test_the_two_ilsvrc_are_told_apart(source, num_classes, expected):
    from types import SimpleNamespace

    plan = SimpleNamespace(source=source)
    data = SimpleNamespace(wnids=["n"] * num_classes, manifest=SimpleNamespace(plan=plan))
    assert _benchmark(data) == expected


def test_a_file_for_probabilities_is_checked_first(members, tiny_shards, tmp_path):
    (first, _), _ = members
    for name in ("x.npy", "nowhere/x.npz"):
        place = tmp_path / name
        result = outcome("--save-probabilities", str(place), data=tiny_shards, of=(first[0],))
        assert_user_error(result, f"--save-probabilities {place}: expected a file that ends in")
    result = outcome("--csv", "--table", "classes", "--table", "confusion", data=tiny_shards)
    assert_user_error(result, "--csv prints one table: give --table once")
