"""Reads of mapped files whose bytes are gone, which would end the process, found afterwards."""

import ctypes
import weakref
from functools import cache

import numpy as np

from cuda_ext import library


@cache
def _library() -> ctypes.CDLL | None:
    state = library.compiled_state()
    if not state.is_live:
        return None
    calls = ctypes.CDLL(state.reason)
    calls.replica_watch_mapped.restype = ctypes.c_void_p
    calls.replica_watch_mapped.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    calls.replica_num_lost_of_mapped.restype = ctypes.c_uint64
    calls.replica_lost_of_mapped.restype = ctypes.c_uint64
    calls.replica_lost_of_mapped.argtypes = [ctypes.c_void_p]
    calls.replica_unwatch_mapped.argtypes = [ctypes.c_void_p]
    return calls


def num_lost_pages() -> int:
    """How many pages of watched files could not be read until now, in this process."""
    calls = _library()
    return calls.replica_num_lost_of_mapped() if calls is not None else 0


class MappedReads:
    """Watches a mapped file: what cannot be read any more reads as zeros, and is remembered.

    A file that is cut off while it is mapped, or a disk that fails, ends the process that reads it
    by SIGBUS. Where no library is compiled, it still does, and nothing is remembered.

    Args:
        array: of mapped bytes, all of a map or a part; watched until they are unmapped.
    """

    def __init__(self, array: np.ndarray) -> None:
        calls, self._begin, self._range = _library(), array.ctypes.data, None
        if calls is None or not array.nbytes:
            return
        self._range = calls.replica_watch_mapped(self._begin, array.nbytes)
        if self._range is not None:
            # The mapping itself, which lives as long as any view of it.
            end = weakref.finalize(array.base, calls.replica_unwatch_mapped, self._range)
            end.atexit = False

    def lost_byte(self) -> int | None:
        """The first byte that could not be read, counted in the array, or None: all could be."""
        calls = _library()
        if calls is None or self._range is None:
            return None
        address = calls.replica_lost_of_mapped(self._range)
        return max(0, address - self._begin) if address else None
