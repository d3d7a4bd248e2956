"""`python -m replica.test` against the oracle: error rates exactly, probabilities to 1e-9."""

import json
import math
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
import torch
from runs import CROP_SIZE, large_weights, mini_shapes_and_deviations, write_checkpoint

from data_prep.shards import open_data_set
from replica import test
from replica.results.evaluation import confidence_interval
from replica.training import evaluation

TIED = (3, 4, 5)  # classes with the same logit for every image
SEED_OF_WEIGHTS = 7


@pytest.fixture(scope="module")
def weights():
    """A network that tells images and their crops apart, and three classes not at all."""
    weights = large_weights(mini_shapes_and_deviations()[0], seed=SEED_OF_WEIGHTS)
    weights["fc8.weight"][list(TIED)] = 0.0
    weights["fc8.bias"][list(TIED)] = 1.0
    return weights


@pytest.fixture(scope="module")
def mean_image(tiny_shards):
    """Not the data's own, and not the same everywhere: the checkpoint decides."""
    own = oracles.read_data(tiny_shards)["mean_image"]
    return np.random.default_rng(1).uniform(0, 255, own.shape).astype(np.float32)


def errors(scores, labels):
    return tuple(1 - oracles.correct(scores, labels, k) / len(labels) for k in (1, 5))


@pytest.mark.parametrize(
    ("options", "views", "num_views"),
    [
        ([], {}, 1),
        (["--ten-crop"], {"ten": True}, 10),
        (["--ten-crop"], {"ten": True, "mean": "center"}, 10),
        (["--views", "ten"], {"ten": True}, 10),
        (["--views", "grid:3"], {"grid": 3}, 18),
    ],
    ids=["center", "ten crops", "ten crops less the central mean", "views ten", "views grid"],
)
def test_the_test_command_is_the_oracle(
    options, views, num_views, weights, mean_image, tiny_shards, tmp_path, capsys
):
    data = open_data_set(tiny_shards)
    how = {"mean_image": mean_image, "changes": [f"mean={views.get('mean', 'place')}"]}
    checkpoint = write_checkpoint(tmp_path / "one.pt", weights, data, **how)
    seen = []

    def recording(probabilities, labels, count=evaluation.count):
        seen.append(probabilities)
        return count(probabilities, labels)

    arguments = ["--checkpoint", str(checkpoint), "--data", str(tiny_shards), "--json"]
    arguments += ["--device", "cpu", "--precision", "float64", *options]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "count", recording)
        assert test.main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    expected = {**oracles.read_data(tiny_shards), "mean_image": mean_image}
    scores, labels = oracles.evaluate(weights, expected, crop_size=CROP_SIZE, **views)
    np.testing.assert_allclose(torch.cat(seen).numpy(), scores, rtol=1e-9, atol=1e-9)
    assert result["num_images"] == len(labels) == 20
    assert result["views"] == num_views
    got = (result["top1_error"], result["top5_error"])
    assert got == pytest.approx(errors(scores, labels), abs=1e-12)
    losses = -np.log(scores[np.arange(len(labels)), labels])
    assert result["loss"] == pytest.approx(losses.mean(), rel=1e-9)


def test_wrong_ways_to_test_have_other_error_rates(weights, mean_image, tiny_shards):
    """Else the comparison above would not tell them apart."""
    data = {**oracles.read_data(tiny_shards), "mean_image": mean_image}
    right, labels = oracles.evaluate(weights, data, crop_size=CROP_SIZE, ten=True)
    crops = oracles.views_of(data, data["val"][0], crop_size=CROP_SIZE, ten=True)
    logits, _ = oracles.network(weights, crops.reshape(-1, *crops.shape[2:]))
    own_mean = oracles.read_data(tiny_shards)
    wrong = {
        "mean of logits": logits.reshape(len(labels), 10, -1).mean(axis=1),
        "central crop": oracles.evaluate(weights, data, crop_size=CROP_SIZE)[0],
        "five crops": oracles.probabilities(logits).reshape(20, 10, -1)[:, :5].mean(axis=1),
        "mean image of the data": oracles.evaluate(
            weights, own_mean, crop_size=CROP_SIZE, ten=True
        )[0],
        "no mean image": oracles.evaluate(
            weights, {**data, "mean_image": 0 * mean_image}, crop_size=CROP_SIZE, ten=True
        )[0],
        "ties to the first": right - 1e-12 * np.arange(10),
    }
    for name, scores in wrong.items():
        assert errors(scores, labels) != pytest.approx(errors(right, labels)), name
    assert errors(right, np.roll(labels, 1)) != pytest.approx(errors(right, labels))


def counted(logits, labels):
    """What `evaluate` says of these logits (N, V, K)."""
    images = torch.zeros(logits.shape[0] * logits.shape[1], 1)
    batch = SimpleNamespace(images=images, labels=torch.tensor(labels))
    return evaluation.evaluate([batch], predict=lambda _: logits.flatten(0, 1))


def test_the_loss_of_logits_far_apart_is_a_number():
    generator = torch.Generator().manual_seed(3)
    logits = 1000 * torch.randn(4, 3, 6, generator=generator)
    logits[0, :, 2] = -1e4
    logits[1] /= 1000  # its probability is a float32
    logits[2, :, 5] = 2e4
    labels = [2, 1, 3, 4]
    of_views = logits.double().numpy().astype(np.longdouble)  # reaches down to 1e-4950
    shifted = np.exp(of_views - of_views.max(axis=2, keepdims=True))
    mean = (shifted / shifted.sum(axis=2, keepdims=True)).mean(axis=1)[range(4), labels]
    expected = np.log(mean[[1, 3]]).sum()
    # Below that too, the largest of the views' decides.
    for row in (0, 2):
        own, highest = of_views[row, :, labels[row]], of_views[row].max(axis=1)
        expected += (own - highest).max() - np.log(3)
    assert counted(logits, labels).loss == pytest.approx(-float(expected), rel=1e-6)
    # Where all are held, bit by bit what the probabilities alone say.
    near = torch.randn(40, 3, 6, generator=generator) * 20
    labels = [row % 6 for row in range(40)]
    own = near.flatten(0, 1).softmax(1).view(40, 3, 6).mean(1)[range(40), labels]
    assert own.min() > 0
    assert counted(near, labels).loss == float(-own.double().log().sum())
    assert math.isnan(counted(torch.full((1, 1, 3), torch.nan), [0]).loss)


def test_a_missing_image_is_an_error_with_both_numbers():
    with pytest.raises(
        RuntimeError, match="error rates need all 50000 images; the data gave 49920"
    ):
        evaluation.Counts(49920, 1, 1, 1).check(50_000)


def test_the_interval_is_wilsons_of_95_percent():
    """By the formula, with the quantile 1.96 of the normal distribution."""
    for wrong, total in ((0, 30), (11, 30), (9127, 50_000)):
        share, z = wrong / total, 1.959963984540054
        middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
        reach = z / (1 + z**2 / total)
        reach *= (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
        got = confidence_interval(share, total)
        assert got == pytest.approx((middle - reach, middle + reach), abs=1e-12)
