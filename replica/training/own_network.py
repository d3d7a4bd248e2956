"""What a run needs of a user's own network, and what it cannot do with one."""

from typing import TYPE_CHECKING

from data_prep.errors import UserError
from data_prep.shards import open_data_set
from replica.network.own_network import build_own, check_own
from replica.recipes.changes import is_of_layers
from replica.training.options import Say, TrainOptions

if TYPE_CHECKING:
    from replica.training.run import Run


def check_own_network(run: "Run", options: TrainOptions, say: Say) -> None:
    """Builds a user's network and tries it on zeros, where the run has one.

    Raises:
        UserError: the network fails, or options beside it are of the layers of a recipe or of many
            devices.
    """
    model_file = run.model_file
    if model_file is None:
        return
    asked = {
        "--init": options.init,
        "--freeze": options.freeze,
        "--rate": options.rate,
        "--replay": options.replay,
        "--dry-run": options.dry_run,
        "--compile": run.numerics.compile != "off",
        "--set": any(map(is_of_layers, options.changes)),
    }
    if given := [option for option, value in asked.items() if value]:
        raise UserError(
            f"--model {model_file}: expected none of {', '.join(given)} beside it, which are of "
            "the layers of a recipe"
        )
    if run.devices.num_processes > 1:
        raise UserError(f"--model {model_file}: expected one device: give --gpus 1")
    num_train = len(open_data_set(run.data_dir).train)
    rest = num_train % min(run.recipe.batch_size, num_train)
    network = build_own(model_file, run.recipe, num_classes=run.num_classes, seed=run.seed)
    check_own(network, model_file, num_images=min(2, rest or run.recipe.batch_size))
    parameters = sum(x.numel() for x in network.parameters())
    say(
        f"model: {model_file}, {parameters:,} parameters; recipe {run.recipe.name} says all but "
        "the network"
    )
