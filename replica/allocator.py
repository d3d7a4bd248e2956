"""Memory for large tensors: kept by the process instead of handed back at each free.

glibc asks the system for every block above 32 MB and returns it when it is freed, so each large
tensor is written into pages that the system has yet to find and clear: `x.clone()` of 149 MB takes
several times as long as a copy into memory that is there. A training step frees and asks for the
same sizes again and again. `keep_large_blocks` tells the C library to keep them. It belongs to a
program (the commands and their processes call it first), not to an import: it changes the whole
process.
"""

import ctypes
import mmap
import os
from dataclasses import dataclass

import torch

from data_prep.shards import UserError

SWITCH = "REPLICA_MALLOC"
SETTINGS = ("keep", "stock")

# Of glibc's malloc.h: parameter, value. No block comes from a mapping of its own, none at the top
# is returned, and the top grows by 512 MB at a time (address space; pages count once written).
_MALLOPT = {
    "M_MMAP_MAX": (-4, 0),
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
    "M_TOP_PAD": (-2, 512 * 2**20),
}
# PyTorch asks for huge pages for blocks of 2 MB and more, and aligns them to a page. Without it a
# freed block seldom serves the next request of its size: glibc looks for 64 bytes of alignment more
# than it keeps, and the few bytes left over on both sides keep free neighbours apart. Seen with
# glibc 2.36: of nine clones of 149 MB in a row, one to eight met new pages; with it, the first few
# and then none.
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
_HUGE_PAGE_BYTES = 2 * 2**20


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
    """Sets the C library's allocator for this process, unless REPLICA_MALLOC=stock.

    Call it before the first tensor: PyTorch decides then how it aligns.

    Raises:
        UserError: REPLICA_MALLOC has an unknown value.
    """
    wanted = os.environ.get(SWITCH, SETTINGS[0])
    if wanted not in SETTINGS:
        raise UserError(f"{SWITCH}: expected {' or '.join(SETTINGS)}, got {wanted!r}")
    if wanted == "stock":
        return Allocator(False, f"{SWITCH}=stock")
    problem = _problem()
    if problem:
        return Allocator(False, problem)
    library = ctypes.CDLL(None)
    refused = [name for name, pair in _MALLOPT.items() if library.mallopt(*pair) != 1]
    if refused:
        return Allocator(False, f"mallopt refuses {', '.join(refused)}")
    os.environ.setdefault(_HUGE_PAGES, "1")
    blocks = [torch.empty(_HUGE_PAGE_BYTES, dtype=torch.uint8) for _ in range(2)]
    if any(block.data_ptr() % mmap.PAGESIZE for block in blocks):
        return Allocator(True, f"large blocks are kept, but seldom reused ({_HUGE_PAGES} is off)")
    return Allocator(True, f"large blocks are kept ({SWITCH}=stock returns them to the system)")


def _problem() -> str | None:
    """Why the setting would do nothing here, or None."""
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):
        version = None
    if not version or not version.startswith("glibc"):
        return "the C library is not glibc"
    own = ctypes.CDLL("libc.so.6")
    in_use = ctypes.CDLL(None)
    if ctypes.cast(own.malloc, ctypes.c_void_p).value != (
        ctypes.cast(in_use.malloc, ctypes.c_void_p).value
    ):
        return "another allocator was loaded before glibc's"
    return None
