"""What only a CUDA device can show; skipped with the reason where there is none."""

import pytest
import torch
from conftest import run

from cuda_ext import local_response_norm
from replica import runlog

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_operator_on_a_gpu_is_the_one_on_the_cpu(memory_format):
    x = (torch.randn(4, 96, 13, 13, dtype=torch.float64) * 80).to(memory_format=memory_format)
    results = []
    for device in ("cpu", "cuda"):
        leaf = x.to(device).requires_grad_()
        y = local_response_norm(leaf, n=5, k=2.0, alpha=1e-4, beta=0.75, towers=2)
        (gradient,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        results.append((y.detach().cpu(), gradient.cpu()))
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "float64"])
def test_training_runs_on_a_gpu_and_two_runs_give_the_same_losses(precision, shards_dir, tmp_path):
    losses = []
    for name in ("first", "second"):
        out = tmp_path / name
        command = ("-m", "replica.train", "--data", str(shards_dir), "--recipe", "mini")
        options = ("--device", "cuda", "--precision", precision, "--steps", "3", "--out", str(out))
        result = run(*command, *options)
        assert result.returncode == 0, result.stderr
        lines = [line for line in runlog.read_metrics(out) if line["kind"] == "step"]
        losses.append([line["loss"] for line in lines])
    assert losses[0] == losses[1]
