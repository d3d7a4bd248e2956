"""Which pictures a build takes: a source's own, or some of them, divided as the user asks for."""

import argparse
from pathlib import Path

from data_prep.errors import UserError, print_line
from data_prep.plan import check_pictures
from data_prep.sources import toy
from data_prep.sources.picture_set import PictureSet
from data_prep.sources.recognize import SOURCES, only_folder, recognize
from data_prep.sources.text import text_lines
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
        tree = open_tree(arguments.input, follow_links=arguments.follow_links)
        if source in (None, "auto"):
            source, tree = recognize(tree, arguments.input)
            print_line(f"source: {source} (found at {tree.title})")
        elif not SOURCES[source].is_here(tree):
            tree = next(
                (inner for inner in only_folder(tree) if SOURCES[source].is_here(inner)), tree
            )
        found = SOURCES[source].find(tree)
    for note in found.notes:
        print_line(note)
    if arguments.classes is not None:
        wanted = Folder(arguments.classes.parent, follow_links=True)  # the user names it
        lines = text_lines(wanted, arguments.classes.name, "a wnid or a name of a class per line")
        found = found.with_classes(line.strip() for _, line in lines)
    if arguments.per_class is not None:
        found = found.cut_from_train(arguments.per_class)
    if arguments.limit is not None:
        found = found.limited(arguments.limit)
    for note in check_pictures(found, strict=arguments.strict):
        print_line(note)
    return found
