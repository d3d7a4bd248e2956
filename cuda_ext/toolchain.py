"""The compilers that build the operators, and what is wrong with them.

PyTorch's own build (`torch.utils.cpp_extension`) finds the CUDA compiler, reads
TORCH_CUDA_ARCH_LIST and calls it. Here is what that does not do: say in one line what is wrong
before anything starts, and choose architectures where no GPU is visible.
"""

import os
import re
import shutil
import subprocess

# One binary serves every PyTorch from this one on (its stable C++ API).
OLDEST_TORCH = (2, 11)
TARGET_VERSION = f"0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"


def find_compiler() -> str | None:
    """The C++ compiler that the build calls, or None."""
    named = os.environ.get("CXX", "")
    if named and shutil.which(named.split()[0]):
        return named
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def find_nvcc() -> str | None:
    """The CUDA compiler that PyTorch's build calls; None also where this PyTorch has no CUDA."""
    # Late: it imports setuptools, which only a build needs.
    from torch.utils.cpp_extension import CUDA_HOME

    return shutil.which(f"{CUDA_HOME}/bin/nvcc") if CUDA_HOME else None


def nvcc_version(nvcc: str) -> tuple[int, int]:
    """Such as (13, 0).

    Raises:
        ValueError: the program does not say a version.
    """
    try:
        command = [nvcc, "--version"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{nvcc}: expected nvcc, got a program that fails ({error})") from error
    found = re.search(r"release (\d+)\.(\d+)", text)
    if not found:
        raise ValueError(f"{nvcc}: expected nvcc, got a program that says no release")
    return int(found.group(1)), int(found.group(2))


def cuda_problem(torch_cuda: str | None) -> str | None:
    """Why the CUDA library cannot be built for a PyTorch of this CUDA version, or None."""
    if torch_cuda is None:
        return "this PyTorch has no CUDA"
    major = torch_cuda.split(".")[0]
    nvcc = find_nvcc()
    if nvcc is None:
        return f"no nvcc found: install CUDA {major}'s, or name its directory in CUDA_HOME"
    try:
        version = nvcc_version(nvcc)
    except ValueError as error:
        return str(error)
    if version[0] != int(major):
        return (
            f"{nvcc}: expected nvcc {major}, as this PyTorch has CUDA {torch_cuda}, got "
            f"{version[0]}.{version[1]}: name another one's directory in CUDA_HOME"
        )
    return None


def architectures(version: tuple[int, int]) -> str:
    """What an nvcc of this version compiles for, unless TORCH_CUDA_ARCH_LIST says something else.

    A100; H100 and H200; B200; RTX 50. The newest also as PTX, for what comes after.
    """
    return "8.0;9.0;10.0;12.0+PTX" if version >= (12, 8) else "8.0;9.0+PTX"
