"""What the machine decides: which processes run on which devices."""

from collections.abc import Callable
from dataclasses import dataclass

from data_prep.errors import UserError


@dataclass(frozen=True)
class Devices:
    """What a run computes on: one process per device, `cpu` or `cuda`.

    A network is cut over `split` of them, 1 or 2.
    """

    kind: str
    num_processes: int
    split: int

    @property
    def num_copies(self) -> int:
        """How many copies of the network train together, each on its part of every batch."""
        return self.num_processes // self.split


def choose_devices(
    *,
    gpus: int | None,
    num_gpus_present: int,
    split: int | None,
    device: str,
    towers: int,
    say: Callable[[str], None],
) -> Devices:
    """The devices that the options ask for.

    Args:
        gpus, split, device: options, None (`auto`) where they were not given.
        num_gpus_present: CUDA devices that this machine has.
        towers: of the recipe.
        say: called with a line for each default taken and each substitution.

    Raises:
        UserError: the options contradict each other or the machine.
    """
    if device == "cuda" and num_gpus_present == 0:
        raise UserError(
            "--device cuda: expected a CUDA device, this PyTorch sees none: use --device cpu or "
            "leave the option out"
        )
    present = 0 if device == "cpu" else num_gpus_present
    count = 1 if gpus is None else gpus
    if count < 1:
        raise UserError(f"--gpus {count}: expected at least 1")
    chosen_split = split if split is not None else (2 if towers == 2 and count > 1 else 1)
    if chosen_split > towers:
        raise UserError(f"--split {chosen_split}: the recipe has one tower: expected --split 1")
    if chosen_split == 2 and count == 1:
        raise UserError("--split 2: expected two devices, got one: use --gpus 2")
    if count % chosen_split:
        raise UserError(
            f"--gpus {count}: expected an even number for a network of two towers: use "
            f"--gpus {count - 1} or --gpus {count + 1}, or --split 1 for {count} copies of the "
            "whole network"
        )
    if present and count > present:
        raise UserError(
            f"--gpus {count}: this machine has {present}: use --gpus {present}"
            + ("" if present > 1 or towers == 1 else " (both towers on one device)")
            + ", or --device cpu"
        )
    kind = "cuda" if present else "cpu"
    if gpus is None:
        say(f"devices: one process on the {kind.upper()} (no --gpus given)")
    elif not present:
        why = "--device cpu" if device == "cpu" else "no GPU here"
        what = "one CPU process" if count == 1 else f"{count} CPU processes, the whole network each"
        if chosen_split == 2 and count == 2:
            what = "two CPU processes, a tower each"
        elif chosen_split == 2:
            what = f"{count} CPU processes in {count // 2} pairs, a tower each"
        say(f"devices: {what} ({why})")
    return Devices(kind, count, chosen_split)
