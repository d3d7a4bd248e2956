"""Named, complete descriptions of a network and its training.

A recipe says everything that makes one network and its training different from another; what the
machine decides (device, processes, precision, paths) is not in it. `--recipe NAME` chooses one,
`--set field=value` changes a field of it.
"""

from data_prep.errors import UserError
from replica.recipes.changes import ALIASES, with_changes
from replica.recipes.mini import MINI
from replica.recipes.paper import PAPER, PAPER_CONV6
from replica.recipes.recipe import Conv, EpochChange, FullyConnected, Recipe
from replica.recipes.record import from_record, to_record
from replica.recipes.source_2012 import SOURCE_2012, SOURCE_RECIPES

RECIPES = {recipe.name: recipe for recipe in (PAPER, PAPER_CONV6, *SOURCE_RECIPES, MINI)}

__all__ = [
    "ALIASES",
    "MINI",
    "PAPER",
    "PAPER_CONV6",
    "RECIPES",
    "SOURCE_2012",
    "Conv",
    "EpochChange",
    "FullyConnected",
    "Recipe",
    "find_recipe",
    "from_record",
    "to_record",
    "with_changes",
]


def find_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        UserError: there is none.
    """
    if name not in RECIPES:
        raise UserError(f"--recipe {name}: expected one of {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
