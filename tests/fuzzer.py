"""Feeds damaged input to one reader for some seconds: `python tests/fuzzer.py TARGET SECONDS SEED`.

Every input is a whole one with a few changes. The reader may accept it or refuse it in its own
words; anything else (another exception, a crash, more than a minute) is a failure, and the input
is left in a file. A process of its own, as a crash in a C library would end it.
"""

import faulthandler
import io
import pickle
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
sys.path.insert(1, str(Path(__file__).resolve().parent))

import numpy as np
from archives import (
    meta_mat,
    picture,
    tar_bytes,
    wnid_of,
    zip_bytes,
)
from PIL import Image

from data_prep.build_shards import main as build_shards
from data_prep.errors import UserError
from data_prep.pictures import BadPictureError, PictureFormat, decode_picture
from data_prep.shards import open_data_set
from data_prep.sources import cifar10, kaggle, tiny_imagenet
from data_prep.sources.devkit import read_devkit
from data_prep.sources.places import Reader
from data_prep.sources.trees import Folder, open_tree
from data_prep.verification import ShardToCheck, check_shard

SECONDS_AN_INPUT = 60
INTERESTING = (0, 1, 127, 128, 255)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few changes: flips, insertions, cuts, copies, repeated words."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not content:
            break
        at = rng.randrange(len(content))
        what = rng.randrange(8)
        if what <= 2:
            content[at] ^= 1 << rng.randrange(8)
        elif what == 3:
            content[at] = rng.choice(INTERESTING)
        elif what == 4:
            content[at : at + rng.choice((1, 2, 4, 64))] = rng.randbytes(rng.choice((1, 2, 4, 64)))
        elif what == 5:
            del content[at : at + rng.choice((1, 2, 100, 10_000))]
        elif what == 6:
            source = rng.randrange(len(content))
            content[at:at] = content[source : source + rng.choice((1, 8, 100))]
        else:
            content[at : at + 8] = rng.choice((0, 1, 2**31, 2**32 - 1, 2**63)).to_bytes(8, "little")
    return bytes(content)


Check = Callable[[bytes], str]


def of_directory(path: Path, check: Callable[[], object]) -> Check:
    """A check that reads the input from a file."""

    def write_and_check(data: bytes) -> str:
        path.write_bytes(data)
        try:
            check()
        except UserError:
            return "refused"
        return "accepted"

    return write_and_check


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


def shard_target(directory: Path, *options: str) -> tuple[bytes, Check]:
    """A shard of a data set: refused when opened, or found by verifying."""
    out = small_set(directory, *options)
    path = out / "val-00000.h5"
    whole = path.read_bytes()
    data = open_data_set(out)
    sha256 = data.manifest.shard_files("val")[0].sha256
    task = ShardToCheck("val", 0, data.val.shards[0], sha256, data.wnids, data.class_names)

    def check(content: bytes) -> str:
        path.write_bytes(content)
        faults = check_shard(task).faults
        assert bool(faults) == (content != whole), "a changed shard was not found"
        try:
            opened = open_data_set(out)
            for row in range(len(opened.val)):
                assert np.asarray(opened.val.image(row)).shape == (8, 8, 3)
        except UserError:
            return "refused"
        return "accepted"

    return whole, check


def manifest_target(directory: Path) -> tuple[bytes, Check]:
    """A manifest: refused, or it opens."""
    path = small_set(directory) / "manifest.json"
    return path.read_bytes(), of_directory(path, lambda: open_data_set(path.parent))


def statistics_target(directory: Path) -> tuple[bytes, Check]:
    """The file of statistics: any change is refused."""
    path = small_set(directory) / "statistics.h5"
    whole = path.read_bytes()
    check = of_directory(path, lambda: open_data_set(path.parent))

    def strict(content: bytes) -> str:
        outcome = check(content)
        assert (outcome == "accepted") == (content == whole)
        return outcome

    return whole, strict


def xml_target(directory: Path) -> tuple[bytes, Check]:
    """A validation picture's annotation."""
    text = b"<annotation><object><name>n01440764</name></object></annotation>"

    def check(content: bytes) -> str:
        try:
            assert isinstance(kaggle.parse_annotation(content, "a.xml"), str)
        except UserError:
            return "refused"
        return "accepted"

    return text, check


def csv_target(directory: Path) -> tuple[bytes, Check]:
    """The file of validation labels."""
    rows = "".join(f"val_{i},{wnid_of(i)} 1 2 3 4 \r\n" for i in range(20))
    text = b"\xef\xbb\xbf" + f"ImageId,PredictionString\r\n{rows}".encode()
    path = directory / "solution.csv"
    return text, of_directory(path, lambda: kaggle.read_solution(Folder(directory), path.name))


def text_target(directory: Path) -> tuple[bytes, Check]:
    """The text files of Tiny ImageNet."""
    text = "".join(f"val_{i}.JPEG\t{wnid_of(i)}\t0\t0\t9\t9\n" for i in range(20)).encode()
    path = directory / "annotations.txt"
    return text, of_directory(
        path, lambda: tiny_imagenet.read_annotations(Folder(directory), path.name)
    )


def picture_target(
    directory: Path, format_name: str, mode: str, decoder: str
) -> tuple[bytes, Check]:
    """A picture: decoded to the right shape, or a reason."""
    rows, columns = np.mgrid[0:40, 0:50]
    channels = (5 * columns, 6 * rows, rows + columns)
    whole = io.BytesIO()
    gradient = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[274] = 6
    gradient.save(whole, format_name, exif=exif)

    def check(content: bytes) -> str:
        try:
            decoded = decode_picture(content, PictureFormat(32, decoder=decoder))
        except BadPictureError:
            return "refused"
        assert decoded.image.shape == (32, 32, 3)
        assert decoded.image.dtype == np.uint8
        return "accepted"

    return whole.getvalue(), check


def archive_target(directory: Path, whole: bytes) -> tuple[bytes, Check]:
    """An archive: refused when it is listed, or its files are read or refused."""
    path = directory / "archive"

    def check(content: bytes) -> str:
        path.write_bytes(content)
        reader = Reader()
        try:
            tree = open_tree(path)
            pending, outcome = [""], "accepted"
            while pending:
                inner = pending.pop()
                for name in tree.names(inner):
                    below = f"{inner}/{name}".lstrip("/")
                    if tree.is_dir(below):
                        pending.append(below)
                    else:
                        try:
                            reader.read(tree.place(below), limit=1 << 20)
                        except ValueError:
                            outcome = "refused"
            return outcome
        except UserError:
            return "refused"
        finally:
            reader.close()

    return whole, check


def pickle_target(directory: Path) -> tuple[bytes, Check]:
    """A batch of CIFAR-10."""
    content = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2], b"batch_label": b"x"}
    path = directory / "data_batch_1"
    return pickle.dumps(content, protocol=2), of_directory(
        path, lambda: cifar10.find(Folder(directory))
    )


def devkit_target(directory: Path) -> tuple[bytes, Check]:
    """The classes of the development kit."""
    (directory / "devkit" / "data").mkdir(parents=True)
    path = directory / "devkit" / "data" / "meta.mat"
    whole = meta_mat(2012, {wnid_of(i): i for i in range(1, 30)})
    return whole, of_directory(path, lambda: read_devkit(Folder(directory), year=2012))


FILES = [("a/one.JPEG", picture((1, 2, 3))), ("b", b"x" * 700), ("a/c/d", b"")]
TARGETS: dict[str, Callable[[Path], tuple[bytes, Check]]] = {
    "raw-shard": shard_target,
    "jpeg-shard": lambda directory: shard_target(directory, "--storage", "jpeg"),
    "manifest": manifest_target,
    "statistics": statistics_target,
    "xml": xml_target,
    "csv": csv_target,
    "text": text_target,
    "jpeg": lambda directory: picture_target(directory, "JPEG", "RGB", "pillow"),
    "cmyk": lambda directory: picture_target(directory, "JPEG", "CMYK", "pillow"),
    "png": lambda directory: picture_target(directory, "PNG", "P", "pillow"),
    "fast-jpeg": lambda directory: picture_target(directory, "JPEG", "RGB", "fast"),
    "tar": lambda directory: archive_target(directory, tar_bytes(FILES)),
    "tar-gz": lambda directory: archive_target(directory, tar_bytes(FILES, mode="w:gz")),
    "zip": lambda directory: archive_target(directory, zip_bytes(FILES)),
    "pickle": pickle_target,
    "devkit": devkit_target,
}


def fuzz(target: str, seconds: float, seed: int) -> dict[str, int]:
    """Feeds damaged inputs to a reader.

    Returns:
        How many it accepted and refused.
    """
    rng = random.Random(seed)
    directory = Path(tempfile.mkdtemp(prefix="fuzz-"))
    whole, check = TARGETS[target](directory)
    outcomes = {"accepted": 0, "refused": 0}
    assert check(whole) == "accepted" or target == "devkit"
    end = time.monotonic() + seconds
    left = Path(tempfile.gettempdir()) / f"fuzz-{target}-{seed}.input"
    while time.monotonic() < end:
        content = mutated(whole, rng)
        left.write_bytes(content)
        faulthandler.dump_traceback_later(SECONDS_AN_INPUT, exit=True)
        outcomes[check(content)] += 1
        faulthandler.cancel_dump_traceback_later()
    left.unlink(missing_ok=True)
    shutil.rmtree(directory)
    return outcomes


if __name__ == "__main__":
    faulthandler.enable()
    print(fuzz(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
