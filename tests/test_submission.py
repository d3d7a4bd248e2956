"""ILSVRC's submission of pictures without labels: the oracle's network and the kit's ids."""

import numpy as np
import oracles
import pytest
import torch
from archives import ilsvrc_ids, meta_mat, tar_bytes
from conftest import assert_user_error, run_here
from PIL import Image
from runs import large_weights, mini_shapes_and_deviations, write_checkpoint

from data_prep.shards import open_data_set

NUM_PICTURES, SIDE, CROP = 11, 104, 96
IDS = ilsvrc_ids()
LABELS = {name: label for label, name in enumerate(sorted(IDS))}
TEN = [(0, 0), (0, 8), (4, 4), (8, 0), (8, 8)]


@pytest.fixture(scope="module")
def weights():
    shapes = mini_shapes_and_deviations(num_classes=1000)[0]
    return [large_weights(shapes, seed=seed) for seed in (7, 8)]


@pytest.fixture(scope="module")
def place(weights, tiny_shards, tmp_path_factory):
    """Two networks of the thousand classes, numbered pictures, and a kit beside them."""
    place, data = tmp_path_factory.mktemp("submission"), open_data_set(tiny_shards)
    for number, own in enumerate(weights):
        path = write_checkpoint(place / f"{number}.pt", own, data, num_classes=1000)
        content = torch.load(path, weights_only=True)
        # The second one has its classes in another order.
        names = sorted(IDS, reverse=number == 1)
        torch.save({**content, "wnids": names, "class_names": names}, path)
    (place / "kit").mkdir()
    kit = tar_bytes([("kit/data/meta.mat", meta_mat(2012, IDS))], mode="w:gz")
    (place / "kit" / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(kit)
    (place / "pictures").mkdir()
    for number, image in enumerate(images(), start=1):
        # The ninth one comes before the tenth by number, and after it by name.
        name = f"ILSVRC2012_test_{number}.png"
        Image.fromarray(image).save(place / "pictures" / name)
    return place


def images():
    rng = np.random.default_rng(3)
    colors = rng.integers(0, 200, (NUM_PICTURES, 1, 1, 3))
    noise = rng.integers(0, 56, (NUM_PICTURES, SIDE, SIDE, 3))
    return (colors + noise).astype(np.uint8)


def expected_lines(weights, mean_image, shares, *, ten):
    places = TEN if ten else [(4, 4)]
    lines = []
    for image in images():
        less = image.astype(np.float64) - mean_image
        crops = np.stack([less[t : t + CROP, x : x + CROP] for t, x in places])
        crops = np.concatenate([crops, crops[:, :, ::-1]]) if ten else crops
        total = np.zeros(1000)
        for number, (own, share) in enumerate(zip(weights, shares, strict=True)):
            logits, _ = oracles.network(own, crops.transpose(0, 3, 1, 2))
            mean = oracles.probabilities(logits).mean(axis=0)
            total += share * (mean[::-1] if number else mean)
        best = np.argsort(-total)[:5]
        lines.append(" ".join(str(IDS[sorted(IDS)[label]]) for label in best))
    return lines


def submit(place, *options, checkpoints=("0.pt",), pictures="pictures", output="out.txt"):
    words = ["--submission", output, "--pictures", pictures, "--devkit", "kit", "--device", "cpu"]
    for name in checkpoints:
        words += ["--checkpoint", name]
    return run_here("-m", "replica.test", *words, *options, cwd=place)


@pytest.mark.parametrize("ten", [False, True], ids=["center", "ten crops"])
def test_a_line_has_the_five_best_ids_of_the_kit(ten, place, weights, tiny_shards):
    options = ["--ten-crop"] if ten else []
    checkpoints, shares = (["0.pt", "1.pt"], [0.75, 0.25]) if ten else (["0.pt"], [1.0])
    if ten:
        options += ["--weights-of", "3,1"]
    result = submit(place, *options, checkpoints=checkpoints)
    assert result.returncode == 0, result.stderr
    assert "wrote out.txt: 11 lines, 0 of them without a class" in result.stdout
    mean_image = oracles.read_data(tiny_shards)["mean_image"]
    expected = expected_lines(weights[: len(shares)], mean_image, shares, ten=ten)
    assert (place / "out.txt").read_text().splitlines() == expected
    assert len(set(expected)) > 5


def test_a_picture_that_cannot_be_read_has_a_line_without_a_class(place, tmp_path):
    for number in (1, 3):
        Image.new("RGB", (120, 110), (9, 90, 200)).save(tmp_path / f"x_{number:08}.JPEG")
    (tmp_path / "x_00000002.JPEG").write_text("no picture")
    result = submit(place, pictures=str(tmp_path), output=str(tmp_path / "out"))
    assert result.returncode == 1
    assert "x_00000002.JPEG: " in result.stderr
    first, second, third = (tmp_path / "out").read_text().splitlines()
    assert second == "0 0 0 0 0"
    assert first == third


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a_1.png", "a_3.png"], "expected the pictures 1 to 3, each for its line, lacks 2"),
        (["a_1.png", "b_01.png"], "each number once, got b_01.png"),
        (["a.png"], "expected names such as ILSVRC2012_test_00000001.JPEG"),
        ([], "expected a folder of pictures"),
    ],
)
def test_lines_that_no_picture_would_have_are_refused(names, words, place, tmp_path):
    for name in names:
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    result = submit(place, pictures=str(tmp_path), output=str(tmp_path / "out"))
    assert_user_error(result, "--pictures", words)
    assert not (tmp_path / "out").exists()


def test_networks_of_other_classes_and_a_search_are_refused(place, weights, tiny_shards):
    data = open_data_set(tiny_shards)
    shapes = mini_shapes_and_deviations()[0]
    write_checkpoint(place / "ten.pt", large_weights(shapes, seed=1), data)
    result = submit(place, checkpoints=["ten.pt"], output="none.txt")
    assert_user_error(result, "ten.pt: expected a network of the 1000 classes", "got 10")
    result = submit(place, "--weights-of", "search", output="none.txt")
    assert_user_error(result, "--weights-of search", "have no labels")
    result = submit(place, output="nowhere/none.txt")
    assert_user_error(result, "--submission nowhere/none.txt")
    result = submit(place, "--devkit", "pictures", output="none.txt")
    assert_user_error(result, "expected the development kit")
    assert not (place / "none.txt").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--json"], "leave out --json"),
        (["--part", "val", "--gpus", "2"], "leave out --part, --gpus"),
        (["--precision", "bf16"], "leave out --precision"),
    ],
)
def test_what_needs_labels_is_refused(options, words, place):
    assert_user_error(submit(place, *options), "--submission has no error rates", words)
