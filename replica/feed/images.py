"""Makes the images of batches: on the CPU whole, for a GPU as bytes that are finished there.

N images, V views of each, S rows and columns of a crop.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch

from cuda_ext import augment_batch
from replica.feed.augment import Crops
from replica.feed.buffers import Buffers
from replica.feed.stored import StoredImages

CPU = torch.device("cpu")
Vary = Callable[[list[torch.Tensor], np.ndarray], torch.Tensor]


class BatchImages:
    """Makes the images of batches; threads may do so at once.

    Args:
        stored: where the images are.
        mean_image: float32 (H, W, 3).
        crop_size: S.
        device: of the batches. On a GPU, images arrive as bytes, copied from pinned memory on a
            stream of their own, and become numbers there.
        memory_format: of the batches.
        mean: `place`, or `center` to subtract the central part from every crop.
        as_bytes: whether they are made in these two steps; by default on a GPU.
    """

    def __init__(
        self,
        stored: StoredImages,
        *,
        mean_image: np.ndarray,
        crop_size: int,
        device: torch.device = CPU,
        memory_format: torch.memory_format = torch.channels_last,
        mean: str = "place",
        as_bytes: bool | None = None,
    ) -> None:
        is_gpu = device.type == "cuda"
        self._stored, self._size, self._device = stored, crop_size, device
        self._format = memory_format
        self._mean_image, self._mean = torch.from_numpy(mean_image).to(device), mean
        self._as_bytes = is_gpu if as_bytes is None else as_bytes
        self._buffers = Buffers(is_pinned=is_gpu)
        self._stream = torch.cuda.Stream(device) if is_gpu else None
        # What the GPU is still copying, with the event after it, and who may take it out.
        self._on_the_way: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        self._lock = threading.Lock()

    def make(
        self,
        rows: np.ndarray,
        crops: Crops,
        shifts: np.ndarray | None,
        *,
        divisor: float = 1.0,
        vary: Vary | None = None,
        parallel: bool = True,
    ) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        """Cuts images, subtracts the mean image (paper 2), reflects, and adds colors (4.1).

        DEVIATION D11: the source subtracts the central part of the mean image from every crop,
        as it is from a reflected one, too: `mean=center`.

        Args:
            rows: int64 (N,), of the part.
            crops: V places per image, those of the first image first.
            shifts: float64 (N * V, 3), added to all pixels of a crop.
            divisor: of all values, at the end.
            vary: what makes other images of the stored ones first: of images and places in them,
                as `StoredImages.take` gives them, uint8 (N, H, W, 3).
            parallel: whether PyTorch's threads share the work, or the calling one does it.

        Returns:
            float32 (N * V, 3, S, S), and on a GPU the event after which it is there.
        """
        if not len(rows):
            return torch.empty(0, 3, self._size, self._size, device=self._device), None
        images, index = self._stored.take(rows)
        if vary is not None:
            images, index = [vary(images, index)], np.arange(len(rows))
        index = index.repeat(len(crops.tops) // len(rows))
        places = torch.from_numpy(np.stack([index, crops.tops, crops.lefts, crops.flips], axis=1))
        colors = None if shifts is None else torch.from_numpy(shifts.astype(np.float32))
        if self._as_bytes:
            cut = self._cut(images, places, parallel=parallel)
            self._stored.check()
            return self._finish(cut, places, colors, divisor=divisor, parallel=parallel)
        out = self._empty(len(places), torch.float32, self._format)
        augment_batch(
            images,
            places,
            crop_size=self._size,
            mean_image=self._mean_image,
            mean=self._mean,
            shifts=colors,
            divisor=divisor,
            out=out,
            parallel=parallel,
        )
        self._stored.check()
        return out, None

    def _empty(
        self, number: int, dtype: torch.dtype, memory_format: torch.memory_format
    ) -> torch.Tensor:
        size = self._size
        if memory_format == torch.channels_last:
            return self._buffers.take((number, size, size, 3), dtype).permute(0, 3, 1, 2)
        return self._buffers.take((number, 3, size, size), dtype)

    def _cut(
        self, images: list[torch.Tensor], places: torch.Tensor, *, parallel: bool
    ) -> torch.Tensor:
        """The crops as they are stored, uint8 (N, S, S, 3): a fourth of the bytes to copy."""
        out = self._empty(len(places), torch.uint8, torch.channels_last)
        upright = places.clone()
        upright[:, 3] = 0
        augment_batch(images, upright, crop_size=self._size, out=out, parallel=parallel)
        return out.permute(0, 2, 3, 1)

    def _finish(
        self,
        cut: torch.Tensor,
        places: torch.Tensor,
        colors: torch.Tensor | None,
        *,
        divisor: float,
        parallel: bool,
    ) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        """On the device: the same batch that the CPU makes, bit for bit."""
        out = None
        if self._stream is None:
            out = self._empty(len(places), torch.float32, self._format)
        with self._lock:
            while self._on_the_way and self._on_the_way[0][0].query():
                self._on_the_way.popleft()
        places[:, 0] = torch.arange(len(places))
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            images = augment_batch(
                cut.to(self._device, non_blocking=True),
                places.to(self._device, non_blocking=True),
                crop_size=self._size,
                mean_image=self._mean_image,
                mean=self._mean,
                shifts=None if colors is None else colors.to(self._device, non_blocking=True),
                divisor=divisor,
                memory_format=self._format,
                out=out,
                parallel=parallel,
            )
            if self._stream is None:
                return images, None
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        self._on_the_way.append((arrived, cut))
        return images, arrived
