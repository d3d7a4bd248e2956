"""From evidence to findings: what is computed, what needs the data at hand, what was trained."""

import math
from collections.abc import Callable

from replica import paper
from replica.claims import ablations, beginnings, cifar10_normalization, figure1, towers
from replica.claims.findings import (
    CONTRADICTED,
    NOT_RUN,
    REPRODUCED,
    WITHIN_NOISE,
    Evidence,
    Finding,
    equal,
    not_run,
)
from replica.claims.statistics import Difference, paired_difference
from replica.recipes import PAPER
from replica.recipes.geometry import geometry

Judge = Callable[[Evidence], list[Finding]]
# Round numbers of the paper ("60 million", "1.2 million") are right to so much.
ROUND_TOLERANCE = 0.02
TRAIN_TOLERANCE = 0.07  # of "roughly 1.2 million training images" (2)
TRAIN_IMAGES_2010, TRAIN_IMAGES_2012 = 1_261_406, 1_281_167
# Of error rates at full scale: five nets of the source, trained alike, have 40.7 to 41.1 %.
ERROR_TOLERANCE = 0.01
# What counts as the same factor (Figure 1), as the paper has one curve.
SPEED_TOLERANCE = 0.5
CIFAR10_IMAGES = 50_000  # for training


def all_of(*judges: Judge) -> Judge:
    """What several judges find."""
    return lambda evidence: [x for judge in judges for x in judge(evidence)]


def needs(what: str, expected: str, why: str, *, is_aside: bool = False) -> Judge:
    """Of what no machine at hand can run, and why."""
    return lambda _: [not_run(what, expected, why, is_aside=is_aside)]


# --- Arithmetic


def counts(_: Evidence) -> list[Finding]:
    """60 million parameters, 650,000 neurons, five and three layers (abstract)."""
    rows = geometry(PAPER)
    parameters, neurons = (sum(getattr(r, n) for r in rows) for n in ("parameters", "neurons"))
    return [
        equal("parameters", paper.CLAIMED_PARAMETERS, parameters, tolerance=ROUND_TOLERANCE),
        equal("neurons", paper.CLAIMED_NEURONS, neurons, tolerance=ROUND_TOLERANCE),
        equal("convolutional layers", 5, len(PAPER.convs)),
        equal("fully connected layers", 3, len(PAPER.fully_connected)),
    ]


def shares(_: Evidence) -> list[Finding]:
    """Each convolutional layer has at most 1 % of the parameters (1)."""
    rows = geometry(PAPER)
    total = sum(row.parameters for row in rows)
    return [
        Finding(
            what=f"share of {row.name}",
            expected=f"at most {paper.CLAIMED_CONV_SHARE:.0%} of the parameters",
            got=f"{row.parameters / total:.2%}",
            verdict=REPRODUCED
            if row.parameters <= paper.CLAIMED_CONV_SHARE * total
            else CONTRADICTED,
        )
        for row in rows[: len(PAPER.convs)]
    ]


def neurons(_: Evidence) -> list[Finding]:
    """The numbers in the caption of Figure 2."""
    rows = geometry(PAPER)
    return [
        equal("numbers of the input", paper.CLAIMED_INPUT, rows[0].num_inputs),
        *(
            equal(f"neurons of {row.name}", paper.CLAIMED_LAYER_NEURONS[row.name], row.neurons)
            for row in rows
        ),
    ]


def augmentation(_: Evidence) -> list[Finding]:
    """2048 crops and reflections of an image (4.1)."""
    places = paper.IMAGE_SIZE - paper.CROP_SIZE + 1
    return [equal("crops times reflections", paper.AUGMENTATION_FACTOR, places * places * 2)]


def normalization_constants(_: Evidence) -> list[Finding]:
    """k, n, alpha and beta of 3.3, in `paper`."""
    used = (PAPER.lrn_k, PAPER.lrn_n, PAPER.lrn_alpha, PAPER.lrn_beta)
    stated = (paper.LRN_K, paper.LRN_N, paper.LRN_ALPHA, paper.LRN_BETA)
    return [_same("k, n, alpha, beta", stated, used)]


def optimizer_constants(_: Evidence) -> list[Finding]:
    """Batch, momentum and weight decay (5)."""
    used = (PAPER.batch_size, PAPER.momentum, PAPER.weight_decay)
    stated = (paper.BATCH_SIZE, paper.MOMENTUM, paper.WEIGHT_DECAY)
    return [_same("batch, momentum, weight decay", stated, used)]


def beginning_constants(_: Evidence) -> list[Finding]:
    """First weights and biases, the rate and its drops, epochs (5)."""
    deviations = {layer.weight_standard_deviation for layer in PAPER.layers}
    ones = tuple(layer.name for layer in PAPER.layers if layer.bias == 1)
    rates = (PAPER.learning_rate, PAPER.drop_factor, PAPER.max_drops, PAPER.epochs)
    stated = (paper.LEARNING_RATE, paper.LEARNING_RATE_FACTOR, paper.NUM_DROPS, paper.NUM_EPOCHS)
    return [
        _same("standard deviation", (paper.WEIGHT_STANDARD_DEVIATION,), tuple(deviations)),
        _same("biases of one", paper.ONE_BIASES, ones),
        _same("rate, factor, drops, epochs", stated, rates),
    ]


def _same(what: str, stated: tuple[object, ...], used: tuple[object, ...]) -> Finding:
    texts = [", ".join(map(str, values)) for values in (stated, used)]
    verdict = REPRODUCED if stated == used else CONTRADICTED
    got = f"{texts[1]} in recipe paper"
    return Finding(what=what, expected=texts[0], got=got, verdict=verdict, is_aside=True)


# --- The data at hand


def images(evidence: Evidence) -> list[Finding]:
    """Images of ILSVRC (2), counted in the data at hand where that is a set of 1,000 classes."""
    train, val, test = (
        paper.CLAIMED_TRAIN_IMAGES,
        paper.CLAIMED_VAL_IMAGES,
        paper.CLAIMED_TEST_IMAGES,
    )
    expected = f"about {train:,}, {val:,} and {test:,}"
    what, data = "images for training, validation and test", evidence.data
    if data is None:
        return [not_run(what, expected, "no --data")]
    numbers = [len(data.train), len(data.val), len(data.test)]
    if len(data.wnids) != paper.NUM_CLASSES:
        why = f"the data at hand has {len(data.wnids)} classes"
        return [not_run(what, expected, f"{why} and {numbers[0]:,} training images")]
    found = [equal("training images", train, numbers[0], tolerance=TRAIN_TOLERANCE)]
    found += [equal("validation images", val, numbers[1])]
    if numbers[2]:
        found += [equal("test images", test, numbers[2])]
    return found


# --- Trained networks


def _verdict(difference: Difference) -> str:
    """Of a difference that the paper says is positive."""
    if not difference.is_apart_from_zero:
        return WITHIN_NOISE
    return REPRODUCED if difference.mean > 0 else CONTRADICTED


def _points(difference: Difference) -> str:
    runs = "1 pair" if difference.n == 1 else f"{difference.n} pairs"
    if difference.n == 1:
        return f"{difference.mean:+.2f} points, {runs}"
    interval = f"{difference.low:+.2f} to {difference.high:+.2f}"
    return f"{difference.mean:+.2f} points ({interval}), {runs}, p = {difference.p:.2g}"


def trained(*names: str) -> Judge:
    """What the ablations of these names came to, at the scale that is asked for."""

    def judge(evidence: Evidence) -> list[Finding]:
        outcomes = evidence.of(ablations.NAMES[evidence.scale])
        found = []
        for ablation in (x for x in ablations.ABLATIONS if x.name in names):
            more = "more" if ablation.paper is None else f"{ablation.paper:+g} points"
            what = f"{ablation.of} {ablation.sentence}"
            difference = ablations.difference_of(ablation, outcomes, scale=evidence.scale)
            if difference is None:
                why = f"no record of {ablations.NAMES[evidence.scale]}: needs --data"
                found.append(not_run(what, more, why))
                continue
            why = ablation.limit if evidence.scale == "small" else ""
            verdict = _verdict(difference)
            if (arm := ablations.arm_at_chance(ablation, outcomes)) is not None:
                verdict, why = NOT_RUN, f"all runs of {arm} end at chance, which is no comparison"
            found.append(
                Finding(
                    what=what,
                    expected=more,
                    got=_points(difference),
                    verdict=verdict,
                    why=why,
                    difference=difference,
                    paper=ablation.paper,
                    scale="" if verdict == NOT_RUN else evidence.scale,
                )
            )
        return found

    return judge


def network_errors(stated: tuple[float, float], *, train_images: int, why: str) -> Judge:
    """Ten-crop errors of `paper` at full scale, on the set that has so many training images."""

    def judge(evidence: Evidence) -> list[Finding]:
        outcomes = evidence.of(ablations.NAMES["full"])
        runs = [
            run.ten_crop
            for run in ablations.seeds_of(outcomes, ablations.BASE).values()
            if run.ten_crop is not None and run.train_images == train_images
        ]
        found = []
        for place, top in enumerate((1, 5)):
            what = f"top-{top} error on ten crops"
            expected = f"{stated[place]:.1%}, within {ERROR_TOLERANCE:.0%}"
            if not runs:
                found.append(not_run(what, expected, why))
                continue
            mean = sum(run[place] for run in runs) / len(runs)
            is_near = abs(mean - stated[place]) <= ERROR_TOLERANCE
            got = f"{mean:.2%}, {len(runs)} runs"
            verdict = REPRODUCED if is_near else CONTRADICTED
            found.append(
                Finding(what=what, expected=expected, got=got, verdict=verdict, scale="full")
            )
        return found

    return judge


def ten_views(evidence: Evidence) -> list[Finding]:
    """How many points fewer errors ten crops have than one (6, footnote)."""
    outcomes = evidence.of(ablations.NAMES[evidence.scale])
    found = []
    for place, top in enumerate((1, 5)):
        centers, tens = paper.ERRORS_2010_TEST_CENTER, paper.ERRORS_2010_TEST
        stated = 100 * (centers[place] - tens[place])
        what = f"top-{top} error of the central crop beyond that of ten"
        difference = ablations.ten_crop_gain(outcomes, top=top)
        if difference is None:
            found.append(not_run(what, f"{stated:+.1f} points", "no record: needs --data"))
            continue
        found.append(
            Finding(
                what=what,
                expected=f"{stated:+.1f} points",
                got=_points(difference),
                verdict=_verdict(difference),
                difference=difference,
                paper=stated,
                scale=evidence.scale,
            )
        )
    return found


def normalization_on_cifar10(evidence: Evidence) -> list[Finding]:
    """What normalization and the wider layer of the released net do on CIFAR-10 (3.3)."""
    name = cifar10_normalization.NAMES[evidence.scale]
    outcomes = evidence.of(name)
    found = []
    for one in cifar10_normalization.COMPARISONS:
        expected = "no figure" if one.paper is None else f"{one.paper:+g} points"
        worse, better = (ablations.seeds_of(outcomes, arm) for arm in (one.worse, one.better))
        seeds = sorted(worse.keys() & better.keys())
        if not seeds:
            why = f"no record of {name}: needs --data with CIFAR-10 at --size 32"
            found.append(not_run(one.what, expected, why, is_aside=one.is_aside))
            continue
        errors = [
            [100 * ablations.held_out_error(runs[seed]) for seed in seeds]
            for runs in (worse, better)
        ]
        difference = paired_difference(*errors)
        means = " against ".join(f"{sum(x) / len(x):.1f} %" for x in errors)
        found.append(
            Finding(
                what=one.what,
                expected=expected,
                got=f"{_points(difference)}; {means}",
                # The paper says nothing of an aside, so nothing contradicts it.
                verdict=WITHIN_NOISE if one.is_aside else _verdict(difference),
                is_aside=one.is_aside,
                difference=difference,
                paper=one.paper,
                scale=evidence.scale,
            )
        )
    return found


def colors_of_towers(evidence: Evidence) -> list[Finding]:
    """Whether the towers divide the kernels with color from those without (6.1, Figure 3)."""
    found = []
    for arm in towers.arms():
        is_aside = arm != towers.TOGETHER
        what, expected = f"runs whose towers divide color, {arm}", "every run"
        expected = "no figure" if is_aside else expected
        runs = towers.colors_of(evidence.of(towers.NAME), arm)
        if not runs:
            why = f"no record of {towers.NAME}: needs --data"
            found.append(not_run(what, expected, why, is_aside=is_aside))
            continue
        divided = sum(run.is_divided for run in runs)
        shown = ", ".join(f"{a:.2f} and {b:.2f}" for a, b in (run.means for run in runs))
        verdict = REPRODUCED if divided == len(runs) else WITHIN_NOISE
        found.append(
            Finding(
                what=what,
                expected=expected,
                got=f"{divided} of {len(runs)}; share of color by tower: {shown}",
                verdict=CONTRADICTED if not divided and not is_aside else verdict,
                is_aside=is_aside,
                scale="small",
            )
        )
    return found


def relu_against_tanh(evidence: Evidence) -> list[Finding]:
    """Figure 1: with ReLU six times fewer epochs to 25 % training error than with tanh."""
    what = "epochs to 25 % training error, tanh over ReLU"
    stated = paper.CLAIMED_SPEED_OF_RELU
    expected = f"{stated} times (within {SPEED_TOLERANCE:.0%})"
    found = figure1.result(evidence.of(figure1.NAME))
    if found is None:
        return [not_run(what, expected, "no record: needs --data with CIFAR-10 at --size 32")]
    n = len(found.epochs["relu"])
    bound = "at least " if found.is_bound else ""
    interval = f"{found.low:.2f} to {found.high:.2f}" if n > 1 else "no interval"
    rates = ", ".join(f"{name} {rate:g}" for name, rate in found.rates.items())
    epochs = [sum(found.epochs[name]) / n for name in ("tanh", "relu")]
    pairs = f"{n} pair{'s' if n > 1 else ''}"
    got = f"{bound}{found.factor:.2f} times ({interval}), {pairs}, p = {found.p:.2g}"
    more = f"{epochs[0]:.1f} against {epochs[1]:.1f} epochs; rates: {rates}"
    first = next(iter(found.outcomes["relu"].values()))
    more += f"; {first.train_images:,} training images"
    scale = "full" if first.train_images >= CIFAR10_IMAGES else "small"
    is_more = found.low > 1
    # Where some run never got there, the factor is larger than what is known of it.
    most = math.inf if found.is_bound else found.high
    least, largest = stated * (1 - SPEED_TOLERANCE), stated * (1 + SPEED_TOLERANCE)
    size = REPRODUCED if found.low >= least and most <= largest else WITHIN_NOISE
    if found.low > largest or most < least:
        size = CONTRADICTED
    return [
        Finding(
            what="ReLU needs fewer epochs than tanh",
            expected="more than once as many with tanh",
            got=got,
            verdict=REPRODUCED if is_more else CONTRADICTED if found.high < 1 else WITHIN_NOISE,
            why=more,
            scale=scale,
        ),
        Finding(
            what=what,
            expected=expected,
            got=got,
            verdict=size,
            why=more,
            scale=scale,
        ),
    ]


def beginning(evidence: Evidence) -> list[Finding]:
    """When each arm of `beginnings` leaves ln(classes)."""
    found = []
    for arm, runs in beginnings.by_arm(evidence.of(beginnings.NAME)).items():
        what, expected = f"epochs until the training loss leaves chance, {arm}", "no figure"
        is_aside = arm not in (beginnings.TEXT, beginnings.DROPOUT)
        if not runs:
            why = "no record of beginnings: needs --data"
            found.append(not_run(what, expected, why, is_aside=is_aside))
            continue
        epochs = [beginnings.left_after(run) for run in runs]
        shown = [
            str(x) if x else f"more than {r.trial.epochs}"
            for x, r in zip(epochs, runs, strict=True)
        ]
        errors = ", ".join(f"{ablations.held_out_error(run):.1%}" for run in runs)
        have_left = [x is not None for x in epochs]
        verdict = WITHIN_NOISE if any(have_left) else CONTRADICTED
        found.append(
            Finding(
                what=what,
                expected=expected,
                got=f"{', '.join(shown)}; held-out error {errors}",
                verdict=REPRODUCED if all(have_left) else verdict,
                is_aside=is_aside,
                scale="small",
            )
        )
    return found
