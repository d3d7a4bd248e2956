"""Archives and data sets that the tests write: small, and of every official form."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
from PIL import Image
from scipy.io import savemat


def picture(color, size=(20, 16), format_name="JPEG"):
    """A small picture of one color, as a file's bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format_name)
    return buffer.getvalue()


def color_of(number):
    """A color that encodes a number up to 4095, also after JPEG: 16 levels per channel."""
    return tuple(16 * (number >> shift & 15) + 8 for shift in (8, 4, 0))


def number_of(pixel):
    """The number that a color encodes."""
    red, green, blue = (int(value) // 16 for value in pixel)
    return red << 8 | green << 4 | blue


def tar_bytes(files, *, mode="w", change=None):
    """A tar of (name, bytes); `change` may alter each entry's header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change is not None:
                change(info)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(files, *, compression=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return buffer.getvalue()


def files_below(root, prefix=""):
    """(name, bytes) of all files below a directory."""
    return [
        (prefix + str(path.relative_to(root)), path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    ]


def wnid_of(number):
    return f"n{number:08d}"


def meta_mat(year, ids, *, num_internal=3):
    """A `meta.mat`: wnid -> id for the classes, and some synsets that have children."""
    fields = [f"ILSVRC{year}_ID", "WNID", "words", "gloss", "num_children"]
    synsets = np.zeros((len(ids) + num_internal, 1), [(name, object) for name in fields])
    rows = [(id_, wnid, f"name of {wnid}", "gloss", 0) for wnid, id_ in ids.items()]
    rows += [(1001 + i, wnid_of(90_000_000 + i), "internal", "", 7) for i in range(num_internal)]
    for i, row in enumerate(rows):
        synsets[i, 0] = row
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def ilsvrc_ids(num_classes=1000):
    """wnid -> id, in an order that is not that of the sorted wnids."""
    order = np.random.default_rng(0).permutation(num_classes)
    return {wnid_of(1000 + i): int(order[i]) + 1 for i in range(num_classes)}


def write_ilsvrc(directory, *, year=2012, num_val=40, ids=None, train_wnids=None):
    """The official tars and devkit of a year, with one training picture per class.

    The color of a training picture tells the place of its wnid in sorted order; that of a
    validation or test picture the place of the wnid that its id belongs to.
    """
    ids = ids or ilsvrc_ids()
    in_order = sorted(ids)
    wnid_of_id = {id_: wnid for wnid, id_ in ids.items()}
    directory.mkdir(exist_ok=True)
    stem = "ILSVRC2012_img" if year == 2012 else "ILSVRC2010_images"
    inner = [
        (
            f"{wnid}.tar",
            tar_bytes([(f"{wnid}_7.JPEG", picture(color_of(in_order.index(wnid))))])
            if wnid in ids
            else tar_bytes([]),
        )
        for wnid in (train_wnids or ids)
    ]
    (directory / f"{stem}_train.tar").write_bytes(tar_bytes(inner))
    rng = np.random.default_rng(1)
    truths = {}
    for part in ("val", "test") if year == 2010 else ("val",):
        truth = truths[part] = [int(i) for i in rng.integers(1, 1001, num_val)]
        files = [
            (
                f"{part}/ILSVRC{year}_{part}_{number:08d}.JPEG",
                picture(color_of(in_order.index(wnid_of_id[id_]))),
            )
            for number, id_ in enumerate(truth, start=1)
        ]
        # Out of order in the tar, as nothing promises an order.
        (directory / f"{stem}_{part}.tar").write_bytes(tar_bytes(files[::-1]))
    lines = {part: "".join(f"{id_}\n" for id_ in truth).encode() for part, truth in truths.items()}
    kit = [
        ("kit/readme.txt", b"hello"),
        ("kit/data/meta.mat", meta_mat(year, ids)),
        (f"kit/data/ILSVRC{year}_validation_ground_truth.txt", lines["val"]),
    ]
    name = f"ILSVRC{year}_devkit_t12.tar.gz" if year == 2012 else "ILSVRC2010_devkit-1.0.tar.gz"
    (directory / name).write_bytes(tar_bytes(kit, mode="w:gz"))
    if year == 2010:
        (directory / "ILSVRC2010_test_ground_truth.txt").write_bytes(lines["test"])
    return directory


def bomb_gz(head, *, gigabytes, filler=b"\0\0"):
    """A gzip file of some megabytes: `head`, and then gigabytes of two bytes again and again."""
    block = gzip.compress(filler * (1 << 25))  # gzip files one after the other are one
    return gzip.compress(head) + gigabytes * 16 * block


def tar_header(name, kind, size):
    """The 512 bytes before a file, or before what a tar says of the next file."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def sparse_head():
    """How a file with holes begins: after this come where they are, a number a line."""
    record = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    header = tar_header("x", tarfile.XHDTYPE, len(record)) + record.ljust(512, b"\0")
    return header + tar_header("x", tarfile.REGTYPE, 1 << 32) + b"99999999\n"
