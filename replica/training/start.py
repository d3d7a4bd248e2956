"""Where a run begins: what is new about it, or what its last session left."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import sha256_of_file
from data_prep.shards import DataSet, open_data_set
from replica.recipes import EpochChange, Recipe, find_recipe, with_changes
from replica.training.checkpoint import (
    Checkpoint,
    check_fits_classes,
    check_fits_network,
    check_fits_recipe,
    checkpoints_of,
    last_whole_checkpoint,
    load_checkpoint,
)
from replica.training.control_log import hand_changes
from replica.training.options import (
    DEFAULT_DATA,
    DEFAULT_RECIPE,
    DEFAULT_SEED,
    Say,
    TrainOptions,
    layers_in,
    rates_in,
)
from replica.training.run_directory import new_run_dir, newest_run
from replica.training.run_record import Initialization, RunRecord, read_run_record


@dataclass(frozen=True, kw_only=True)
class Start:
    """What every session of a run has in common.

    Attributes:
        recipe, num_classes, seed, data_dir, run_dir, resume_from, init: as in `Run`.
        record: of the last session; None for a new run.
    """

    recipe: Recipe
    num_classes: int
    seed: int
    data_dir: Path
    run_dir: Path
    init: Initialization | None
    resume_from: Path | None = None
    record: RunRecord | None = None


def new_run(options: TrainOptions, *, say: Say) -> Start:
    """A run from the beginning: its recipe, data, directory and seed."""
    data_dir = options.data or DEFAULT_DATA
    if options.data is None:
        say(f"data: {data_dir} (no --data given)")
    data = open_data_set(data_dir)
    name = options.recipe or data.recipe or DEFAULT_RECIPE
    if options.recipe is None:
        why = f"named by the data at {data_dir}" if data.recipe else "no --recipe given"
        say(f"recipe: {name} ({why})")
    recipe = _with_rates(with_changes(find_recipe(name), list(options.changes)), options)
    check_fits_images(recipe, data)
    if data.held_out != "val":
        say(f"validation: on the {data.held_out} images (the data has no val)")
    run_dir = options.out or new_run_dir()
    if options.out is None:
        say(f"out: {run_dir} (no --out given)")
    seed = DEFAULT_SEED if options.seed is None else options.seed
    if options.seed is None:
        say(f"seed: {seed} (no --seed given)")
    num_classes = _choose_num_classes(recipe, data, say)
    if options.replay is not None:
        _check_replay(options.replay, recipe, say)
    init = None
    if options.init is not None:
        init = _initialization(options.init, options, recipe, num_classes, data, say)
    return Start(
        recipe=recipe,
        num_classes=num_classes,
        seed=seed,
        data_dir=data_dir,
        run_dir=run_dir,
        init=init,
    )


def _with_rates(recipe: Recipe, options: TrainOptions) -> Recipe:
    """The recipe with what `--freeze` and `--rate` set from its first epoch on."""
    rates = [(layer, 0.0) for layer in layers_in(options.freeze)]
    rates += rates_in(options.rate, example="fc8=0.01")
    if not rates:
        return recipe
    first = [EpochChange(1, target, rate) for target, rate in rates]
    return dataclasses.replace(recipe, changes=(*first, *recipe.changes))


def check_fits_images(recipe: Recipe, data: DataSet) -> None:
    """Refuses crops that are larger than the images.

    Raises:
        UserError: they are; both sizes are named.
    """
    if recipe.crop_size > data.image_size:
        raise UserError(
            f"{data.directory}: has images of {data.image_size} pixels, but recipe {recipe.name} "
            f"cuts crops of {recipe.crop_size}: build the shards with --size 256, or change the "
            "crop with --set crop_size=..."
        )


def _choose_num_classes(recipe: Recipe, data: DataSet, say: Say) -> int:
    """As many classes as the data has, unless the recipe fixes their number."""
    in_data = len(data.wnids)
    if recipe.num_classes is None:
        usual = recipe.fully_connected[-1].num_units
        if in_data != usual:
            say(f"classes: {in_data}, as the data has (recipe {recipe.name}: {usual})")
        return in_data
    if recipe.num_classes < in_data:
        raise UserError(
            f"num_classes {recipe.num_classes}: the data at {data.directory} has {in_data} "
            "classes: expected at least as many, or none to take the data's number"
        )
    if recipe.num_classes > in_data:
        say(f"classes: {recipe.num_classes}, as the recipe fixes (the data has {in_data})")
    return recipe.num_classes


def _check_replay(source: Path, recipe: Recipe, say: Say) -> None:
    """Refuses to replay a run that was not changed by hand, or not in what this recipe has."""
    read_run_record(source)
    changes = hand_changes(source, recipe)
    if not changes:
        raise UserError(f"--replay {source}: expected a run that was changed by hand, found none")
    say(f"replay: {len(changes)} changes by hand of {source}, from step {changes[0].step} on")


def _initialization(
    path: Path, options: TrainOptions, recipe: Recipe, num_classes: int, data: DataSet, say: Say
) -> Initialization:
    """Where the first weights come from with `--init`, which must fit but for the new layers."""
    checkpoint = load_checkpoint(path)
    new = tuple(layers_in([options.new_layers]))
    head = recipe.fully_connected[-1].name
    if options.new_head and head not in new:
        new = (*new, head)
    if head not in new:
        try:
            check_fits_classes(path, checkpoint.wnids, data.wnids, data.directory)
        except UserError as error:
            raise UserError(f"{error}, or draw the last layer anew with --new-head") from None
    unused = check_fits_network(path, checkpoint.model, recipe, num_classes=num_classes, new=new)
    drawn = f"drawn anew: {', '.join(new)}" if new else "no layer is drawn anew"
    say(f"init: {path}, step {checkpoint.step} of recipe {checkpoint.recipe.name}; {drawn}")
    if unused:
        say(f"init: not used, as recipe {recipe.name} lacks them: {', '.join(unused)}")
    return Initialization(
        checkpoint=str(path.resolve()), sha256=sha256_of_file(path), new_layers=new
    )


# --- A resumed run


def resumed_run(options: TrainOptions, *, say: Say) -> Start:
    """A run as its last session left it, which the options may only repeat."""
    run_dir = options.out or newest_run(purpose="resume")
    if options.out is None:
        say(f"out: {run_dir} (no --out given: the newest run)")
    record = read_run_record(run_dir)
    path: Path | None = None
    began: RunRecord | Checkpoint = record
    found = f"resuming {run_dir} from the beginning: it has no checkpoint yet"
    if checkpoints_of(run_dir):
        path, began, passed_over = last_whole_checkpoint(run_dir)
        for line in passed_over:
            say(f"passed over {line}")
        found = f"resuming {path} at step {began.step}, epoch {began.epoch}"
    recipe = _recipe_to_continue(options, began.recipe, path or run_dir)
    if options.seed not in (None, began.seed):
        raise UserError(
            f"--seed {options.seed}: the run in {run_dir} began with seed {began.seed}: "
            "leave the option out to continue it"
        )
    data_dir = options.data or Path(record.data.directory)
    data = open_data_set(data_dir)
    if isinstance(began, Checkpoint):
        check_fits_classes(path or run_dir, began.wnids, data.wnids, data_dir)
    if data.manifest_sha256 != record.data.manifest_sha256:
        raise UserError(
            f"{data_dir}: is not the data that the run in {run_dir} began with (the manifest "
            "differs): give that with --data"
        )
    say(found)
    init = record.initialized_from
    if path is None and init is not None and sha256_of_file(Path(init.checkpoint)) != init.sha256:
        raise UserError(f"{init.checkpoint}: is not the file that the run in {run_dir} began with")
    return Start(
        recipe=recipe,
        num_classes=began.num_classes,
        seed=began.seed,
        data_dir=data_dir,
        run_dir=run_dir,
        init=init,
        resume_from=path,
        record=record,
    )


def _recipe_to_continue(options: TrainOptions, began_with: Recipe, place: Path) -> Recipe:
    """The recipe of a resumed run, of which only the number of epochs may change."""
    is_named = options.recipe is not None
    if not (is_named or options.changes or options.freeze or options.rate):
        return began_with
    base = find_recipe(options.recipe) if options.recipe is not None else began_with
    changed = with_changes(base, list(options.changes))
    if is_named:
        changed = _with_rates(changed, options)
    elif options.freeze or options.rate:
        raise UserError(
            "--freeze and --rate: expected a new run, got --resume: change a live run with "
            "`python -m replica.control`"
        )
    check_fits_recipe(place, began_with, changed)
    return changed
