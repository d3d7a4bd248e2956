"""One page that tells of runs: what was done, what came of it, and how to do it again."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from data_prep.errors import UserError
from replica import __version__, paper
from replica.recipes.differences import differences
from replica.recipes.geometry import geometry
from replica.results.plots import curves_figure
from replica.results.report_contents import Contents, Missing
from replica.results.report_html import (
    Html,
    markup,
    not_shown,
    page,
    percent,
    table,
    tag,
    vector_figure,
)
from replica.results.report_pictures import confusions, kernels, mistakes, neighbors
from replica.results.report_records import (
    best_and_last,
    curves,
    departures,
    error_rates,
    repeat,
    what_was_run,
)


def report(runs: Sequence[Contents]) -> str:
    """The whole page, as HTML."""
    first, made = runs[0], f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    if len(runs) == 1:
        title = f"Report of {_name(first)}"
        top = [*_lead(first), _navigation(_parts(first, "run1"))]
        body = _sections(_parts(first, "run1"))
    else:
        title = f"Report of {len(runs)} runs"
        top = [_links([(f"run{i}", _name(run)) for i, run in enumerate(runs, 1)])]
        body = markup(_comparison(runs), *(_article(x, f"run{i}") for i, x in enumerate(runs, 1)))
    kicker = tag("p", "AlexNet, 2012 \u00b7 training report", class_="kicker")
    footer = (
        f"Made {made} by replica {__version__} from the records and the best checkpoint of the "
        "run. This file needs nothing but itself: no network, no script."
    )
    whole = markup(
        tag("header", kicker, tag("h1", title), *top),
        tag("main", body),
        tag("footer", footer),
    )
    return page(title, whole)


def missing_parts(run: Contents) -> list[tuple[str, str]]:
    """What a report of the run cannot show, and why."""
    parts: dict[str, object] = {
        "curves": run.history,
        "checkpoint": run.checkpoint,
        "recipe": run.recipe,
    }
    parts |= {"changes by hand": run.requests}
    parts |= {"test of the best network": run.tested, "neighbors": run.nearest}
    return [(name, part.why) for name, part in parts.items() if isinstance(part, Missing)]


def _name(run: Contents) -> str:
    return run.run_dir.resolve().name or str(run.run_dir)


Part = tuple[str, str, Callable[[], Html]]


def _parts(run: Contents, name: str) -> list[Part]:
    """The sections of a run: their names in the page, titles, and what makes them."""
    return [
        (f"{name}-run", "What was run", lambda: what_was_run(run)),
        (f"{name}-curves", "Curves", lambda: curves(run, name=f"{name}-figure")),
        (f"{name}-errors", "Error rates", lambda: error_rates(run)),
        (f"{name}-kernels", "First-layer kernels", lambda: kernels(run)),
        (f"{name}-confusions", "Confusions", lambda: confusions(run)),
        (f"{name}-mistakes", "Most confident mistakes", lambda: mistakes(run)),
        (f"{name}-neighbors", "Nearest training images", lambda: neighbors(run)),
        (f"{name}-departures", "Differences from the paper", lambda: departures(run)),
        (f"{name}-repeat", "How to repeat", lambda: repeat(run)),
    ]


def _sections(parts: list[Part]) -> Html:
    return markup(
        *(tag("section", tag("h2", title), make(), id=anchor) for anchor, title, make in parts)
    )


def _links(targets: list[tuple[str, str]]) -> Html:
    return tag("nav", *(tag("a", title, href=f"#{anchor}") for anchor, title in targets))


def _navigation(parts: list[Part]) -> Html:
    return _links([(anchor, title) for anchor, title, _ in parts])


def _article(run: Contents, name: str) -> Html:
    kicker = tag("p", "Run", class_="kicker")
    parts = _parts(run, name)
    heading = tag("h1", _name(run))
    return tag(
        "article", kicker, heading, *_lead(run), _navigation(parts), _sections(parts), id=name
    )


def _lead(run: Contents) -> list[Html]:
    """What a reader wants to know first, in a sentence and in figures."""
    record, data = run.record, run.record.data
    name = record.recipe_record.get("name")
    steps = epochs = None
    if not isinstance(run.history, Missing):
        steps, epochs = run.history.steps[-1].step, run.history.steps[-1].epoch
    said = f"Recipe {name} on {data.train_images:,} images of {record.num_classes:,} classes"
    if steps is not None:
        said += f", {steps:,} steps in {epochs} epoch{'s' if epochs != 1 else ''}"
    figures: list[tuple[str, str]] = []
    if not isinstance(run.tested, Missing):
        result = run.tested.result
        views = "ten crops" if result.views == paper.TEST_VIEWS else "central crop"
        figures += [
            (percent(result.top1_error), f"top-1 error, {views}"),
            (percent(result.top5_error), f"top-5 error, {views}"),
        ]
    elif not isinstance(run.history, Missing) and (found := best_and_last(run.history.validations)):
        best, _ = found
        figures += [
            (percent(best.top1_error), "top-1 error, lowest validation"),
            (percent(best.top5_error), "top-5 error, then"),
        ]
    if not isinstance(run.recipe, Missing):
        layers = geometry(run.recipe, num_classes=record.num_classes)
        figures.append((f"{sum(x.parameters for x in layers):,}", "parameters"))
        if epochs is not None:
            figures.append((f"{epochs} of {run.recipe.epochs}", "epochs"))
    tiles = [tag("div", tag("b", number), tag("span", what)) for number, what in figures]
    return [
        tag("p", f"{said}.", class_="lead"),
        tag("div", *tiles, class_="figures") if tiles else Html(),
    ]


# --- Several runs


def _comparison(runs: Sequence[Contents]) -> Html:
    """All runs in one table and one figure."""
    rows: list[list[object]] = []
    for number, run in enumerate(runs, 1):
        found = None
        if not isinstance(run.history, Missing):
            found = best_and_last(run.history.validations)
        lowest = "\u2013" if found is None else percent(found[0].top1_error)
        tested = ("\u2013", "\u2013")
        if not isinstance(run.tested, Missing):
            result = run.tested.result
            tested = percent(result.top1_error), percent(result.top5_error)
        link = tag("a", _name(run), href=f"#run{number}")
        recipe = run.record.recipe_record.get("name")
        seed, changed = str(run.record.seed), _changed(runs[0], run)
        rows.append([link, recipe, changed, seed, lowest, *tested])
    head = ["run", "recipe", "other than the first", "seed", "lowest validation top-1"]
    head += ["test top-1", "test top-5"]
    parts = [table(list(head), rows)]
    if any(isinstance(run.history, Missing) for run in runs):
        names = ", ".join(_name(run) for run in runs if isinstance(run.history, Missing))
        parts.append(not_shown(f"Curves together: {names} has none"))
    else:
        try:
            figure = curves_figure([run.run_dir for run in runs])
            label = "Training loss, validation loss and top-1 error of all runs"
            drawn = vector_figure(figure, name="runs-figure", label=label)
            parts.append(tag("figure", drawn))
        except UserError as error:
            parts.append(not_shown(str(error)))
    return tag("section", tag("h2", "Side by side"), *parts, id="runs")


def _changed(first: Contents, run: Contents) -> str:
    if isinstance(first.recipe, Missing) or isinstance(run.recipe, Missing):
        return "not known"
    rows = differences(first.recipe, run.recipe)
    return ", ".join(f"{x.field}={x.values[1]}" for x in rows) or "\u2013"
