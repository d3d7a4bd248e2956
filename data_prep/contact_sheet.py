"""One picture of many pictures with their labels, so that a person sees whether they belong."""

import functools
import itertools
import random
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from data_prep.errors import UserError
from data_prep.files import whole_file
from data_prep.manifest import PARTS
from data_prep.progress import write_line
from data_prep.shards import DataSet
from data_prep.sources.picture_set import matching_labels

COLUMNS, ROWS = 8, 3  # of each part
SIDE = 128  # of a picture, in pixels
LABEL_HEIGHT, LETTER_SIZE = 16, 11
# Where fontconfig is, it finds others for what these lack.
FONT_FILES = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf"),
    *("Arial Unicode.ttf", "arial.ttf", "NotoSansArabic-Regular.ttf"),
    *("NotoSansCJK-Regular.ttc", "PingFang.ttc", "msyh.ttc", "malgun.ttf"),
)


def class_index(data: DataSet, name: str) -> int:
    """The label of the one class with this wnid, this name, or this among names between commas.

    Raises:
        UserError: no class has the name, or several have.
    """
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


@functools.cache
def _opened(file: str) -> ImageFont.FreeTypeFont | None:
    """The font of a file, which Pillow looks for where systems keep fonts; None without it."""
    try:
        return ImageFont.truetype(file, LETTER_SIZE)
    except OSError:
        return None


def _found_by_fontconfig(text: str) -> Iterator[str]:
    """The font file that fontconfig holds to be the best for a text."""
    codes = " ".join(f"{ord(letter):x}" for letter in set(text))
    command = ("fc-match", "--format=%{file}", f":charset={codes}")
    try:
        yield subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return


def _has_letters(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Whether a font has every letter: for those that it lacks it draws what no text has."""
    missing = font.getmask("\uffff")

    def is_missing(letter: str) -> bool:
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp"):  # line ends, halves of codes
            return True
        mask = font.getmask(letter)
        return mask.size == missing.size and bytes(mask) == bytes(missing)

    return not any(is_missing(letter) for letter in set(text) - {" "})


@functools.cache
def font_for(text: str) -> ImageFont.FreeTypeFont | None:
    """A font that can draw a text, Pillow's own for ASCII; None where there is none."""
    # Raqm joins letters, and sets them from right to left.
    is_left_to_right = not {"R", "AL"} & set(map(unicodedata.bidirectional, text))
    if is_left_to_right or features.check("raqm"):
        own = ImageFont.load_default(LETTER_SIZE)
        others = map(_opened, itertools.chain(FONT_FILES, _found_by_fontconfig(text)))
        for font in itertools.chain([own], others):
            if isinstance(font, ImageFont.FreeTypeFont) and _has_letters(font, text):
                return font
    return None


def title_of(name: str, wnid: str) -> tuple[str, ImageFont.FreeTypeFont]:
    """What is written of a class, and its font: the name, else the wnid, else the name's codes."""
    codes = name.encode("unicode_escape").decode()
    found = ((text, font_for(text)) for text in (name, wnid, codes))
    return next((text, font) for text, font in found if font)


def fitted(text: str, font: ImageFont.FreeTypeFont, *, width: int) -> str:
    """A text, or its beginning and an ellipsis, in at most so many pixels."""
    whole, end = text, ""
    while text and font.getlength(text + end) > width:
        text, end = whole[: len(text) - 1], "..."
    return text + end


def draw(data: DataSet, path: Path, *, seed: int, class_name: str | None = None) -> int:
    """Writes a PNG of random pictures of each part, with their classes below them.

    A line on standard error says how many names no font can draw.

    A file that is there is replaced. With `class_name` only that class is drawn, as `class_index`
    finds it. Returns how many pictures are on the sheet.

    Raises:
        UserError: the file cannot be written, or the class is unknown.
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
    drawn, replaced = 0, set()
    for at, name in enumerate(parts):
        part = data.part(name)
        rows = [row for row in range(len(part)) if label is None or part.labels[row] == label]
        chosen = choice.sample(rows, min(len(rows), COLUMNS * ROWS))
        top = at * height
        pen.text((2, top + 2), f"{name}: {len(chosen)} of {len(rows)} pictures", fill="black")
        for place, row in enumerate(chosen):
            left = place % COLUMNS * SIDE
            upper = top + LABEL_HEIGHT + place // COLUMNS * (SIDE + LABEL_HEIGHT)
            picture = Image.fromarray(part.image(row)).resize((SIDE - 2, SIDE - 2))
            sheet.paste(picture, (left, upper))
            name = data.class_names[part.labels[row]]
            title, font = title_of(name, data.wnids[part.labels[row]])
            if title != name:
                replaced.add(name)
            middle = (left + 2, upper + SIDE + LABEL_HEIGHT // 2 - 2)
            title = fitted(title, font, width=SIDE - 6)
            pen.text(middle, title, fill="black", font=font, anchor="lm")
        drawn += len(chosen)
    with whole_file(path) as file:
        sheet.save(file, format="PNG")
    if replaced:
        write_line(
            f"{path}: no font here has the letters of {len(replaced)} class names: their wnids or "
            "codes stand there; fonts such as Noto Sans CJK have more"
        )
    return drawn
