"""One picture of many pictures with their labels, so that a person sees whether they belong."""

import os
import random
from pathlib import Path

from PIL import Image, ImageDraw

from data_prep.errors import UserError
from data_prep.manifest import PARTS
from data_prep.shards import DataSet
from data_prep.sources.picture_set import matching_labels

COLUMNS, ROWS = 8, 3  # of each part
SIDE = 128  # of a picture, in pixels
LABEL_HEIGHT = 16
LETTERS = 20  # that fit above a picture


def class_index(data: DataSet, name: str) -> int:
    """The label of the one class with this wnid, this name, or this among names between commas."""
    found = matching_labels(name, data.wnids, data.class_names)
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(
            f"--class {name}: expected a wnid or a name of the {len(data.wnids)} classes of "
            f"{data.directory}, such as {data.wnids[0]} or {data.class_names[0]}"
        )
    wnids = ", ".join(data.wnids[label] for label in found)
    raise UserError(f"--class {name}: several classes have that name: give one of {wnids}")


def draw(data: DataSet, path: Path, *, seed: int, class_name: str | None = None) -> int:
    """Writes a PNG of random pictures of each part, with their classes above them.

    A file that is there is replaced. With `class_name` only that class is drawn, as `class_index`
    finds it. Returns how many pictures are on the sheet.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--contact-sheet {path}: expected a file that ends in .png")
    if not path.parent.is_dir():
        raise UserError(f"--contact-sheet {path}: expected a file in a directory that exists")
    label = None if class_name is None else class_index(data, class_name)
    choice = random.Random(seed)
    parts = [name for name in PARTS if len(data.part(name))]
    height = LABEL_HEIGHT + ROWS * (SIDE + LABEL_HEIGHT)
    sheet = Image.new("RGB", (COLUMNS * SIDE, len(parts) * height), "white")
    pen = ImageDraw.Draw(sheet)
    drawn = 0
    for at, name in enumerate(parts):
        part = data.part(name)
        rows = [row for row in range(len(part)) if label is None or part.labels[row] == label]
        chosen = choice.sample(rows, min(len(rows), COLUMNS * ROWS))
        top = at * height
        pen.text((2, top + 2), f"{name}: {len(chosen)} of {len(rows)} pictures", fill="black")
        for place, row in enumerate(chosen):
            left = place % COLUMNS * SIDE
            upper = top + LABEL_HEIGHT + place // COLUMNS * (SIDE + LABEL_HEIGHT)
            title = data.class_names[part.labels[row]][:LETTERS]
            # The drawing library's own letters are Latin.
            pen.text((left + 2, upper + 2), title.encode("latin-1", "replace"), fill="black")
            picture = Image.fromarray(part.image(row)).resize((SIDE - 2, SIDE - 2))
            sheet.paste(picture, (left, upper + LABEL_HEIGHT))
        drawn += len(chosen)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        sheet.save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"--contact-sheet {path}: cannot be written: {error.strerror}") from None
    return drawn
