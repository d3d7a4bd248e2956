"""Builds the operators' C++ library; without a compiler the project installs without it.

`pip install --no-build-isolation -e .`: the build needs the PyTorch that will load the library.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# One binary serves every PyTorch from this one on (its stable C++ API).
TARGET_VERSION = "0x020b000000000000"  # 2.11


def find_compiler() -> str | None:
    """The C++ compiler that setuptools will call, or None."""
    named = os.environ.get("CXX", "")
    if named and shutil.which(named.split()[0]):
        return named
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


class BuildWithoutPythonModule(build_ext):
    """The library registers operators with PyTorch; it is loaded, not imported."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """No PyInit function is exported."""
        return []


def extensions() -> list[Extension]:
    """The C++ library, or nothing where it cannot be built; then one line says so."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        sys.exit(
            "setup.py: expected PyTorch in this environment: install torch first, then use "
            "`pip install --no-build-isolation -e .`"
        )
    compiler = find_compiler()
    if compiler is None:
        print(
            "setup.py: no C++ compiler found: the operators will run in plain PyTorch", flush=True
        )
        return []
    # setuptools links with CC; a C++ compiler does both.
    os.environ["CC"] = os.environ["CXX"] = compiler
    library_dir = str(Path(torch.__file__).parent / "lib")
    return [
        Extension(
            "cuda_ext._cpu",
            sources=["cuda_ext/csrc/local_response_norm.cpp"],
            depends=["cuda_ext/csrc/local_response_norm_kernels.inl"],
            include_dirs=cpp_extension.include_paths(),
            library_dirs=[library_dir],
            libraries=["torch_cpu"],
            define_macros=[("TORCH_TARGET_VERSION", TARGET_VERSION)],
            # No fast-math: NaN and infinity keep their meaning. Neither flag changes a result.
            extra_compile_args=["-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math"],
            language="c++",
            py_limited_api=True,
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildWithoutPythonModule})
