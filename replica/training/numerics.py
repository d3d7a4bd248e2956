"""In which precision a run computes, how activations lie in memory, and what is compiled."""

import os
from dataclasses import asdict, dataclass

import torch
import torch.utils.deterministic

from cuda_ext.convolution_ways import Products
from data_prep.errors import UserError
from replica.distributed.devices import Devices

PRECISIONS = ("float32", "float64", "bf16", "fp16", "tf32")
MEMORY_FORMATS = ("channels_last", "contiguous")
COMPILE_MODES = ("off", "default", "cuda-graphs")
# What `--compile` compiles; its help says so, and a test counts.
COMPILED = "the network of a training step, as one graph forward and one backward"
CAPTURED = "the whole step, forward, backward and update"


def check_precision(precision: str, *, kind: str) -> None:
    """Refuses TF32 without CUDA, with a UserError."""
    if precision == "tf32" and kind != "cuda":
        raise UserError(
            "--precision tf32: expected a CUDA device, got the CPU: use float32 or bf16"
        )


def parameter_dtype(precision: str) -> torch.dtype:
    """The type of weights and velocities; bf16, fp16, tf32 only change what computes with them."""
    return torch.float64 if precision == "float64" else torch.float32


@dataclass(frozen=True)
class Numerics:
    """How a run computes; recorded with it, and the same in all of its sessions.

    Where it is deterministic, PyTorch refuses algorithms whose sums have no fixed order.
    `convolution` says who multiplies, as the `products` of `cuda_ext.split_conv2d`.
    """

    precision: str = "float32"
    memory_format: str = "channels_last"
    compile: str = "off"
    deterministic: bool = True
    convolution: Products = "measured"

    @property
    def torch_memory_format(self) -> torch.memory_format:
        """What PyTorch calls it."""
        is_last = self.memory_format == "channels_last"
        return torch.channels_last if is_last else torch.contiguous_format


@dataclass(frozen=True)
class NumericsInForce(Numerics):
    """What was asked for, and the switches of PyTorch that follow from it, as it calls them."""

    allow_tf32: bool = False
    cudnn_deterministic: bool = True


def check_numerics(numerics: Numerics, devices: Devices) -> None:
    """Refuses TF32 and CUDA graphs without CUDA, and a network that cannot be compiled here.

    Raises:
        UserError: TF32 or CUDA graphs without CUDA, a compiled network that is cut in two, or no
            compiler that works here.
    """
    check_precision(numerics.precision, kind=devices.kind)
    if numerics.compile != "off" and devices.split == 2:
        raise UserError(
            f"--compile {numerics.compile}: expected the whole network in each process, got a "
            "tower each: use --split 1, or leave --compile out"
        )
    if numerics.compile == "cuda-graphs" and devices.kind != "cuda":
        raise UserError(
            "--compile cuda-graphs: expected a CUDA device, got the CPU: use --compile default"
        )
    problem = compiler_problem(torch.__file__)
    if numerics.compile != "off" and devices.kind == "cpu" and problem:
        raise UserError(f"--compile {numerics.compile}: {problem}, or leave --compile out")


def compiler_problem(torch_file: str) -> str | None:
    """Why `torch.compile` cannot make code for the CPU where `torch.__file__` is so, or None."""
    if " " in torch_file:
        # Seen with 2.13: its command for the linker has the directory without quotes.
        return (
            f"PyTorch's compiler fails where PyTorch's own path has a space, got {torch_file}: "
            "install it in another place"
        )
    return None


def set_numerics(numerics: Numerics) -> NumericsInForce:
    """Sets PyTorch's switches, and returns what was set for the run's record."""
    # cuDNN's convolutions use TF32 by default; the paper's numbers are float32.
    allow_tf32 = numerics.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    torch.backends.cudnn.benchmark = not numerics.deterministic
    torch.backends.cudnn.deterministic = numerics.deterministic
    # Read by cuBLAS when it is first used; without it deterministic sums are refused.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if numerics.compile == "off":
        # The same switch as below, which would import the compiler to set it there, too.
        torch.set_deterministic_debug_mode("error" if numerics.deterministic else "default")
    else:
        torch.use_deterministic_algorithms(numerics.deterministic)
    # Else each new tensor is filled with NaN first; nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return NumericsInForce(
        **asdict(numerics), allow_tf32=allow_tf32, cudnn_deterministic=numerics.deterministic
    )


def compute_precision(precision: str, *, kind: str) -> torch.autocast:
    """A block of code that computes in bfloat16 or float16 where that was asked for."""
    if precision == "fp16":
        return torch.autocast(kind, torch.float16)
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16")
