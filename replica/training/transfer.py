"""`--init`: a run begins with the weights of another network, but for layers that are drawn."""

from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import sha256_of_file
from data_prep.shards import DataSet
from replica.recipes import Recipe
from replica.training.checkpoint import check_fits_classes, check_fits_network
from replica.training.options import Say, TrainOptions, layers_in
from replica.training.run_record import Initialization
from replica.training.weights import Weights, converted, open_weights


def initialization(
    path: Path, options: TrainOptions, recipe: Recipe, num_classes: int, data: DataSet, say: Say
) -> Initialization:
    """Where the first weights come from with `--init`, which must fit but for the new layers.

    Raises:
        UserError: they do not, or the file cannot be read.
    """
    source = open_weights(path)
    checkpoint = source.checkpoint
    if checkpoint.model_file is not None:
        raise UserError(
            f"--init {path}: expected the network of a recipe, got that of a file, "
            f"{checkpoint.model_file}"
        )
    named = [] if options.new_layers is None else [options.new_layers]
    new = tuple(layers_in("--new-layers", named))
    if source.is_partial:
        lacking = source.lacking(recipe, num_classes=num_classes)
        new = (*new, *(name for name in lacking if name not in new))
    head = recipe.fully_connected[-1].name
    if options.new_head and head not in new:
        new = (*new, head)
    if head not in new:
        try:
            _check_classes(path, source, num_classes, data, say)
        except UserError as error:
            raise UserError(f"{error}, or draw the last layer anew with --new-head") from None
    unused = check_fits_network(path, checkpoint.model, recipe, num_classes=num_classes, new=new)
    averaged = "" if checkpoint.averages is None else "averaged weights; "
    drawn = averaged + (f"drawn anew: {', '.join(new)}" if new else "no layer is drawn anew")
    step = f"step {checkpoint.step} of recipe {checkpoint.recipe.name}"
    if source.title is not None:
        step = f"{source.title} (recipe {checkpoint.recipe.name})"
    say(f"init: {path}, {step}; {drawn}")
    _, changes = converted(checkpoint, recipe)
    if changes := [line for line in changes if line.split()[0] not in new]:
        say(f"init: converted: {'; '.join(changes)}")
    if unused:
        say(f"init: not used, as recipe {recipe.name} lacks them: {', '.join(unused)}")
    return Initialization(
        checkpoint=str(path.resolve()), sha256=sha256_of_file(path), new_layers=new
    )


def _check_classes(path: Path, source: Weights, num_classes: int, data: DataSet, say: Say) -> None:
    """Refuses a last layer of other classes; of other systems, only their number is known."""
    if source.title is None:
        check_fits_classes(path, source.checkpoint.wnids, data.wnids, data.directory)
    elif source.num_classes not in (None, num_classes):
        have = f"has {source.num_classes} classes, {data.directory} has {num_classes}"
        raise UserError(f"{path}: {have}: give data of the same classes with --data")
    elif source.num_classes is not None:
        say("init: the file does not name its classes: they are taken to be those of the data")
