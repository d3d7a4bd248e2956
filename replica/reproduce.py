"""The paper's claims, one by one: `python -m replica.reproduce --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import json
import math
import sys
from functools import partial
from pathlib import Path

from data_prep.arguments import MOST_PROCESSES, nonempty_name, nonempty_path, number, whole_number
from data_prep.errors import OneLineParser, UserError, command_for, print_line, run_command
from data_prep.progress import write_line
from data_prep.shards import DataSet, open_data_set
from replica.claims import ablations, beginnings, cifar10_normalization, figure1, towers
from replica.claims.findings import Evidence
from replica.claims.pictures import draw_beginnings, draw_effects, draw_figure_1
from replica.claims.queue import Places, Plan, planned_images, read_outcomes, run_queue
from replica.claims.report import as_json, as_markdown, as_text, counted, listed
from replica.claims.statistics import least_detectable
from replica.claims.table import Claim, find_claims, judged
from replica.training.run_record import git_revision

RECORDS = Path("benchmarks") / "results" / "claims"
WORK = Path("runs") / "claims"
NUM_SEEDS, MOST_SEEDS = 3, 100
# What the data of an experiment must be: pixels a side, classes (None: any).
SIZES = {
    figure1.NAME: (32, 10),
    **dict.fromkeys(cifar10_normalization.NAMES.values(), (32, 10)),
    **dict.fromkeys((ablations.NAMES["small"], beginnings.NAME, towers.NAME), (64, None)),
    ablations.NAMES["full"]: (256, None),
}
FORMS = ("text", "markdown", "json")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog=command_for("replica.reproduce"),
        description="Judges claims of the paper: by arithmetic, and by trainings that are on "
        "record. With --data, runs the trainings that are missing first; it may be interrupted, "
        "and goes on.",
    )
    add = parser.add_argument
    add("claim", type=nonempty_name, metavar="CLAIM", nargs="?", default="all",
        help="a number, a name, or all (default)")  # fmt: skip
    add(
        "--list",
        action="store_true",
        help="say what the claims are and what they cost; run nothing",
    )
    add(
        "--data",
        type=nonempty_path,
        metavar="DIR",
        help="shards to train on; without, nothing runs",
    )
    add(
        "--scale",
        choices=("small", "full"),
        default="small",
        help="small: minutes a run, on pictures of 64 x 64; full: the paper's network (default: "
        "%(default)s)",
    )
    add(
        "--seeds",
        type=whole_number(1, MOST_SEEDS),
        default=NUM_SEEDS,
        metavar="N",
        help="runs of each network (default: %(default)s)",
    )
    add(
        "--minutes",
        type=number(0.1, 1e6, "minutes"),
        default=math.inf,
        metavar="M",
        help="stop after so long; the same command goes on",
    )
    add("--gpus", type=whole_number(1, MOST_PROCESSES), metavar="N", help="devices of one run")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    add(
        "--records",
        type=nonempty_path,
        default=RECORDS,
        metavar="DIR",
        help="a small file for each finished run (default: %(default)s)",
    )
    add(
        "--work",
        type=nonempty_path,
        default=WORK,
        metavar="DIR",
        help="runs under way and what they printed (default: %(default)s)",
    )
    add("--pictures", type=nonempty_path, metavar="DIR", help="draw Figure 1 and all effects there")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--markdown", action="store_true", help="print the table of REPRODUCE.md")
    return parser.parse_args(argv)


def experiments_of(claims: list[Claim], scale: str, num_seeds: int) -> dict[str, Plan]:
    """The experiments that claims need, with their plans."""
    seeds = range(1, num_seeds + 1)
    plans: dict[str, Plan] = {}
    wanted = {claim.experiment for claim in claims}
    for module in (figure1, beginnings, towers):
        if module.NAME in wanted:
            plans[module.NAME] = partial(module.plan, seeds=seeds)
    if cifar10_normalization.NAMES["small"] in wanted:
        plan = partial(cifar10_normalization.plan, scale=scale, seeds=seeds)
        plans[cifar10_normalization.NAMES[scale]] = plan
    arms = [arm for claim in claims if claim.experiment == "ablations" for arm in claim.arms]
    if "ablations" in wanted:
        plan = partial(ablations.plan, scale=scale, seeds=seeds, names=arms)
        plans[ablations.NAMES[scale]] = plan
    return plans


def fitting(plans: dict[str, Plan], data: DataSet) -> dict[str, Plan]:
    """Those of the experiments that the data is for.

    Raises:
        UserError: it is for none of them.
    """
    shape = (data.image_size, len(data.wnids))
    wanted = {name: SIZES[name] for name in plans}
    fits = {n: p for n, p in plans.items() if wanted[n] in (shape, (shape[0], None))}
    if not fits:
        rules = "; ".join(
            f"{name}: {size} pixels a side{f', {classes} classes' if classes else ''}"
            for name, (size, classes) in wanted.items()
        )
        raise UserError(
            f"--data {data.directory}: has images of {shape[0]} pixels and {shape[1]} classes; "
            f"expected {rules or 'a claim that is trained for'}"
        )
    return fits


def say_price(name: str, plan: Plan, data: DataSet, places: Places, num_seeds: int) -> None:
    """Says what is left to run, and how small a difference it could show, before it starts."""
    finished = read_outcomes(places.records, name)
    missing = [trial for trial in plan(finished) if trial.name not in finished]
    images = planned_images(missing, data)
    line = f"{name}: {len(finished)} runs on record, {len(missing)} to go, {images:,} images"
    seen = sum(x.steps / x.steps_per_epoch * x.train_images for x in finished.values())
    if seen:
        seconds = sum(x.cpu_seconds for x in finished.values()) / seen * images
        line += f", about {seconds / 60:.0f} minutes of CPU time as on record"
    write_line(line)
    if name in ablations.NAMES.values() and num_seeds > 1:
        held_out = len(data.part(data.held_out))
        # The largest that chance makes it: half of the images wrong.
        points = 100 * least_detectable(n=num_seeds, num_images=held_out, error=0.5)
        write_line(
            f"{name}: {num_seeds} pairs on {held_out:,} held-out images can tell {points:.1f} "
            "points from chance, fewer where pairs agree"
        )


def reproduce(arguments: argparse.Namespace) -> None:
    """Runs what is missing, judges, and prints."""
    claims = find_claims(arguments.claim)
    if arguments.list:
        text = {"claims": [_described(claim) for claim in claims]}
        print(json.dumps(text, indent=1) if arguments.json else listed(claims))
        return
    data = None if arguments.data is None else open_data_set(arguments.data)
    devices = ["--device", arguments.device]
    if arguments.gpus:
        devices += ["--gpus", str(arguments.gpus)]
    places = Places(records=arguments.records, work=arguments.work, devices=devices)
    if data is not None:
        plans = experiments_of(claims, arguments.scale, arguments.seeds)
        for name, plan in fitting(plans, data).items():
            say_price(name, plan, data, places, arguments.seeds)
            if not run_queue(name, plan, data=data, places=places, minutes=arguments.minutes):
                write_line(f"{name}: not finished; the same command goes on")
    outcomes = {name: read_outcomes(arguments.records, name) for name in SIZES}
    evidence = Evidence(outcomes=outcomes, data=data, scale=arguments.scale)
    verdicts = [judged(claim, evidence) for claim in claims]
    if arguments.json:
        content = {
            "revision": git_revision(),
            "scale": arguments.scale,
            "claims": as_json(verdicts),
        }
        print(json.dumps(content, indent=1, allow_nan=False))
    elif arguments.markdown:
        print(f"{as_markdown(verdicts)}\n\n{counted(verdicts)}")
    else:
        print_text(as_text(verdicts))
    if arguments.pictures is not None:
        found = figure1.result(outcomes[figure1.NAME])
        if found is not None:
            draw_figure_1(found, arguments.pictures / "figure-1.png")
            write_line(f"wrote {arguments.pictures / 'figure-1.png'}")
        runs = beginnings.by_arm(outcomes[beginnings.NAME])
        if any(runs.values()):
            draw_beginnings(runs, arguments.pictures / "beginnings.png")
            write_line(f"wrote {arguments.pictures / 'beginnings.png'}")
        if draw_effects(verdicts, arguments.pictures / "effects.png"):
            write_line(f"wrote {arguments.pictures / 'effects.png'}")


def print_text(text: str) -> None:
    """Prints lines, each as a terminal may show it."""
    for line in text.split("\n"):
        print_line(line)


def _described(claim: Claim) -> dict[str, object]:
    fields = ("number", "name", "section", "sentence", "runs", "cost")
    return {field: getattr(claim, field) for field in fields}


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(
        "replica.reproduce",
        lambda: reproduce(parse_arguments(argv)),
        when_interrupted="interrupted; the same command goes on",
    )


if __name__ == "__main__":
    sys.exit(main())
