"""GPU kernels of `cuda_ext/csrc` as libraries for this CPU: a CUDA thread is a fiber.

`cuda_emulation.h` says what is checked; `emulated_<operator>.cpp` are the drivers.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import PROJECT_DIR

CSRC = PROJECT_DIR / "cuda_ext" / "csrc"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # as drivers count them
COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(
    COMPILER is None, reason="no g++ to compile the emulation of the GPU with"
)


class Mistake(NamedTuple):
    """One text of the kernels replaced by another: of several equal ones `occurrence`, or all."""

    old: str
    new: str
    occurrence: int | None = None
    file: str = ""  # of csrc; "" is the operator's .cuh


class Emulation:
    """The kernels of an operator as a library in `directory`, perhaps with a mistake in them."""

    def __init__(self, operator: str, directory: Path, mistake: Mistake | None = None):
        kernels = CSRC / f"{operator}.cuh"
        if mistake is not None:
            for header in (*CSRC.glob("*.cuh"), *CSRC.glob("*.h")):
                shutil.copy(header, directory)
            kernels = directory / kernels.name
            _replace(directory / (mistake.file or kernels.name), mistake)
        # A library that is loaded stays as it is.
        library = directory / f"{operator}-{len(list(directory.glob('*.so')))}.so"
        driver = PROJECT_DIR / "tests" / f"emulated_{operator}.cpp"
        options = ["-std=c++20", "-O1", "-shared", "-fPIC", f'-DKERNELS="{kernels}"']
        subprocess.run([COMPILER, *options, str(driver), "-o", str(library)], check=True)
        self.library = ctypes.CDLL(str(library))
        self._driver = self.library[f"emulated_{operator}"]
        self._driver.restype = ctypes.c_char_p

    def call(self, *arguments: Any) -> None:
        """Calls the driver with tensors, types of tensors, whole numbers, floats and None.

        Raises:
            RuntimeError: what the emulation found.
        """
        problem = self._driver(*map(c_argument, arguments))
        if problem is not None:
            raise RuntimeError(problem.decode())

    def number(self, function: str, *arguments: Any) -> int:
        """What another function of the driver answers."""
        counts = self.library[function]
        counts.restype = ctypes.c_int64
        return counts(*map(c_argument, arguments))


def _replace(file: Path, mistake: Mistake) -> None:
    text = file.read_text()
    places = [i for i in range(len(text)) if text.startswith(mistake.old, i)]
    assert places, f"{file.name} has no {mistake.old!r}"
    if mistake.occurrence is not None:
        places = [places[mistake.occurrence]]
    for at in reversed(places):
        text = text[:at] + mistake.new + text[at + len(mistake.old) :]
    file.write_text(text)


def c_argument(value: Any) -> Any:
    """As drivers take it: pointers, int64 and double alone; arrays of ctypes stay."""
    if isinstance(value, torch.dtype):
        value = DTYPES.index(value)
    if value is None or isinstance(value, torch.Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_double(value)
    return ctypes.c_int64(value) if isinstance(value, int) else value
