"""`labels.csv`: one line per image, for people and spreadsheets."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data_prep.errors import printable
from data_prep.files import sha256_of_file, whole_file
from data_prep.manifest import PARTS, FileEntry, Manifest
from data_prep.shards import shards_of

Row = tuple[str, str, int, str, str]  # image, wnid, index, name, part


def label_rows(manifest: Manifest, directory: Path) -> Iterator[Row]:
    """The rows, read from the shards."""
    wnids, names = manifest.plan.wnids, manifest.plan.class_names
    for part in PARTS:
        for shard in shards_of(directory, manifest, part):
            for picture, label in zip(shard.pictures(), shard.labels().tolist(), strict=True):
                yield picture, wnids[label], label, names[label], part


def write_labels(path: Path, rows: Iterable[Row]) -> FileEntry:
    """Writes the file, and returns its manifest entry."""
    with whole_file(path) as file:
        file.writelines(csv_blocks(rows))
    return FileEntry(path.name, path.stat().st_size, sha256_of_file(path))


def csv_blocks(rows: Iterable[Row], *, shown: Callable[[str], str] = printable) -> Iterator[bytes]:
    """The bytes of the file, some thousand rows at a time; `shown` makes a name one for people."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "wnid", "index", "name", "part"))
    for number, (picture, wnid, label, name, part) in enumerate(rows, start=1):
        writer.writerow((shown(picture), shown(wnid), label, shown(name), part))
        if number % 1000 == 0:
            yield text.getvalue().encode("utf-8", "surrogateescape")
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode("utf-8", "surrogateescape")
