"""What is trained of the experiments of earlier projects: their narrow recipes, as trials."""

from collections.abc import Mapping
from pathlib import Path

from replica import paper
from replica.claims.trials import Outcome, Trial, seed_by_seed
from replica.recipes import PAPER, find_recipe, with_changes
from replica.recipes.earlier_projects import NARROW, TINY_VARIANTS
from replica.recipes.recipe import layer_names, shown

SEEDS = (1, 2, 3)
TWO_SEEDS = SEEDS[:2]

ONE_GPU, VARIANTS = "one-gpu", "variants"
OPTIMIZERS, EPOCHS = "optimizers", "epochs"
CIFAR10, NINETY = "cifar10", "ninety"
SCRATCH, NEW_HEAD = "scratch", "new-head"
CIFAR10_EPOCHS = 10
FEW_EPOCHS = (50, 100)
# The rate is the grid's best for the first two; Adam's steps do not shrink with the gradient.
OPTIMIZER_ARMS = {
    "paper": (),
    "sgd": ("optimizer=sgd",),
    "adam": ("optimizer=adam",),
    "adam-slow": ("optimizer=adam", "learning_rate=0.0001"),
}
# At its own rate, seed 1 of mini64 stays at chance on ten classes.
NINETY_ARMS = {
    "paper-narrow": (),
    "paper-narrow-slow": ("learning_rate=0.001", f"drop_epochs={shown(PAPER.drop_epochs)}"),
}


def one_gpu(finished: Mapping[str, Outcome]) -> list[Trial]:
    """The first project: the same network from two seeds, to be averaged."""
    recipe = find_recipe(f"imagenet-one-gpu{NARROW}")
    return seed_by_seed(ONE_GPU, recipe, {"network": ()}, seeds=TWO_SEEDS)


def variants(finished: Mapping[str, Outcome]) -> list[Trial]:
    """The third project: the eight variants, each from every seed."""
    narrow = [recipe for recipe in TINY_VARIANTS if recipe.name.endswith(NARROW)]
    return [
        trial
        for seed in SEEDS
        for recipe in narrow
        for trial in seed_by_seed(
            VARIANTS,
            recipe,
            {recipe.name.removeprefix("tiny-").removesuffix(NARROW): ()},
            seeds=[seed],
        )
    ]


def optimizers(finished: Mapping[str, Outcome]) -> list[Trial]:
    """The second project: the paper's update, PyTorch's SGD, and Adam at two rates."""
    recipe = find_recipe(f"tiny10{NARROW}")
    return seed_by_seed(OPTIMIZERS, recipe, OPTIMIZER_ARMS, seeds=SEEDS)


def epochs(finished: Mapping[str, Outcome]) -> list[Trial]:
    """The second project: 50 epochs against 100."""
    return [
        trial
        for number in FEW_EPOCHS
        for trial in seed_by_seed(
            EPOCHS,
            with_changes(find_recipe(f"tiny10{NARROW}"), [f"epochs={number}"]),
            {f"epochs-{number}": ()},
            seeds=TWO_SEEDS,
        )
    ]


def cifar10(finished: Mapping[str, Outcome], *, work: Path) -> list[Trial]:
    """The fifth project: from scratch; then, from the best of that, the last layer alone."""
    changes = (f"epochs={CIFAR10_EPOCHS}", f"drop_epochs={CIFAR10_EPOCHS - 1}")
    recipe = with_changes(find_recipe(f"cifar10-transfer{NARROW}"), list(changes))
    scratch = seed_by_seed(CIFAR10, recipe, {SCRATCH: changes[1:]}, seeds=SEEDS)
    frozen = ",".join(layer_names(recipe)[:-1])
    return scratch + [
        Trial(
            experiment=CIFAR10,
            arm=NEW_HEAD,
            recipe=recipe.name,
            changes=changes[1:],
            seed=trial.seed,
            epochs=recipe.epochs,
            further=(
                *("--init", str(work / CIFAR10 / trial.name / "best.pt")),
                *("--new-head", "--freeze", frozen),
            ),
        )
        for trial in scratch
        if trial.name in finished
    ]


def ninety(finished: Mapping[str, Outcome]) -> list[Trial]:
    """The fourth project: ninety epochs of the paper's own layers, narrow, by hand-made drops."""
    recipe = with_changes(find_recipe("mini64"), [f"epochs={paper.NUM_EPOCHS}"])
    return seed_by_seed(NINETY, recipe, NINETY_ARMS, seeds=SEEDS[:1])
