"""All recipes by name."""

from data_prep.errors import UserError
from replica.recipes.cifar10_2012 import CIFAR10_NETS
from replica.recipes.earlier_projects import EARLIER_PROJECTS
from replica.recipes.mini import MINI, MINI64
from replica.recipes.other_systems import OTHER_SYSTEMS
from replica.recipes.paper import PAPER, PAPER_CONV6
from replica.recipes.recipe import Recipe
from replica.recipes.source_2012 import SOURCE_RECIPES

_ALL = (
    *(PAPER, PAPER_CONV6, *SOURCE_RECIPES, *OTHER_SYSTEMS, MINI, MINI64, *CIFAR10_NETS),
    *EARLIER_PROJECTS,
)
RECIPES = {recipe.name: recipe for recipe in _ALL}


def find_recipe(name: str, *, option: str = "--recipe") -> Recipe:
    """The recipe of this name, which was given with an option.

    Raises:
        UserError: there is none.
    """
    if name not in RECIPES:
        raise UserError(f"{option} {name}: expected one of {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
