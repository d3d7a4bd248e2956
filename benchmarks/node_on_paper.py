"""`python -m benchmarks.node_on_paper`: what feeding a node of 8 GPUs must move, by arithmetic.

Nothing is measured: bytes per image, times images per second, beside what data sheets state. The
table stands in docs/performance.md; `tests/test_node_on_paper.py` compares it, and the bytes with
those of a real batch.
"""

import sys
from dataclasses import dataclass

from data_prep.errors import OneLineParser
from replica import paper

GPUS = 8
RATES = (10_000, 32_000, 100_000, 256_000)  # images/s of the node; 32,000: 90 epochs in an hour
TRAIN_IMAGES = 1_281_167  # of ILSVRC 2012

# Bytes per second, of data sheets.
DISK = 7.0e9  # one NVMe disk on four lanes of PCIe 4.0, reading
MEMORY = 2 * 8 * 38.4e9  # two sockets of eight channels of DDR5-4800
LINK = 32e9 * 16 / 8 * 128 / 130  # PCIe 5.0, sixteen lanes, one direction, of each GPU

STORED = 3 * paper.IMAGE_SIZE**2
STORED_JPEG = 37_900  # benchmarks/results/build_shards.json: quality 95, the mean of 455 images
CROP = 3 * paper.CROP_SIZE**2
# Rows of a crop lie so closely that a processor reads nearly all of what is between them.
ROWS_READ = paper.CROP_SIZE * 3 * paper.IMAGE_SIZE
PLACE, SHIFTS, LABEL, ROW = 4 * 8, 3 * 4, 8, 8  # int64, float32, int64, int64
# What is written is read first, line by line; the GPU then reads it.
CROP_IN_MEMORY = 3 * CROP


@dataclass(frozen=True)
class Flow:
    """Bytes that one image moves through a part of the node, and what that part can do."""

    name: str
    bytes_per_image: int
    limit: float  # bytes per second of the whole node


FLOWS = (
    Flow("disk, raw shards", STORED, DISK),
    Flow("disk, JPEG shards", STORED_JPEG, DISK),
    Flow("memory, raw shards in memory", ROWS_READ + CROP_IN_MEMORY, MEMORY),
    Flow("memory, raw from disk", STORED + ROWS_READ + CROP_IN_MEMORY, MEMORY),
    # Written and read as a file; read, written and read again as an image.
    Flow(
        "memory, JPEG from disk",
        2 * STORED_JPEG + 2 * STORED + ROWS_READ + CROP_IN_MEMORY,
        MEMORY,
    ),
    Flow("PCIe, bytes", CROP + PLACE + SHIFTS + LABEL + ROW, GPUS * LINK),
    Flow("PCIe, were they float32", 4 * CROP + LABEL + ROW, GPUS * LINK),
)


def table() -> str:
    """All flows at all rates, in Markdown."""
    rates = " | ".join(f"at {rate:,} images/s" for rate in RATES)
    lines = [
        f"| | bytes per image | {rates} | limit | reached at |",
        "| --- |" + " --- |" * (len(RATES) + 3),
    ]
    for flow in FLOWS:
        cells = [flow.name, f"{flow.bytes_per_image:,}"]
        for rate in RATES:
            needed = rate * flow.bytes_per_image
            cells.append(f"{needed / 1e9:.1f} GB/s ({needed / flow.limit:.0%})")
        reached = round(flow.limit / flow.bytes_per_image, -3)
        cells += [f"{flow.limit / 1e9:.0f} GB/s", f"{reached:,.0f} images/s"]
        lines.append(f"| {' | '.join(cells)} |")
    minutes = [f"{TRAIN_IMAGES * paper.NUM_EPOCHS / rate / 60:.0f}" for rate in RATES]
    lines.append(f"| 90 epochs of ImageNet | | {' min | '.join(minutes)} min | | |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Prints the table and returns the exit status."""
    about = "What feeding a node of 8 GPUs must move, by arithmetic: prints a table in Markdown."
    parser = OneLineParser(prog="python -m benchmarks.node_on_paper", description=about)
    parser.parse_args(argv)
    print(table(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
