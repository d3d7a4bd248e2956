"""The embedded data set: a small ImageNet that is drawn, a pure function of a seed and a size.

Ten classes in Kaggle's layout: JPEG files of varied sizes, shapes and modes, validation XML,
`LOC_synset_mapping.txt` and `LOC_val_solution.csv`. `kaggle.py` reads it as it reads ImageNet. Each
picture shows one object at a random place, of a random size, on a random background; classes differ
in orientation, texture, color or shape, so no single pixel says anything and a linear classifier
on raw pixels does badly.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_prep.errors import UserError
from data_prep.files import disk_errors, write_whole
from data_prep.progress import progress_bar
from data_prep.sources import kaggle
from data_prep.sources.picture_set import PictureSet
from data_prep.sources.trees import Folder
from data_prep.workers import worker_pool

RECIPE = "mini"
DESCRIPTION_FILE = "toy.json"
DRAWING_VERSION = 1

# As drawn sets have them: a name, once it is in files, stays.
CLASS_NAMES = (
    "horizontal stripes, orientation",
    "vertical stripes, orientation",
    "checkerboard, texture",
    "polka dots, texture",
    "red disk, colour",
    "green disk, colour",
    "blue disk, colour",
    "ring, shape",
    "triangle, shape",
    "cross, shape",
)
# Invented wnids: ImageNet's own begin with n0 and n1.
WNIDS = tuple(f"n900000{label:02d}" for label in range(len(CLASS_NAMES)))
DISK_COLORS = {4: (205, 40, 40), 5: (40, 170, 60), 6: (45, 70, 215)}

MIN_SIDE, MAX_SIDE = 258, 400
GRAY_FRACTION = 0.1
CMYK_FRACTION = 0.05
ROWS_AT_ONCE = 32  # whose pixels stay in a cache, and in memory that the process has already


@dataclass(frozen=True)
class ToySize:
    """What the drawing is a function of."""

    seed: int = 2012
    train_per_class: int = 150
    val_per_class: int = 50
    version: int = DRAWING_VERSION


def find(directory: Path, *, size: ToySize | None = None, num_workers: int = 1) -> PictureSet:
    """Draws the pictures where they are not there yet, and lists them."""
    size = size or ToySize()
    description, wanted = directory / DESCRIPTION_FILE, _description(size)
    if not description.exists():
        if directory.exists() and not directory.is_dir():
            raise UserError(
                f"--input {directory}: expected a directory to draw the toy set in, found a file: "
                "give another one, or no --source"
            )
        if directory.exists() and not _is_unfinished_drawing(directory):
            raise UserError(
                f"{directory}: expected an empty directory to draw the toy set in, found other "
                "files: give another one with --input"
            )
        draw(directory, size=size, num_workers=num_workers)
    elif description.read_text() != wanted:
        raise UserError(
            f"{directory}: expected a toy set drawn with {wanted.strip()}, found one with "
            f"{description.read_text().strip()}: give another directory with --input"
        )
    found = kaggle.find(Folder(directory))
    notes = (f"the toy set is drawn: {directory}", *found.notes)
    return replace(found, source="toy", recipe=RECIPE, notes=notes)


def _description(size: ToySize) -> str:
    return json.dumps(asdict(size), sort_keys=True) + "\n"


def _is_unfinished_drawing(directory: Path) -> bool:
    # A drawing starts with the mapping file and ends with the description.
    entries = set(os.listdir(directory))
    return not entries or (
        entries <= {"ILSVRC", kaggle.MAPPING_FILE, kaggle.SOLUTION_FILE}
        and kaggle.MAPPING_FILE in entries
    )


def draw(directory: Path, *, size: ToySize, num_workers: int = 1) -> None:
    """Draws all pictures and writes the files beside them; the description comes last."""
    cls_loc = directory / "ILSVRC" / "Data" / "CLS-LOC"
    xml_dir = directory / "ILSVRC" / "Annotations" / "CLS-LOC" / "val"
    directory.mkdir(parents=True, exist_ok=True)
    mapping = "".join(f"{w} {n}\n" for w, n in zip(WNIDS, CLASS_NAMES, strict=True))
    write_whole(directory / kaggle.MAPPING_FILE, mapping.encode())  # an unfinished drawing has it
    for folder in (cls_loc / "val", xml_dir, *(cls_loc / "train" / wnid for wnid in WNIDS)):
        folder.mkdir(parents=True, exist_ok=True)

    jobs = list(_jobs(size))
    work = partial(_draw_file, directory=directory, seed=size.seed)
    boxes = {}
    with (
        worker_pool(num_workers) as workers,
        progress_bar(len(jobs), " pictures drawn", seconds=10) as progress,
    ):
        for job, place in workers.each(work, jobs):
            boxes[job] = place
            progress.update()

    rows = ["ImageId,PredictionString"]
    for job in jobs:
        if job.part == "val":
            width, height, box = boxes[job]
            stem = Path(job.path).stem
            rows.append(f"{stem},{WNIDS[job.label]} {' '.join(map(str, box))} ")
            xml = _annotation(stem, WNIDS[job.label], width, height, box)
            write_whole(xml_dir / f"{stem}.xml", xml.encode())
    write_whole(directory / kaggle.SOLUTION_FILE, ("\n".join(rows) + "\n").encode())
    write_whole(directory / DESCRIPTION_FILE, _description(size).encode())


class _Job(NamedTuple):
    part: str
    label: int
    number: int  # in its part and class
    path: str


def _jobs(size: ToySize) -> Iterator[_Job]:
    base = "ILSVRC/Data/CLS-LOC"
    for label, wnid in enumerate(WNIDS):
        for i in range(size.train_per_class):
            yield _Job("train", label, i, f"{base}/train/{wnid}/{wnid}_{i}.JPEG")
    # The validation pictures are numbered through in an order that hides the class.
    num_val = size.val_per_class * len(WNIDS)
    order = np.random.default_rng([size.seed, 2]).permutation(num_val)
    for number, i in enumerate(order, start=1):
        label, index = divmod(int(i), size.val_per_class)
        yield _Job("val", label, index, f"{base}/val/ILSVRC2012_val_{number:08d}.JPEG")


Box = tuple[int, int, int, int]


def _draw_file(job: _Job, *, directory: Path, seed: int) -> tuple[_Job, tuple[int, int, Box]]:
    rng = np.random.default_rng([seed, ("train", "val").index(job.part), job.label, job.number])
    picture, box = draw_picture(rng, label=job.label)
    quality = int(rng.integers(75, 96))
    with disk_errors(directory / job.path, 0):
        picture.save(directory / job.path, "JPEG", quality=quality)
    return job, (picture.width, picture.height, box)


def draw_picture(rng: np.random.Generator, *, label: int) -> tuple[Image.Image, Box]:
    """Draws one picture of a class, with its object's box as in ImageNet's annotations.

    The box is left, top, right, bottom in pixels, counted from 1.
    """
    width, height = (int(side) for side in rng.integers(MIN_SIDE, MAX_SIDE + 1, 2))
    shorter = min(width, height)
    radius = float(rng.uniform(0.26, 0.38)) * shorter
    # The object lies inside the central square, which is what the shards keep.
    reach = shorter / 2 - radius
    center_x = width / 2 + float(rng.uniform(-reach, reach))
    center_y = height / 2 + float(rng.uniform(-reach, reach))
    rows, columns = (np.arange(side, dtype=np.float32) for side in (height, width))

    background = _Background.drawn(rng, rows / height, columns / width)
    color = np.array(DISK_COLORS.get(label) or rng.uniform(0, 255, 3))
    color = color + rng.uniform(-25, 25, 3)
    other = _contrasting(rng, color)
    # Of the pixels that the object may reach.
    down, right = (_near(center, radius) for center in (center_y, center_x))
    x, y = (columns[right] - center_x) / radius, (rows[down] - center_y) / radius
    mask, second = _object_masks(rng, label, x, y[:, None])
    deviation = float(rng.uniform(3, 14))
    image = np.empty((height, width, 3), np.uint8)
    some_rows, noise = np.empty((2, ROWS_AT_ONCE, width, 3))
    for first in range(0, height, ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, height)
        pixels = some_rows[: last - first]
        background.fill(pixels, first)
        top, bottom = max(first, down.start), min(last, down.stop)
        if top < bottom:
            of_object = slice(top - down.start, bottom - down.start)
            part = pixels[top - first : bottom - first, right]
            for value, where in ((color, mask), (other, mask & second)):
                for channel in range(3):
                    np.copyto(part[..., channel], value[channel], where=where[of_object])
        of_rows = noise[: last - first]
        rng.standard_normal(out=of_rows)
        of_rows *= deviation
        pixels += of_rows
        image[first:last] = np.clip(pixels, 0, 255, out=pixels)
    picture = Image.fromarray(image)

    mode = rng.uniform()
    if mode < GRAY_FRACTION and label not in DISK_COLORS:
        picture = picture.convert("L")
    elif mode > 1 - CMYK_FRACTION:
        picture = picture.convert("CMYK")
    box = (
        max(1, round(center_x - radius)),
        max(1, round(center_y - radius)),
        min(width, round(center_x + radius)),
        min(height, round(center_y + radius)),
    )
    return picture, box


def _near(center: float, radius: float) -> slice:
    return slice(max(0, int(center - radius) - 1), int(center + radius) + 2)


class _Background(NamedTuple):
    """Two random colors, blended along waves of a random direction."""

    first: np.ndarray  # the colors
    second: np.ndarray
    # A wave is sin(a + b), of which a is a column's and b a row's: a product of thin matrices.
    waves: list[tuple[np.ndarray, np.ndarray]]

    @classmethod
    def drawn(cls, rng: np.random.Generator, v: np.ndarray, u: np.ndarray) -> "_Background":
        """Of the places of rows, v, and of columns, u: 0..1."""
        first, second = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
        waves = []
        for _ in range(3):
            angle, phase = rng.uniform(0, 2 * np.pi, 2)
            turns = 2 * np.pi * rng.uniform(0.5, 3.0)
            a, b = turns * (u * np.cos(angle)), turns * (v * np.sin(angle)) + phase
            thin = np.stack([np.cos(b), np.sin(b)], axis=1), np.stack([np.sin(a), np.cos(a)])
            waves.append(thin)
        return cls(first, second, waves)

    def fill(self, pixels: np.ndarray, first: int) -> None:
        """Writes rows from the first on: float64 (rows, W, 3)."""
        rows = slice(first, first + len(pixels))
        wave = np.zeros(pixels.shape[:2], np.float32)
        for of_rows, of_columns in self.waves:
            wave += of_rows[rows] @ of_columns
        blend = 0.5 + wave / 6
        shares = (1 - blend).astype(np.float64), blend.astype(np.float64)
        for channel in range(3):  # of whole rows, as NumPy is slow at threes
            parts = shares[0] * self.first[channel], shares[1] * self.second[channel]
            np.add(*parts, out=pixels[..., channel])


def _contrasting(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """A random color that is clearly lighter or darker, so that gray copies keep the pattern."""
    luma = np.array((0.299, 0.587, 0.114))
    while True:
        other = rng.uniform(0, 255, 3)
        if abs((other - color) @ luma) > 70:
            return other


def _object_masks(
    rng: np.random.Generator, label: int, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the object is, and where in it the second color is: bool (H, W).

    x (W,) and y (H, 1) are in radii.
    """
    inside = x * x + y * y < 1
    nowhere = np.zeros_like(inside)
    period, phase = float(rng.uniform(0.4, 0.75)), float(rng.uniform(0, 1))
    u, v = x / period + phase, y / period + phase
    match label:
        case 0:
            return inside, v % 1 < 0.5
        case 1:
            return inside, u % 1 < 0.5
        case 2:
            return inside, (u % 1 < 0.5) ^ (v % 1 < 0.5)
        case 3:
            return inside, (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.09
        case 7:
            thickness = float(rng.uniform(0.25, 0.4))
            return inside & (x * x + y * y > (1 - thickness) ** 2), nowhere
        case 8:
            return (y < 0.7) & (y > -1 + 1.75 * np.abs(x)), nowhere
        case 9:
            thickness = float(rng.uniform(0.2, 0.3))
            return inside & (np.minimum(np.abs(x), np.abs(y)) < thickness), nowhere
        case _:
            return inside, nowhere


def _annotation(stem: str, wnid: str, width: int, height: int, box: Box) -> str:
    left, top, right, bottom = box
    return (
        f"<annotation>\n\t<folder>val</folder>\n\t<filename>{stem}</filename>\n"
        "\t<source>\n\t\t<database>toy</database>\n\t</source>\n"
        f"\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n"
        "\t\t<depth>3</depth>\n\t</size>\n\t<segmented>0</segmented>\n"
        f"\t<object>\n\t\t<name>{wnid}</name>\n\t\t<bndbox>\n\t\t\t<xmin>{left}</xmin>\n"
        f"\t\t\t<ymin>{top}</ymin>\n\t\t\t<xmax>{right}</xmax>\n\t\t\t<ymax>{bottom}</ymax>\n"
        "\t\t</bndbox>\n\t</object>\n</annotation>\n"
    )
