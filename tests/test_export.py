"""Networks in the formats of other programs: ONNX Runtime, PyTorch alone, and safetensors."""

import base64
import dataclasses
import json
import sys

import numpy as np
import oracles
import pytest
import torch
from conftest import assert_user_error, run, run_here
from runs import (
    CROP_SIZE,
    large_weights,
    mini_shapes_and_deviations,
    write_checkpoint,
)

import replica
from data_prep.errors import UserError
from data_prep.shards import open_data_set
from replica.network.alexnet import AlexNet, whole_shapes
from replica.recipes import MINI, RECIPES, with_changes
from replica.results.onnx_graph import to_onnx

onnx = pytest.importorskip("onnx", reason="needs the extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
safetensors = pytest.importorskip("safetensors", reason="needs the extra export")

NUM_CLASSES = 7
# The last layers narrowed: what is tested is what they are given.
WIDE = ("paper", "source-2012", "torchvision", "caffe-alexnet", "caffenet")
SMALL = ("mini64", "cifar10-19pct", "cifar10-18pct", "cifar10-13pct", "cifar10-11pct")
# What no named recipe has, from `mini`.
CHANGES = {
    "batch": ["conv1.normalization=batch", "conv2.normalization=lrn,batch", "fc6.normalization="
              "batch"],
    "two towers to the end": ["conv3.reads_both_towers=false", "fc6.reads_both_towers=false",
                              "fc7.reads_both_towers=false"],
    "local, in groups": ["conv4.is_local=true", "conv5.is_local=true", "conv5.stride=2"],
    "other numbers": ["lrn_n=3", "lrn_alpha=0.01", "lrn_beta=0.5", "lrn_k=3", "dropout_keep=0.3"],
    "tanh and averages": ["activation=tanh", "conv1.pooling=average", "conv5.pool_window=2"],
    "no activation, dropped maps": ["conv2.activation=linear", "conv5.dropout=true"],
    "blue first, divided": ["channels=bgr", "pixel_divisor=2,4,8", "dropout_scale=training"],
    "same map": ["conv1.normalization=same-map", "same_map_alpha=0.01", "same_map_k=2"],
}  # fmt: skip


def recipe_of(name):
    if name in CHANGES:
        narrow = ["fc6.num_units=64", "fc7.num_units=64", "crop_size=96"]
        return with_changes(MINI, [*narrow, *CHANGES[name]])
    recipe = RECIPES[name]
    names = [layer.name for layer in recipe.fully_connected[:-1]]
    return with_changes(recipe, [f"{layer}.num_units=64" for layer in names])


def network_of(recipe, *, seed=1):
    """Random weights with which signals keep their size and all constants matter, in float64."""
    model = AlexNet(recipe, num_classes=NUM_CLASSES)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            numbers = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                numbers = 0.5 + numbers.square()
            elif name.endswith("weight") and tensor.dim() > 1:
                numbers = numbers * 1.7 / np.sqrt(np.prod(tensor.shape[1:4]))
            tensor.copy_(numbers)
    return model.eval()


def crops_of(recipe, num=3):
    generator = torch.Generator().manual_seed(2)
    return 60 * torch.randn(num, 3, recipe.crop_size, recipe.crop_size, generator=generator)


def session_of(data):
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def assert_same_logits(got, expected, relative=1e-5):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    assert np.linalg.norm(got - expected) < relative * np.linalg.norm(expected)
    for one, other in zip(got, expected, strict=True):
        assert np.argsort(-one)[:5].tolist() == np.argsort(-other)[:5].tolist()


# --- ONNX


@pytest.mark.parametrize("name", [*WIDE, *SMALL, *CHANGES])
def test_onnx_runtime_gives_the_networks_logits(name):
    recipe = recipe_of(name)
    model, crops = network_of(recipe), crops_of(recipe, 1 if name in WIDE else 3)
    data = to_onnx(recipe, model.state_dict(), num_classes=NUM_CLASSES, facts={})
    session = session_of(data)
    (logits,) = session.run(["logits"], {"pixels": crops.numpy()})
    with torch.no_grad():
        assert_same_logits(logits, model.double()(crops.double()).numpy())
    if name not in WIDE:  # any number of images
        (one,) = session.run(["logits"], {"pixels": crops[1:2].numpy()})
        np.testing.assert_allclose(one[0], logits[1], rtol=1e-4, atol=1e-4 * abs(logits).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "source-2012"])
def test_onnx_runtime_gives_the_whole_networks_logits(name):
    recipe = RECIPES[name]
    model = network_of(recipe)
    data = to_onnx(recipe, model.state_dict(), num_classes=NUM_CLASSES, facts={})
    (logits,) = session_of(data).run(None, {"pixels": crops_of(recipe, 2).numpy()})
    with torch.no_grad():
        assert_same_logits(logits, model(crops_of(recipe, 2)).numpy())


def test_an_onnx_model_is_the_recipe_node_by_node():
    recipe = recipe_of("paper")
    model = network_of(recipe)
    data = to_onnx(recipe, model.state_dict(), num_classes=NUM_CLASSES, facts={"key": "value"})
    whole = onnx.load_from_string(data)
    onnx.checker.check_model(whole, full_check=True)
    nodes = {node.name: node for node in whole.graph.node}
    names = [name for name, _ in model.named_children()]
    # The normalizations of the towers need two more.
    extra = {f"conv{i}_lrn_{x}" for i in (1, 2) for x in ("by_tower", "towers")} | {"flatten"}
    assert [x for x in nodes if x not in extra] == names
    given = {
        name: {x.name: onnx.helper.get_attribute_value(x) for x in nodes[name].attribute}
        for name in ("conv1", "conv2", "conv3", "conv1_lrn_towers")
    }
    assert given["conv1"] == {"group": 1, "pads": [0, 0, 3, 3], "strides": [4, 4]}
    assert (given["conv2"]["group"], given["conv3"]["group"]) == (2, 1)
    letters = given["conv1_lrn_towers"]
    assert letters["alpha"] == pytest.approx(5e-4)  # ONNX divides by the size
    assert (letters["size"], letters["bias"], letters["beta"]) == (5, 2.0, 0.75)
    (pixels,), (logits,) = whole.graph.input, whole.graph.output
    shape = [x.dim_param or x.dim_value for x in pixels.type.tensor_type.shape.dim]
    assert (pixels.name, shape) == ("pixels", ["batch", 3, 224, 224])
    assert "less the mean image" in pixels.doc_string
    assert [x.dim_value for x in logits.type.tensor_type.shape.dim] == [0, NUM_CLASSES]
    assert {x.key: x.value for x in whole.metadata_props} == {"key": "value"}


def test_more_weights_than_a_file_holds_are_refused():
    recipe = recipe_of("same map")
    shapes = whole_shapes(recipe, num_classes=9_000_000)
    model = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with pytest.raises(UserError, match="use --format safetensors"):
        to_onnx(recipe, model, num_classes=9_000_000, facts={})


# --- The command


@pytest.fixture(scope="module")
def weights():
    return large_weights(mini_shapes_and_deviations()[0], seed=7)


@pytest.fixture(scope="module")
def mean_image(tiny_shards):
    """Not that of the data, so that it has to come from the checkpoint."""
    shape = oracles.read_data(tiny_shards)["mean_image"].shape
    return np.random.default_rng(1).uniform(0, 255, shape).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(weights, mean_image, tiny_shards, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "one.pt"
    return write_checkpoint(path, weights, open_data_set(tiny_shards), mean_image=mean_image)


@pytest.fixture(scope="module")
def exported(checkpoint):
    """The three files of one checkpoint, by their format."""
    files = {}
    for name in ("safetensors", "onnx", "pt2"):
        files[name] = checkpoint.parent / f"net.{name}"
        card = ("--card", str(checkpoint.parent / "card.md"))
        result = run_here(*COMMAND, str(checkpoint), *words(name, files[name]), *card)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(f"wrote {files[name]} (")
    return files


COMMAND = ("-m", "replica.export")


def words(name, output):
    return "--format", name, "--output", str(output)


def pictures(num=2):
    return np.random.default_rng(5).integers(0, 256, (num, 104, 104, 3), np.uint8)


def test_the_onnx_file_is_the_oracles_network(exported, weights, mean_image):
    session = session_of(exported["onnx"].read_bytes())
    facts = session.get_modelmeta().custom_metadata_map
    shape = [int(side) for side in facts["mean_image_shape"].split(" x ")]
    numbers = np.frombuffer(base64.b64decode(facts["mean_image"]), "<f4").reshape(shape)
    assert np.array_equal(numbers, mean_image)
    (side, *_), here = shape, slice(4, 4 + CROP_SIZE)
    assert side == CROP_SIZE + 8
    crops = (pictures() - numbers)[:, here, here].transpose(0, 3, 1, 2)
    (logits,) = session.run(None, {"pixels": crops.astype(np.float32)})
    expected, _ = oracles.network(weights, crops.astype(np.float64))
    assert_same_logits(logits, expected)
    known = json.loads(facts["replica"])
    assert known["class_names"] == replica.load(exported["safetensors"]).class_names
    assert "# mini, 10 classes" in facts["model_card"]


ALONE = """
import json, sys, torch
facts = {"mean_image_shape": "", "model_card": "", "replica": ""}
program = torch.export.load(sys.argv[1], extra_files=facts)
crops = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save([program.module()(crops[:n]) for n in (1, 3)], sys.argv[3])
assert not [name for name in sys.modules if name.split(".")[0] in ("replica", "cuda_ext")]
print(json.dumps([facts["mean_image_shape"], facts["model_card"][:6]]))
"""


def test_a_program_needs_nothing_but_pytorch(exported, weights, tmp_path):
    crops = 60 * torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(3))
    torch.save(crops, tmp_path / "crops.pt")
    files = [str(x) for x in (exported["pt2"], tmp_path / "crops.pt", tmp_path / "logits.pt")]
    result = run("-I", "-c", ALONE, *files, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == ["104 x 104 x 3", "# mini"]
    expected, _ = oracles.network(weights, crops.double().numpy())
    one, three = torch.load(tmp_path / "logits.pt")
    assert_same_logits(one, expected[:1])
    assert_same_logits(three, expected)


def test_a_program_has_no_paths_of_the_machine(exported):
    assert sys.prefix.encode() not in exported["pt2"].read_bytes()
    assert b"layers.py" not in exported["pt2"].read_bytes()


def test_an_export_leads_back_bit_for_bit(exported, checkpoint):
    one, other = replica.load(checkpoint), replica.load(exported["safetensors"])
    for name, tensor in one.module.state_dict().items():
        assert torch.equal(tensor, other.module.state_dict()[name]), name
    assert np.array_equal(one.mean_image, other.mean_image)
    for field in ("recipe", "class_names", "wnids"):
        assert getattr(one, field) == getattr(other, field)
    for picture in pictures():
        assert np.array_equal(one.probabilities(picture), other.probabilities(picture))


def test_a_test_is_that_of_the_checkpoint_for_an_export_and_a_directory(
    exported, checkpoint, tiny_shards, tmp_path
):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "best.pt").symlink_to(checkpoint)
    results = []
    for path in (checkpoint, exported["safetensors"], run_dir):
        named = ("--checkpoint", str(path), "--data", str(tiny_shards), "--json")
        result = run_here("-m", "replica.test", *named, "--device", "cpu")
        assert result.returncode == 0, result.stderr
        results.append(json.loads(result.stdout))
    assert results[2]["checkpoint"] == str(run_dir / "best.pt")
    for result in results:
        del result["checkpoint"], result["checkpoints"]
    assert results[0] == results[1] == results[2]


def test_averaged_weights_are_what_is_exported(weights, tiny_shards, tmp_path):
    data = open_data_set(tiny_shards)
    path = write_checkpoint(tmp_path / "one.pt", weights, data, changes=["ema=0.9"])
    content = torch.load(path, weights_only=True)
    content["averages"] = {name: tensor + 1 for name, tensor in content["model"].items()}
    torch.save(content, path)
    for options, added in (((), 1), (("--weights", "last"), 0), (("--weights", "averaged"), 1)):
        output = tmp_path / "x.safetensors"
        result = run_here(*COMMAND, str(path), *words("safetensors", output), *options)
        assert f"{'averaged' if added else 'last'} weights" in result.stdout
        bias = replica.load(output).module.state_dict()["fc8.bias"]
        assert torch.equal(bias, content["model"]["fc8.bias"].float() + added)


def test_a_run_directory_gives_its_best_with_a_card_of_the_run(weights, tiny_shards, tmp_path):
    data = open_data_set(tiny_shards)
    write_checkpoint(tmp_path / "checkpoint-00000005.pt", weights, data)
    (tmp_path / "best.pt").symlink_to("checkpoint-00000005.pt")
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    torch.save({**content, "step": 5, "epoch": 2}, tmp_path / "best.pt")
    line = {"kind": "val", "step": 5, "epoch": 1, "top1_error": 0.5, "top5_error": 0.25}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    card = tmp_path / "card.md"
    output = words("safetensors", tmp_path / "x.safetensors")
    result = run_here(*COMMAND, str(tmp_path), *output, "--card", str(card))
    assert result.returncode == 0, result.stderr
    text = card.read_text()
    assert "- 5 steps, seed 1, last weights" in text
    assert "top-1 50.00%, top-5 25.00%" in text
    assert "| `fc6.num_units` | 4096 | 256 |" in text
    assert 'replica.load("x.safetensors")' in text
    assert str(tmp_path) not in text
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="np") as file:
        assert file.metadata()["model_card"] == text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (words("onnx", "x.pt2"), "--output x.pt2: expected a file that ends in .onnx"),
        (words("onnx", "nowhere/x.onnx"), "in a directory that exists"),
        ((*words("pt2", "x.pt2"), "--card", "x.txt"), "--card x.txt: expected a file that ends in"),
        ((*words("pt2", "x.pt2"), "--weights", "averaged"), "a run with --ema"),
    ],
)
def test_what_cannot_be_written_is_one_line(options, text, checkpoint, tmp_path):
    result = run_here(*COMMAND, str(checkpoint), *options, cwd=tmp_path)
    assert_user_error(result, text)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "library"), [("onnx", "onnx"), ("safetensors", "safetensors")])
def test_a_library_that_lacks_is_one_line_with_its_extra(
    name, library, checkpoint, exported, tmp_path, monkeypatch
):
    for module in [library, *(x for x in sys.modules if x.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    output = words(name, tmp_path / f"x.{name}")
    result = run_here(*COMMAND, str(checkpoint), *output)
    assert_user_error(result, f"needs {library}: `pip install 'replica-alexnet[export]'`")
    assert not list(tmp_path.iterdir())
    if library == "safetensors":
        result = run_here(*COMMAND, str(exported[name]), *words("onnx", tmp_path / "x.onnx"))
        assert_user_error(result, "net.safetensors", "replica-alexnet[export]")


def test_weights_of_others_that_are_not_whole_are_refused(tmp_path):
    np.savez(tmp_path / "some.npz", **{"conv1.bias": np.ones(96, np.float32)})
    output = words("onnx", tmp_path / "x.onnx")
    result = run_here(*COMMAND, str(tmp_path / "some.npz"), *output)
    assert_user_error(result, "some.npz: expected all layers of", "lacks conv1, conv2")


def test_a_recipe_with_a_changed_field_is_another_graph():
    """The comparison above would see it: rounding is far below what a letter changes."""
    recipe = recipe_of("other numbers")
    model, crops = network_of(recipe), crops_of(recipe)
    with torch.no_grad():
        expected = model.double()(crops.double()).numpy()
    for changed in ({"lrn_n": 5}, {"lrn_k": 1.0}, {"lrn_scope": "layer"}, {"dropout_keep": 0.5}):
        other = dataclasses.replace(recipe, **changed)
        data = to_onnx(other, model.state_dict(), num_classes=NUM_CLASSES, facts={})
        (logits,) = session_of(data).run(None, {"pixels": crops.numpy()})
        with pytest.raises(AssertionError):
            assert_same_logits(logits, expected, relative=1e-4)
