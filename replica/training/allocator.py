"""Memory for large tensors: kept by the process instead of handed back at each free.

A training step frees and asks for the same sizes again and again. It belongs to a program (the
commands and their processes call it first), not to an import: it changes the whole process.
"""

import os
from dataclasses import dataclass

from cuda_ext import library
from data_prep.errors import UserError

SWITCH = "REPLICA_MALLOC"
SETTINGS = ("keep", "stock")


@dataclass(frozen=True)
class Allocator:
    """What was done.

    Attributes:
        keeps_large_blocks: whether the setting is in force.
        reason: why, in a few words.
    """

    keeps_large_blocks: bool
    reason: str


def keep_large_blocks() -> Allocator:
    """Keeps the memory of large CPU tensors in this process, unless REPLICA_MALLOC=stock.

    Raises:
        UserError: REPLICA_MALLOC or REPLICA_EXT has an unknown value.
    """
    wanted = os.environ.get(SWITCH, SETTINGS[0])
    if wanted not in SETTINGS:
        raise UserError(f"{SWITCH}: expected {' or '.join(SETTINGS)}, got {wanted!r}")
    if wanted == "stock":
        return Allocator(False, f"{SWITCH}=stock")
    try:
        state = library.keep_large_blocks()
    except ValueError as error:
        raise UserError(str(error)) from None
    if not state.is_live:
        return Allocator(False, f"PyTorch's own allocator ({state.reason})")
    return Allocator(True, f"large blocks are kept ({SWITCH}=stock returns them to the system)")
