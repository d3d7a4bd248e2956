"""Training runs as the tests start them, look at them, and compare them."""

import json
import math
import subprocess
import sys
import time

import numpy as np
import oracles
import torch
from conftest import PROJECT_DIR, is_running, run, run_here

from replica.recipes import MINI, to_record, with_changes
from replica.training.checkpoint import (
    FORMAT_NAME,
    FORMAT_VERSION,
    checkpoint_path,
    checkpoints_of,
)

# `mini` with narrower layers at its end: a test's run saves many checkpoints.
NARROW = ["fc6.num_units=256", "fc7.num_units=256"]
NARROW_OPTIONS = [word for change in NARROW for word in ("--set", change)]


def train_command(shards_dir, out, *options):
    command = ["-m", "replica.train", "--data", str(shards_dir), "--recipe", "mini"]
    if "--recipe" not in options:
        command += NARROW_OPTIONS
    # Importing TensorBoard takes two seconds a run; test_board.py does.
    options = ("--no-tensorboard", *options)
    return [*command, "--device", "cpu", "--batch-size", "16", "--out", str(out), *options]


def train(shards_dir, out, *options, **environment):
    return run_here(*train_command(shards_dir, out, *options), **environment)


# Of the runs that the oracle repeats, on the fixture `tiny_shards`: batches of seven and of three.
CROP_SIZE, BATCH_SIZE, STEPS = 96, 7, 6
# The widths of `mini`, narrowed; crops of 96 pixels end in maps of 2 x 2: 23, 11, 11, 5, 5, 2.
KERNELS = {"conv1": 16, "conv2": 32, "conv3": 48, "conv4": 48, "conv5": 32}
UNITS = {"fc6": 256, "fc7": 256}
MAPS_SIDE = 2


def mini_shapes_and_deviations(num_classes=10):
    """Shapes and deviations by hand: those of `mini` keep the gain of `paper`.

    Fan-ins of one unit differ from the paper's as the numbers of channels do, and fc6's as the
    size of the maps does.
    """
    shapes, deviations = {}, {}
    narrow = wide = 3
    for layer in oracles.LAYERS:
        width = {**KERNELS, **UNITS, "fc8": num_classes}[layer]
        inputs = narrow // 2 if layer in ("conv2", "conv4", "conv5") else narrow
        if layer == "fc6":
            inputs *= MAPS_SIDE**2
        window = (oracles.KERNEL_SIZE[layer],) * 2 if layer in KERNELS else ()
        shapes[f"{layer}.weight"] = (width, inputs, *window)
        shapes[f"{layer}.bias"] = (width,)
        # fc6 of the paper reads maps of 6 x 6.
        ratio = (6 / MAPS_SIDE) ** 2 if layer == "fc6" else 1
        deviations[layer] = oracles.STANDARD_DEVIATION * math.sqrt(ratio * wide / narrow)
        narrow, wide = width, {**oracles.NUM_KERNELS, **oracles.NUM_UNITS}[layer]
    return shapes, deviations


def train_tiny(out, *options, shards=None, seed=None):
    """A run of three epochs as a user starts it, or goes on with it; each step is saved.

    Returns:
        Step -> checkpoint.
    """
    command = ["-m", "replica.train", "--out", str(out), "--checkpoint-steps", "1", "--keep", "99"]
    command += ["--device", "cpu", "--no-tensorboard"]
    if shards is None:
        command += ["--resume"]
    else:
        command += ["--data", str(shards), "--recipe", "mini", "--seed", str(seed)]
        command += NARROW_OPTIONS
        command += ["--set", f"crop_size={CROP_SIZE}", "--batch-size", str(BATCH_SIZE)]
        command += ["--epochs", "3"]
    # PyTorch's compiler warns of PyTorch's own code, and CUDA's state is the process's.
    start = run if {"--compile", "cuda"} & set(options) else run_here
    result = start(*command, *options)
    assert result.returncode == 0, result.stderr
    return {
        int(path.stem.split("-")[1]): torch.load(path, weights_only=True)
        for path in checkpoints_of(out)
    }


def large_weights(shapes, *, seed):
    """Weights so large that normalization, biases and dropout matter, and images are told apart.

    Activations are near 100, where alpha times the sum of five squares is near k.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        deviation = 2.0 / np.sqrt(np.prod(shape[1:])) if name.endswith("weight") else 5.0
        if name == "conv1.weight":
            deviation *= 0.5
        if name.startswith(("fc7", "fc8")):
            deviation *= 0.3
        weights[name] = rng.normal(0, deviation, shape).astype(np.float32).astype(np.float64)
    return weights


def colored_pictures(seed=5, num_classes=10, side=32):
    """Classes that are told apart by their color: a function that makes N pictures of each."""
    rng = np.random.default_rng(seed)
    colors = rng.integers(40, 216, (num_classes, 3))

    def pairs(number):
        for label in list(range(num_classes)) * number:
            noise = rng.integers(-30, 30, (side, side, 3))
            yield (colors[label] + noise).clip(0, 255).astype(np.uint8), label

    return pairs


def write_checkpoint(path, weights, data, *, mean_image=None, num_classes=10, changes=()):
    """A checkpoint of `mini` with these weights, as if it had been trained on a data set."""
    statistics = data.statistics
    model = {name: torch.from_numpy(weight) for name, weight in weights.items()}
    content = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "model": model,
        "velocities": {name: torch.zeros_like(tensor) for name, tensor in model.items()},
        "step": 0,
        "epoch": 1,
        "val_errors": [],
        "best_step": None,
        "recipe": to_record(with_changes(MINI, [*NARROW, f"crop_size={CROP_SIZE}", *changes])),
        "num_classes": num_classes,
        "seed": 1,
        "wnids": data.wnids,
        "class_names": data.class_names,
        "mean_image": torch.from_numpy(statistics.mean_image if mean_image is None else mean_image),
        "eigenvalues": torch.from_numpy(statistics.eigenvalues.copy()),
        "eigenvectors": torch.from_numpy(statistics.eigenvectors.copy()),
    }
    torch.save(content, path)
    return path


def with_loss_scale(out, step, **values):
    """Writes other values into the loss scale of a run's checkpoint."""
    path = checkpoint_path(out, step)
    content = torch.load(path, weights_only=True)
    for name, value in values.items():
        content["loss_scale"][name].fill_(value)
    torch.save(content, path)
    path.with_name(path.name + ".sha256").unlink()


def all_lines_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().split("\n")[:-1]]


def lines_of(run_dir, kind):
    return [line for line in all_lines_of(run_dir) if line["kind"] == kind]


def last_checkpoint(run_dir):
    return torch.load(checkpoints_of(run_dir)[-1], weights_only=True)


def assert_same_state(one, other):
    for kind in ("model", "velocities", "averages", "loss_scale"):
        assert one.get(kind, {}).keys() == other.get(kind, {}).keys(), kind
        for name, tensor in one.get(kind, {}).items():
            assert torch.equal(tensor, other[kind][name]), (kind, name)
    assert one["step"] == other["step"]
    assert one["val_errors"] == other["val_errors"]


def started(command, out, least_steps=2):
    """Starts a run in its own process group, and waits until it has made some steps."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=PROJECT_DIR,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.time() + 120
    while True:
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        path = out / "metrics.jsonl"
        if path.exists() and path.read_text().count('"step",') >= least_steps:
            return process
        time.sleep(0.05)


def wait_until_ended(pids):
    deadline = time.time() + 30
    while any(is_running(pid) for pid in pids):
        assert time.time() < deadline, "a process outlived its parent"
        time.sleep(0.05)


def write_validated_run(directory, errors, *, changes=(), seed=1, speed=5.0, manifest="aa", **more):
    """Records of a run with these (loss, top-1 error, top-5 error) after its epochs.

    10 training images in batches of 4, 20 validation images at 10 a second.
    """
    directory.mkdir()
    content = json.loads((PROJECT_DIR / "tests" / "goldens" / "run" / "run.json").read_text())
    recipe = with_changes(MINI, ["batch_size=4", "epochs=3", *changes])
    content["data"] |= {"train_images": 10, "val_images": 20}
    content["data"]["manifest_sha256"] = manifest
    content |= {"recipe": to_record(recipe), "seed": seed, **more}
    (directory / "run.json").write_text(json.dumps(content))
    lines = []
    for epoch, (loss, top1, top5) in enumerate(errors, start=1):
        measures = {"images_per_second": speed, "learning_rate": 0.1}
        for step in range(3 * epoch - 2, 3 * epoch + 1):
            lines.append({"kind": "step", "step": step, "epoch": epoch, "loss": 1.0, **measures})
        val = {"loss": loss, "top1_error": top1, "top5_error": top5, "images_per_second": 10.0}
        lines.append({"kind": "val", "step": 3 * epoch, "epoch": epoch, **val})
    lines.append({"kind": "resume", "step": 3 * len(errors), "epoch": len(errors) + 1})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return str(directory)
