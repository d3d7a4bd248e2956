"""The compilers that build the operators, and what is wrong with them. Imports no torch."""

import os
import re
import shutil
import subprocess
from pathlib import Path

# A100; H100 and H200; B200; RTX 50. The newest also as PTX, for what comes after.
CUDA_ARCHITECTURES = ("80", "90", "100", "120")
ARCHITECTURE_VARIABLE = "TORCH_CUDA_ARCH_LIST"
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
    """The CUDA compiler that the build calls, or None."""
    named = os.environ.get("CUDACXX")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [named, f"{home}/bin/nvcc" if home else None, "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, (shutil.which(place) for place in places if place)), None)


def nvcc_version(nvcc: str) -> str:
    """Such as "13.0".

    Raises:
        ValueError: the program does not say a version.
    """
    try:
        text = _output_of([nvcc, "--version"])
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{nvcc}: expected nvcc, got a program that fails ({error})") from error
    found = re.search(r"release (\d+\.\d+)", text)
    if not found:
        raise ValueError(f"{nvcc}: expected nvcc, got a program that says no release")
    return found.group(1)


def cuda_problem(torch_cuda: str | None) -> str | None:
    """Why the CUDA library cannot be built for a PyTorch of this CUDA version, or None."""
    if torch_cuda is None:
        return "this PyTorch has no CUDA"
    major = torch_cuda.split(".")[0]
    nvcc = find_nvcc()
    if nvcc is None:
        return f"no nvcc found: install CUDA {major}'s, or name it in CUDACXX"
    try:
        version = nvcc_version(nvcc)
    except ValueError as error:
        return str(error)
    if version.split(".")[0] != major:
        return (
            f"{nvcc}: expected nvcc {major}, as this PyTorch has CUDA {torch_cuda}, got {version}: "
            "name another one in CUDACXX"
        )
    return None


def architecture_flags(nvcc: str) -> list[str]:
    """What nvcc is told to compile for: ours, or those of TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX").

    Raises:
        ValueError: an architecture is malformed, or this nvcc does not know it.
    """
    codes = _output_of([nvcc, "--list-gpu-code"])
    known = set(re.findall(r"sm_(\w+)", codes))
    wanted = os.environ.get(ARCHITECTURE_VARIABLE)
    if not wanted:
        ours = [name for name in CUDA_ARCHITECTURES if name in known]
        return [*map(_binary_flag, ours), _ptx_flag(ours[-1])]
    flags = []
    for entry in filter(None, re.split(r"[;,\s]+", wanted)):
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        name = "".join(parts.group(1, 2, 3)) if parts else ""
        if not parts or name not in known:
            raise ValueError(
                f"{ARCHITECTURE_VARIABLE}: expected such as 9.0 or 9.0+PTX, of {_dotted(known)}, "
                f"got {entry}"
            )
        flags.append(_binary_flag(name))
        if parts.group(4):
            flags.append(_ptx_flag(name))
    return flags


def nvcc_command(nvcc: str, source: Path, output: Path, torch_dir: Path) -> list[str]:
    """The command that compiles a `.cu` file: to an object (`.o`), or to a shared library.

    Args:
        nvcc: the compiler.
        source: the file.
        output: what it makes.
        torch_dir: the directory of the torch package.
    """
    command = [nvcc, "-std=c++20", "-O3", *architecture_flags(nvcc)]
    command += ["--threads", str(min(4, os.cpu_count() or 1))]
    command += ["-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={TARGET_VERSION}", "-Xcompiler", "-fPIC"]
    command += ["-isystem", str(torch_dir / "include")]
    if output.suffix == ".o":
        return [*command, "-c", str(source), "-o", str(output)]
    libraries = [f"-L{torch_dir / 'lib'}", "-ltorch_cuda", "-ltorch_cpu"]
    return [*command, "-shared", str(source), "-o", str(output), *libraries]


def _output_of(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _binary_flag(name: str) -> str:
    return f"-gencode=arch=compute_{name},code=sm_{name}"


def _ptx_flag(name: str) -> str:
    return f"-gencode=arch=compute_{name},code=compute_{name}"


def _dotted(names: set[str]) -> str:
    plain = sorted(int(name) for name in names if name.isdigit())
    return " ".join(f"{number // 10}.{number % 10}" for number in plain)
