"""Which pictures a build takes: a source's own, or some of them, divided as the user asks for."""

import argparse
from pathlib import Path

from data_prep.errors import UserError, print_line
from data_prep.plan import check_pictures
from data_prep.sources import path_csv, toy
from data_prep.sources.class_tars import HALVES_SEED
from data_prep.sources.picture_set import PictureSet
from data_prep.sources.recognize import SOURCES, only_folder, recognize
from data_prep.sources.text import read_names, text_lines
from data_prep.sources.trees import Folder, open_tree

DEFAULT_TOY_INPUT = Path("toy")


def find_pictures(arguments: argparse.Namespace, *, num_workers: int) -> PictureSet:
    """Chooses the source, says which one, and lists its pictures; odd ones are refused."""
    source = arguments.source
    if source is None and arguments.input is None:
        source = "toy"
        print("source: toy, the embedded data set (no --input given)")
    if source == "toy":
        if arguments.input is None:
            print(f"input: {DEFAULT_TOY_INPUT}, where the toy set is drawn (no --input given)")
        found = toy.find(arguments.input or DEFAULT_TOY_INPUT, num_workers=num_workers)
    else:
        if arguments.input is None:
            raise UserError(f"--source {source}: expected --input PATH with the pictures, got none")
        may_be_csv = source in (None, "auto", "csv") and arguments.input.is_file()
        is_csv = may_be_csv and arguments.input.suffix.lower() == ".csv"
        directory = arguments.input.parent if is_csv else arguments.input
        tree = open_tree(directory, follow_links=arguments.follow_links)
        if is_csv:
            source = "csv"
            print_line(f"source: csv ({arguments.input})")
        elif source in (None, "auto"):
            source, tree = recognize(tree, arguments.input)
            print_line(f"source: {source} (found at {tree.title})")
        elif not SOURCES[source].is_here(tree):
            tree = next(
                (inner for inner in only_folder(tree) if SOURCES[source].is_here(inner)), tree
            )
        found = path_csv.find(tree, arguments.input.name) if is_csv else SOURCES[source].find(tree)
    if arguments.class_names is not None:
        file = arguments.class_names
        names = read_names(Folder(file.parent, follow_links=True), file.name)
        found = found.with_class_names(names, title=f"--class-names {file}")
    if arguments.classes is not None:
        wanted = Folder(arguments.classes.parent, follow_links=True)  # the user names it
        lines = text_lines(wanted, arguments.classes.name, "a wnid or a name of a class per line")
        found = found.with_classes(line.strip() for _, line in lines)
    seed = HALVES_SEED if arguments.seed is None else arguments.seed
    if isinstance(arguments.per_class, int):
        found = found.with_val_per_class(arguments.per_class, seed=seed)
    elif arguments.per_class is not None:
        found = found.cut_from_train(arguments.per_class)
    if arguments.val_fraction is not None:
        found = found.with_val_fraction(arguments.val_fraction, seed=seed)
    for note in found.notes:
        print_line(note)
    if arguments.limit is not None:
        found = found.limited(arguments.limit)
    for note in check_pictures(found, strict=arguments.strict):
        print_line(note)
    return found
