"""Tiny ImageNet: 64 x 64 pictures of up to 200 ImageNet classes, in its own layout.

Below the directory: `wnids.txt` (one class a line), `words.txt` (wnid, tab, names),
`train/<wnid>/images/*.JPEG`, and all validation pictures in one folder, `val/images`, with their
classes in `val/val_annotations.txt` (name, wnid and a box, between tabs). A label is the position
of the wnid in sorted order. The test pictures have no labels and are left out.
"""

import re
from pathlib import Path

from data_prep.shards import UserError
from data_prep.sources import PictureSet, class_pictures, sorted_entries

CLASSES_FILE = "wnids.txt"
NAMES_FILE = "words.txt"
ANNOTATIONS_FILE = "val_annotations.txt"
# A genuine file of names is 2.6 MB: more is refused before it is read.
MAX_TEXT_BYTES = 16 << 20


def is_here(directory: Path) -> bool:
    """Whether the directory looks like this layout."""
    return (directory / CLASSES_FILE).is_file() and (directory / "train").is_dir()


def find(directory: Path) -> PictureSet:
    """Lists the train and val pictures with their labels.

    Raises:
        UserError: a file or folder is missing or malformed, a folder is no class of `wnids.txt`, a
            class has no folder, or a validation picture has no label.
    """
    wnids = read_classes(directory / CLASSES_FILE)
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    train = _train_pictures(directory, labels)
    val_dir = directory / "val" / "images"
    if not val_dir.is_dir():
        raise UserError(f"{val_dir}: expected the validation pictures there, found no folder")
    annotations_path = directory / "val" / ANNOTATIONS_FILE
    val_wnids = read_annotations(annotations_path)
    unknown = sorted({wnid for wnid in val_wnids.values() if wnid not in labels})
    if unknown:
        raise UserError(
            f"{annotations_path}: expected wnids of {CLASSES_FILE}, got {len(unknown)} others "
            f"(such as {unknown[0]})"
        )
    names = [name for name in sorted_entries(val_dir) if not name.startswith(".")]
    unlabelled = [name for name in names if name not in val_wnids]
    if unlabelled:
        raise UserError(
            f"{val_dir}: {len(unlabelled)} of {len(names)} validation pictures have no label "
            f"(such as {unlabelled[0]}): expected one in {annotations_path}"
        )
    val = tuple((f"val/images/{name}", labels[val_wnids[name]]) for name in names)
    notes = []
    if len(val_wnids) > len(names):
        absent = len(val_wnids) - len(names)
        notes.append(f"{absent} labelled validation pictures are not in {val_dir}")
    if (directory / "test").is_dir():
        notes.append("the test pictures have no labels and are left out")
    class_names = read_names(directory / NAMES_FILE, wnids)
    parts = {"train": train, "val": val}
    return PictureSet("tiny-imagenet", directory, wnids, class_names, parts, notes=tuple(notes))


def _train_pictures(directory: Path, labels: dict[str, int]) -> tuple[tuple[str, int], ...]:
    train_dir = directory / "train"
    if not train_dir.is_dir():
        raise UserError(f"{train_dir}: expected the training pictures there, found no folder")
    folders = [name for name in sorted_entries(train_dir) if not name.startswith(".")]
    problems = []
    unknown = [name for name in folders if name not in labels]
    if unknown:
        problems.append(f"{len(unknown)} names are no class (such as {unknown[0]})")
    missing = sorted(set(labels) - set(folders))
    if missing:
        problems.append(f"{len(missing)} classes have no folder (such as {missing[0]})")
    flat = [
        name for name in folders if name in labels and not (train_dir / name / "images").is_dir()
    ]
    if flat:
        problems.append(f"{len(flat)} classes have no folder images (such as {flat[0]})")
    if problems:
        raise UserError(
            f"{train_dir}: expected <wnid>/images for each class of {CLASSES_FILE}; got: "
            f"{'; '.join(problems)}"
        )
    pairs = ((train_dir / wnid / "images", label) for wnid, label in labels.items())
    return class_pictures(directory, pairs)


def _lines_of(path: Path, what: str) -> list[tuple[int, str]]:
    """The numbered lines of a text file that are not empty."""
    if not path.is_file():
        raise UserError(f"{path}: expected {what}, found no file")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise UserError(f"{path}: expected at most {MAX_TEXT_BYTES} bytes of text")
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected text in UTF-8, got {error.reason}") from None
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def read_classes(path: Path) -> tuple[str, ...]:
    """Reads `wnids.txt`: the wnids, sorted."""
    wnids: set[str] = set()
    for number, line in _lines_of(path, "one wnid a line"):
        wnid = line.strip()
        if not re.fullmatch(r"n\d{8}", wnid):
            raise UserError(f"{path} line {number}: expected `nXXXXXXXX`, got {line[:60]!r}")
        if wnid in wnids:
            raise UserError(f"{path} line {number}: {wnid} stands there a second time")
        wnids.add(wnid)
    if not wnids:
        raise UserError(f"{path}: expected one wnid a line, got an empty file")
    return tuple(sorted(wnids))


def read_names(path: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """Reads the classes' names from `words.txt`, which holds those of all of WordNet."""
    names: dict[str, str] = {}
    for number, line in _lines_of(path, "a wnid, a tab and its names a line"):
        wnid, tab, name = line.partition("\t")
        if not tab:
            raise UserError(f"{path} line {number}: expected `wnid<tab>names`, got {line[:60]!r}")
        names[wnid.strip()] = name.strip()
    missing = [wnid for wnid in wnids if not names.get(wnid)]
    if missing:
        raise UserError(
            f"{path}: expected a name for each class of {CLASSES_FILE}, got none for "
            f"{len(missing)} (such as {missing[0]})"
        )
    return tuple(names[wnid] for wnid in wnids)


def read_annotations(path: Path) -> dict[str, str]:
    """Reads `val_annotations.txt`: the name of a picture -> its wnid."""
    wnids: dict[str, str] = {}
    for number, line in _lines_of(path, "the classes of the validation pictures"):
        words = line.split("\t")
        if len(words) < 2 or not re.fullmatch(r"[\w.-]+", words[0]):
            raise UserError(
                f"{path} line {number}: expected `name<tab>wnid<tab>box`, got {line[:60]!r}"
            )
        if words[0] in wnids:
            raise UserError(f"{path} line {number}: {words[0]} stands there a second time")
        wnids[words[0]] = words[1].strip()
    return wnids
