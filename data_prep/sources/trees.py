"""Folders, zip files and tar files as one kind of tree."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from data_prep.errors import UserError
from data_prep.sources.archives import compressed_tar_files, file_kind, tar_files, zip_files
from data_prep.sources.places import Place


class Folder:
    """A directory on disk; messages call it by its title."""

    def __init__(self, root: Path, title: str | None = None):
        self.root, self.title = root, title or str(root)

    def names(self, directory: str) -> list[str]:
        """The names in a directory in byte order; none where there is no such directory."""
        try:
            return sorted(os.listdir(self.root / directory), key=os.fsencode)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            place = self.root / directory
            raise UserError(f"{place}: cannot be listed: {error.strerror}") from None

    def is_dir(self, path: str) -> bool:
        """Whether the path is a directory."""
        return (self.root / path).is_dir()

    def is_file(self, path: str) -> bool:
        """Whether the path is a file."""
        return (self.root / path).is_file()

    def place(self, path: str) -> Place:
        """Where the bytes of a file are."""
        return str(self.root / path)

    def below(self, directory: str) -> "Folder":
        """The tree below one of the directories."""
        return Folder(self.root / directory, f"{self.title}/{directory}")


class Archive:
    """The files of a tar or zip file, with the methods of `Folder`."""

    def __init__(self, title: str, files: Mapping[str, Place]):
        self.title, self._files = title, files
        self._children: dict[str, set[str]] = {"": set()}
        for path in files:
            parent, _, name = path.rpartition("/")
            while name and name not in self._children.setdefault(parent, set()):
                self._children[parent].add(name)
                parent, _, name = parent.rpartition("/")

    def names(self, directory: str) -> list[str]:
        """The names in a directory in byte order; none where there is no such directory."""
        return sorted(self._children.get(_normal(directory), ()), key=os.fsencode)

    def is_dir(self, path: str) -> bool:
        """Whether the path is a directory."""
        return _normal(path) in self._children

    def is_file(self, path: str) -> bool:
        """Whether the path is a file."""
        return _normal(path) in self._files

    def place(self, path: str) -> Place:
        """Where the bytes of a file are; a folder is refused.

        Raises:
            UserError: it is a folder, which has none.
        """
        if _normal(path) not in self._files:
            raise UserError(f"{self.title}/{path}: expected a picture, got a folder")
        return self._files[_normal(path)]

    def below(self, directory: str) -> "Archive":
        """The tree below one of the directories."""
        top = f"{directory}/"
        files = {p.removeprefix(top): at for p, at in self._files.items() if p.startswith(top)}
        return Archive(f"{self.title}/{directory}", files)


# What a source reads from, whatever it is stored in.
Tree = Folder | Archive


def _normal(path: str) -> str:
    return str(PurePosixPath(path)) if path else ""


def visible_names(tree: Tree, directory: str) -> list[str]:
    """The names in a directory that do not begin with a dot."""
    return [name for name in tree.names(directory) if not name.startswith(".")]


def open_tree(path: Path) -> Tree:
    """The tree at a path: a directory, a zip file or a tar file; else a UserError."""
    if path.is_dir():
        return Folder(path)
    expected = f"{path}: expected a directory, a zip file or a tar file, found"
    if not path.exists():
        raise UserError(f"{expected} none there")
    kind = file_kind(path)
    if kind is None:
        raise UserError(f"{expected} something else")
    files = {"zip": zip_files, "tar": tar_files}.get(kind, compressed_tar_files)
    return Archive(str(path), dict(files(path)))
