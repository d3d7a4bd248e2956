"""Builds the operators' libraries, for the CPU and where PyTorch has it for CUDA; an allocator.

`pip install --no-build-isolation -e .`: the build needs the PyTorch that will load the libraries.
Without a compiler the project installs without them, and the operators run in plain PyTorch.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("cuda_ext/csrc")
HEADERS = sorted(str(path) for path in CSRC.glob("*") if path.suffix in (".h", ".inl", ".cuh"))


def load_toolchain() -> ModuleType:
    """`cuda_ext.toolchain`, without importing the package, which needs what is built here."""
    path = Path(__file__).parent / "cuda_ext" / "toolchain.py"
    spec = importlib.util.spec_from_file_location("toolchain", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toolchain = load_toolchain()


def stop(problem: str) -> None:
    """Ends the build with one line."""
    sys.exit(f"setup.py: {problem}")


class BuildOperators(build_ext):
    """The libraries register operators with PyTorch; they are loaded, not imported."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """No PyInit function is exported."""
        return []

    def build_extension(self, ext: Extension) -> None:
        """Calls nvcc for the CUDA library, and leaves the other one to setuptools."""
        if not ext.sources[0].endswith(".cu"):
            super().build_extension(ext)
            return
        import torch

        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        torch_dir = Path(torch.__file__).parent
        try:
            command = toolchain.nvcc_command(
                toolchain.find_nvcc(), Path(ext.sources[0]), output, torch_dir
            )
        except ValueError as problem:
            stop(str(problem))
        print(*command, flush=True)
        if subprocess.run(command, check=False).returncode:
            stop("nvcc failed, see above: set CUDACXX to another nvcc, or to none to go without")


def extensions() -> list[Extension]:
    """The libraries that can be built here; a line says which cannot, and why."""
    try:
        import torch
    except ImportError:
        stop(
            "expected PyTorch in this environment: install torch first, then use "
            "`pip install --no-build-isolation -e .`"
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
    torch_dir = Path(torch.__file__).parent
    libraries = [
        Extension(
            "cuda_ext._cpu",
            sources=[str(CSRC / "local_response_norm.cpp"), str(CSRC / "momentum_sgd.cpp")],
            depends=HEADERS,
            include_dirs=[str(torch_dir / "include")],
            library_dirs=[str(torch_dir / "lib")],
            libraries=["torch_cpu"],
            define_macros=[("TORCH_TARGET_VERSION", toolchain.TARGET_VERSION)],
            # No fast-math: NaN and infinity keep their meaning, and each sum its order and its
            # roundings, wherever the loops are cut.
            extra_compile_args=[
                *("-std=c++20", "-O3"),
                *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
            ],
            language="c++",
            py_limited_api=True,
        ),
        # Uses PyTorch's C++ classes: for this version only, and where they have changed for none.
        Extension(
            "cuda_ext._memory",
            optional=True,
            sources=[str(CSRC / "large_blocks.cpp")],
            include_dirs=[str(torch_dir / "include")],
            library_dirs=[str(torch_dir / "lib")],
            libraries=["c10"],
            define_macros=[("REPLICA_TORCH_VERSION", f'"{torch.__version__}"')],
            extra_compile_args=["-std=c++20", "-O2"],
            language="c++",
            py_limited_api=True,
        ),
    ]
    problem = toolchain.cuda_problem(torch.version.cuda)
    if problem:
        print(f"setup.py: no CUDA library: {problem}")
    else:
        libraries.append(
            Extension(
                "cuda_ext._cuda",
                sources=[str(CSRC / "local_response_norm.cu")],
                depends=HEADERS,
                py_limited_api=True,
            )
        )
    return libraries


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildOperators})
