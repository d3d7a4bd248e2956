"""Memory for batches that is used again."""

import weakref

import numpy as np
import torch


class Buffers:
    """Memory that is lent as tensors, and lent again once nobody holds what was made of them.

    So a batch costs no page faults, and a GPU copies from memory that is pinned once.
    """

    def __init__(self, *, is_pinned: bool = False) -> None:
        self._is_pinned = is_pinned
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor whose values are not set, as long as anybody has it or a view of it."""
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if len(memory) < num_bytes:  # the first batches, and one after the small one of an epoch
            memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._is_pinned).numpy()
        lent = memory[:num_bytes]  # an object of its own, which the tensor's memory keeps alive
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)
