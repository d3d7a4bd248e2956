"""Memory for large tensors: kept by the process instead of handed back at each free.

A training step frees and asks for the same sizes again and again. It belongs to a program (the
commands and their processes call it first), not to an import: it changes the whole process.
"""

import os

from cuda_ext import library
from data_prep.errors import UserError

SWITCH = "REPLICA_MALLOC"
SETTINGS = ("keep", "stock")


def keep_large_blocks() -> str:
    """Keeps large CPU tensors' memory, unless REPLICA_MALLOC=stock; says briefly what was done.

    Raises:
        UserError: REPLICA_MALLOC or REPLICA_EXT has an unknown value.
    """
    wanted = os.environ.get(SWITCH, SETTINGS[0])
    if wanted not in SETTINGS:
        raise UserError(f"{SWITCH}: expected {' or '.join(SETTINGS)}, got {wanted!r}")
    if wanted == "stock":
        return f"{SWITCH}=stock"
    try:
        state = library.keep_large_blocks()
    except ValueError as error:
        raise UserError(str(error)) from None
    if not state.is_live:
        return f"PyTorch's own allocator ({state.reason})"
    return f"large blocks are kept ({SWITCH}=stock returns them to the system)"
