"""The learning rate (paper 5): divided by ten when the validation error stops improving."""

from replica.recipes import Recipe


def num_drops(recipe: Recipe, *, epoch: int, val_errors: list[float]) -> int:
    """How many times the rate has been reduced before the first step of an epoch.

    Args:
        recipe: gives the rule.
        epoch: counted from 1.
        val_errors: top-1 error on the validation part after epochs 1, 2, ..., epoch - 1; only the
            rule "plateau" reads it.

    A plateau is `plateau_patience` epochs in a row without an error that is lower than the best one
    so far by `plateau_improvement`; after a drop the count begins anew.
    """
    if recipe.drop_rule == "epochs":
        return sum(drop_epoch <= epoch for drop_epoch in recipe.drop_epochs)
    drops, best, since_best = 0, float("inf"), 0
    for error in val_errors[: epoch - 1]:
        if error < best - recipe.plateau_improvement:
            best, since_best = error, 0
        else:
            since_best += 1
        if since_best == recipe.plateau_patience and drops < recipe.max_drops:
            drops, since_best = drops + 1, 0
    return drops


def learning_rate(recipe: Recipe, *, epoch: int, val_errors: list[float]) -> float:
    """The rate of an epoch; see `num_drops` for the arguments."""
    drops = num_drops(recipe, epoch=epoch, val_errors=val_errors)
    return recipe.learning_rate * recipe.drop_factor**drops
