"""One module a data set: where its pictures and labels are."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.shards import PARTS, UserError


@dataclass(frozen=True)
class PictureSet:
    """A data set before it is decoded: files and labels, in the source's own order.

    Attributes:
        source: the name of the module that found it.
        root: the directory that the paths in `parts` are relative to.
        wnids: one identifier a class; a label is an index into it.
        class_names: one readable name a class.
        parts: `train` and `val`, each a tuple of (path, label).
        recipe: the recipe that this data set names as its default, or None.
        notes: what the user should know about what was found, one line each.
    """

    source: str
    root: Path
    wnids: tuple[str, ...]
    class_names: tuple[str, ...]
    parts: dict[str, tuple[tuple[str, int], ...]]
    recipe: str | None = None
    notes: tuple[str, ...] = field(default=())

    def classes_without_pictures(self) -> dict[str, list[str]]:
        """The wnids that have no picture, for each part."""
        empty = {}
        for part in PARTS:
            present = {label for _, label in self.parts[part]}
            empty[part] = [wnid for i, wnid in enumerate(self.wnids) if i not in present]
        return empty

    def limited(self, limit: int) -> "PictureSet":
        """The same set with at most `limit` pictures of each class in each part."""
        parts = {}
        for part, pictures in self.parts.items():
            seen = [0] * len(self.wnids)
            kept = []
            for path, label in pictures:
                seen[label] += 1
                if seen[label] <= limit:
                    kept.append((path, label))
            parts[part] = tuple(kept)
        return PictureSet(
            self.source, self.root, self.wnids, self.class_names, parts, self.recipe, self.notes
        )


def sorted_entries(directory: Path) -> list[str]:
    """The names in a directory in byte order, whatever the locale and the file system.

    Every entry counts, also one that is no picture: the builder lists what it cannot read.
    """
    return sorted(os.listdir(directory), key=os.fsencode)


def class_pictures(root: Path, folders: Iterable[tuple[Path, int]]) -> tuple[tuple[str, int], ...]:
    """The pictures of class folders, in the order of the folders, each with its label."""
    pictures: list[tuple[str, int]] = []
    for folder, label in folders:
        try:
            names = sorted_entries(folder)
        except NotADirectoryError:
            raise UserError(
                f"{folder}: expected a folder of pictures, got a file: move it away"
            ) from None
        relative = folder.relative_to(root)
        pictures.extend((str(relative / name), label) for name in names)
    return tuple(pictures)
