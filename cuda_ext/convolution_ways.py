"""Who multiplies in a convolution on the CPU: what was measured, by family of processors."""

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Products = Literal["measured", "library", "own", "own forward", "own weight gradient"]
# What a user chooses from.
PRODUCTS = ("measured", "library", "own")
# What "measured" comes to, by whether forward and weight gradient go over blocks of pixels.
_COMES_TO: dict[tuple[bool, bool], Products] = {
    (False, False): "library",
    (True, False): "own forward",
    (False, True): "own weight gradient",
    (True, True): "own",
}
# What an operator takes.
ALL_PRODUCTS = tuple(dict.fromkeys([*PRODUCTS, *_COMES_TO.values()]))


@dataclass(frozen=True)
class Measured:
    """For which passes blocks of pixels won over the library, on a family of processors.

    Attributes:
        forward, weight_gradient: whether they did.
        what: the measurement, conv1 of the paper's network.
    """

    forward: bool
    weight_gradient: bool
    what: str


# By vendor and family in /proc/cpuinfo, and whether there are matrix units; of conv1: 11 x 11,
# stride 4, 3 channels, 96 kernels, 224 x 224. A family that is not here has the library's way.
MEASURED_FAMILIES = {
    "AuthenticAMD 25": Measured(
        forward=False,
        weight_gradient=False,
        what="16 images, one thread, channels last, least of 15 runs beside other work: float32 51 "
        "instead of 42 ms forward and 63 instead of 52 ms for the weight gradient (the library is "
        "at 78 and 71 GFLOP/s, a product of 1024 x 1024 matrices at 69), bfloat16 20 instead of 22 "
        "and 30 instead of 21 ms",
    ),
    "GenuineIntel 6, AMX": Measured(
        forward=False,
        weight_gradient=True,
        what="128 images, float32: 215 instead of 337 ms for the weight gradient",
    ),
}


@dataclass(frozen=True)
class Way:
    """How the products of a layer are made on the CPU.

    Attributes:
        forward, weight_gradient: "library", or "blocks of pixels".
        why: a reason, with the measurement where there is one.
    """

    forward: str
    weight_gradient: str
    why: str

    @property
    def products(self) -> Products:
        """What `split_conv2d` is to be given so that it goes this way on any processor."""
        return _COMES_TO[self.forward != "library", self.weight_gradient != "library"]


def way_of(
    *, channels: int, stride: int, towers: int, products: Products = "measured", family: str = ""
) -> Way:
    """Which way a layer of `channels` goes on a family of processors, by default on this one."""
    if products == "library":
        return Way("library", "library", "asked for")
    if stride == 1 or towers > 1 or channels > MOST_CHANNELS:
        why = f"blocks of pixels are for a stride and at most {MOST_CHANNELS} channels"
        return Way("library", "library", why)
    ways = ("library", "blocks of pixels")
    if products != "measured":
        passes = ("own", "own forward"), ("own", "own weight gradient")
        forward, weight_gradient = (ways[products in own] for own in passes)
        return Way(forward, weight_gradient, "asked for")
    family = family or processor_family()
    measured = MEASURED_FAMILIES.get(family)
    if measured is None:
        return Way("library", "library", f"nothing was measured on {family}")
    return Way(ways[measured.forward], ways[measured.weight_gradient], f"{family}: {measured.what}")


# With more channels the library's vectors are full without an arrangement: those of a register of
# AVX-512, by far more than an image has.
MOST_CHANNELS = 16


@cache
def processor_family() -> str:
    """Vendor and family of this processor, and whether it has matrix units; else its kind."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    values = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    if "vendor_id" not in values:
        return platform.machine()
    has_units = "amx_tile" in values.get("flags", "").split()
    return f"{values['vendor_id']} {values.get('cpu family')}{', AMX' if has_units else ''}"
