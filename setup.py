"""Builds the operators' libraries, for the CPU and where PyTorch has it for CUDA; an allocator.

`pip install --no-build-isolation -e .`: the build needs the PyTorch that will load the libraries.
Without a compiler the project installs without them, and the operators run in plain PyTorch.
"""

import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import setuptools
from setuptools import Extension, setup

CSRC = Path("cuda_ext/csrc")
ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"
OLDEST_SETUPTOOLS = 77  # as in pyproject.toml, whose license line older ones do not read
MEMORY_SOURCE = CSRC / "large_blocks.cpp"
CPU_SOURCES = sorted(path for path in CSRC.glob("*.cpp") if path != MEMORY_SOURCE)
HEADERS = sorted(str(path) for path in CSRC.glob("*") if path.suffix in (".h", ".inl", ".cuh"))


def stop(problem: str) -> NoReturn:
    """Ends the build with one line."""
    sys.exit(f"setup.py: {problem}")


try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
except ImportError:
    stop(
        "expected PyTorch in this environment: install torch first, then use "
        "`pip install --no-build-isolation -e .`"
    )


# Read without importing the package, which loads what is built here.
toolchain = SimpleNamespace(**runpy.run_path("cuda_ext/toolchain.py"))
TARGET = ("TORCH_TARGET_VERSION", toolchain.TARGET_VERSION)


class BuildOperators(BuildExtension):
    """PyTorch's build, whose complaints become one line."""

    def build_extensions(self) -> None:
        """Builds all libraries."""
        try:
            super().build_extensions()
        except (OSError, RuntimeError, ValueError) as problem:
            stop(" ".join(map(str, problem.args)))


def cuda_library() -> Extension:
    """The operators on a GPU, for several architectures at once."""
    if not os.environ.get(ARCHITECTURES):
        version = toolchain.nvcc_version(toolchain.find_nvcc())
        os.environ[ARCHITECTURES] = toolchain.architectures(version)
    library = CUDAExtension(
        "cuda_ext._cuda",
        sources=sorted(str(path) for path in CSRC.glob("*.cu")),
        depends=HEADERS,
        define_macros=[TARGET, ("USE_CUDA", None)],
        extra_compile_args={
            "nvcc": ["-std=c++20", "-O3", "--threads", str(min(4, os.cpu_count() or 1))]
        },
        py_limited_api=True,
    )
    # It comes with torch_cuda; a toolkit whose nvcc is reached through a script has it elsewhere.
    library.libraries.remove("cudart")
    return library


def extensions() -> list[Extension]:
    """The libraries that can be built here; a line says which cannot, and why."""
    if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
        stop(
            f"expected setuptools {OLDEST_SETUPTOOLS} or later, got {setuptools.__version__}: "
            "upgrade setuptools"
        )
    if torch.torch_version.TorchVersion(torch.__version__) < toolchain.OLDEST_TORCH:
        oldest = ".".join(map(str, toolchain.OLDEST_TORCH))
        stop(f"expected PyTorch {oldest} or later, got {torch.__version__}: upgrade torch")
    compiler = toolchain.find_compiler()
    if compiler is None:
        print("setup.py: no C++ compiler found: the operators will run in plain PyTorch")
        return []
    # setuptools links with CC; a C++ compiler does both.
    os.environ["CC"] = os.environ["CXX"] = compiler
    libraries = [
        CppExtension(
            "cuda_ext._cpu",
            sources=[str(path) for path in CPU_SOURCES],
            depends=HEADERS,
            define_macros=[TARGET],
            # No fast-math: NaN and infinity keep their meaning, and each sum its order and its
            # roundings, wherever the loops are cut.
            extra_compile_args=[
                *("-std=c++20", *([] if "-O" in os.environ.get("CXXFLAGS", "") else ["-O3"])),
                *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
            ],
            py_limited_api=True,
        ),
        # Uses PyTorch's C++ classes: for this version only, and where they have changed for none.
        CppExtension(
            "cuda_ext._memory",
            optional=True,
            sources=[str(MEMORY_SOURCE)],
            define_macros=[("REPLICA_TORCH_VERSION", f'"{torch.__version__}"')],
            extra_compile_args=["-std=c++20", "-O2"],
            py_limited_api=True,
        ),
    ]
    problem = toolchain.cuda_problem(torch.version.cuda)
    if problem:
        print(f"setup.py: no CUDA library: {problem}")
    else:
        libraries.append(cuda_library())
    return libraries


if __name__ == "__main__":
    # Without ninja, which builds everything anew each time.
    build = BuildOperators.with_options(use_ninja=False)  # type: ignore[no-untyped-call]
    setup(ext_modules=extensions(), cmdclass={"build_ext": build})
