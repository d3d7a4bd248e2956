"""Folders, zip files and tar files as one kind of tree."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from data_prep.errors import UserError
from data_prep.sources.archives import compressed_tar_files, file_kind, tar_files, zip_files
from data_prep.sources.places import Place, Refused

# What desktops leave in folders, in lower letters; what begins with a dot is hidden anyway.
LEFT_BY_DESKTOPS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"}
LEADS_OUT = "is a link that leads out of the input: --follow-links reads it"


class Folder:
    """A directory on disk; messages call it by its title.

    Links below it that lead out of it, or out of the tree that it is `below`, are not followed: a
    directory is refused, a file has no place to be read at; `follow_links` follows them all.
    """

    def __init__(
        self,
        root: Path,
        title: str | None = None,
        *,
        top: Path | None = None,
        follow_links: bool = False,
    ):
        self.root, self.title = root, title or str(root)
        self._top, self._follows = (top or root).resolve(), follow_links
        self._links: dict[str, frozenset[str]] = {}  # of the directories that were looked into

    def names(self, directory: str) -> list[str]:
        """The names in a directory in byte order; none where there is no such directory.

        Raises:
            UserError: it cannot be listed, or a link on the way to it leads out.
        """
        place = self.root / directory
        if self._leads_out(place):
            raise UserError(f"{place}: {LEADS_OUT}")
        try:
            with os.scandir(place) as listing:
                entries = [(entry.name, entry.is_symlink()) for entry in listing]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"{place}: cannot be listed: {error.strerror}") from None
        self._links[directory] = frozenset(name for name, is_link in entries if is_link)
        return sorted((name for name, _ in entries), key=os.fsencode)

    def is_dir(self, path: str) -> bool:
        """Whether the path is a directory."""
        return (self.root / path).is_dir()

    def is_file(self, path: str) -> bool:
        """Whether the path is a file."""
        return (self.root / path).is_file()

    def place(self, path: str) -> Place:
        """Where the bytes of a file are."""
        directory, _, name = path.rpartition("/")
        if directory not in self._links:
            self.names(directory)
        if name in self._links.get(directory, ()) and self._leads_out(self.root / path):
            return Refused(LEADS_OUT)
        return str(self.root / path)

    def below(self, directory: str) -> "Folder":
        """The tree below one of the directories."""
        title = f"{self.title}/{directory}"
        return Folder(self.root / directory, title, top=self._top, follow_links=self._follows)

    def _leads_out(self, place: Path) -> bool:
        return not self._follows and not Path(os.path.realpath(place)).is_relative_to(self._top)


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
    """The names in a directory without hidden files, and without what desktops leave there."""
    return [
        name
        for name in tree.names(directory)
        if not name.startswith(".") and name.lower() not in LEFT_BY_DESKTOPS
    ]


def open_tree(path: Path, *, follow_links: bool = False) -> Tree:
    """The tree at a path: a directory, a zip file or a tar file; else a UserError."""
    if path.is_dir():
        return Folder(path, follow_links=follow_links)
    expected = f"{path}: expected a directory, a zip file or a tar file, found"
    if not path.exists():
        raise UserError(f"{expected} none there")
    kind = file_kind(path)
    if kind is None:
        raise UserError(f"{expected} something else")
    if follow_links:
        raise UserError(f"--follow-links: expected a directory, but {path} is a {kind} file")
    files = {"zip": zip_files, "tar": tar_files}.get(kind, compressed_tar_files)
    return Archive(str(path), dict(files(path)))
