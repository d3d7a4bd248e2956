"""The benchmarks run, and say what they measured, against what, and what they left out."""

import argparse
import json

import pytest
import torch
from conftest import assert_user_error, run, run_here

from benchmarks import demo
from benchmarks.__main__ import BENCHMARKS
from benchmarks.measure import interleaved, rows_of
from replica.training.numerics import compiler_problem


def rows_from(*arguments, start=run_here, **environment):
    result = start("-m", "benchmarks", *arguments, "--json", **environment)
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["benchmark"] == arguments[0]
    assert record["machine"]["cpu"]
    for row in record["rows"]:
        assert set(row) == {"name", "value", "unit", "baseline", "ratio", "note"}
    return {row["name"]: row for row in record["rows"]}


def test_without_a_name_they_are_listed():
    listed = run_here("-m", "benchmarks").stdout
    assert all(f"{name} " in listed for name in BENCHMARKS)


def test_an_unknown_name_is_refused():
    assert_user_error(run_here("-m", "benchmarks", "speed"), "invalid choice: 'speed'")
    result = run_here("-m", "benchmarks", "training", "--rounds", "many")
    assert_user_error(result, "benchmarks training: argument --rounds: invalid int value: 'many'")


def test_rows_compare_with_their_baseline():
    rows = rows_of({"a": 0.002, "b": 0.006}, baselines={"b": "a"})
    assert [(row.value, row.baseline, row.ratio) for row in rows] == [
        (2.0, None, None),
        (6.0, "a", pytest.approx(3.0)),
    ]


def test_candidates_take_turns():
    calls = []
    interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, seconds=1
    )
    assert calls == ["a", "b"] * 4  # one round to warm up


def test_the_operator_is_compared_with_a_copy():
    rows = rows_from("local_response_norm", "--shape", "2,6,5,5", "--rounds", "3", "--no-peers")
    forward = rows["2x6x5x5 channels last: forward float32"]
    copy = rows[forward["baseline"]]
    assert forward["baseline"] == "2x6x5x5 channels last: copy float32"
    assert forward["ratio"] == pytest.approx(forward["value"] / copy["value"])


def test_the_passes_alone_are_compared_with_the_ten_crop_test():
    rows = rows_from("ten_crop", "--recipe", "mini64", "--images", "2", "--rounds", "1")
    alone, test = rows["its forward passes alone"], rows["the ten-crop test"]
    assert alone["baseline"] == "the ten-crop test"
    assert alone["ratio"] == pytest.approx(alone["value"] / test["value"])
    assert rows["images per second"]["value"] == pytest.approx(2 / test["value"])


def test_the_one_pass_is_compared_with_three_operators():
    rows = rows_from("relu_lrn_pool", "--shape", "2,6,7,7", "--rounds", "3")
    kind = "2x6x7x7 channels last float32: "
    pytorchs = rows[f"{kind}PyTorch forward + backward"]
    assert pytorchs["baseline"] == f"{kind}one pass forward + backward"
    assert pytorchs["ratio"] == pytest.approx(
        pytorchs["value"] / rows[pytorchs["baseline"]]["value"]
    )


def test_feeding_is_compared_with_a_copy_of_its_bytes():
    options = ("--images", "8", "--batch-size", "4", "--batches", "2", "--rounds", "3")
    rows = rows_from("feed", *options)
    feed = "raw shards -> float32 batches, 2 threads"
    for other in ("copy of as many bytes, 2 threads", "NumPy, 2 threads", feed[:-9] + "1 thread"):
        row = rows[f"{feed} / {other}"]
        assert row["ratio"] == pytest.approx(rows[feed]["value"] / rows[other]["value"])
    source = "by the source's rules, 1 thread"
    assert rows[f"{source} / {feed[:-9]}1 thread"]["value"] == rows[source]["value"]
    assert rows["augment_batch, uint8, 1 thread"]["value"] > 0


def test_feeding_jpeg_shards_is_compared_with_decoding_alone():
    rows = rows_from("feed_jpeg", "--images", "8", "--batch-size", "4", "--rounds", "3")
    feed = "JPEG shards -> float32 batches, 2 threads"
    for other in ("Pillow alone, 2 threads", "Pillow to arrays, 2 threads", feed[:-9] + "1 thread"):
        row = rows[f"{feed} / {other}"]
        assert row["ratio"] == pytest.approx(rows[feed]["value"] / rows[other]["value"])


def test_drawing_is_compared_with_its_random_numbers():
    rows = rows_from("drawing", "--pictures", "4", "--rounds", "3")
    drawing, numbers = rows["drawing"]["value"], rows["normal numbers alone"]["value"]
    ratio = rows["drawing / normal numbers alone"]["ratio"]
    assert ratio == pytest.approx(drawing / numbers)


def test_the_first_batch_of_a_generated_index_is_timed():
    options = ("--images", "1200", "--val-images", "3", "--rounds", "1")
    rows = rows_from("first_batch", *options)
    for order in ("cycle", "reshuffle", "block"):
        opened, first = (
            rows[f"{order}: {name}"]["value"]
            for name in ("the data set is open", "the first batch is there")
        )
        assert 0 < opened < first
        name = f"{order}: the first batch is there / the aim"
        assert rows[name]["ratio"] == pytest.approx(first / 2)
        assert rows[f"{order}: memory beyond the batches"]["value"] > 0


@pytest.mark.slow
def test_other_libraries_are_compared_or_named():
    options = ("--shape", "2,6,5,5", "--rounds", "3")
    rows = rows_from("local_response_norm", *options, start=run, timeout=400)
    problem = compiler_problem(torch.__file__)
    if problem:
        assert rows["2x6x5x5 NCHW: torch.compile"]["note"] == f"skipped: {problem}"
    for peer in ("PyTorch",) if problem else ("PyTorch", "torch.compile"):
        row = rows[f"2x6x5x5 NCHW: {peer} forward + backward"]
        assert row["baseline"] == "2x6x5x5 NCHW: replica forward + backward"
        assert row["ratio"] > 0
    for peer in ("TensorFlow", "ONNX Runtime", "oneDNN"):
        found = [row for name, row in rows.items() if f": {peer}" in name]
        assert found
        assert all(row["value"] or row["note"].startswith("skipped: ") for row in found)


def test_a_wrong_shape_is_refused():
    result = run_here("-m", "benchmarks", "local_response_norm", "--shape", "1,2,3")
    assert_user_error(result, "--shape 1,2,3: expected four positive numbers")


@pytest.mark.slow
def test_training_is_measured_beside_pytorchs_and_with_its_memory():
    options = ("--recipe", "mini", "--batch-size", "4", "--rounds", "1", "--steps", "1")
    rows = rows_from("training", *options, "--only", "bf16, channels last", start=run)
    ours, without = "replica: bf16, channels last", "replica without LRN: bf16, channels last"
    towers = f"{ours}, two processes of a tower and a thread each"
    assert {ours, without, towers, "PyTorch: its LRN, bf16, channels last"} <= rows.keys()
    for one, other in ((ours, without), (towers, ours)):
        ratio = rows[one]["value"] / rows[other]["value"]
        assert rows[f"{one} / {other}"]["ratio"] == pytest.approx(ratio)
    assert rows[f"peak: {ours}"]["baseline"] == f"arithmetic: {ours}"
    assert all(row["value"] > 0 for row in rows.values())


@pytest.mark.slow
def test_the_exchange_is_timed_and_its_timeline_drawn(tmp_path):
    picture = tmp_path / "timeline.png"
    options = ("--recipe", "mini", "--batch-size", "8", "--steps", "2", "--picture", str(picture))
    rows = rows_from("towers", *options, start=run)
    assert len(rows) == 6
    assert all(row["value"] > 0 for row in rows.values())
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_two_copies_wait_for_their_sums_is_timed():
    options = ("--recipe", "mini", "--batch-size", "8", "--steps", "2")
    rows = rows_from("copies", *options, start=run)
    assert len(rows) == 5
    assert all(row["value"] > 0 for row in rows.values())


def test_torchvisions_network_has_its_parameters():
    from benchmarks.training_gpu import torchvisions_alexnet

    with torch.device("meta"):
        assert sum(p.numel() for p in torchvisions_alexnet().parameters()) == 61_100_840


@pytest.mark.slow
def test_the_script_for_a_gpu_can_be_tried_on_a_cpu():
    options = ("--device", "cpu", "--recipe", "mini", "--batch-size", "4", "--steps", "1")
    rows = rows_from("training_gpu", *options, start=run)
    assert rows["bf16, batch 4: torchvision's AlexNet"]["value"] > 0
    assert rows["float32, batch 4: replica"]["ratio"] > 0


def test_without_a_gpu_its_rows_say_not_measured():
    rows = rows_from("local_response_norm_gpu", "--shape", "2,8,5,5", "--rounds", "3")
    for row in rows.values():
        assert row["value"] or row["note"] == "PyTorch sees no CUDA device"
    assert "2x8x5x5 channels last bfloat16: backward" in rows
    assert "2x8x5x5 channels last float32: forward, value by value" in rows


def test_convolutions_are_compared_layer_by_layer():
    options = ("--recipe", "mini", "--batch-size", "1", "--rounds", "3", "--layer", "conv1")
    rows = rows_from("split_conv2d", *options, start=run)
    assert len(rows) == 2 * 2 * 3 * 2
    row = rows["conv1 channels last bfloat16: own forward + backward"]
    assert row["baseline"] == "conv1 channels last bfloat16: library forward + backward"
    assert row["ratio"] > 0
    wrong = run_here("-m", "benchmarks", "split_conv2d", "--layer", "conv9")
    assert_user_error(wrong, "--layer conv9", "expected one of conv1, conv2")
    rows = rows_from("split_conv2d", "--layer", "conv1", "--batch-size", "1", "--device", "cuda")
    for row in rows.values():
        assert row["value"] or row["note"] == "PyTorch sees no CUDA device"


@pytest.mark.slow
def test_the_allocator_is_compared_with_stock():
    options = ("--recipe", "mini", "--batch-size", "4", "--steps", "1", "--processes", "1")
    rows = rows_from("allocator", *options, start=run)
    kept = rows["training step of 4, keep"]
    assert kept["baseline"] == "training step of 4, stock"
    assert kept["ratio"] > 0


def test_the_linear_baseline_reads_shards(shards_dir):
    rows = rows_from("linear_baseline", "--data", str(shards_dir))
    assert rows["chance"]["value"] == pytest.approx(0.9)
    assert 0 <= rows["best"]["value"] <= 1


@pytest.mark.slow
def test_building_is_compared_with_decoding_alone(toy_dir):
    rows = rows_from(
        *("build_shards", "--input", str(toy_dir), "--pictures", "256", "--rounds", "1"),
        *("--workers", "1"),
        start=run,
    )
    build = rows["build, 1 workers"]
    plain = rows[build["baseline"]]
    assert build["baseline"] == "decode and resize, 1 workers"
    assert build["ratio"] == pytest.approx(build["value"] / plain["value"])
    assert 0 < rows["peak memory of the largest process that builds"]["value"] < 400
    assert rows["storage jpeg, quality 85: an image"]["ratio"] < 0.5
    assert rows["build without hashing and writing, 1 workers"]["baseline"] == build["baseline"]


def test_pictures_that_are_not_there_are_not_measured():
    rows = rows_from("build_shards", REPLICA_REAL_DATA="")
    assert rows["build"]["value"] is None
    rows = rows_from("real_sets", "--output", "nowhere", REPLICA_REAL_DATA="")
    assert rows["real sets"]["note"] == "REPLICA_REAL_DATA is not set"


def test_the_series_of_demos_goes_on_where_it_stopped(tmp_path, monkeypatch):
    asked = []
    kept = {"top1_error": 0.05, "seconds": 9}

    def once(out, options):
        asked.append(list(map(str, options)))
        return kept

    monkeypatch.setattr(demo, "run_once", once)
    first = tmp_path / "seed-2012-gpus-2-channels_last.json"
    first.write_text(json.dumps({**kept, "top1_error": 0.5}))
    arguments = argparse.Namespace(records=tmp_path, out=tmp_path / "demo")
    rows = demo.measure(arguments)
    assert [row.value for row in rows] == [0.5, *[0.05] * 19]
    assert asked[0] == ["--seed", "2012", "--gpus", "2", "--memory-format", "contiguous"]
    assert len({tuple(options) for options in asked}) == 19
    assert demo.measure(arguments) == rows
    assert len(asked) == 19
