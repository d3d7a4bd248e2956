"""Named, complete descriptions of a network and its training.

A recipe says everything that makes one network and its training different from another; what the
machine decides (device, processes, precision, paths) is not in it. `--recipe NAME` chooses one,
`--set field=value` changes a field of it, and `python -m replica.recipes` lists them.
"""

import sys

# `python -m replica.recipes` imports this package before the command, which then says for itself
# what it lacks.
if sys.argv[0] != "-m":
    from replica.recipes.changes import ALIASES, with_changes
    from replica.recipes.mini import MINI, MINI64
    from replica.recipes.paper import PAPER, PAPER_CONV6
    from replica.recipes.recipe import Conv, EpochChange, FullyConnected, Recipe
    from replica.recipes.record import from_record, to_record
    from replica.recipes.registry import RECIPES, find_recipe
    from replica.recipes.source_2012 import SOURCE_2012

__all__ = [
    "ALIASES",
    "MINI",
    "MINI64",
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
