"""TensorBoard's event files of a run: losses, errors, rates, conv1's kernels, histograms."""

import importlib.util
from pathlib import Path

import numpy as np

from replica.network.kernels import kernel_picture
from replica.training.checkpoint import Checkpoint
from replica.training.run_directory import Measures

INSTALL = "pip install 'replica-alexnet[tensorboard]'"


def board_problem() -> str | None:
    """Why no event files can be written here, or None."""
    if importlib.util.find_spec("tensorboard") is None:
        return f"tensorboard is not installed: {INSTALL}"
    return None


class Board:
    """Writes the event files of a run into its directory.

    Args:
        run_dir: of the run.
        first_step: how many steps were done before; what an interrupted session wrote of later
            ones is hidden.
    """

    def __init__(self, run_dir: Path, *, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir), purge_step=first_step + 1)

    def scalars(self, kind: str, step: int, measures: Measures) -> None:
        """Numbers of a step; kind is `train` or `val`."""
        for name, value in vars(measures).items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def rates(self, step: int, rates: dict[str, float]) -> None:
        """Each tensor's learning rate."""
        for name, rate in rates.items():
            self._writer.add_scalar(f"rate/{name}", rate, step)

    def weights(self, saved: Checkpoint) -> None:
        """The kernels of conv1 as a picture, and a histogram of each weight and velocity."""
        step = saved.step
        picture = kernel_picture(saved.model["conv1.weight"], towers=saved.recipe.towers)
        self._writer.add_image("conv1", np.asarray(picture), step, dataformats="HWC")
        for kind, tensors in (("model", saved.model), ("velocities", saved.velocities)):
            for name, tensor in tensors.items():
                # Of millions of values a sample says as much, and takes no time.
                values = tensor.flatten()
                stride = max(1, values.numel() // 100_000)
                self._writer.add_histogram(f"{kind}/{name}", values[::stride], step)
        self._writer.flush()

    def close(self) -> None:
        """Ends the files."""
        self._writer.close()
