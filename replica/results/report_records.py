"""The sections of a report that tell what the records of a run say, and what was expected."""

import math
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import median

from data_prep.errors import UserError, command_for
from replica import paper
from replica.recipes import PAPER, RECIPES
from replica.recipes.differences import NO_EVIDENCE, NOT_MEASURED, Difference, differences
from replica.recipes.expected import EXPECTED, TEST_2010, Expected
from replica.recipes.geometry import geometry
from replica.results.plots import history_figure
from replica.results.report_contents import Contents, Missing, Tested
from replica.results.report_html import (
    Html,
    bar,
    markup,
    not_shown,
    percent,
    table,
    tag,
    vector_figure,
)
from replica.results.test_result import BENCHMARKS
from replica.training.control_log import Request
from replica.training.run_directory import MetricsLine


def _definitions(rows: Iterable[tuple[str, object]]) -> Html:
    return tag("dl", *(markup(tag("dt", name), tag("dd", value)) for name, value in rows if value))


def _commands(lines: Iterable[str]) -> Html:
    return tag("pre", tag("code", *(markup(line, Html("\n")) for line in lines)))


def typed(command: Sequence[str]) -> str:
    """A command of a record as it is typed; whose Python it was is left out."""
    return shlex.join(["python", *map(str, command[1:])])


# --- What was run


def what_was_run(contents: Contents) -> Html:
    """Recipe, data, command, hardware and revision, as the run's record has them."""
    record, recipe = contents.record, contents.recipe
    data, machine, devices = record.data, record.machine, record.devices
    hardware, versions = machine["hardware"], machine["versions"]
    began = datetime.fromtimestamp(contents.begun, UTC)
    rows: list[tuple[str, object]] = []
    if isinstance(recipe, Missing):
        rows.append(("Recipe", f"{record.recipe_record.get('name')} ({recipe.why})"))
    else:
        rows.append(("Recipe", markup(tag("b", recipe.name), f": {recipe.claim}")))
        if known := RECIPES.get(recipe.name):
            changed = [f"{x.field}={x.values[1]}" for x in differences(known, recipe)]
            rows.append(("Changed fields", ", ".join(changed)))
        layers = geometry(recipe, num_classes=record.num_classes)
        parameters, macs = sum(x.parameters for x in layers), sum(x.macs for x in layers)
        towers = f"{recipe.towers} tower{'s' if recipe.towers > 1 else ''}"
        network = f"{parameters:,} parameters, {macs:,} multiply-adds per image, {towers}"
        if (own := record.model_file) is not None:
            network = f"that of a file, {own}, {record.ranks[0].parameters:,} parameters"
        rows.append(("Network", network))
    counts = f"{data.train_images:,} training, {data.val_images:,} validation"
    counts += f", {data.test_images:,} test images" if data.test_images else " images"
    numerics = record.numerics
    num = devices.num_processes
    cut = "one tower in each" if devices.split == 2 else "the whole network in each"
    where = f"{num} processes on {devices.kind}, {cut}" if num > 1 else f"1, on {devices.kind}"
    named = ", ".join(hardware.get("gpus") or ()) or hardware.get("cpu", "not known")
    rows += [
        ("Data", tag("code", data.directory)),
        ("Images", f"{counts} of {record.num_classes:,} classes"),
        ("Manifest SHA-256", tag("code", data.manifest_sha256)),
        ("First weights", _first_weights(contents)),
        ("Seed", str(record.seed)),
        ("Command", tag("code", typed(record.command))),
        ("Hardware", f"{named}, {hardware.get('cores', '?')} cores"),
        ("Processes", where),
        (
            "Numerics",
            f"{numerics.precision}, {numerics.memory_format}, compile {numerics.compile}, "
            + ("deterministic" if numerics.deterministic else "not deterministic"),
        ),
        ("Speed", _speed(contents)),
        ("Revision", tag("code", machine.get("git_revision") or "none: no checkout of git")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Begun", f"{began:%Y-%m-%d %H:%M} UTC{_sessions(contents)}"),
    ]
    parts = [_definitions(rows)]
    if isinstance(contents.requests, Missing):
        parts.append(not_shown(contents.requests.why))
    elif contents.requests:
        parts += [tag("h3", "Changes by hand"), _requests(contents.requests)]
    return markup(*parts)


def _first_weights(contents: Contents) -> str | None:
    began = contents.record.initialized_from
    if began is None:
        return None
    new = f", drawn anew: {', '.join(began.new_layers)}" if began.new_layers else ""
    return f"{began.checkpoint} (SHA-256 {began.sha256}){new}"


def _speed(contents: Contents) -> str | None:
    if isinstance(contents.history, Missing):
        return None
    speeds = [x.images_per_second for x in contents.history.steps]
    speeds = [speed for speed in speeds if math.isfinite(speed)]
    return f"{median(speeds):,.0f} images per second, the median of all steps" if speeds else None


def _sessions(contents: Contents) -> str:
    resumed = len(contents.record.earlier_sessions)
    times = "once" if resumed == 1 else f"{resumed} times"
    return f", resumed {times}" if resumed else ""


def _requests(requests: list[Request]) -> Html:
    return table(
        ["from step", "what", "why"], [[f"{x.step:,}", str(x), x.reason] for x in requests]
    )


# --- Curves and error rates


def curves(contents: Contents, *, name: str) -> Html:
    """Loss and error rates over steps."""
    if isinstance(contents.history, Missing):
        return not_shown(contents.history.why)
    try:
        figure = history_figure(contents.history)
    except UserError as error:
        return not_shown(str(error))
    label = "Training and validation loss, and validation errors, over the steps of the run"
    return tag("figure", vector_figure(figure, name=name, label=label))


def best_and_last(validations: list[MetricsLine]) -> tuple[MetricsLine, MetricsLine] | None:
    """The validations with the lowest top-1 error and at the end, where there is any."""
    finite = [x for x in validations if math.isfinite(x.top1_error)]
    return (min(finite, key=lambda x: x.top1_error), validations[-1]) if finite else None


@dataclass(frozen=True)
class _Errors:
    """A row of the table of error rates.

    Attributes:
        who, on: whose they are, and on which images.
        top1, top5: fractions; None where it was not published.
        is_own: whether they are the run's.
        more: what stands below the errors.
        is_stated: whether they are shown with the digits that they were stated with.
    """

    who: str
    top1: float
    top5: float | None
    on: str
    is_own: bool = False
    more: tuple[str, str] = ("", "")
    is_stated: bool = False

    def cells(self) -> list[object]:
        """Of the table: who, both errors, on what."""
        errors = (
            "not published"
            if error is None
            else markup(
                f"{round(100 * error, 2)}\u00a0%" if self.is_stated else percent(error),
                bar(error),
                tag("div", more, class_="sub") if more else "",
            )
            for error, more in zip((self.top1, self.top5), self.more, strict=True)
        )
        return [self.who, *errors, self.on]


def error_rates(contents: Contents) -> Html:
    """Those of the run beside chance, the paper's, the source's and the recipe's own."""
    rows, parts = [], []
    tested, recipe = contents.tested, contents.recipe
    benchmark = None
    if isinstance(tested, Missing):
        parts.append(not_shown(f"No test of the best network: {tested.why}"))
    else:
        rows.append(_of_test(tested))
        benchmark = tested.result.benchmark
        parts += _notes_of_test(tested)
    if isinstance(contents.history, Missing):
        parts.append(not_shown(f"No validations: {contents.history.why}"))
    else:
        rows += _of_validations(contents)
    classes = contents.record.num_classes
    chance = (1 - 1 / classes, max(0.0, 1 - 5 / classes))
    rows.append(_Errors("Chance", *chance, f"{classes:,} classes"))
    is_2010 = benchmark == "ILSVRC-2010"
    papers = _expected_2010() if is_2010 else EXPECTED["paper"]
    rows.append(_of_expected("The paper", papers))
    rows.append(
        _of_expected("Its source of 2012", EXPECTED["source-2010" if is_2010 else "source-2012"])
    )
    name = None if isinstance(recipe, Missing) else recipe.name
    if name in EXPECTED and name not in ("paper", "source-2012", "source-2010"):
        rows.append(_of_expected(f"Expected of {name}", EXPECTED[name]))
    if benchmark:
        parts.append(tag("p", f"{benchmark}: {BENCHMARKS[benchmark]}.", class_="note"))
    else:
        parts.append(
            tag(
                "p",
                "The figures of the paper and of its source are of ILSVRC's 1000 classes. These "
                "data are others, so they stand here for orientation and not for comparison.",
                class_="note",
            )
        )
    head = [tag("th", x, scope="col") for x in ("", "top-1 error", "top-5 error", "measured on")]
    body = []
    for row in rows:
        first, *cells = row.cells()
        line = [tag("th", first, scope="row"), *(tag("td", cell) for cell in cells)]
        body.append(tag("tr", *line, class_="own" if row.is_own else None))
    whole = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body))
    return markup(tag("div", whole, class_="wide"), *parts)


def _views(number: int) -> str:
    return {1: "central crop", paper.TEST_VIEWS: "ten crops"}.get(number, f"{number} crops")


def _of_test(tested: Tested) -> _Errors:
    result = tested.result
    more = tuple(
        f"95\u00a0% interval {percent(low)} to {percent(high)}"
        for low, high in (result.top1_interval, result.top5_interval)
    )
    return _Errors(
        f"This run, best network (step {result.step:,})",
        result.top1_error,
        result.top5_error,
        f"{result.num_images:,} {result.part} images, {_views(result.views)}",
        True,
        (more[0], more[1]),
    )


def _notes_of_test(tested: Tested) -> list[Html]:
    result, notes = tested.result, []
    if result.num_images < tested.num_held_out:
        notes.append(
            f"Tested were {result.num_images:,} of {tested.num_held_out:,} held-out images, evenly "
            "over all; --images N tests more of them, with ten crops."
        )
    if not tested.is_data_of_run:
        notes.append(
            f"The data at {result.data} are not those of the run: the SHA-256 of their manifest is "
            f"{result.manifest_sha256}."
        )
    notes.append(
        f"Expected calibration error {percent(result.calibration_error)}: so far is the "
        "probability of the first guess from the share of first guesses that are right."
    )
    return [tag("p", note, class_="note") for note in notes]


def _of_validations(contents: Contents) -> list[_Errors]:
    assert not isinstance(contents.history, Missing)
    found = best_and_last(contents.history.validations)
    if found is None:
        return []
    data = contents.record.data
    part, count = ("val", data.val_images) if data.val_images else ("test", data.test_images)
    on = f"{count:,} {part} images, central crop"
    best, last = found
    which = [(best, "lowest")] if best.step != last.step else []
    return [
        _Errors(
            f"This run, {name} validation (step {x.step:,}, epoch {x.epoch})",
            x.top1_error,
            x.top5_error,
            on,
            True,
        )
        for x, name in [*which, (last, "last")]
    ]


def _of_expected(who: str, expected: Expected) -> _Errors:
    on = f"{expected.data}, {expected.views} ({expected.evidence})"
    return _Errors(who, expected.top1_error, expected.top5_error, on, is_stated=True)


def _expected_2010() -> Expected:
    top1, top5 = paper.ERRORS_2010_TEST
    return Expected(data=TEST_2010, top1_error=top1, top5_error=top5, evidence="paper, Table 1")


# --- The paper, and how to repeat


def departures(contents: Contents) -> Html:
    """The recipe's fields that differ from the paper's."""
    recipe = contents.recipe
    if isinstance(recipe, Missing):
        return not_shown(recipe.why)
    try:
        rows = differences(PAPER, recipe)
    except UserError as error:
        return not_shown(str(error))
    data, last = contents.record.data, f"{recipe.layers[-1].name}.num_units"
    if recipe.num_classes is None:  # the data has decided
        own = str(contents.record.num_classes)
        rows = [replace(x, values=(x.values[0], own)) if x.field == last else x for x in rows]
        rows = [x for x in rows if x.values[0] != x.values[1]]
    said = [
        f"The data: {contents.record.num_classes:,} classes and {data.train_images:,} training "
        f"images; the paper: {paper.NUM_CLASSES:,} and about {paper.CLAIMED_TRAIN_IMAGES:,}.",
        "What the text leaves open is resolved in every run as the table of departures in "
        "REPRODUCE.md says.",
    ]
    notes = tag("p", " ".join(said), class_="note")
    if not rows:
        return markup(tag("p", "Every field of the recipe has the paper's value."), notes)
    return markup(_difference_table(rows), notes)


def _difference_table(rows: list[Difference]) -> Html:
    has_evidence = any(x.evidence[1] not in (NO_EVIDENCE, "-") for x in rows)
    has_effects = any(x.effect != NOT_MEASURED for x in rows)
    head = ["field", "paper", "where it stands", "this run"]
    head += ["where it stands"] * has_evidence + ["measured effect"] * has_effects
    cells: list[list[object]] = [
        [
            tag("code", *(markup(word, Html("<wbr>")) for word in re.split("(?<=[._])", x.field))),
            _rounded(x.values[0]),
            tag("span", x.evidence[0], class_="sub"),
            _rounded(x.values[1]),
            *[tag("span", x.evidence[1], class_="sub")] * has_evidence,
            *[x.effect] * has_effects,
        ]
        for x in rows
    ]
    return table(list(head), cells)


def _rounded(value: str) -> Html:
    """A value with six digits where it has more; all of them appear when one points at it."""
    try:
        short = f"{float(value):.6g}"
    except ValueError:
        short = value
    is_long = len(value) > len(short)
    return tag("span", short if is_long else value, title=value if is_long else None)


def repeat(contents: Contents) -> Html:
    """The commands that lead to the same run and the same report."""
    record, run_dir = contents.record, contents.run_dir
    revision = record.machine.get("git_revision")
    lines = []
    if revision:
        lines.append(f"git checkout {shlex.quote(revision.removesuffix('+changes'))}")
    torch_version = str(record.machine["versions"].get("torch", "")).partition("+")[0]
    lines += [
        f"make setup TORCH={shlex.quote(torch_version)}",
        f"sha256sum {shlex.quote(record.data.directory)}/manifest.json"
        f"  # {record.data.manifest_sha256}",
    ]
    commands = [x.get("command") for x in record.earlier_sessions]
    lines += [typed(x) for x in [*commands, record.command] if x]
    lines += [
        f"{command_for('replica.test')} "
        + shlex.join(["--checkpoint", str(run_dir / "best.pt"), *record.model_words, "--ten-crop"]),
        f"{command_for('replica.report')} {shlex.quote(str(run_dir))}",
    ]
    said = (
        "A run is a function of its recipe, data and seed: on the same processor, with the same "
        "versions and processes, the same losses come back."
    )
    if revision and revision.endswith("+changes"):
        said = (
            "The files of the checkout differed from the revision, so this run cannot be repeated "
            "from the revision alone."
        )
    return markup(_commands(lines), tag("p", said, class_="note"))
