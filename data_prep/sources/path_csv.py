"""A CSV of paths and labels beside the pictures: labels.csv, or the file that --input names."""

import csv
import io
from collections.abc import Iterator

from data_prep.errors import UserError
from data_prep.manifest import PARTS
from data_prep.sources.picture_set import Picture, PictureSet
from data_prep.sources.text import read_bytes
from data_prep.sources.trees import Tree

LAYOUT = "labels.csv with the columns path, label and perhaps part (train, val or test)"
TREE = """\
labels.csv (path,label or path,label,part)
<pictures anywhere>/
  1.jpg"""
FILE = "labels.csv"
COLUMNS = ("path", "label", "part")
WHAT = "a CSV with the columns path and label"
# A line of ImageNet's would have about 60 bytes.
MAX_CSV_BYTES = 512 << 20


def is_here(tree: Tree) -> bool:
    """Whether the tree looks like this layout, by the first line of its labels.csv."""
    if not tree.is_file(FILE):
        return False
    head, _, _ = read_bytes(tree, FILE, WHAT, limit=MAX_CSV_BYTES).partition(b"\n")
    return {b"path", b"label"} <= set(head.removeprefix(b"\xef\xbb\xbf").strip().split(b","))


def find(tree: Tree, file: str = FILE) -> PictureSet:
    """Lists the pictures in the order of the lines; without a column part all are train.

    The classes are the labels, whole numbers in the order of numbers, and else of texts.

    Raises:
        UserError: the file is no such CSV, or a line of it names no picture below its folder, or
            one a second time in its part; the line is named.
    """
    title = f"{tree.title}/{file}"
    rows = list(_rows(tree, file, title))
    labels = {label for _, label, _ in rows}
    are_numbers = all(label.isascii() and label.isdecimal() for label in labels)
    wnids = tuple(sorted(labels, key=lambda x: (int(x), x)) if are_numbers else sorted(labels))
    index = {label: i for i, label in enumerate(wnids)}
    parts = {
        part: tuple(
            Picture(path, index[label], tree.place(path)) for path, label, at in rows if at == part
        )
        for part in PARTS
    }
    return PictureSet("csv", tree.title, wnids, wnids, parts)


def _rows(tree: Tree, file: str, title: str) -> Iterator[tuple[str, str, str]]:
    """The path, the label and the part of each line."""
    try:
        text = read_bytes(tree, file, WHAT, limit=MAX_CSV_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{title}: expected text in UTF-8, got {error.reason}") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    seen: set[tuple[str, str]] = set()
    try:
        header = next(lines, [])
        if any(header.count(name) != 1 for name in COLUMNS[:2]) or header.count("part") > 1:
            raise UserError(
                f"{title} line 1: expected the columns path,label or path,label,part, got "
                f"{','.join(header)[:60]!r}"
            )
        for cells in lines:
            if not cells:
                continue
            row, problem = dict(zip(header, cells, strict=False)), None
            path, label, part = row.get("path", ""), row.get("label", ""), row.get("part", "train")
            if len(cells) != len(header):
                problem = f"{len(header)} columns, got {len(cells)}"
            elif not label.strip():
                problem = "a label, got none"
            elif part not in PARTS:
                problem = f"the part train, val or test, got {part[:60]!r}"
            elif path.startswith("/") or ".." in path.split("/") or not tree.is_file(path):
                problem = f"the path of a file below {tree.title}, got {path[:60]!r}"
            elif (path, part) in seen:
                problem = f"each path once in {part}, got {path[:60]!r} a second time"
            if problem:
                raise UserError(f"{title} line {lines.line_num}: expected {problem}")
            seen.add((path, part))
            yield path, label.strip(), part
    except csv.Error as error:
        raise UserError(f"{title} line {lines.line_num}: expected {WHAT}, but {error}") from None
