"""The ranks of a run as a grid: copies of the network, and the towers of each copy."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_reduce
from torch.profiler import record_function

from replica.distributed import heartbeat
from replica.distributed.devices import Devices
from replica.distributed.exchange import TwoDevices
from replica.distributed.gradients import WAITING
from replica.network.placement import Placement, one_copy


@dataclass(frozen=True)
class Rank:
    """One process of a run: index = copy * split + tower; rank 0 writes the files and prints.

    `local_index` is the device of its machine that it has, None where that is `index`.
    """

    index: int
    devices: Devices
    local_index: int | None = None

    @property
    def copy(self) -> int:
        """Which copy of the network it belongs to."""
        return self.index // self.devices.split

    @property
    def tower(self) -> int:
        """Which tower it computes, 0 also where it computes all of them."""
        return self.index % self.devices.split

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        kind = self.devices.kind
        number = self.index if self.local_index is None else self.local_index
        return torch.device("cuda", number) if kind == "cuda" else torch.device(kind)

    def placement(
        self, towers: int, *, add_over_copies: Callable[[torch.Tensor], torch.Tensor] = one_copy
    ) -> Placement:
        """Which of a recipe's towers it holds."""
        if self.devices.split == 1:
            return Placement(towers, add_over_copies=add_over_copies)
        peer = self.index + 1 - 2 * self.tower
        return TwoDevices(tower=self.tower, peer=peer, add_over_copies=add_over_copies)


class Mesh:
    """All ranks, as one of them sees them: what is summed over copies, and what goes to all."""

    def __init__(self, rank: Rank) -> None:
        devices = rank.devices
        self.device = rank.device
        self.is_distributed = devices.num_processes > 1
        # Of the ranks with this tower, one per copy; None where there is one copy.
        self.copies: dist.ProcessGroup | None = None
        if self.is_distributed:
            shape = (devices.num_copies, devices.split)
            mesh = dist.init_device_mesh(devices.kind, shape, mesh_dim_names=("copy", "tower"))
            if devices.num_copies > 1:
                self.copies = mesh.get_group("copy")

    def sum_over_copies(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Adds up the copies' gradients, each from its own part of the batch."""
        if self.copies is None:
            return tensors
        # Values are added as they lie in memory, and a copy without images has another layout.
        tensors = [tensor.contiguous() for tensor in tensors]
        with record_function(WAITING):
            for tensor in tensors:
                heartbeat.beat("sum of gradients over the copies")
                dist.all_reduce(tensor, group=self.copies)
        return tensors

    def add_over_copies(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over the copies, whose gradient is the sum of the copies'."""
        if self.copies is None:
            return x
        heartbeat.beat("sum of statistics over the copies")
        total: torch.Tensor = all_reduce(x.contiguous(), group=self.copies)
        return total

    def sum_over_all_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Adds up over all ranks, in place, and returns the tensor."""
        if self.is_distributed:
            heartbeat.beat("sum of counts over all processes")
            dist.all_reduce(tensor)
        return tensor

    def gather_tensors(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """One tensor of every rank, in their order, on the CPU; all have one shape and type."""
        if not self.is_distributed:
            return [tensor.cpu()]
        heartbeat.beat("exchange of results")
        own = tensor.contiguous().to(self.device)
        tensors = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(tensors, own)
        return [one.cpu() for one in tensors]

    def gather(self, value: Any) -> list[Any]:
        """One value of every rank, in their order, as JSON has them: tuples are lists.

        PyTorch's own exchanges of objects unpickle what they receive, which runs what it says.
        """
        text = json.dumps(value).encode()
        if not self.is_distributed:
            return [json.loads(text)]
        own = torch.tensor(list(text), dtype=torch.uint8, device=self.device)
        size = torch.tensor([len(own)], device=self.device)
        sizes = [torch.zeros_like(size) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, size)
        lengths = [int(size) for size in sizes]
        padded = own.new_zeros(max(lengths))
        padded[: len(own)] = own
        texts = [torch.zeros_like(padded) for _ in lengths]
        dist.all_gather(texts, padded)
        pairs = zip(texts, lengths, strict=True)
        return [json.loads(bytes(text[:length].tolist())) for text, length in pairs]

    def of_rank_0(self, value: Any) -> Any:
        """The value that rank 0 has, as `gather` gives it."""
        return self.gather(value)[0]
