"""The processes of a run as a grid: axes `data` (shares of each batch) and `tower`."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from replica.distributed import heartbeat
from replica.distributed.devices import Devices
from replica.distributed.exchange import TwoDevices
from replica.network.placement import OneDevice, Placement


@dataclass(frozen=True)
class Rank:
    """One process of a run: rank = data_index * split + tower.

    Attributes:
        index: 0 to devices.num_processes - 1; rank 0 writes the files and prints.
        devices: how the whole run is placed.
        local_index: which device of its machine it has; `index` where there is one machine.
    """

    index: int
    devices: Devices
    local_index: int | None = None

    @property
    def data_index(self) -> int:
        """Which share of each batch this process has."""
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

    def placement(self, towers: int) -> Placement:
        """What the model needs to know."""
        if self.devices.split == 1:
            return OneDevice(towers)
        return TwoDevices(tower=self.tower, peer=self.index + 1 - 2 * self.tower)


class Mesh:
    """The groups of processes that this rank belongs to: axes `data` and `tower`."""

    def __init__(self, rank: Rank) -> None:
        self.is_distributed = rank.devices.num_processes > 1
        self.data_group: dist.ProcessGroup | None = None
        if self.is_distributed:
            shape = (rank.devices.num_data_shares, rank.devices.split)
            mesh = dist.init_device_mesh(rank.devices.kind, shape, mesh_dim_names=("data", "tower"))
            self.data_group = mesh.get_group("data")
        self.num_data_shares = rank.devices.num_data_shares

    def sum_over_data(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Adds up gradients over the shares of the batch."""
        if self.num_data_shares == 1:
            return tensors
        # Values are added as they lie in memory, and a share without images has another layout.
        tensors = [tensor.contiguous() for tensor in tensors]
        for tensor in tensors:
            heartbeat.beat("sum of gradients over the shares")
            dist.all_reduce(tensor, group=self.data_group)
        return tensors

    def sum_over_all_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Adds up over all processes, in place, and returns the tensor."""
        if self.is_distributed:
            heartbeat.beat("sum of counts over all processes")
            dist.all_reduce(tensor)
        return tensor

    def gather_objects(self, value: Any) -> list[Any]:
        """One value of every process, in the order of ranks."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values

    def of_rank_0(self, value: Any) -> Any:
        """The value that rank 0 has."""
        if not self.is_distributed:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]
