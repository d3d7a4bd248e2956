"""`replica.compare` against rows that are worked out by hand from written records."""

import csv
import io
import json

import pytest
from conftest import assert_user_error, run_here
from runs import write_validated_run

from data_prep.errors import UserError
from replica.results.comparison import ComparedRun, comparison

GPUS = {"devices": {"kind": "cuda", "num_processes": 2, "split": 2}}
GPUS["hardware"] = {"cpu": "Xeon", "cpu_capability": "", "cores": 2, "gpus": ["NVIDIA H100"] * 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of one variant, of which the second is not at its end, and another variant."""
    place = tmp_path_factory.mktemp("runs")
    first = [(2.0, 0.9, 0.6), (1.5, 0.7, 0.4), (1.6, 0.7, 0.3)]
    second = [(1.8, 0.8, 0.5), (1.9, 0.85, 0.45)]
    other = [(1.0, 0.5, 0.1), (1.1, 0.55, 0.1), (1.2, 0.6, 0.2)]
    return [
        write_validated_run(place / "a", first, seed=1),
        write_validated_run(
            place / "b", other, seed=1, changes=["momentum=0.5", "without=conv4"], speed=2.5
        ),
        write_validated_run(place / "c", second, seed=2, **GPUS),
    ]


ROWS = [
    {
        "variant": "mini (batch_size=4, epochs=3)",
        "seeds": "1 2",
        "loss": 1.65,  # of epochs 2 and 1
        "top1_error": 0.75,
        "lowest": 0.7,
        "highest": 0.8,
        "top5_error": 0.45,
        "epoch_of_best": "2 1",  # the first of equal ones
        "epochs": "3 2...",
        "seconds": 10,  # 3 * (10 / 5 + 20 / 10) and 2 * (10 / 5 + 20 / 10), of which the mean
        "devices": "1 x AMD EPYC; 2 x NVIDIA H100",
    },
    {
        "variant": "mini (batch_size=4, momentum=0.5, epochs=3, without=conv4)",
        "seeds": "1",
        "loss": 1.0,
        "top1_error": 0.5,
        "lowest": 0.5,
        "highest": 0.5,
        "top5_error": 0.1,
        "epoch_of_best": "1",
        "epochs": "3",
        "seconds": 18,
        "devices": "1 x AMD EPYC",
    },
]


def assert_rows_are(rows, expected):
    for row, right in zip(rows, expected, strict=True):
        assert list(row) == list(right)
        for name, value in right.items():
            close = pytest.approx(value) if isinstance(value, float) else value
            assert row[name] == close, name


def test_a_row_is_the_mean_over_the_seeds_at_the_best_epoch(runs):
    result = run_here("-m", "replica.compare", *runs, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    content = json.loads(result.stdout)
    rows = content["variants"]
    # `without` and what it moves in the layers behind it.
    rows[1]["variant"] = ", ".join(
        x for x in rows[1]["variant"].split(", ") if "weight_standard_deviation" not in x
    )
    assert_rows_are(rows, ROWS)
    assert [run["seed"] for run in content["runs"]] == [1, 1, 2]
    assert [run["is_complete"] for run in content["runs"]] == [True, True, False]
    assert content["runs"][2]["seconds"] == pytest.approx(2 * (10 / 5 + 20 / 10))


def test_text_csv_and_markdown_have_the_same_rows(runs):
    command = ("-m", "replica.compare", *runs)
    rows = json.loads(run_here(*command, "--json").stdout)["variants"]
    read = list(csv.DictReader(io.StringIO(run_here(*command, "--csv").stdout)))
    assert [{k: str(v) for k, v in row.items()} for row in rows] == read
    lines = run_here(*command, "--markdown").stdout.splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[2].startswith(f"| {rows[0]['variant']} | 1 2 | 1.6500 | 0.7500 | 0.7000 |")
    text = run_here(*command).stdout.splitlines()
    assert text[0].split() == list(rows[0])
    values = "1 2 1.6500 0.7500 0.7000 0.8000 0.4500 2 1 3 2... 10 1 x AMD EPYC; 2 x NVIDIA H100"
    assert text[1].split()[-20:] == values.split()


def test_an_early_end_is_an_end(tmp_path):
    errors = [(1.0, 0.5, 0.1), (1.0, 0.5, 0.1)]
    out = write_validated_run(tmp_path / "a", errors, changes=["stop_patience=1"])
    (row,) = json.loads(run_here("-m", "replica.compare", out, "--json").stdout)["variants"]
    assert row["epochs"] == "2"
    assert "stop_patience=1" in row["variant"]


def test_a_validation_in_mid_epoch_is_no_epoch(tmp_path):
    """What `--steps` ends validates; the best of the run is among its whole epochs."""
    out = tmp_path / "a"
    write_validated_run(out, [(1.0, 0.6, 0.1), (1.0, 0.5, 0.1)])
    middle = {"kind": "val", "step": 4, "epoch": 2, "loss": 0.1, "images_per_second": 10.0}
    lines = (out / "metrics.jsonl").read_text().splitlines()
    lines.insert(5, json.dumps({**middle, "top1_error": 0.2, "top5_error": 0.0}))
    (out / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    content = json.loads(run_here("-m", "replica.compare", str(out), "--json").stdout)
    (row,), (found,) = content["variants"], content["runs"]
    assert (row["top1_error"], row["epoch_of_best"], row["epochs"]) == (0.5, "2", "2...")
    assert found["seconds"] == pytest.approx(2 * (10 / 5 + 20 / 10) + 20 / 10)
    (out / "metrics.jsonl").write_text(lines[5] + "\n")
    result = run_here("-m", "replica.compare", str(out))
    assert_user_error(result, "expected a validation after an epoch, found none")


def test_a_loss_that_is_not_finite_is_shown_as_that_and_its_validation_counts(tmp_path):
    """metrics.jsonl has null for it."""
    errors = [(1.0, 0.6, 0.1), (None, 0.5, 0.2), (1.5, 0.7, 0.1)]
    runs = [
        write_validated_run(tmp_path / "a", errors),
        write_validated_run(tmp_path / "b", errors[::2], seed=2),
    ]
    content = json.loads(run_here("-m", "replica.compare", *runs, "--json").stdout)
    assert [(x["best_epoch"], x["epochs"], x["loss"]) for x in content["runs"]] == [
        (2, 3, None),
        (1, 2, 1.0),
    ]
    assert content["runs"][0]["is_complete"]
    (row,) = content["variants"]
    assert (row["loss"], row["top1_error"], row["epochs"]) == (None, 0.55, "3 2...")
    assert "  not finite  0.5500  " in run_here("-m", "replica.compare", *runs).stdout
    assert ",not finite,0.55," in run_here("-m", "replica.compare", *runs, "--csv").stdout


def test_a_users_network_is_a_variant_of_its_own(tmp_path):
    known = {"name": "my_net.py", "function": "build", "text": "", "sha256": "0123456789"}
    errors = [(1.0, 0.5, 0.1)]
    runs = [write_validated_run(tmp_path / "a", errors)]
    runs.append(write_validated_run(tmp_path / "b", errors, model_file=known))
    rows = json.loads(run_here("-m", "replica.compare", *runs, "--json").stdout)["variants"]
    assert rows[0]["variant"] == ROWS[0]["variant"]
    assert rows[1]["variant"] == "mini (my_net.py:build 01234567, batch_size=4, epochs=3)"


def test_errors_on_other_data_are_other_rows_and_it_is_said(tmp_path):
    errors = [(1.0, 0.5, 0.1)]
    runs = [write_validated_run(tmp_path / name, errors, manifest=name) for name in "ab"]
    result = run_here("-m", "replica.compare", *runs, "--json")
    assert len(json.loads(result.stdout)["variants"]) == 2
    assert "several data sets, whose errors cannot be compared" in result.stderr


def test_what_is_no_run_is_one_line(runs, tmp_path):
    assert_user_error(run_here("-m", "replica.compare", str(tmp_path)), "expected the run.json")
    out = write_validated_run(tmp_path / "a", [])
    assert_user_error(
        run_here("-m", "replica.compare", out), "expected a validation after an epoch, found none"
    )
    both = f"two of seed 1 ({runs[0]}, {runs[0]}): leave one of them out"
    assert_user_error(run_here("-m", "replica.compare", runs[0], runs[0]), both)
    (tmp_path / "a" / "metrics.jsonl").unlink()
    assert_user_error(run_here("-m", "replica.compare", out), "expected metrics.jsonl there")


def test_one_seed_twice_is_refused():
    run = ComparedRun(
        variant="mini",
        data="aa",
        seed=3,
        best_epoch=1,
        epochs=1,
        is_complete=True,
        loss=1.0,
        top1_error=0.5,
        top5_error=0.1,
        seconds=1.0,
        devices="1 x AMD EPYC",
    )
    with pytest.raises(UserError, match="mini: expected a run of each seed, got two of seed 3"):
        comparison([run, run])
