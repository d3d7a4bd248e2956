"""Weights that other systems published: torchvision's own class, and Caffe's layers in float64."""

import os
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import assert_user_error, run_here
from runs import train

import replica
from data_prep.errors import UserError
from replica.distributed.mesh import Rank
from replica.network.alexnet import whole_shapes
from replica.recipes import RECIPES
from replica.train import parse_arguments
from replica.training.run import prepare_run
from replica.training.state import begin

CONVS = ("conv1", "conv2", "conv3", "conv4", "conv5")
LAYERS = (*CONVS, "fc6", "fc7", "fc8")


def picture():
    """Of the stored size, so nothing is rescaled; of other values in each channel."""
    y, x = np.mgrid[:256, :256] / 256
    waves = [np.sin(9 * x * k + 5 * y + k) * (40 + 20 * k) for k in range(1, 4)]
    return (120 + np.stack(waves, axis=-1)).clip(0, 255).round().astype(np.uint8)


def weights_of(name, *, num_classes=1000, seed=1):
    """Random weights with which signals keep their size and biases matter: float32."""
    generator = np.random.default_rng(seed)
    weights = {}
    for key, shape in whole_shapes(RECIPES[name], num_classes=num_classes).items():
        numbers = generator.standard_normal(tuple(shape), dtype=np.float32)
        scale = 1.0 if key.endswith("bias") else 1.5 / np.sqrt(np.prod(shape[1:]))
        weights[key] = numbers * np.float32(scale)
    return weights


def assert_close(got, expected, relative=1e-5):
    expected = np.asarray(expected, np.float64)
    assert np.linalg.norm(got - expected) < relative * np.linalg.norm(expected)


def begun(data_dir, out, *options):
    """A run's first state, and what was said of it."""
    lines = []
    words = ("--data", str(data_dir), "--out", str(out), "--device", "cpu", "--no-tensorboard")
    with mock.patch.dict(os.environ, REPLICA_MALLOC="stock"):  # it is of the whole process
        run = prepare_run(parse_arguments([*words, *options]), None, say=lines.append)
    return begin(run, Rank(0, run.devices)), lines


def refused(path):
    with pytest.raises(UserError) as error:
        replica.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


# --- torchvision


TORCHVISION_NAMES = {
    **dict(zip(CONVS, (f"features.{i}" for i in (0, 3, 6, 8, 10)), strict=True)),
    **{"fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"},
}


def state_dict(weights):
    named = {}
    for key, x in weights.items():
        layer, kind = key.split(".")
        named[f"{TORCHVISION_NAMES[layer]}.{kind}"] = torch.from_numpy(x)
    return named


@pytest.fixture(scope="module")
def of_torchvision(tmp_path_factory):
    """A state dict of torchvision's with ten classes."""
    path = tmp_path_factory.mktemp("torchvision") / "alexnet.pth"
    torch.save(state_dict(weights_of("torchvision", num_classes=10)), path)
    return path


def test_classes_without_names_are_not_tested(of_torchvision, tiny_shards):
    named = ("--checkpoint", str(of_torchvision), "--data", str(tiny_shards))
    for command in (("replica.test",), ("replica.figures", "classes")):
        result = run_here("-m", *command, *named)
        assert_user_error(result, "torchvision's alexnet, which does not name its classes")


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "older format"])
def test_torchvision_s_own_class_gives_the_same(is_zip, torchvision, tmp_path):
    from torchvision.transforms._presets import ImageClassification

    torch.manual_seed(4)
    theirs = torchvision.models.alexnet(weights=None).eval()
    with torch.no_grad():  # so that the image is seen through all layers
        for parameter in theirs.parameters():
            parameter.mul_(2)
    path = tmp_path / "alexnet.pth"
    torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=is_zip)
    ours = replica.load(path, device="cpu")
    from PIL import Image

    batch = ImageClassification(crop_size=224)(Image.fromarray(picture()))[None]
    with torch.no_grad():
        logits = theirs(batch)[0]
        first = theirs.features[1](theirs.features[0](batch))[0]
    assert_close(ours.features(picture(), layer="fc8"), logits)
    assert_close(ours.features(picture(), layer="conv1"), first)
    assert ours.recipe == RECIPES["torchvision"]
    assert ours.class_names == [f"class {i}" for i in range(1000)]
    assert len(ours.predict(picture())) == 5
    # The tolerance tells other means, divisors and paddings apart.
    for wrong in (batch * 1.001, batch + 0.01, batch.roll(1, dims=3), batch.flip(1)):
        with torch.no_grad(), pytest.raises(AssertionError):
            assert_close(ours.features(picture(), layer="fc8"), theirs(wrong)[0])


def test_torchvision_s_training_mode_drops_the_same_layers(torchvision):
    """Dropout before fc6 and fc7, nothing behind fc7; what stays is doubled."""
    theirs, ours = torchvision.models.alexnet(weights=None), replica.build("torchvision")
    kinds = [type(module).__name__ for module in theirs.modules()]
    assert kinds.count("Dropout") == 2
    ours_in_order = [name for name, _ in ours.named_children()]
    assert [x for x in ours_in_order if "dropout" in x] == ["conv5_dropout", "fc6_dropout"]
    assert ours.conv5_dropout.scale == ours.fc6_dropout.scale == "training"


def test_a_run_begins_with_torchvision_s_weights(of_torchvision, shards_dir, tmp_path):
    plain = ("--set", "resized_crops=none", "--set", "random_crops=true", "--recipe", "torchvision")
    state, lines = begun(shards_dir, tmp_path / "run", "--init", str(of_torchvision), *plain)
    expected = weights_of("torchvision", num_classes=10)
    for name, tensor in state.model.state_dict().items():
        assert np.array_equal(tensor.numpy(), expected[name]), name
    said = f"init: {of_torchvision}, torchvision's alexnet (recipe torchvision); no layer is drawn"
    assert any(line.startswith(said) for line in lines)
    assert "init: the file does not name its classes: they are taken to be those of the data" in (
        lines
    )


def test_a_head_of_other_classes_is_refused_or_drawn(shards_dir, tmp_path):
    path = tmp_path / "alexnet.pth"
    torch.save(state_dict(weights_of("torchvision", num_classes=12)), path)
    options = ("--recipe", "torchvision", "--set", "resized_crops=none", "--init", str(path))
    result = train(shards_dir, tmp_path / "run", *options)
    assert_user_error(result, "alexnet.pth: has 12 classes", "has 10", "--new-head")
    result = train(shards_dir, tmp_path / "run", *options, "--recipe", "paper", "--new-head")
    assert_user_error(result, "does not fit recipe paper", "conv1.weight is (64, 3, 11, 11)")
    assert not (tmp_path / "run").exists()
    state, lines = begun(shards_dir, tmp_path / "run", *options, "--new-head")
    assert state.model.fc8.weight.shape == (10, 4096)
    assert any(line.endswith("drawn anew: fc8") for line in lines)


def vgg():
    return {"features.0.weight": torch.zeros(64, 3, 3, 3), "features.3.weight": torch.zeros(1)}


class Hostile:
    def __reduce__(self):
        return print, ("features.0.weight",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (vgg(), "expected torchvision's alexnet, got another network: conv1.weight is (64, 3, 3, "),
        ({**vgg(), "features.2.weight": torch.zeros(1)}, "which has no features.2.weight"),
        ({"features.0.weight": [1]}, "expected torchvision's alexnet, which has no features.0"),
        ({"features.0.weight": Hostile()}, "that PyTorch cannot open as tensors"),
        ({"features.0.weight": torch.zeros(64, 3, 11, 11).int()}, "expected floating-point"),
        ({"features.0.weight": torch.zeros(1).expand(64, 3, 11, 11)}, "expected floating-point"),
        ({"features.0.weight": torch.zeros(64, 3, 11, 11)}, "lacks conv1.bias, conv2, conv3"),
        ({"features.0.weight": torch.full((64, 3, 11, 11), float("nan"))}, "finite numbers"),
    ],
    ids=["vgg", "unknown", "list", "code", "integers", "expanded", "lacking", "nan"],
)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "older"])
def test_another_or_a_hostile_state_dict_is_one_line(content, words, is_zip, tmp_path, capsys):
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    assert words in refused(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("place", [0.3, 0.99])
def test_a_cut_or_changed_state_dict_is_one_line(place, of_torchvision, tmp_path):
    data = bytearray(of_torchvision.read_bytes())
    path = tmp_path / "cut.pth"
    path.write_bytes(data[: int(place * len(data))])
    assert "damaged" in refused(path)
    data[int(place * len(data) * 0.9)] ^= 1
    path.write_bytes(data)
    assert "damaged" in refused(path)
