"""Damaged files for one reader, drawn by Hypothesis: a whole file with a few changes.

The reader may accept a file or refuse it in its own words; anything else is a failure. It runs in
a process of its own, as a crash in a C library would end it.
"""

import faulthandler
import io
import itertools
import os
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from archives import meta_mat, picture, tar_bytes, wnid_of, zip_bytes
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.build_shards import main as build_shards
from data_prep.errors import UserError
from data_prep.pictures import EXIF_ORIENTATIONS, BadPictureError, PictureFormat, decode_picture
from data_prep.shards import open_data_set
from data_prep.sources import cifar10, kaggle, tiny_imagenet
from data_prep.sources.devkit import read_devkit
from data_prep.sources.places import Reader
from data_prep.sources.trees import Folder, open_tree
from data_prep.verification import ShardToCheck, check_shard

REFUSALS = (UserError, BadPictureError)
# Numbers at the ends of their range, as lengths and offsets.
NUMBERS = [bytes([number]) for number in (0, 1, 127, 128, 255)]
NUMBERS += [number.to_bytes(8, "little") for number in (0, 1, 2**31, 2**32 - 1, 2**63)]
# A place, how many bytes are cut out there, and what is put in.
Change = tuple[int, int, bytes]
# A whole file and what reads it.
Target = tuple[Path, Callable[[], object]]


def changes_of(whole: bytes) -> st.SearchStrategy[list[Change]]:
    """A few changes: other bytes, insertions, cuts, copies, extreme numbers."""
    places = st.integers(0, len(whole) - 1)
    copies = places.map(lambda place: whole[place : place + 100])
    pieces = st.binary(max_size=8) | st.sampled_from(NUMBERS) | copies
    cuts = st.sampled_from((1, 1, 0, 2, 4, 8, 100, 10_000))
    return st.lists(st.tuples(places, cuts, pieces), min_size=1, max_size=4)


def damaged(whole: bytes, changes: list[Change]) -> bytes:
    """The bytes with the changes."""
    content = bytearray(whole)
    for place, cut, piece in changes:
        content[place : place + cut] = piece
    return bytes(content)


def fuzz(target: str, directory: Path, seconds: float, first_seed: int) -> None:
    """Feeds damaged files to a reader; raises with the changes where it fails."""
    faulthandler.enable()
    path, read = TARGETS[target](directory)
    whole = path.read_bytes()
    outcomes: Counter[str] = Counter()

    # Processor time, and that of processes of its own: as many files on a busy machine.
    def used() -> float:
        return sum(os.times()[:4])

    def holds(changes: list[Change]) -> None:
        path.write_bytes(damaged(whole, changes))
        try:
            read()
            outcomes["accepted"] += 1
        except REFUSALS:
            outcomes["refused"] += 1

    holds([])
    assert outcomes["accepted"] or target == "devkit"
    for changes in CORPUS.get(target, ()):
        holds(changes)
    end = used() + seconds
    few = settings(
        max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    for number in itertools.count(first_seed):
        if used() >= end:
            break
        damage = given(changes_of(whole))
        seed(number)(few(damage(lambda changes: holds(changes) if used() < end else None)))()
    print(target, dict(outcomes))


def small_set(directory: Path, *options: str) -> Path:
    """A small data set of shards."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            (directory / "in" / part / name).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(directory / "in" / part / name / f"{i}.png")
    out = directory / "out"
    arguments = ["--input", str(directory / "in"), "--output", str(out), "--size", "8"]
    assert build_shards([*arguments, "--workers", "1", *options]) == 0
    return out


def shard_target(directory: Path, *options: str) -> Target:
    """A shard of a data set: refused when opened, or found by verifying."""
    out = small_set(directory, *options)
    path = out / "val-00000.h5"
    whole = path.read_bytes()
    data = open_data_set(out)
    sha256 = data.manifest.shard_files("val")[0].sha256
    task = ShardToCheck("val", 0, data.val.shards[0], sha256, data.wnids, data.class_names)

    def read() -> None:
        faults = check_shard(task).faults
        assert bool(faults) == (path.read_bytes() != whole), "a changed shard was not found"
        opened = open_data_set(out)
        for row in range(len(opened.val)):
            assert np.asarray(opened.val.image(row)).shape == (8, 8, 3)

    return path, read


def manifest_target(directory: Path) -> Target:
    """A manifest: refused, or it opens."""
    path = small_set(directory) / "manifest.json"
    return path, lambda: open_data_set(path.parent)


def statistics_target(directory: Path) -> Target:
    """The file of statistics: any change is refused."""
    path = small_set(directory) / "statistics.h5"
    whole = path.read_bytes()

    def read() -> None:
        open_data_set(path.parent)
        assert path.read_bytes() == whole

    return path, read


def written(path: Path, content: bytes, read: Callable[[], object]) -> Target:
    """A reader of a file that is written here."""
    path.write_bytes(content)
    return path, read


def xml_target(directory: Path) -> Target:
    """A validation picture's annotation."""
    text = b"<annotation><object><name>n01440764</name></object></annotation>"
    path = directory / "a.xml"
    return written(path, text, lambda: kaggle.parse_annotation(path.read_bytes(), path.name))


def csv_target(directory: Path) -> Target:
    """The file of validation labels."""
    rows = "".join(f"val_{i},{wnid_of(i)} 1 2 3 4 \r\n" for i in range(20))
    text = b"\xef\xbb\xbf" + f"ImageId,PredictionString\r\n{rows}".encode()
    path = directory / "solution.csv"
    return written(path, text, lambda: kaggle.read_solution(Folder(directory), path.name))


def text_target(directory: Path) -> Target:
    """The text files of Tiny ImageNet."""
    text = "".join(f"val_{i}.JPEG\t{wnid_of(i)}\t0\t0\t9\t9\n" for i in range(20)).encode()
    path = directory / "annotations.txt"
    return written(path, text, lambda: tiny_imagenet.read_annotations(Folder(directory), path.name))


def picture_target(
    directory: Path, format_name: str, mode: str = "RGB", decoder: str = "pillow", **options: Any
) -> Target:
    """A picture: decoded to the right shape, or a reason; the options are those of its writer."""
    rows, columns = np.mgrid[0:40, 0:50]
    channels = (5 * columns, 6 * rows, rows + columns)
    gradient = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[274] = 6
    whole = io.BytesIO()
    gradient.save(whole, format_name, exif=exif, **options)
    path = directory / "picture"

    def read() -> None:
        for orientation in EXIF_ORIENTATIONS:
            wanted = PictureFormat(32, decoder=decoder, exif_orientation=orientation)
            image = decode_picture(path.read_bytes(), wanted).image
            assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)

    return written(path, whole.getvalue(), read)


def archive_target(directory: Path, whole: bytes) -> Target:
    """An archive: refused when it is listed, or its files are read or refused."""
    path = directory / "archive"

    def read() -> None:
        reader = Reader()
        try:
            tree = open_tree(path)
            pending, refused = [""], None
            while pending:
                inner = pending.pop()
                for name in tree.names(inner):
                    below = f"{inner}/{name}".lstrip("/")
                    if tree.is_dir(below):
                        pending.append(below)
                    else:
                        try:
                            reader.read(tree.place(below), limit=1 << 20)
                        except ValueError as error:
                            refused = UserError(str(error))
            if refused:
                raise refused
        finally:
            reader.close()

    return written(path, whole, read)


def pickle_target(directory: Path) -> Target:
    """A batch of CIFAR-10."""
    content = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2], b"batch_label": b"x"}
    path = directory / "data_batch_1"
    return written(path, pickle.dumps(content, protocol=2), lambda: cifar10.find(Folder(directory)))


def devkit_target(directory: Path) -> Target:
    """The classes of the development kit."""
    path = directory / "devkit" / "data" / "meta.mat"
    path.parent.mkdir(parents=True)
    whole = meta_mat(2012, {wnid_of(i): i for i in range(1, 30)})
    return written(path, whole, lambda: read_devkit(Folder(directory), year=2012))


def weights_target(directory: Path, name: str) -> Target:
    """A few weights of another system; importing PyTorch takes as long as a hundred small files."""
    import torch
    from test_caffemodel import net

    from replica.network.other_weights import read_other_weights

    path, buffer = directory / name, io.BytesIO()
    bias = np.ones(96, np.float32)
    if path.suffix == ".caffemodel":
        buffer.write(
            net("caffenet", {"conv1.weight": np.ones((96, 3, 11, 11)), "conv1.bias": bias})
        )
    elif path.suffix == ".npz":
        np.savez(buffer, **{"conv1.bias": bias, "fc6.bias": np.ones(4096, np.float32)})
    else:
        content = {
            "features.0.weight": torch.ones(64, 3, 11, 11),
            "features.0.bias": torch.ones(64),
        }
        torch.save(content, buffer, _use_new_zipfile_serialization=path.suffix == ".pth")

    def read() -> None:
        weights = read_other_weights(path)
        if weights is None:
            raise UserError("load_checkpoint says what is wrong with it")
        assert all(tensor.dtype == torch.float32 for tensor in weights.model.values())

    return written(path, buffer.getvalue(), read)


def safetensors_target(directory: Path) -> Target:
    """A small network that was exported."""
    import torch

    from replica.network.alexnet import whole_shapes
    from replica.recipes import RECIPES, with_changes
    from replica.training.checkpoint import Checkpoint
    from replica.training.safetensors_file import read_safetensors, to_safetensors

    recipe = with_changes(RECIPES["cifar10-19pct"], [f"conv{i}.num_kernels=2" for i in (1, 2, 3)])
    shapes = whole_shapes(recipe, num_classes=2)
    checkpoint = Checkpoint(
        model={name: torch.ones(shape) for name, shape in shapes.items()},
        velocities={},
        step=1,
        epoch=1,
        val_errors=[0.5],
        best_step=None,
        recipe=recipe,
        num_classes=2,
        seed=1,
        wnids=["a", "b"],
        class_names=["a", "b"],
        mean_image=torch.zeros(32, 32, 3),
        eigenvalues=torch.zeros(3),
        eigenvectors=torch.zeros(3, 3),
    )
    path = directory / "x.safetensors"
    whole = to_safetensors(checkpoint, system=None, card="x")
    return written(path, whole, lambda: read_safetensors(path))


FILES = [("a/one.JPEG", picture((1, 2, 3))), ("b", b"x" * 700), ("a/c/d", b"")]
TARGETS: dict[str, Callable[[Path], Target]] = {
    "raw-shard": shard_target,
    "jpeg-shard": lambda directory: shard_target(directory, "--storage", "jpeg"),
    "manifest": manifest_target,
    "statistics": statistics_target,
    "xml": xml_target,
    "csv": csv_target,
    "text": text_target,
    "jpeg": lambda directory: picture_target(directory, "JPEG"),
    "cmyk": lambda directory: picture_target(directory, "JPEG", "CMYK"),
    "png": lambda directory: picture_target(directory, "PNG", "P"),
    "fast-jpeg": lambda directory: picture_target(directory, "JPEG", decoder="fast"),
    "png-16": lambda directory: picture_target(directory, "PNG", "I;16"),
    "webp": lambda directory: picture_target(directory, "WEBP"),
    "webp-lossless": lambda directory: picture_target(directory, "WEBP", "RGBA", lossless=True),
    "gif": lambda directory: picture_target(directory, "GIF", "P"),
    "bmp": lambda directory: picture_target(directory, "BMP"),
    "tiff": lambda directory: picture_target(directory, "TIFF"),
    "tiff-lzw": lambda directory: picture_target(directory, "TIFF", "P", compression="tiff_lzw"),
    "tiff-jpeg": lambda directory: picture_target(directory, "TIFF", compression="jpeg"),
    "avif": lambda directory: picture_target(directory, "AVIF"),
    "tar": lambda directory: archive_target(directory, tar_bytes(FILES)),
    "tar-gz": lambda directory: archive_target(directory, tar_bytes(FILES, mode="w:gz")),
    "zip": lambda directory: archive_target(directory, zip_bytes(FILES)),
    "pickle": pickle_target,
    "caffemodel": lambda directory: weights_target(directory, "x.caffemodel"),
    "arrays": lambda directory: weights_target(directory, "x.npz"),
    "state-dict": lambda directory: weights_target(directory, "x.pth"),
    "older-state-dict": lambda directory: weights_target(directory, "x.pt"),
    "safetensors": safetensors_target,
    "devkit": devkit_target,
}


# What found readers without one of their checks, tried first.
CORPUS: dict[str, list[list[Change]]] = {
    "manifest": [[(0, 1, b"\x80")]],  # no UTF-8
    "tar": [[(262, 1, b"")]],  # a header whose sum is wrong
    "tar-gz": [[(30, 10_000, b"")]],  # cut off
    "zip": [[(59, 1, b"\x00")]],  # no deflated data
    "pickle": [[(0, 1, b"\x02")]],  # no operation of pickle
}
