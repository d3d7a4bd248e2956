"""A user's own network, `--model FILE:FUNCTION`, against a training program in plain PyTorch."""

import hashlib
import html
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_user_error, run_here
from PIL import Image
from runs import last_checkpoint, train

import replica
from data_prep.errors import UserError
from data_prep.shards import open_data_set
from replica.network.own_network import ModelFile
from replica.training.checkpoint import checkpoints_of

FILE = """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, dropout=0.0):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 7, stride=4), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(3)
        )
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(54, num_classes)

    def forward(self, x):
        return self.head(self.drop(self.features(x / 64).flatten(1)))


def dropped(num_classes):
    return Net(num_classes, dropout=0.5)
"""
SEED, SIDE, CROP, STEPS = 7, 104, 96, 3
# All images in a batch, as they are: the order does not matter, and nothing is drawn.
PLAIN = ("random_crops=false", "random_flips=false", "color_noise=0", f"crop_size={CROP}")
OPTIONS = ("--recipe", "mini", "--batch-size", "10", "--lr", "0.02", "--momentum", "0.8")
OPTIONS += ("--weight-decay", "0.01", "--loader-threads", "0", "--seed", str(SEED))
OPTIONS += tuple(word for change in PLAIN for word in ("--set", change))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "my_net.py"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def trained(tiny_shards, model_file, tmp_path_factory):
    """A run of a few steps, and what it printed."""
    out = tmp_path_factory.mktemp("own") / "run"
    model = ("--model", f"{model_file}:Net", "--steps", str(STEPS))
    result = train(tiny_shards, out, *OPTIONS, *model)
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def crops_of(data, part):
    """The central crops of a part minus the mean image: float32 (N, 3, H, W)."""
    first = (SIDE - CROP) // 2
    images = np.concatenate([np.asarray(shard.images()) for shard in data.part(part).shards])
    pixels = torch.from_numpy(images.astype(np.float32) - data.statistics.mean_image)
    return pixels[:, first : first + CROP, first : first + CROP].permute(0, 3, 1, 2).contiguous()


VIEW = """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3 * 96 * 96, num_classes)

    def forward(self, x):
        return self.head(x.view(x.size(0), -1))
"""


def test_a_view_of_the_images_is_what_it_is_everywhere(tiny_shards, tmp_path):
    path, out = tmp_path / "net.py", tmp_path / "run"
    path.write_text(VIEW)
    model = ("--model", f"{path}:Net")
    result = train(tiny_shards, out, *OPTIONS, *model, "--steps", "1", "--lr", "1e-6")
    assert result.returncode == 0, result.stderr
    (val,) = [x for x in metrics(out) if x["kind"] == "val"]
    command = ("-m", "replica.test", "--checkpoint", str(newest(out)), *model, "--json")
    result = run_here(*command)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["loss"] == pytest.approx(val["loss"])
    weights = last_checkpoint(out)["model"]
    assert all(tensor.is_contiguous() for tensor in weights.values())
    data = open_data_set(tiny_shards)
    pixels = crops_of(data, "val").flatten(1)  # channel by channel, then row by row
    logits = pixels @ weights["own.head.weight"].T + weights["own.head.bias"]
    loss = F.cross_entropy(logits, torch.from_numpy(data.val.labels.astype(np.int64)))
    assert val["loss"] == pytest.approx(float(loss), rel=1e-4)
    Image.fromarray(np.zeros((SIDE, SIDE, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    command = ("-m", "replica.predict", str(tmp_path / "a.png"), "--checkpoint", str(out))
    result = run_here(*command, *model, "--json")
    assert result.returncode == 0, result.stderr


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def newest(out):
    return checkpoints_of(out)[-1]


def own(name="Net", num_classes=10):
    """The user's network with its first weights, as a user would make it."""
    names = {}
    exec(FILE, names)
    torch.manual_seed(SEED << 31)
    return names[name](num_classes)


@pytest.fixture(scope="module")
def expected(tiny_shards):
    """The same training in plain PyTorch, whose update is the paper's while no rate drops."""
    data, net = open_data_set(tiny_shards), own()
    crops, labels = crops_of(data, "train"), torch.from_numpy(data.train.labels.astype(np.int64))
    biases = [x for name, x in net.named_parameters() if name.endswith(".bias")]
    others = [x for name, x in net.named_parameters() if not name.endswith(".bias")]
    groups = [{"params": others, "weight_decay": 0.01}, {"params": biases}]
    optimizer = torch.optim.SGD(groups, lr=0.02, momentum=0.8)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(net(crops), labels).backward()
        optimizer.step()
    return net.eval()


def test_a_users_network_is_trained_as_a_plain_program_does(trained, expected):
    out, printed = trained
    parameters = sum(x.numel() for x in expected.parameters())
    assert f"model: my_net.py:Net, {parameters:,} parameters; recipe mini says all" in printed
    saved = last_checkpoint(out)
    theirs = {f"own.{name}": tensor for name, tensor in expected.state_dict().items()}
    assert saved["model"].keys() == theirs.keys()
    moved = own().state_dict()["head.weight"] - theirs["own.head.weight"]
    assert moved.abs().max() > 1e-3
    for name, tensor in theirs.items():
        torch.testing.assert_close(saved["model"][name], tensor, rtol=1e-4, atol=1e-6)


def test_its_file_is_in_the_record_and_in_the_checkpoint(trained):
    out, _ = trained
    known = {"name": "my_net.py", "function": "Net", "text": FILE}
    known["sha256"] = hashlib.sha256(FILE.encode()).hexdigest()
    assert json.loads((out / "run.json").read_text())["model_file"] == known
    assert last_checkpoint(out)["model_file"] == known


def test_its_errors_are_those_of_the_plain_program(trained, tiny_shards, model_file, expected):
    out, _ = trained
    data = open_data_set(tiny_shards)
    with torch.no_grad():
        logits = expected(crops_of(data, "val"))
    right = (logits.argmax(1).numpy() == data.val.labels).mean()
    command = ("-m", "replica.test", "--checkpoint", str(newest(out)))
    command += ("--model", f"{model_file}:Net")
    result = run_here(*command, "--json")
    assert result.returncode == 0, result.stderr
    tested = json.loads(result.stdout)
    assert tested["top1_error"] == pytest.approx(1 - right)
    loss = F.cross_entropy(logits, torch.from_numpy(data.val.labels.astype(np.int64)))
    assert tested["loss"] == pytest.approx(float(loss), rel=1e-3)
    # Two of one kind as an ensemble, and the validation of the run.
    result = run_here(*command, "--checkpoint", str(newest(out)), "--json")
    assert json.loads(result.stdout)["loss"] == pytest.approx(tested["loss"])
    lines = (out / "metrics.jsonl").read_text().splitlines()
    (val,) = [x for x in map(json.loads, lines) if x["kind"] == "val" and x["step"] == STEPS]
    assert val["top1_error"] == pytest.approx(1 - right)


def test_it_predicts_a_picture_as_it_was_trained(trained, model_file, tmp_path, expected):
    out, _ = trained
    pixels = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    source = f"{model_file}:Net"
    command = ("-m", "replica.predict", str(tmp_path / "a.png"), "--checkpoint", str(out))
    result = run_here(*command, "--model", source, "--json", "--top", "1")
    assert result.returncode == 0, result.stderr
    ((name, probability),) = json.loads(result.stdout)[0]["top"]
    network = replica.load(out, model=source)
    assert probability == pytest.approx(max(network.probabilities(pixels)), rel=1e-5)
    assert name == network.predict(pixels)[0][0]
    assert_user_error(run_here(*command), "my_net.py:Net", "give that file with --model")


def test_dropout_of_a_resumed_run_is_that_of_the_whole_one(tiny_shards, model_file, tmp_path):
    options = (*OPTIONS, "--epochs", "4", "--model", f"{model_file}:dropped", "--batch-size", "4")
    runs = [tmp_path / "whole", tmp_path / "resumed"]
    assert train(tiny_shards, runs[0], *options).returncode == 0
    assert train(tiny_shards, runs[1], *options, "--steps", "4").returncode == 0
    torch.rand(3)  # the process's own generator is not what decides
    result = train(tiny_shards, runs[1], *options, "--resume")
    assert result.returncode == 0, result.stderr
    one, other = (last_checkpoint(run) for run in runs)
    assert one["step"] == other["step"] == 12
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name]), name
    again = train(tiny_shards, tmp_path / "without", *OPTIONS, "--model", f"{model_file}:Net")
    assert again.returncode == 0
    plain = last_checkpoint(tmp_path / "without")["model"]
    assert not torch.equal(one["model"]["own.head.weight"], plain["own.head.weight"])


def test_another_file_is_refused(trained, tiny_shards, model_file, tmp_path):
    out, _ = trained
    other = tmp_path / "my_net.py"
    other.write_text(FILE + "# changed\n")
    tests = ("-m", "replica.test", "--checkpoint", str(newest(out)))
    digest = hashlib.sha256(FILE.encode()).hexdigest()
    for given in (f"{other}:Net", f"{model_file}:dropped"):
        words = (digest, "is another: its text is in the run's run.json")
        assert_user_error(run_here(*tests, "--model", given), *words)
        resumed = ("-m", "replica.train", "--out", str(out), "--resume", "--model", given)
        assert_user_error(run_here(*resumed), *words)
    assert_user_error(run_here(*tests), "give that file with --model")
    resumed = run_here("-m", "replica.train", "--out", str(out), "--resume")
    assert_user_error(resumed, "give that file with --model")
    assert resumed.stderr.startswith("replica.train: ")
    assert "replica.test" not in resumed.stderr
    init = ("--init", str(newest(out)))
    result = train(tiny_shards, tmp_path / "init", *OPTIONS, *init)
    assert_user_error(result, "expected the network of a recipe, got that of a file, my_net.py:Net")


def test_a_recipes_network_needs_no_file(tiny_shards, model_file, tmp_path):
    out = tmp_path / "run"
    assert train(tiny_shards, out, "--set", f"crop_size={CROP}", "--steps", "1").returncode == 0
    command = ("-m", "replica.test", "--checkpoint", str(newest(out)))
    result = run_here(*command, "--model", f"{model_file}:Net")
    assert_user_error(result, "expected none, as", "has its recipe's network")


def test_what_is_of_a_recipes_layers_is_refused_beside_it(trained, tiny_shards, model_file):
    out, _ = trained
    model = ("--model", f"{model_file}:Net")
    for options, word in (
        (("--freeze", "conv1"), "--freeze"),
        (("--rate", "fc8=0.1"), "--rate"),
        (("--set", "conv1.bias=1"), "--set"),
        (("--dry-run",), "--dry-run"),
        (("--compile", "default"), "--compile"),
        (("--gpus", "2"), "expected one device: give --gpus 1"),
    ):
        if options[0] == "--compile" and " " in torch.__file__:
            continue  # where the compiler itself is refused first
        result = train(tiny_shards, out.parent / "refused", *OPTIONS, *model, *options)
        assert_user_error(result, "--model my_net.py:Net: expected", word)
        assert not (out.parent / "refused").exists()
    result = run_here("-m", "replica.control", str(out), "--freeze", "conv1")
    assert_user_error(result, "has the network of a file, my_net.py:Net")


def test_figures_reports_and_neighbors_do_what_they_can(trained, model_file, tmp_path, expected):
    out, _ = trained
    page = tmp_path / "page.html"
    result = run_here("-m", "replica.report", str(out), "--output", str(page))
    assert result.returncode == 0, result.stderr
    parameters = sum(x.numel() for x in expected.parameters())
    assert f"that of a file, my_net.py:Net, {parameters:,} parameters" in page.read_text()
    assert "The network is that of a file, my_net.py:Net." in page.read_text()
    assert "replica.report runs no file" in page.read_text()
    tests = f"--checkpoint {out}/best.pt --model {model_file}:Net --ten-crop"
    assert tests in html.unescape(page.read_text())
    page.unlink()
    result = run_here("-m", "replica.figures", "--run", str(out), "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "no kernels: the network is that of a file, my_net.py:Net" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]
    result = run_here("-m", "replica.neighbors", "--checkpoint", str(out))
    words = ("has the network of a file", "runs no file: expected a recipe's network")
    assert_user_error(result, *words, "replica.neighbors runs")
    figure = ("-m", "replica.figures", "confusion", "--checkpoint", str(newest(out)))
    assert_user_error(run_here(*figure), *words, "replica.figures runs")
    command = ("-m", "replica.export", str(out), "--format", "onnx")
    result = run_here(*command, "--output", str(tmp_path / "net.onnx"))
    assert_user_error(result, "expected the network of a recipe, got that of a file, my_net.py:Net")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


NET = "from torch import nn\ndef build(num_classes):\n    return "
WRONG = {
    "no-colon": ("", "{path}", "expected FILE:FUNCTION such as my_net.py:build"),
    "no-name": ("", "{path}:", "expected FILE:FUNCTION"),
    "no-identifier": ("", "{path}:a b", "expected FILE:FUNCTION"),
    "no-file": (None, "{path}:build", "expected a Python file at"),
    "no-text": (b"\xff\xfe", "{path}:build", "expected UTF-8, got other bytes"),
    "no-python": ("def build(:", "{path}:build", "raised SyntaxError in line 1"),
    "an-import": ("import nowhere_at_all", "{path}:build", "raised ModuleNotFoundError in line 1"),
    "an-exit": ("raise SystemExit(3)", "{path}:build", "raised SystemExit in line 1"),
    "no-function": ("x = 1", "{path}:build", "a function or a class build in the file, found none"),
    "a-number": ("build = 1", "{path}:build", "found another thing"),
    "raises": (NET + "1 / 0", "{path}:build", "raised ZeroDivisionError in line 3: division by"),
    "no-module": (NET + "[]", "{path}:build", "to return a torch.nn.Module, got list"),
    "no-parameters": (NET + "nn.Flatten()", "{path}:build", "expected a network with parameters"),
    "no-logits": (
        NET + "nn.Conv2d(3, 4, 3)",
        "{path}:build",
        "expected logits (2, 10) given 2 images of 3 x 96 x 96, got (2, 4, 94, 94)",
    ),
    "other-channels": (NET + "nn.Conv2d(9, 4, 3)", "{path}:build", "raised RuntimeError given 2"),
    "lazy": (
        NET + "nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.LazyLinear(num_classes))",
        "{path}:build",
        "expected parameters with shapes, got none yet for 1.weight, 1.bias, 2.weight and 1 more",
    ),
    "detached": (
        "from torch import nn\nclass build(nn.Linear):\n"
        "    def __init__(self, num_classes):\n        super().__init__(3, num_classes)\n"
        "    def forward(self, x):\n        return super().forward(x.mean((2, 3))).detach()\n",
        "{path}:build",
        "expected logits with gradients, got none",
    ),
    "backward": (
        "import torch\nfrom torch import nn\nclass F(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, x):\n        return x.clone()\n"
        "    @staticmethod\n    def backward(ctx, d):\n        return [][0]\n"
        "class build(nn.Linear):\n"
        "    def __init__(self, num_classes):\n        super().__init__(3, num_classes)\n"
        "    def forward(self, x):\n        return F.apply(super().forward(x.mean((2, 3))))\n",
        "{path}:build",
        "raised IndexError in line 9 when it was tried backward: list index",
    ),
    "idle": (
        "from torch import nn\nclass build(nn.Module):\n"
        "    def __init__(self, num_classes):\n        super().__init__()\n"
        "        self.a = nn.Linear(3, num_classes)\n        self.b = nn.Linear(3, 3)\n"
        "    def forward(self, x):\n        return self.a(x.mean((2, 3)))\n",
        "{path}:build",
        "a gradient of the logits for every parameter, got none for b.weight, b.bias",
    ),
}
LATER = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, num_classes))

    def forward(self, x):
        if x.any():
            {later}
        return super().forward(x)
"""
FAILS_LATER = {
    "raises": ("{}['a']", "raised KeyError in line 11 given 10 images of 3 x 96 x 96: 'a': mend"),
    "fewer": ("x = x[1:]", "expected logits (10, 10) given 10 images of 3 x 96 x 96, got (9, 10)"),
    "none": ("return None", "given 10 images of 3 x 96 x 96, got NoneType"),
}


@pytest.mark.parametrize("name", FAILS_LATER)
def test_what_fails_only_in_training_is_one_line(name, tiny_shards, tmp_path):
    later, message = FAILS_LATER[name]
    path = tmp_path / "net.py"
    path.write_text(LATER.format(later=later))
    result = train(tiny_shards, tmp_path / "run", *OPTIONS, "--model", f"{path}:Net")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]  # behind the progress bar
    assert line.startswith("replica.train: --model net.py:Net: ")
    assert message in line


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_line(name, tiny_shards, tmp_path):
    content, source, message = WRONG[name]
    path = tmp_path / "net.py"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = source.format(path=path)
    result = train(tiny_shards, tmp_path / "run", *OPTIONS, "--model", source)
    assert_user_error(result, "--model ", message)
    assert not (tmp_path / "run").exists()
    info = ("--recipe", "mini", "--set", f"crop_size={CROP}", "--classes", "10")
    assert_user_error(run_here("-m", "replica.info", *info, "--model", source), message)


def test_a_batch_of_one_that_a_network_cannot_take_is_found_before_the_run(
    tiny_shards, model_file, tmp_path
):
    """Ten images in batches of three leave one, of which batch normalization has no deviation."""
    path = tmp_path / "net.py"
    path.write_text(
        NET + "nn.Sequential(nn.Flatten(), nn.Linear(27648, 5), nn.BatchNorm1d(5),"
        " nn.Linear(5, num_classes))"
    )
    options = (*OPTIONS, "--batch-size", "3", "--model", f"{path}:build")
    result = train(tiny_shards, tmp_path / "run", *options)
    assert_user_error(result, "raised ValueError given 1 images of 3 x 96 x 96")


# --- info


def test_the_table_of_a_users_network_is_what_is_run(model_file):
    command = ("-m", "replica.info", "--recipe", "mini", "--set", f"crop_size={CROP}")
    command += ("--model", f"{model_file}:Net", "--classes", "12")
    result = run_here(*command, "--json")
    assert result.returncode == 0, result.stderr
    content = json.loads(result.stdout)
    side = (CROP - 7) // 4 + 1
    rows = [tuple(row.values()) for row in content["layers"]]
    assert rows == [
        ("features.0", "Conv2d", [6, side, side], 6 * 3 * 49 + 6),
        ("features.1", "BatchNorm2d", [6, side, side], 12),
        ("features.2", "ReLU", [6, side, side], 0),
        ("features.3", "AdaptiveAvgPool2d", [6, 3, 3], 0),
        ("drop", "Dropout", [54], 0),
        ("head", "Linear", [12], 54 * 12 + 12),
    ]
    assert content["total_parameters"] == sum(row[3] for row in rows)
    assert content["sha256"] == hashlib.sha256(FILE.encode()).hexdigest()
    text = run_here(*command).stdout.splitlines()
    assert text[0] == f"model my_net.py:Net: 12 classes, a {CROP} x {CROP} crop"
    assert text[-2].split() == ["head", "Linear", "12", "660"]
    for change in ("conv1.stride=2", "without=conv4"):
        words = (f"expected none of --set {change} beside it", "layers of a recipe")
        assert_user_error(run_here(*command, "--set", change), *words)


def test_a_network_is_told_the_channels_if_it_asks(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n"
        "    def __init__(self, in_channels, num_classes):\n"
        "        super().__init__(nn.Conv2d(in_channels, 2, 5), nn.AdaptiveAvgPool2d(1),"
        " nn.Flatten(), nn.Linear(2, num_classes))\n"
    )
    words = ("--recipe", "tiny-baseline-64", "--channels", "5", "--model", f"{path}:Net")
    result = run_here("-m", "replica.info", *words)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("model net.py:Net: 200 classes, a 5 x 56 x 56 crop")
    assert f"{2 * 5 * 25 + 2:,}" in result.stdout.splitlines()[2]


def test_a_recipes_table_takes_classes_and_channels():
    command = ("-m", "replica.info", "--recipe", "paper", "--classes", "7", "--channels", "1")
    rows = json.loads(run_here(*command, "--json").stdout)["layers"]
    assert rows[0]["parameters"] == 96 * 121 + 96
    assert rows[-1]["parameters"] == 7 * 4096 + 7
    text = run_here(*command).stdout
    assert text.startswith("recipe paper: a 1 x 224 x 224 crop")
    assert "paper's neurons" not in text
    assert "paper's neurons" in run_here("-m", "replica.info").stdout
    both = run_here("-m", "replica.info", "--operators", "--model", "a.py:b")
    assert_user_error(both, "--operators: expected the network of a recipe, got --model")


def test_a_damaged_record_of_a_file_is_refused():
    known = {"name": "a.py", "function": "f", "text": "", "sha256": "0"}
    assert ModelFile.from_record(known) == ModelFile(**known)
    assert ModelFile.from_record(None) is None
    for wrong in ("a.py", {**known, "more": "x"}, {"name": "a.py"}, {**known, "text": 3}):
        with pytest.raises(ValueError, match="expected the record of a model file"):
            ModelFile.from_record(wrong)


def test_reading_a_file_runs_nothing(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("raise RuntimeError('it was run')")
    assert str(ModelFile.read(f"{path}:build")) == "net.py:build"
    with pytest.raises(UserError, match="expected a Python file"):
        ModelFile.read(f"{tmp_path}:build")
