"""The texts and tables that lie beside the pictures."""

import re
from contextlib import closing

from data_prep.errors import UserError
from data_prep.sources.places import Reader
from data_prep.sources.trees import Tree

# The largest text beside the pictures; WordNet's names are 2.6 MB.
MAX_TEXT_BYTES = 64 << 20


def read_text(tree: Tree, path: str, what: str) -> str:
    """The text of a file, as `read_bytes`, in UTF-8 with or without a byte order mark.

    Raises:
        UserError: there is no such file, or it is too large or no text; `what` says what was
            expected in it.
    """
    try:
        return read_bytes(tree, path, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        title = f"{tree.title}/{path}"
        raise UserError(f"{title}: expected text in UTF-8, got {error.reason}") from None


def read_bytes(tree: Tree, path: str, what: str, *, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The bytes of a file of a tree that stands beside the pictures.

    Raises:
        UserError: there is no such file, or it is too large or cannot be read; `what` says what
            was expected in it.
    """
    title = f"{tree.title}/{path}"
    if not tree.is_file(path):
        raise UserError(f"{title}: expected {what}, found no file")
    with closing(Reader()) as reader:
        try:
            return reader.read(tree.place(path), limit=limit)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{title}: {error}: expected {what}") from None
        except OSError as error:
            raise UserError(f"{title}: cannot be read: {error.strerror}") from None


def text_lines(tree: Tree, path: str, what: str) -> list[tuple[int, str]]:
    """The numbered lines of a text file that are not empty."""
    lines = read_text(tree, path, what).splitlines()
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def read_table(tree: Tree, path: str, what: str, *, form: str, pattern: str) -> dict[str, str]:
    """What the lines of a text say: the pattern's first group -> its second.

    Raises:
        UserError: a line is not of the form, or its first group stood in an earlier one.
    """
    table: dict[str, str] = {}
    for number, line in text_lines(tree, path, what):
        title, match = f"{tree.title}/{path} line {number}", re.fullmatch(pattern, line)
        if match is None:
            raise UserError(f"{title}: expected `{form}`, got {line[:60]!r}")
        if match[1] in table:
            raise UserError(f"{title}: {match[1]} stands there a second time")
        table[match[1]] = match[2]
    return table


def read_names(tree: Tree, path: str) -> dict[str, str]:
    """Reads names of classes: `class<tab>name` a line, or `class name` where no line has a tab."""
    what, has_tab = "a class, a tab and its name per line", "\t" in read_text(tree, path, "names")
    pattern = r"\s*([^\t]*[^\t ]) *\t\s*(\S|\S.*\S)\s*" if has_tab else r"\s*(\S+) +(\S|\S.*\S)\s*"
    form = "class<tab>name" if has_tab else "class name"
    return read_table(tree, path, what, form=form, pattern=pattern)


def read_class_names(tree: Tree, path: str) -> dict[str, str]:
    """Reads a file of `wnid<tab>names` lines, such as WordNet's `words.txt`."""
    names: dict[str, str] = {}
    for number, line in text_lines(tree, path, "a wnid, a tab and its names per line"):
        wnid, tab, name = line.partition("\t")
        if not tab:
            raise UserError(
                f"{tree.title}/{path} line {number}: expected `wnid<tab>names`, got {line[:60]!r}"
            )
        names[wnid.strip()] = name.strip()
    return names
