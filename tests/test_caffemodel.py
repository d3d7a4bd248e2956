"""Caffe's published networks: files written here byte by byte, layers in float64 as Caffe has them.

The layers are written from Caffe's definitions (train_val.prototxt, lrn_layer.cpp,
pooling_layer.cpp): groups of channels, LRN over all of them with alpha / n and k = 1, pooling that
rounds up, blue first, nothing multiplied at test.
"""

import sys

import numpy as np
import pytest
from conftest import assert_user_error
from numpy.lib.stride_tricks import sliding_window_view
from runs import train
from test_other_weights import CONVS, LAYERS, assert_close, begun, picture, refused, weights_of

import replica
from data_prep.errors import UserError
from replica.network.kernels import rgb_kernels
from replica.recipes import RECIPES, with_changes

KINDS = ("caffe-alexnet", "caffenet")
GROUPS = {"conv2": 2, "conv4": 2, "conv5": 2}
PADDINGS = {"conv1": 0, "conv2": 2, "conv3": 1, "conv4": 1, "conv5": 1}
# Caffe's mean of ILSVRC-2012: blue, green, red.
MEAN_BGR = (104.00699, 116.66877, 122.67892)


# --- Caffe's layers


def convolution(x, weight, bias, *, stride, padding, groups):
    """(C, H, W) to (kernels, H', W'): each group of kernels reads its group of channels."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    size = weight.shape[-1]
    parts = []
    for channels, kernels in zip(
        np.split(x, groups), np.split(weight.astype(np.float64), groups), strict=True
    ):
        windows = sliding_window_view(channels, (size, size), axis=(1, 2))[:, ::stride, ::stride]
        parts.append(np.tensordot(kernels, windows, axes=([1, 2, 3], [0, 3, 4])))
    return np.concatenate(parts) + bias[:, None, None]


def across_channels(x, *, size=5, alpha=0.0001, beta=0.75, k=1.0):
    squares = np.pad(x**2, ((size // 2, size // 2), (0, 0), (0, 0)))
    sums = sum(squares[i : i + len(x)] for i in range(size))
    return x / (k + alpha / size * sums) ** beta


def pooled(x, *, size=3, stride=2):
    """Windows that begin on the map, the last ones cut off at its border."""
    side = -(-(x.shape[1] - size) // stride) + 1
    return np.array(
        [
            [
                x[:, i * stride : i * stride + size, j * stride : j * stride + size].max((1, 2))
                for j in range(side)
            ]
            for i in range(side)
        ]
    ).transpose(2, 0, 1)


def logits(kind, weights, image_rgb, *, lrn=across_channels):
    """Of the central 227 x 227 pixels of an image of 256 x 256."""
    x = image_rgb[14:241, 14:241, ::-1].astype(np.float64) - MEAN_BGR
    x = x.transpose(2, 0, 1)
    for name in CONVS:
        x = convolution(
            x,
            weights[f"{name}.weight"],
            weights[f"{name}.bias"],
            stride=4 if name == "conv1" else 1,
            padding=PADDINGS[name],
            groups=GROUPS.get(name, 1),
        )
        x = np.maximum(x, 0)
        if name in ("conv1", "conv2"):
            x = lrn(pooled(x)) if kind == "caffenet" else pooled(lrn(x))
    x = pooled(x).reshape(-1)
    for name in ("fc6", "fc7", "fc8"):
        x = weights[f"{name}.weight"].astype(np.float64) @ x + weights[f"{name}.bias"]
        x = x if name == "fc8" else np.maximum(x, 0)
    return x


# --- The wire format


def varint(value):
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def field(number, content):
    """A number, or bytes with their length before them."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array, *, is_old, dtype="<f4"):
    data = field(5 if dtype == "<f4" else 8, np.ascontiguousarray(array, dtype).tobytes())
    if is_old:
        sides = (1,) * (4 - array.ndim) + array.shape
        return b"".join(field(i, side) for i, side in enumerate(sides, start=1)) + data
    return field(7, field(1, b"".join(map(varint, array.shape)))) + data


def layer(name, *blobs, is_old):
    """Also with fields that the reader passes over: the kind of layer, and what it reads."""
    if is_old:
        other = field(2, b"below") + field(4, name.encode()) + field(5, 4)
        content = other + b"".join(field(6, x) for x in blobs)
        return field(2, content)
    content = field(1, name.encode()) + field(2, b"Convolution") + field(3, b"below")
    return field(100, content + b"".join(field(7, x) for x in blobs))


def in_order(kind):
    norm = ["pool", "norm"] if kind == "caffenet" else ["norm", "pool"]
    names = ["data"]
    for name in LAYERS:
        names.append(name)
        if name in ("conv1", "conv2"):
            names += [f"{x}{name[-1]}" for x in norm]
    return names


def net(kind, weights, *, is_old=False, names=None, renamed=(), dtype="<f4"):
    parts = [field(1, b"AlexNet")]
    for name in in_order(kind) if names is None else names:
        arrays = [weights[x] for x in (f"{name}.weight", f"{name}.bias") if x in weights]
        blobs = [blob(array, is_old=is_old, dtype=dtype) for array in arrays]
        parts.append(layer(dict(renamed).get(name, name), *blobs, is_old=is_old))
    return b"".join(parts)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Both networks with random weights, one in the format of before 2014: path, weights."""
    folder = tmp_path_factory.mktemp("caffe")
    made = {}
    for kind in KINDS:
        weights = weights_of(kind, seed=len(kind))
        weights["conv1.weight"] *= 0.1  # so that pixels and biases are of one size behind it
        path = folder / f"{kind}.caffemodel"
        path.write_bytes(net(kind, weights, is_old=kind == "caffenet"))
        made[kind] = path, weights
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_logit_is_that_of_caffe_s_definitions(kind, files):
    path, weights = files[kind]
    network = replica.load(path, device="cpu")
    assert network.recipe == RECIPES[kind]
    assert (network.lacking, len(network.class_names)) == ((), 1000)
    got = network.features(picture(), layer="fc8")
    assert_close(got, logits(kind, weights, picture()))
    wrong = [
        logits(KINDS[1 - KINDS.index(kind)], weights, picture()),
        logits(kind, weights, picture()[..., ::-1]),
        logits(kind, weights, picture(), lrn=lambda x: across_channels(x, alpha=0.0005)),
        logits(kind, weights, picture(), lrn=lambda x: across_channels(x, k=2.0)),
        logits(
            kind,
            weights,
            picture(),
            lrn=lambda x: np.concatenate([across_channels(part) for part in np.split(x, 2)]),
        ),
    ]
    for number, other in enumerate(wrong):
        with pytest.raises(AssertionError):
            assert_close(got, other)
        assert np.linalg.norm(got - other) > 1e-4 * np.linalg.norm(got), number


def test_tensors_are_those_of_the_file(files):
    for kind in KINDS:
        path, weights = files[kind]
        state = replica.load(path, device="cpu").module.state_dict()
        assert state.keys() == weights.keys()
        assert all(np.array_equal(state[name].numpy(), weights[name]) for name in weights)


def test_double_precision_is_read_too(tmp_path):
    weights = {"conv1.weight": np.arange(96 * 363.0).reshape(96, 3, 11, 11)}
    path = tmp_path / "x.caffemodel"
    path.write_bytes(net("caffenet", weights, dtype="<f8"))
    message = refused(path)
    assert "lacks conv1.bias, conv2, conv3, conv4, conv5, fc6, fc7, fc8" in message


def test_a_run_begins_with_caffe_s_weights_and_another_head(files, shards_dir, tmp_path):
    path, weights = files["caffenet"]
    options = ("--init", str(path), "--recipe", "caffenet")
    narrow = ("--set", "fc6.num_units=8", "--set", "fc7.num_units=8", "--new-layers", "fc6,fc7")
    result = train(shards_dir, tmp_path / "run", *options)
    assert_user_error(result, "caffenet.caffemodel: has 1000 classes", "has 10", "--new-head")
    state, lines = begun(shards_dir, tmp_path / "run", *options, *narrow, "--new-head")
    title = "Caffe's bvlc_reference_caffenet (recipe caffenet)"
    assert f"init: {path}, {title}; drawn anew: fc6, fc7, fc8" in lines
    for name, tensor in state.model.state_dict().items():
        if not name.startswith("fc"):
            assert np.array_equal(tensor.numpy(), weights[name]), name


def test_for_a_recipe_of_the_paper_channels_and_dropout_are_converted(files, shards_dir, tmp_path):
    path, weights = files["caffe-alexnet"]
    options = ("--init", str(path), "--recipe", "paper", "--new-head")
    state, lines = begun(shards_dir, tmp_path / "run", *options)
    made = "init: converted: conv1 from bgr to rgb; fc7 to dropout that multiplies at test"
    assert made in lines  # fc8 is drawn
    own = state.model.state_dict()
    assert np.array_equal(own["conv1.weight"].numpy(), weights["conv1.weight"][:, ::-1])
    assert np.array_equal(own["fc7.weight"].numpy(), 2 * weights["fc7.weight"])
    assert np.array_equal(own["fc6.weight"].numpy(), weights["fc6.weight"])


# --- What is refused


def small():
    return {"conv1.weight": np.ones((96, 3, 11, 11)), "conv1.bias": np.ones(96)}


def test_a_cut_file_is_one_line(files, tmp_path):
    """At any place; between two layers it is a whole file that lacks some."""
    data = net("caffenet", small())
    path = tmp_path / "cut.caffemodel"
    seen = set()
    for place in (0, 5, 300, len(data) // 2, len(data) - 1, *range(len(data) - 400, len(data))):
        path.write_bytes(data[:place])
        message = refused(path)
        seen.add("damaged" if "damaged" in message else message.split(": ")[1][:8])
    assert seen == {"damaged", "expected"}
    whole = files["caffe-alexnet"][0].read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    assert "damaged: expected a .caffemodel, got a file that is cut" in refused(path)


def test_a_changed_file_is_one_line(tmp_path):
    """Every change of one byte outside of the numbers is refused or passed over, in one line."""
    data = bytearray(net("caffenet", {"conv1.weight": np.ones((96, 3, 11, 11))}))
    path = tmp_path / "x.caffemodel"
    for place in [*range(0, 80, 2), *range(len(data) - 60, len(data), 3)]:
        for bit in (1, 128):
            data[place] ^= bit
            path.write_bytes(data)
            refused(path)
            data[place] ^= bit


def wrong(kind="caffenet", **arrays):
    return net(kind, {**small(), **{k.replace("_", "."): v for k, v in arrays.items()}})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "got the network '' with no layers"),
        (b"name: 'CaffeNet'\nlayer {\n}\n", "damaged: expected a .caffemodel"),
        (net("caffenet", small(), names=["conv1_1", "pool1"]), "'AlexNet' with conv1_1, pool1"),
        (net("caffenet", small(), names=["a"] * 9), "with a, a, a, a and 5 more"),
        (net("caffenet", small(), names=["conv1", *in_order("caffenet")]), "more than two arrays"),
        (wrong(conv2_weight=np.ones((256, 96, 5, 5))), "expected (256, 48, 5, 5)"),
        (wrong(fc8_weight=np.ones((5, 4095))), "fc8.weight is (5, 4095), expected (5, 4096)"),
        (wrong(fc8_weight=np.ones((1, 4096))), "fc8.weight is (1, 4096), expected (2, 4096)"),
        (wrong(conv1_bias=np.full(96, np.inf)), "damaged: conv1.bias: expected finite numbers"),
        (wrong(), "expected all of Caffe's bvlc_reference_caffenet, lacks conv2, conv3"),
    ],
    ids=[
        *("empty", "text", "vgg", "many", "twice", "groups", "inputs", "one class", "infinite"),
        "lacking",
    ],
)
def test_another_network_is_one_line(data, words, tmp_path):
    path = tmp_path / "x.caffemodel"
    path.write_bytes(data)
    assert words in refused(path)


@pytest.mark.parametrize(
    "sides", [(2**62, 2**62, 4, 4), (96, 3, 11, 12), (0, 3, 11, 11), (2**63 + 1, 3, 11, 11)]
)
def test_a_shape_that_lies_takes_no_memory(sides, tmp_path):
    shape = field(7, field(1, b"".join(map(varint, sides))))
    data = field(5, np.ones(96 * 363, "<f4").tobytes())
    first = layer("conv1", shape + data, is_old=False)
    rest = net("caffenet", {}, names=in_order("caffenet")[2:])
    path = tmp_path / "x.caffemodel"
    path.write_bytes(first + rest)
    assert "damaged: conv1.weight: expected" in refused(path)


def test_without_protobuf_one_line_names_the_extra(files, shards_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.protobuf.message", None)
    path = files["caffenet"][0]
    result = train(shards_dir, tmp_path / "run", "--init", str(path))
    assert_user_error(result, "a .caffemodel needs protobuf", "'replica-alexnet[caffe]'")
    assert not (tmp_path / "run").exists()


# --- Arrays


def conv_kernels():
    generator = np.random.default_rng(2)
    shapes = [
        (96, 3, 11, 11),
        (256, 48, 5, 5),
        (384, 256, 3, 3),
        (384, 192, 3, 3),
        (256, 192, 3, 3),
    ]
    return [generator.standard_normal(shape, dtype=np.float32) / 50 for shape in shapes]


def arrays(folder, **changes):
    weights = {f"{x}.weight": w for x, w in zip(CONVS, conv_kernels(), strict=True)}
    path = folder / "conv1to5.npz"
    np.savez(path, **{**weights, **changes})
    return path, weights


def test_arrays_serve_init_and_the_rest_is_drawn_and_named(shards_dir, tmp_path):
    path, weights = arrays(tmp_path)
    changes = ["fc6.num_units=8", "fc7.num_units=8"]
    options = ["--init", str(path), "--recipe", "caffenet", "--seed", "3"]
    options += [word for change in changes for word in ("--set", change)]
    state, lines = begun(shards_dir, tmp_path / "run", *options)
    title = "arrays of Caffe's bvlc_reference_caffenet (recipe caffenet)"
    drawn = ", ".join([*(f"{x}.bias" for x in CONVS), "fc6", "fc7", "fc8"])
    assert f"init: {path}, {title}; drawn anew: {drawn}" in lines
    recipe = with_changes(RECIPES["caffenet"], changes)
    fresh = replica.build(recipe, num_classes=10, seed=3).state_dict()
    for name, tensor in state.model.state_dict().items():
        expected = weights[name] if name in weights else fresh[name].numpy()
        assert np.array_equal(tensor.numpy(), expected), name


def test_of_arrays_only_what_was_trained_is_shown(tmp_path, capsys):
    path, _ = arrays(tmp_path)
    network = replica.load(path, device="cpu")
    assert network.lacking == (*(f"{x}.bias" for x in CONVS), "fc6", "fc7", "fc8")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{path}: drawn, as not in it: {', '.join(network.lacking)}"
    assert network.features(picture(), layer="conv5").shape == (256, 13, 13)
    for ask in (
        lambda: network.predict(picture()),
        lambda: network.features(picture(), layer="fc7"),
        lambda: network.features(picture(), layer="fc6_dropout"),
    ):
        with pytest.raises(UserError, match=r"no weights of fc6.* expected features of conv1,"):
            ask()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conv2.weight": np.ones((256, 96, 5, 5), np.float32)}, "expected (256, 48, 5, 5)"),
        ({"conv1.weight": np.ones((96, 3, 11, 11), np.int64)}, "expected floating-point numbers"),
        ({"conv1.weight": np.full((96, 3, 11, 11), np.nan)}, "conv1.weight: expected finite"),
        ({"fire2.weight": np.ones(3)}, "got another network: fire2.weight is not of it"),
        ({"conv1.weight": np.array([{}], dtype=object)}, "expected (96, 3, 11, 11)"),
    ],
    ids=["groups", "integers", "nan", "unknown", "objects"],
)
def test_other_arrays_are_one_line(changes, words, tmp_path):
    path, _ = arrays(tmp_path, **changes)
    assert words in refused(path)


def test_cut_and_changed_arrays_are_one_line(tmp_path):
    path, _ = arrays(tmp_path)
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    assert "damaged" in refused(path)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "damaged" in refused(path)
    data[len(data) // 2] ^= 1
    place = data.index(b"'shape': (96,")
    data[place : place + 13] = b"'shape': (9e9"
    path.write_bytes(data)
    assert "damaged" in refused(path)


@pytest.mark.parametrize("name", ["0.56318", "0.56256_l1"])
def test_the_real_arrays_are_read(name, real_data):
    """Trained and pruned; the first group of 48 kernels became gray, the second colored."""
    network = replica.load(real_data / f"caffenet_conv1to5_sparse_top1_{name}.npz", device="cpu")
    kernels = rgb_kernels(network.module.conv1.weight.detach(), network.recipe)
    of_color = (kernels - kernels.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2, 3))
    share = of_color / kernels.square().sum(dim=(1, 2, 3)).clamp(min=1e-12)
    assert share[:48].median() < 0.2 < 0.8 < share[48:].median()
    assert np.isfinite(network.features(picture(), layer="conv5")).all()
