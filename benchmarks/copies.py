"""A training step of two copies in two CPU processes: how long it waits for the summed gradients.

Steps alternate between sums in buckets during backward and sums after it, in one run, from the
same weights on the same images. Waiting is what a process does between the end of its own backward
and the last sum; whoever is late makes the other one wait, too. The sums alone are timed beside it.
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
from benchmarks.training import our_state, random_step
from replica.distributed.devices import Devices
from replica.distributed.gradients import WAITING
from replica.distributed.launch import run_processes
from replica.distributed.mesh import Rank
from replica.distributed.worker import StopRequest
from replica.recipes import RECIPES
from replica.training.allocator import keep_large_blocks
from replica.training.numerics import PRECISIONS, Numerics, set_numerics

AFTER, BUCKETS = "sums after backward", "sums in buckets during backward"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--recipe", choices=RECIPES, default="paper", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=64, help="of both; default: %(default)s")
    parser.add_argument("--steps", type=int, default=5, help="of each; default: %(default)s")
    parser.add_argument(
        "--precision", choices=PRECISIONS[:3], default="float32", help="default: %(default)s"
    )


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""
    with tempfile.TemporaryDirectory() as directory:
        say(f"two processes, {2 * (1 + arguments.steps)} steps")
        numerics = Numerics(precision=arguments.precision)
        options = (arguments.recipe, numerics, arguments.batch_size, arguments.steps, directory)
        run_processes(_rank, options, Devices("cpu", 2, 1), timeout=600)
        ranks = [json.loads((Path(directory) / f"{i}.json").read_text()) for i in (0, 1)]

    def median(what: str, way: str) -> float:
        seconds: list[float] = [t for rank in ranks for t in rank[what][way]]
        return 1e3 * statistics.median(seconds)

    rows = []
    for what, name in (("steps", "a step"), ("waits", "waiting")):
        before, now = median(what, AFTER), median(what, BUCKETS)
        baseline = f"{name}, {AFTER}"
        note = f"{100 * now / median('steps', BUCKETS):.1f} % of a step" if what == "waits" else ""
        rows += [
            Row(baseline, before, "ms"),
            Row(f"{name}, {BUCKETS}", now, "ms", baseline, now / before, note),
        ]
    alone = 1e3 * statistics.median(t for rank in ranks for t in rank["alone"])
    return [*rows, Row("the sums alone", alone, "ms", note="nothing to compute meanwhile")]


def _rank(rank: Rank, options: tuple[Any, ...], stop: StopRequest) -> None:
    recipe_name, numerics, batch_size, num_steps, directory = options
    keep_large_blocks()
    set_numerics(numerics)
    recipe = RECIPES[recipe_name]
    state = our_state(recipe, numerics, rank)
    step = random_step(state, batch_size // rank.devices.num_copies, batch_size=batch_size)
    ways = {AFTER: None, BUCKETS: state.buckets}

    def one(way: str) -> None:
        state.buckets = ways[way]
        step()

    for way in ways:
        one(way)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(num_steps):
            for way in ways:
                dist.barrier()  # both begin together
                with record_function(way):
                    one(way)
    spans = {
        name: [(e.time_range.start, e.time_range.end) for e in profiler.events() if e.name == name]
        for name in (*ways, WAITING)
    }
    steps = {way: [(end - begin) / 1e6 for begin, end in spans[way]] for way in ways}
    waits = {
        way: [
            sum(e - b for b, e in spans[WAITING] if begin <= b < end) / 1e6
            for begin, end in spans[way]
        ]
        for way in ways
    }
    gradients = [torch.zeros_like(weight) for weight in state.weights.values()]
    alone = []
    for _ in range(2 * num_steps):
        dist.barrier()
        began = time.perf_counter()
        state.mesh.sum_over_copies(gradients)
        alone.append(time.perf_counter() - began)
    content = {"steps": steps, "waits": waits, "alone": alone[num_steps:]}
    (Path(directory) / f"{rank.index}.json").write_text(json.dumps(content))
