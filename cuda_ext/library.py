"""Loads the compiled operators, and says which implementation is live."""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

LIBRARY_NAME = "_cpu.abi3.so"
INSTRUCTION_SETS = ("any processor", "AVX2", "AVX-512")


@dataclass(frozen=True)
class CompiledState:
    """Whether the compiled CPU operators are live.

    Attributes:
        is_live: they are.
        reason: why not, or where they are; one line.
    """

    is_live: bool
    reason: str


@cache
def compiled_state() -> CompiledState:
    """Loads the library once, and says what came of it.

    Raises:
        ValueError: REPLICA_EXT has an unknown value.
    """
    wanted = os.environ.get("REPLICA_EXT", "auto")
    if wanted not in ("auto", "off"):
        raise ValueError(f"REPLICA_EXT: expected auto or off, got {wanted!r}")
    if wanted == "off":
        return CompiledState(False, "REPLICA_EXT=off")
    path = Path(__file__).parent / LIBRARY_NAME
    if not path.exists():
        return CompiledState(False, "not built: install a C++ compiler and run `make setup` again")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        first_line = str(error).splitlines()[0]
        return CompiledState(
            False, f"{path.name} cannot be loaded ({first_line}): run `make clean setup`"
        )
    return CompiledState(True, str(path))


def implementations() -> dict[str, str]:
    """The live implementation of each operator on the CPU; on other devices it is the reference."""
    state = compiled_state()
    if not state.is_live:
        return {"local_response_norm": f"plain PyTorch ({state.reason})"}
    return {"local_response_norm": f"compiled, {INSTRUCTION_SETS[set_instruction_set(-1)]}"}


def set_instruction_set(wanted: int) -> int:
    """Chooses what the compiled code uses: an index into `INSTRUCTION_SETS`, -1 for the best.

    For tests; a processor that lacks it is an error.

    Returns:
        The index in use.
    """
    state = compiled_state()
    if not state.is_live:
        raise RuntimeError(f"set_instruction_set: expected compiled operators, got: {state.reason}")
    return torch.ops.replica_cpu.set_isa(wanted)
