"""Class folders: train/<class>/* and val/<class>/*; the classes are the folders of train."""

from pathlib import Path

from data_prep.shards import PARTS, UserError
from data_prep.sources import PictureSet, class_pictures, sorted_entries


def is_here(directory: Path) -> bool:
    """Whether the directory looks like this layout."""
    return (directory / "train").is_dir()


def find(directory: Path) -> PictureSet:
    """Lists the pictures below `train` and `val`.

    Raises:
        UserError: a part is missing or holds files instead of class folders, the classes of the
            parts differ, or a class is empty.
    """
    problems = []
    classes: dict[str, list[str]] = {}
    for part in PARTS:
        if not (directory / part).is_dir():
            raise UserError(f"{directory}: expected the folder {part}/<class>/, found none")
        entries = [name for name in sorted_entries(directory / part) if not name.startswith(".")]
        loose = [name for name in entries if not (directory / part / name).is_dir()]
        if loose:
            problems.append(
                f"{part}/ holds {len(loose)} files outside of class folders (such as {loose[0]}), "
                "so they have no labels"
            )
        classes[part] = [name for name in entries if (directory / part / name).is_dir()]
    for part, other in (("train", "val"), ("val", "train")):
        missing = sorted(set(classes[other]) - set(classes[part]))
        if missing:
            problems.append(
                f"{part}/ lacks {len(missing)} classes of {other}/ (such as {missing[0]})"
            )
    for part in PARTS:
        problems.extend(
            f"{part}/{name} is empty"
            for name in classes[part]
            if not sorted_entries(directory / part / name)
        )
    if not classes["train"]:
        problems.append("train/ holds no class folder")
    if problems:
        raise UserError(
            f"{directory}: expected train/<class>/* and val/<class>/* with the same classes, "
            f"none of them empty; got: {'; '.join(problems)}"
        )
    names = tuple(classes["train"])
    parts = {
        part: class_pictures(directory, ((directory / part / n, i) for i, n in enumerate(names)))
        for part in PARTS
    }
    return PictureSet("folder", directory, names, names, parts)
