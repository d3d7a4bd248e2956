"""Loads the compiled libraries, and says which implementation of an operator is live."""

import ctypes
import os
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from cuda_ext import toolchain

CPU_LIBRARY = "_cpu.abi3.so"
CUDA_LIBRARY = "_cuda.abi3.so"
MEMORY_LIBRARY = "_memory.abi3.so"
IS_CHECKOUT = (Path(__file__).parent.parent / "Makefile").is_file()
REBUILD = "run `make clean setup`" if IS_CHECKOUT else "build and install the project anew"
INSTRUCTION_SETS = ("any processor", "AVX2", "AVX-512", "AVX-512 with bfloat16")


@dataclass(frozen=True)
class CompiledState:
    """Whether a library of compiled operators is live.

    Attributes:
        is_live: it is.
        reason: why not, or where it is; one line.
        built_for: with what it was built and for what, where it is live.
    """

    is_live: bool
    reason: str
    built_for: str | None = None


_SWITCH = os.environ.get("REPLICA_EXT", "auto")
# What is wrong with it, said by whoever uses an operator first.
SWITCH_PROBLEM = (
    None if _SWITCH in ("auto", "off") else f"REPLICA_EXT: expected auto or off, got {_SWITCH!r}"
)


@cache
def compiled_state() -> CompiledState:
    """Loads the CPU library once, and says what came of it.

    Raises:
        ValueError: REPLICA_EXT has an unknown value.
    """
    return _load(CPU_LIBRARY)


@cache
def compiled_cuda_state() -> CompiledState:
    """Loads the CUDA library once where this PyTorch has CUDA, and says what came of it.

    Raises:
        ValueError: REPLICA_EXT has an unknown value.
    """
    if torch.version.cuda is None and not SWITCH_PROBLEM:
        return CompiledState(False, "this PyTorch has no CUDA")
    return _load(CUDA_LIBRARY)


@cache
def memory_state() -> CompiledState:
    """Loads the library that keeps large blocks once, and says what came of it.

    It serves the PyTorch that it was built with, and no other.

    Raises:
        ValueError: REPLICA_EXT has an unknown value.
    """
    state = _load(MEMORY_LIBRARY)
    if state.is_live and state.built_for != f"with PyTorch {torch.__version__}":
        reason = f"{MEMORY_LIBRARY} was built {state.built_for}, this is {torch.__version__}"
        return CompiledState(False, f"{reason}: {REBUILD}")
    return state


def keep_large_blocks() -> CompiledState:
    """Takes the memory of large CPU tensors from a region that this process keeps.

    For the rest of the process; a second call changes nothing. Returns whether it does now.

    Raises:
        ValueError: REPLICA_EXT has an unknown value.
    """
    state = memory_state()
    if not state.is_live:
        return state
    keep = ctypes.CDLL(state.reason).replica_keep_large_blocks
    keep.restype = ctypes.c_char_p
    problem = keep()
    return CompiledState(False, problem.decode()) if problem else state


def _load(name: str) -> CompiledState:
    """Raises a ValueError where REPLICA_EXT has an unknown value."""
    if SWITCH_PROBLEM:
        raise ValueError(SWITCH_PROBLEM)
    if _SWITCH == "off":
        return CompiledState(False, "REPLICA_EXT=off")
    path = Path(__file__).parent / name
    if not path.exists():
        problem = "no C++ compiler found" if toolchain.find_compiler() is None else None
        if name == CUDA_LIBRARY:
            problem = problem or toolchain.cuda_problem(torch.version.cuda)
        return CompiledState(False, f"not built{f' ({problem})' if problem else ''}: {REBUILD}")
    if _is_cut_off(path):
        return CompiledState(False, f"{name} is cut off: {REBUILD}")
    try:
        torch.ops.load_library(str(path))
        describe = ctypes.CDLL(str(path)).replica_built_for
    except AttributeError:
        return CompiledState(False, f"{name} is of another project: {REBUILD}")
    except (OSError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        return CompiledState(False, f"{name} cannot be loaded ({first_line}): {REBUILD}")
    describe.restype = ctypes.c_char_p
    return CompiledState(True, str(path), describe().decode())


def _is_cut_off(path: Path) -> bool:
    """Whether an ELF file ends before its table of sections; loading it would end the process."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        return False
    (table,) = struct.unpack_from("<Q", header, 0x28)
    size, count = struct.unpack_from("<HH", header, 0x3A)
    return bool(path.stat().st_size < table + size * count)


def expected(name: str, rule: str, got: object) -> ValueError:
    """What an operator says of an argument outside of its rules."""
    return ValueError(f"{name}: expected {rule}, got {got}")


def implementations() -> dict[str, str]:
    """The live implementation of each operator, on the CPU and on CUDA devices."""
    cpu, cuda = compiled_state(), compiled_cuda_state()
    plain = "plain PyTorch ({})"
    if cpu.is_live:
        on_cpu = f"compiled, {INSTRUCTION_SETS[set_instruction_set(-1)]}"
    else:
        on_cpu = plain.format(cpu.reason)
    on_cuda = "compiled" if cuda.is_live else plain.format(cuda.reason)
    return {
        "augment_batch": on_cpu,
        "augment_batch on CUDA": on_cuda,
        "local_response_norm": on_cpu,
        "local_response_norm on CUDA": on_cuda,
        "max_pool2d": on_cpu,
        "max_pool2d on CUDA": on_cuda,
        "momentum_sgd_": on_cpu,
        "momentum_sgd_ on CUDA": on_cuda,
        "philox_dropout": "compiled" if cpu.is_live else on_cpu,
        "philox_dropout on CUDA": on_cuda,
        "split_conv2d": "PyTorch's products, compiled around them" if cpu.is_live else on_cpu,
        "split_conv2d on CUDA": "PyTorch's products, or compiled ones in float32"
        if cuda.is_live
        else on_cuda,
        "relu_lrn_pool": on_cpu,
        "relu_lrn_pool on CUDA": on_cuda,
        "same_map_norm": on_cpu,
        "same_map_norm on CUDA": on_cuda,
    }


def set_instruction_set(wanted: int) -> int:
    """Chooses what the compiled code uses: an index into `INSTRUCTION_SETS`, -1 for the best.

    For tests; a processor that lacks it is an error.

    Returns:
        The index in use.
    """
    state = compiled_state()
    if not state.is_live:
        raise RuntimeError(f"set_instruction_set: expected compiled operators, got: {state.reason}")
    in_use: int = torch.ops.replica_cpu.set_isa(wanted)
    return in_use


if not SWITCH_PROBLEM:
    compiled_state()
    compiled_cuda_state()
