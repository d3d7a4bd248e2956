"""Networks come back from `.safetensors` files, and files that lie are one line."""

import json
import os
import struct
from unittest import mock

import pytest
import torch
from conftest import assert_user_error
from runs import large_weights, mini_shapes_and_deviations, train, write_checkpoint

import replica
from data_prep.errors import UserError
from data_prep.shards import open_data_set
from replica.distributed.mesh import Rank
from replica.results.exports import export
from replica.train import parse_arguments
from replica.training.checkpoint import load_checkpoint
from replica.training.run import prepare_run
from replica.training.safetensors_file import to_safetensors
from replica.training.state import begin
from replica.training.weights import open_weights

library = pytest.importorskip("safetensors.torch", reason="needs the extra export")
SAME = ("--set", "fc6.num_units=256", "--set", "fc7.num_units=256", "--set", "crop_size=96")


@pytest.fixture(scope="module")
def checkpoint(tiny_shards, tmp_path_factory):
    weights = large_weights(mini_shapes_and_deviations()[0], seed=7)
    path = tmp_path_factory.mktemp("safetensors") / "one.pt"
    return write_checkpoint(path, weights, open_data_set(tiny_shards))


@pytest.fixture(scope="module")
def whole(checkpoint):
    """The bytes of a file."""
    return export(checkpoint, "safetensors", output="x", weights=None).data


@pytest.fixture
def path(whole, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(whole)
    return path


def header_of(data):
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(header, rest, *, size=None):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + rest


def refused(path):
    with pytest.raises(UserError) as error:
        replica.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_run_begins_with_an_exported_network(path, checkpoint, tiny_shards, tmp_path):
    lines = []
    words = ("--data", str(tiny_shards), "--out", str(tmp_path / "run"), "--recipe", "mini", *SAME)
    words = (*words, "--init", str(path), "--device", "cpu", "--no-tensorboard")
    with mock.patch.dict(os.environ, REPLICA_MALLOC="stock"):  # it is of the whole process
        run = prepare_run(parse_arguments([*words]), None, say=lines.append)
    state = begin(run, Rank(0, run.devices))
    expected = torch.load(checkpoint, weights_only=True)["model"]
    for name, tensor in state.model.state_dict().items():
        assert torch.equal(tensor, expected[name].float()), name
    (line,) = [line for line in lines if line.startswith("init: ")]
    assert line.endswith("net.safetensors, step 0 of recipe mini; no layer is drawn anew")


def test_other_classes_or_layers_are_refused_as_those_of_a_checkpoint(path, shards_dir, tmp_path):
    options = ("--recipe", "mini", "--init", str(path))
    result = train(shards_dir, tmp_path / "run", *options)
    assert_user_error(result, "does not fit recipe mini", "fc6.weight")
    assert not (tmp_path / "run").exists()


def test_other_programs_read_the_tensors(path, checkpoint):
    tensors = library.load_file(path)
    content = torch.load(checkpoint, weights_only=True)
    assert tensors.keys() == {*content["model"], "mean_image", "eigenvalues", "eigenvectors"}
    assert torch.equal(tensors["conv2.weight"], content["model"]["conv2.weight"])


@pytest.mark.parametrize("num_bytes", [0, 4, 8, 100, 3000, -1])
def test_a_cut_file_is_one_line(num_bytes, whole, path):
    path.write_bytes(whole[:num_bytes])
    assert "damaged: expected a .safetensors file, got one that is cut" in refused(path)


@pytest.mark.parametrize("size", [0, 1, 50, 2**20, 2**40, 2**63, 2**64 - 1])
def test_a_header_that_lies_about_its_size_is_one_line(size, whole, path):
    path.write_bytes(struct.pack("<Q", size) + whole[8:])
    assert "damaged: expected a .safetensors file" in refused(path)


def larger(header):
    header["fc8.weight"]["shape"] = [1 << 40, 1 << 20]


def overlapping(header):
    header["fc8.weight"]["data_offsets"] = header["fc7.weight"]["data_offsets"]


def beyond(header):
    begin, _ = header["fc8.weight"]["data_offsets"]
    header["fc8.weight"]["data_offsets"] = [begin, 1 << 50]


def negative(header):
    header["fc8.weight"]["shape"] = [-10, -256]


def of_no_type(header):
    header["fc8.weight"]["dtype"] = "F33"


@pytest.mark.parametrize("change", [larger, overlapping, beyond, negative, of_no_type])
def test_a_header_that_lies_about_a_tensor_is_one_line(change, whole, path):
    header, rest = header_of(whole)
    change(header)
    path.write_bytes(with_header(header, rest))
    assert "damaged: expected a .safetensors file" in refused(path)


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff\xfe", b'{"a": 1}', b"{" * 9999])
def test_a_header_that_is_none_is_one_line(text, path):
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    assert "damaged" in refused(path)


def changed_facts(whole, **changes):
    header, rest = header_of(whole)
    facts = json.loads(header["__metadata__"]["replica"])
    for name, value in changes.items():
        if value is None:
            del facts[name]
        else:
            facts[name] = value
    header["__metadata__"]["replica"] = json.dumps(facts)
    return with_header(header, rest)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "damaged: what it says of itself"),
        ({"version": 2}, "expected version 1 of an exported network, got 2"),
        ({"recipe": None}, "damaged: what it says of itself"),
        ({"recipe": []}, "expected the record of a recipe"),
        ({"num_classes": 11}, "it has fc8.weight of shape (10, 256) instead of (11, 256)"),
        ({"num_classes": 10**12}, "expected 2 to 1000000 classes"),
        ({"num_classes": True}, "expected 2 to"),
        ({"step": "x"}, "expected whole numbers"),
        ({"wnids": ["x", 1]}, "expected lists of names"),
        ({"val_errors": {"x": 1}}, "expected error rates"),
        ({"system": 3}, "expected the name of a system"),
        ({"class_names": ["another"] * 10}, "damaged: its tensors or its description"),
    ],
)
def test_a_description_that_lies_is_one_line(changes, words, whole, path):
    path.write_bytes(changed_facts(whole, **changes))
    assert words in refused(path)


def test_a_changed_tensor_is_one_line(whole, path):
    data = bytearray(whole)
    data[-1000] ^= 1
    path.write_bytes(data)
    assert "damaged: its tensors or its description" in refused(path)


def test_tensors_of_another_origin_or_network_are_one_line(whole, path):
    library.save_file({"features.0.weight": torch.zeros(3)}, path)
    assert "got tensors without a recipe" in refused(path)
    header, _ = header_of(whole)
    tensors = library.load(whole)
    for change, words in (
        ({"fc8.bias": None}, "it lacks fc8.bias"),
        ({"other": torch.zeros(1)}, "it has an unknown other"),
        ({"mean_image": None}, "it lacks mean_image"),
        ({"mean_image": torch.zeros(9, 9, 3)}, "its mean_image is smaller than crops of 96"),
        ({"mean_image": torch.zeros(())}, "it has mean_image of shape ()"),
        ({"eigenvectors": torch.zeros(3)}, "it has eigenvectors of shape (3,)"),
        ({"fc8.bias": torch.zeros(10, dtype=torch.int32)}, "it has fc8.bias of I32"),
    ):
        changed = {name: x for name, x in (tensors | change).items() if x is not None}
        library.save_file(changed, path, header["__metadata__"])
        assert words in refused(path), change


def test_whose_weights_they_are_stays_known(path, checkpoint):
    assert open_weights(path).title is None
    content = load_checkpoint(checkpoint)
    path.write_bytes(to_safetensors(content, system="Caffe's bvlc_alexnet", card="x"))
    assert open_weights(path).title == "Caffe's bvlc_alexnet"
