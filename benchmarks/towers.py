"""A training step of two towers in two CPU processes, as a timeline: what overlaps the exchange.

Draws what each process did from the beginning of conv3 to its end, forward and backward, and says
how much of the exchange's time was spent computing. The exchange alone is timed beside it, by
sending the same bytes with nothing to compute.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.measure import Row, say
from benchmarks.training import our_step
from data_prep.errors import UserError
from replica.distributed.devices import Devices
from replica.distributed.launch import run_processes
from replica.distributed.mesh import Rank
from replica.distributed.worker import StopRequest
from replica.recipes import RECIPES
from replica.training.allocator import keep_large_blocks
from replica.training.numerics import PRECISIONS, Numerics, set_numerics

# What is drawn: the label, its color, and the row of the picture.
SPANS = {
    "conv3, own half": ("#3b7dd8", "computes the own half"),
    "conv3, waiting for the other half": ("#d85a3b", "waits for the other half"),
    "conv3, own half, backward": ("#63b35d", "backward: computes the own half"),
    "conv3, waiting for the gradient": ("#e0b13b", "backward: waits for the gradient"),
}


STEP = "step"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--recipe", choices=RECIPES, default="paper", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--precision", choices=PRECISIONS[:3], default="float32", help="default: %(default)s"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the timeline")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""
    if arguments.picture and not arguments.picture.parent.is_dir():
        raise UserError(f"--picture {arguments.picture}: expected a file in an existing directory")
    with tempfile.TemporaryDirectory() as directory:
        say(f"two processes, {1 + arguments.steps} steps")
        numerics = Numerics(precision=arguments.precision)
        options = (arguments.recipe, numerics, arguments.batch_size, arguments.steps, directory)
        run_processes(_rank, options, Devices("cpu", 2, 2), timeout=600)
        ranks = [json.loads((Path(directory) / f"{i}.json").read_text()) for i in (0, 1)]
    if arguments.picture:
        draw(ranks, arguments.picture)
    rows = []
    for direction, computing, waiting in (
        ("forward", "conv3, own half", "conv3, waiting for the other half"),
        ("backward", "conv3, own half, backward", "conv3, waiting for the gradient"),
    ):
        alone = statistics.median(t for rank in ranks for t in rank["alone"])
        compute = statistics.median(e - b for rank in ranks for b, e in rank["spans"][computing])
        wait = statistics.median(e - b for rank in ranks for b, e in rank["spans"][waiting])
        name = f"conv3, {direction}: "
        exchange = f"{name}the exchange alone"
        rows += [
            Row(exchange, 1e3 * alone, "ms", note="nothing to compute meanwhile"),
            Row(f"{name}computing the own half", 1e3 * compute, "ms", exchange, compute / alone),
            Row(f"{name}then waiting for the exchange", 1e3 * wait, "ms", exchange, wait / alone),
        ]
    return rows


def _rank(rank: Rank, options: tuple[Any, ...], stop: StopRequest) -> None:
    recipe_name, numerics, batch_size, steps, directory = options
    keep_large_blocks()
    set_numerics(numerics)
    recipe = RECIPES[recipe_name]
    step = our_step(recipe, numerics, batch_size, rank)
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            dist.barrier()  # both begin together, so that one clock serves for both
            with record_function(STEP):
                step()
    spans: dict[str, list[list[float]]] = {name: [] for name in (*SPANS, STEP)}
    for event in profiler.events():
        if event.name in spans:
            spans[event.name].append([event.time_range.start / 1e6, event.time_range.end / 1e6])
    placement: Any = rank.placement(recipe.towers)
    halves = torch.zeros(batch_size, recipe.convs[1].num_kernels // 2, 13, 13)
    if numerics.precision in ("bf16", "fp16"):
        halves = halves.to(torch.bfloat16 if numerics.precision == "bf16" else torch.float16)
    halves = halves.contiguous(memory_format=torch.channels_last)
    alone = []
    for _ in range(4 * steps):
        dist.barrier()
        began = time.perf_counter()
        placement.begin_swap(halves, layer="conv3", direction="forward")()
        alone.append(time.perf_counter() - began)
    content = {"spans": spans, "alone": alone[steps:]}
    (Path(directory) / f"{rank.index}.json").write_text(json.dumps(content))


def draw(ranks: list[dict[str, Any]], picture: Path) -> None:
    """The last step's spans: a row per process, forward and backward side by side.

    A process whose peer is late waits for it, exchange or not.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 2.6), layout="constrained")
    names = list(SPANS)
    for axes, title, shown in zip(
        panels, ("conv3, forward", "conv3, backward"), (names[:2], names[2:]), strict=True
    ):
        for number, rank in enumerate(ranks):
            start = rank["spans"][STEP][-1][0]
            for name in shown:
                begin, end = rank["spans"][name][-1]
                color, label = SPANS[name]
                axes.barh(
                    number,
                    1e3 * (end - begin),
                    left=1e3 * (begin - start),
                    color=color,
                    label=label if number == 0 else None,
                )
            alone = 1e3 * statistics.median(rank["alone"])
            began = 1e3 * (rank["spans"][shown[0]][-1][0] - start)
            axes.barh(
                number - 0.42,
                alone,
                left=began,
                height=0.08,
                color="black",
                label="the exchange alone" if number == 0 else None,
            )
        axes.set(
            yticks=[0, 1],
            yticklabels=["tower 0", "tower 1"],
            xlabel="ms since the step began",
            title=title,
        )
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=3)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
