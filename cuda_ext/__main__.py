"""`python -m cuda_ext`: what is built of the operators, for what, and what is live."""

import argparse
import dataclasses
import json
import os
import platform
import sys
from typing import NoReturn

import torch

from cuda_ext import toolchain
from cuda_ext.library import (
    compiled_cuda_state,
    compiled_state,
    implementations,
    memory_state,
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"cuda_ext: {message}: see --help\n")


def main() -> None:
    """Prints the report, as text or with --json as one object."""
    parser = _Parser(prog="python -m cuda_ext", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    libraries = {
        "cpu": compiled_state(),
        "cuda": compiled_cuda_state(),
        "memory": memory_state(),
    }
    report = {
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "processor": platform.machine(),
        "cxx": toolchain.find_compiler(),
        "nvcc": toolchain.find_nvcc(),
        "libraries": {name: dataclasses.asdict(state) for name, state in libraries.items()},
        "live": implementations(),
    }
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    cuda = f"CUDA {report['torch_cuda']}" if report["torch_cuda"] else "no CUDA"
    print(f"PyTorch {report['torch']} ({cuda}) on {report['processor']}")
    nvcc = report["nvcc"] or "no nvcc for this PyTorch"
    print(f"compilers: {report['cxx'] or 'no C++ compiler'}, {nvcc}")
    for name, state in libraries.items():
        built_for = f", built {state.built_for}" if state.built_for else ""
        print(f"{name} library: {state.reason}{built_for}")
    for name, implementation in implementations().items():
        print(f"{name}: {implementation}")


def run() -> int:
    """The exit status of the report; what is wrong is one line, and that nobody reads is not."""
    try:
        try:
            main()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where its failure can still be caught
    except ValueError as error:
        print(f"cuda_ext: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # The interpreter flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            print(f"cuda_ext: standard output: {error.strerror}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
