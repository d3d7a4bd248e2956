"""A data set before it is decoded: pictures with their labels, and what is chosen of them."""

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

from data_prep.errors import UserError
from data_prep.manifest import PARTS
from data_prep.sources.places import Place
from data_prep.sources.trees import Tree, visible_names

WNID = re.compile(r"n\d{8}")
PICTURE_NAME = re.compile(
    r".*\.(jpe?g|jpe|jfif|png|webp|gif|tiff?|bmp|avif|heic|heif)", re.IGNORECASE
)


class Picture(NamedTuple):
    """A picture before it is decoded: its name in the data set, its label, and its bytes."""

    name: str
    label: int
    place: Place


Pictures = tuple[Picture, ...]


@dataclass(frozen=True)
class PictureSet:
    """A data set before it is decoded: pictures and labels, in the source's own order."""

    source: str  # the name of the module that found it
    title: str  # where it was found, for messages
    wnids: tuple[str, ...]  # a label is an index into them
    class_names: tuple[str, ...]
    parts: dict[str, Pictures]  # of train, val and test; one that is missing has none
    recipe: str | None = None  # that this data set names as its default
    notes: tuple[str, ...] = ()  # what the user should know, one line each

    def classes_without_pictures(self) -> dict[str, list[str]]:
        """The wnids that have no picture, for each part that has pictures at all."""
        empty = {}
        for part in filter(self.parts.get, PARTS):
            present = {picture.label for picture in self.parts[part]}
            empty[part] = [wnid for i, wnid in enumerate(self.wnids) if i not in present]
        return empty

    def limited(self, limit: int) -> "PictureSet":
        """The same set with at most `limit` pictures of each class in each part."""
        parts = {}
        for part, pictures in self.parts.items():
            count_of = {label: itertools.count() for label in range(len(self.wnids))}
            parts[part] = tuple(p for p in pictures if next(count_of[p.label]) < limit)
        return replace(self, parts=parts)

    def with_classes(self, wanted: Iterable[str], *, by: str = "--classes") -> "PictureSet":
        """Only the pictures of some classes, given by wnid or name; the labels are counted anew.

        `by` is the option that asked for them, for messages.

        Raises:
            UserError: a class is unknown, ambiguous or given twice; all of them are named.
        """
        chosen: list[int] = []
        problems = []
        for name in wanted:
            found = matching_labels(name, self.wnids, self.class_names)
            if len(found) != 1:
                problems.append(f"{name!r} is {'no class' if not found else 'several classes'}")
            elif found[0] in chosen:
                problems.append(f"{name!r} stands there a second time")
            else:
                chosen.append(found[0])
        if problems or not chosen:
            raise UserError(
                f"{by}: expected wnids or names of the {len(self.wnids)} classes of "
                f"{self.title}, one per line; got: {'; '.join(problems[:5]) or 'none'}"
            )
        chosen.sort()
        new_label = {label: i for i, label in enumerate(chosen)}
        parts = {
            part: tuple(p._replace(label=new_label[p.label]) for p in pictures if p.label in chosen)
            for part, pictures in self.parts.items()
        }
        return replace(
            self,
            wnids=tuple(self.wnids[label] for label in chosen),
            class_names=tuple(self.class_names[label] for label in chosen),
            parts=parts,
        )

    def cut_from_train(
        self, per_class: tuple[int, int, int], *, by: str = "--per-class"
    ) -> "PictureSet":
        """So many pictures of each class for train, val and test, all cut from train in order.

        `by` is the option that asked for it, for messages.

        Raises:
            UserError: a class has too few training pictures.
        """
        of_class: dict[int, list[Picture]] = {label: [] for label in range(len(self.wnids))}
        for picture in self.parts.get("train", ()):
            of_class[picture.label].append(picture)
        few = [self.wnids[i] for i, pictures in of_class.items() if len(pictures) < sum(per_class)]
        if few:
            raise UserError(
                f"{by} {','.join(map(str, per_class))}: expected {sum(per_class)} training "
                f"pictures of each class, but {len(few)} classes have fewer (such as {few[0]})"
            )
        parts, first = {}, 0
        for part, count in zip(PARTS, per_class, strict=True):
            parts[part] = tuple(p for ps in of_class.values() for p in ps[first : first + count])
            first += count
        return replace(self, parts=parts)

    def with_val_fraction(
        self, fraction: Fraction, *, seed: int, by: str = "--val-fraction"
    ) -> "PictureSet":
        """Val pictures, cut from train: of each class so large a fraction, by seed and names.

        Of n pictures of a class n * fraction, rounded, a half up; at least one, and not all; of a
        single one none. Where each class has a single picture, the set is cut as if it were one
        class. `by` is the option that asked for it, for messages.

        Raises:
            UserError: there are val pictures already, or fewer than two pictures.
        """
        train = self._train_without_val(by)

        def num_val(num_pictures: int) -> int:
            if num_pictures == 1:
                return 0
            rounded = math.floor(num_pictures * fraction + Fraction(1, 2))
            return min(max(1, rounded), num_pictures - 1)

        all_single = len({picture.label for picture in train}) == len(train)
        alike = tuple(picture._replace(label=0) for picture in train) if all_single else train
        val, _ = _first_of_classes(alike, num_val, seed=seed)
        how = f"of each class {float(fraction):g}"
        return self._with_val(val, "across classes of one picture" if all_single else how, seed)

    def with_val_per_class(
        self, number: int, *, seed: int, by: str = "--per-class"
    ) -> "PictureSet":
        """So many val pictures of each class, cut from train, by seed and names.

        `by` is the option that asked for it, for messages.

        Raises:
            UserError: there are val pictures already, or a class would keep no train picture.
        """
        train = self._train_without_val(by)
        counts = Counter(picture.label for picture in train)
        few = [wnid for label, wnid in enumerate(self.wnids) if counts[label] <= number]
        if few:
            raise UserError(
                f"{by} {number}: expected at least {number + 1} training pictures of each class, "
                f"but {len(few)} classes have fewer (such as {few[0]}): give a smaller number, "
                "or --val-fraction 0.2"
            )
        val, _ = _first_of_classes(train, lambda _: number, seed=seed)
        return self._with_val(val, f"{number} of each class", seed)

    def _train_without_val(self, by: str) -> Pictures:
        train, val = self.parts.get("train", ()), self.parts.get("val", ())
        if val or len(train) < 2:
            raise UserError(
                f"{by}: expected two train pictures or more and no val pictures in {self.title}, "
                f"found {f'{len(val)} val pictures' if val else len(train)}: leave the option out, "
                "or give other pictures"
            )
        return train

    def _with_val(self, val: Pictures, how: str, seed: int) -> "PictureSet":
        train = self.parts["train"]
        names = {picture.name for picture in val}
        parts = {
            **self.parts,
            "train": tuple(p for p in train if p.name not in names),
            "val": tuple(p for p in train if p.name in names),
        }
        note = f"val: {len(val)} of {len(train)} train pictures, {how}, by seed {seed} and names"
        return replace(self, parts=parts, notes=(*self.notes, note))

    def with_class_names(self, names: Mapping[str, str], *, title: str) -> "PictureSet":
        """The same with names for the classes, by wnid; those without one keep theirs.

        Raises:
            UserError: none of the classes has a name in `title`.
        """
        unnamed = [wnid for wnid in self.wnids if wnid not in names]
        if len(unnamed) == len(self.wnids):
            raise UserError(
                f"{title}: expected names for the classes of {self.title} (such as {unnamed[0]}), "
                "got none for any of them"
            )
        pairs = zip(self.wnids, self.class_names, strict=True)
        notes = self.notes
        if unnamed:
            notes += (f"{len(unnamed)} classes have no name in {title} (such as {unnamed[0]})",)
        named = tuple(names.get(wnid, own) for wnid, own in pairs)
        return replace(self, class_names=named, notes=notes)


def is_picture_name(name: str) -> bool:
    """Whether a file is named as a picture; what it is, its bytes say."""
    return PICTURE_NAME.fullmatch(name) is not None


def matching_labels(name: str, wnids: Iterable[str], class_names: Iterable[str]) -> list[int]:
    """The labels of the classes with this wnid, this name, or this among names between commas."""
    wanted = name.strip().lower()
    return [
        label
        for label, (wnid, names) in enumerate(zip(wnids, class_names, strict=True))
        if wanted == wnid.lower()
        or wanted in [names.lower(), *(word.strip().lower() for word in names.split(","))]
    ]


def class_pictures(tree: Tree, folders: Iterable[tuple[str, int]]) -> Pictures:
    """The pictures of class folders, in the order of the folders, each with its label.

    Every entry that is not hidden counts, also one that is no picture: the builder lists what it
    cannot read.
    """
    pictures: list[Picture] = []
    for folder, label in folders:
        if not tree.is_dir(folder):
            raise UserError(
                f"{tree.title}/{folder}: expected a folder of pictures, got a file: move it away"
            )
        pictures.extend(
            Picture(f"{folder}/{name}", label, tree.place(f"{folder}/{name}"))
            for name in visible_names(tree, folder)
        )
    return tuple(pictures)


def validation_pictures(
    tree: Tree,
    directory: str,
    wnids: Mapping[str, str],
    labels: Mapping[str, int],
    *,
    key: Callable[[str], str] = str,
    origin: str,
    classes_file: str,
    expected: str | None = None,
) -> tuple[Pictures, list[str]]:
    """The pictures of one folder whose classes stand in a list beside it.

    `wnids` is the list, by what `key` makes of a picture's name; the last three are for messages.

    Returns:
        The pictures, and a note where the list names others.
    """
    unknown = sorted({wnid for wnid in wnids.values() if wnid not in labels})
    if unknown:
        raise UserError(
            f"{origin}: expected wnids of {classes_file}, got {len(unknown)} others (such as "
            f"{unknown[0]})"
        )
    title, names = f"{tree.title}/{directory}", visible_names(tree, directory)
    unlabeled = [name for name in names if key(name) not in wnids]
    if unlabeled:
        raise UserError(
            f"{title}: {len(unlabeled)} of {len(names)} validation pictures have no label (such as "
            f"{unlabeled[0]}): expected one in {expected or origin}"
        )
    pictures = tuple(
        Picture(path, labels[wnids[key(name)]], tree.place(path))
        for name in names
        for path in [f"{directory}/{name}"]
    )
    absent = len(wnids.keys() - {key(name) for name in names})
    return pictures, [f"{absent} labeled validation pictures are not in {title}"] if absent else []


def halves(pictures: Pictures, *, seed: int) -> tuple[Pictures, Pictures]:
    """Cuts a set in two by a rule: of each class one half of its pictures, the first the larger.

    The pictures of a class are put in the order of the SHA-256 of seed and name; the halves keep
    the order that the pictures came in.
    """
    return _first_of_classes(pictures, lambda num_pictures: (num_pictures + 1) // 2, seed=seed)


def _first_of_classes(
    pictures: Pictures, num_first: Callable[[int], int], *, seed: int
) -> tuple[Pictures, Pictures]:
    """Cuts a set in two: so many of each class by the order of their digests, and the others."""
    of_class: dict[int, list[Picture]] = {}
    for picture in pictures:
        of_class.setdefault(picture.label, []).append(picture)

    def digest(picture: Picture) -> bytes:
        line = f"{seed}\0{picture.name}"
        return hashlib.sha256(line.encode("utf-8", "surrogateescape")).digest()

    first: set[Picture] = set()
    for members in of_class.values():
        first.update(sorted(members, key=digest)[: num_first(len(members))])
    return tuple(p for p in pictures if p in first), tuple(p for p in pictures if p not in first)
