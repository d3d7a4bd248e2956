"""data_prep as a library: pairs of a program become the shards that their files would."""

import contextlib
import errno
import importlib.util
import io
import json
import re
import tarfile
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from conftest import PROJECT_DIR, run
from PIL import Image

from data_prep import pairs as pairs_module
from data_prep.build_shards import main as build_shards
from data_prep.errors import UserError
from data_prep.pairs import pairs_of_tar, write_shards
from data_prep.pictures import PictureFormat, decode_picture
from data_prep.shards import open_data_set
from data_prep.verify_shards import main as verify_shards

SMALL = PictureFormat(16)


def pixels_of(i, height=20, width=30):
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def wanted(i):
    return decode_picture(png(pixels_of(i)), SMALL).image


def as_images(indices):
    return [(Image.fromarray(pixels_of(i)), i % 3) for i in indices]


def as_arrays(indices):
    return ((pixels_of(i), np.int64(i % 3)) for i in indices)


def as_bytes(indices):
    return ((png(pixels_of(i)), i % 3) for i in indices)


def as_paths(indices, directory):
    for i in indices:
        path = directory / f"{i}.png"
        path.write_bytes(png(pixels_of(i)))
        yield path, i % 3


KINDS = {"images": as_images, "arrays": as_arrays, "bytes": as_bytes}


def check(data, train, val):
    """The images, the labels and the order are those of the pairs."""
    for part, indices in ((data.train, train), (data.val, val)):
        assert part.labels.tolist() == [i % 3 for i in indices]
        for row, i in enumerate(indices):
            assert np.array_equal(part.image(row), wanted(i))


@pytest.mark.parametrize("kind", [*KINDS, "paths"])
def test_pairs_of_every_kind_become_shards(kind, tmp_path):
    make = KINDS.get(kind) or (lambda indices: as_paths(indices, tmp_path))
    given = {"train": make(range(7)), "val": make(range(7, 10))}
    names = ["ant", "bee", "cat"]
    out = tmp_path / "out"
    data = write_shards(given, out, class_names=names, picture_format=SMALL, images_per_shard=4)
    check(data, range(7), range(7, 10))
    assert data.class_names == names
    assert len(data.manifest.parts["train"]) == 2
    assert sorted(path.name for path in out.iterdir()) == [
        *("build.lock", "labels.csv", "manifest.json", "statistics.h5"),
        *("train-00000.h5", "train-00001.h5", "val-00000.h5"),
    ]
    assert verify_shards([str(out), "--workers", "1"]) == 0


def test_the_images_are_those_that_the_command_builds_of_the_same_files(tmp_path):
    for i in range(6):
        path = tmp_path / "in" / str(i % 3) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels_of(i)))
    arguments = ["--input", str(tmp_path / "in"), "--per-class", "1,1,0", "--size", "16"]
    assert build_shards([*arguments, "--workers", "1", "--output", str(tmp_path / "command")]) == 0
    given = {"train": as_images(range(3)), "val": as_images(range(3, 6))}
    data = write_shards(given, tmp_path / "library", picture_format=SMALL)
    other = open_data_set(tmp_path / "command")
    for part in ("train", "val"):
        for i in range(3):
            assert np.array_equal(data.part(part).image(i), other.part(part).image(i))
    assert np.array_equal(data.statistics.mean_image, other.statistics.mean_image)


def test_one_list_is_divided_by_the_rule_and_equal_pairs_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        data = write_shards(
            as_images(range(30)), tmp_path / name, val_fraction=0.15, picture_format=SMALL
        )
    # 1.5 of each class, a half up; the float64 0.15 is a little less.
    assert (len(data.train), len(data.val)) == (24, 6)
    assert sorted(data.val.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert data.class_names == ["0", "1", "2"]
    other = write_shards(
        as_images(range(30)), tmp_path / "x", val_fraction="0.15", seed=1, picture_format=SMALL
    )
    assert other.manifest.plan.pictures_sha256 != data.manifest.plan.pictures_sha256


def test_texts_are_labels(tmp_path):
    rows = [(pixels_of(i), ("dog", "cat")[i % 2]) for i in range(4)]
    data = write_shards(rows, tmp_path / "a", val_fraction=0.5, picture_format=SMALL)
    assert data.class_names == ["cat", "dog"]
    names = ["dog", "emu", "cat"]
    wnids = ["n1", "n2", "n3"]
    more = [(x, {"dog": "n1", "cat": "n3"}[label]) for x, label in rows]
    data = write_shards(
        {"train": more, "test": more},
        tmp_path / "b",
        class_names=names,
        wnids=wnids,
        picture_format=SMALL,
        storage="jpeg",
    )
    assert data.train.labels.tolist() == [0, 2, 0, 2]
    assert (data.wnids, data.class_names) == (wnids, names)
    assert data.manifest.plan.storage.kind == "jpeg"


def test_a_call_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    def pairs():
        return {"train": as_images(range(8)), "val": as_images(range(2))}

    write_shards(pairs(), tmp_path / "whole", picture_format=SMALL, images_per_shard=4)
    build, built = pairs_module.build_shard, []

    def fails_once(task, settings):
        built.append(task.path.name)
        if len(built) == 2:
            raise KeyboardInterrupt
        return build(task, settings)

    monkeypatch.setattr(pairs_module, "build_shard", fails_once)
    with pytest.raises(KeyboardInterrupt):
        write_shards(pairs(), tmp_path / "out", picture_format=SMALL, images_per_shard=4)
    assert not (tmp_path / "out" / "pairs.part").exists()
    write_shards(pairs(), tmp_path / "out", picture_format=SMALL, images_per_shard=4)
    assert built == ["train-00000.h5", "train-00001.h5", "train-00001.h5", "val-00000.h5"]
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_pictures_that_cannot_be_read_are_listed(tmp_path, capsys):
    broken = png(pixels_of(0))[:200]
    with Image.open(io.BytesIO(broken)) as lazy:
        given = {
            "train": [(broken, 0), *as_images(range(3)), (lazy, 1)],
            "val": as_images(range(3)),
        }
        data = write_shards(given, tmp_path / "out", picture_format=SMALL)
    check(data, range(3), range(3))
    bad = json.loads((tmp_path / "out/manifest.json").read_text())["parts"]["train"]["shards"][0]
    assert [x["picture"] for x in bad["bad_pictures"]] == ["train/00000000", "train/00000004"]
    assert "train: 2 pictures could not be read" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"train/00000000: cannot be decoded.*--strict"):
        write_shards(
            {"train": [(broken, 0), *as_images(range(3))], "val": as_images(range(3))},
            tmp_path / "strict",
            picture_format=SMALL,
            strict=True,
        )


A, B = pixels_of(0), pixels_of(1)
WRONG = {
    "no pair": ([(A, 0), 5], {}, "pair 1 of train: expected a picture and its label, got int"),
    "float": ([(A / 255, 0)], {}, r"pair 0 of train: expected .* got float64 .20, 30, 3."),
    "planes": ([(A.transpose(2, 0, 1), 0)], {}, r"pair 0 of train: .* got uint8 .3, 20, 30."),
    "list": ([([1], 0)], {}, "pair 0 of train: .* got list: give the pictures without transforms"),
    "negative": ([(A, -1)], {}, "pair 0 of train: expected a label .*, got -1"),
    "half": ([(A, 0.5)], {}, "pair 0 of train: expected a label .*, got 0.5"),
    "huge": ([(A, 10**9)], {}, "expected a label as a whole number of 0 to 999999"),
    "no text": ([(A, " ")], {}, "pair 0 of train: expected a label"),
    "both": ([(A, 0), (B, "a")], {}, "labels all whole numbers or all texts, got both"),
    "beyond": (
        [(A, 2)],
        {"class_names": ["a", "b"]},
        "train/0+: expected a label of the 2 c",
    ),
    "unknown": ([(A, "c")], {"class_names": ["a", "b"]}, "label of the 2 classes, got 'c'"),
    "twice": ([(A, 0)], {"class_names": ["a", "a"]}, "'a' stands there twice: give wnids"),
    "few": ([(A, 0)], {"class_names": ["a"], "wnids": ["a", "b"]}, "one per wnid, got 1 for 2"),
    "empty": ([], {"val_fraction": None}, "expected train pictures, found none"),
    "no val": ([(A, 0), (B, 0)], {"val_fraction": None}, "expected val or test pictures"),
    "fraction": ([(A, 0), (B, 0)], {"val_fraction": 1}, "val_fraction: expected a number between"),
    "text": ([(A, 0)], {"val_fraction": "x"}, "val_fraction: expected a number between 0 and 1"),
    "single": ([(A, 0)], {}, "val_fraction: expected two train pictures or more"),
    "part": ({"valid": []}, {}, "expected the parts train, val, test, got 'valid'"),
    "storage": ([], {"storage": "png"}, "storage: expected raw or jpeg, got 'png'"),
    "shards": ([], {"images_per_shard": 0}, "images_per_shard: expected at least 1, got 0"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_pair_is_refused_and_leaves_nothing(what, tmp_path):
    given, options, message = WRONG[what]
    options = {"val_fraction": 0.5, "picture_format": SMALL, **options}
    with pytest.raises(UserError, match=message):
        write_shards(given, tmp_path / "new" / "out", **options)
    assert not (tmp_path / "new").exists()


def test_an_error_of_the_iterable_is_its_own_and_leaves_nothing(tmp_path):
    def fails():
        yield pixels_of(0), 0
        raise FileNotFoundError(errno.ENOENT, "theirs")

    with pytest.raises(FileNotFoundError, match="theirs"):
        write_shards(fails(), tmp_path / "out", val_fraction=0.5)
    assert not (tmp_path / "out").exists()


def test_a_directory_in_use_is_left_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"is in use: .* .such as thesis.tex."):
        write_shards(as_images(range(6)), tmp_path, val_fraction=0.5, picture_format=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# --- Other people's data sets, in three lines


def test_a_script_of_three_lines_needs_no_guard(tmp_path):
    """As the documents show it: no `if __name__ == "__main__"`."""
    (tmp_path / "script.py").write_text(
        "from data_prep.pairs import write_shards\n"
        "from PIL import Image\n"
        'pictures = [(Image.new("RGB", (40, 30), (i, 0, 0)), i % 2) for i in range(10)]\n'
        'print(len(write_shards(pictures, "shards", val_fraction=0.2).val))\n'
    )
    result = run("script.py", cwd=tmp_path, PYTHONPATH=str(PROJECT_DIR))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "2"


def test_a_torchvision_data_set_becomes_shards(torchvision, tmp_path):
    for i in range(9):
        path = tmp_path / "in" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels_of(i)))
    folder = torchvision.datasets.ImageFolder(tmp_path / "in")
    data = write_shards(
        folder,
        tmp_path / "out",
        class_names=folder.classes,
        val_fraction=Fraction(1, 3),
        picture_format=SMALL,
    )
    assert (len(data.train), len(data.val), data.class_names) == (6, 3, ["a", "b", "c"])
    images = [wanted(i).tobytes() for i in range(9)]
    for row, label in enumerate(data.train.labels):
        assert images.index(data.train.image(row).tobytes()) % 3 == label


def test_a_hugging_face_data_set_becomes_shards(tmp_path):
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("Hugging Face's datasets is not installed")
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    columns = {
        "image": [Image.fromarray(pixels_of(i)) for i in range(6)],
        "label": [i % 3 for i in range(6)],
    }
    rows = datasets.Dataset.from_dict(columns, features=features)
    data = write_shards(
        {
            "train": ((row["image"], row["label"]) for row in rows),
            "val": ((row["image"], row["label"]) for row in rows),
        },
        tmp_path / "out",
        class_names=features["label"].names,
        picture_format=SMALL,
    )
    check(data, range(6), range(6))


def write_tar(path: Path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_webdataset_becomes_shards(mode, tmp_path):
    files = {}
    for i in range(6):
        files[f"train/{i:04d}.png"] = png(pixels_of(i))
        files[f"train/{i:04d}.cls"] = b"%d\n" % (i % 3)
        files[f"train/{i:04d}.json"] = b"{}"
        files[f"train/._{i:04d}.png"] = b"of a Mac"
    tar = write_tar(tmp_path / "set.tar", files, mode)
    given = {"train": pairs_of_tar(tar), "val": pairs_of_tar(str(tar))}
    data = write_shards(given, tmp_path / "out", picture_format=SMALL)
    check(data, range(6), range(6))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": b"x"}, r"one picture and its label .* got png for 'a'"),
        ({"a.cls": b"1"}, r"one picture and its label .* got cls for 'a'"),
        ({"a.png": b"x", "a.jpg": b"x", "a.cls": b"1"}, r"got cls, jpg, png for 'a'"),
        ({"a.png": b"x", "a.cls": b"\xff"}, r"a.cls: expected a label, but"),
        ({"a.png": b"x", "a.cls": b"1" * 2000}, r"a.cls: expected a label, but has 2000 bytes"),
    ],
    ids=["no label", "no picture", "two pictures", "no text", "long"],
)
def test_a_wrong_webdataset_is_refused(files, message, tmp_path):
    with pytest.raises(UserError, match=message):
        list(pairs_of_tar(write_tar(tmp_path / "set.tar", files)))


def test_what_is_no_tar_is_refused(tmp_path):
    (tmp_path / "x").write_text("text")
    with pytest.raises(UserError, match="expected a tar file, found something else"):
        list(pairs_of_tar(tmp_path / "x"))


# --- The lines of the page, as they stand


class Rows:
    """What a data set of Hugging Face gives: a dict per row, its picture open and not yet read."""

    features: ClassVar = {"label": SimpleNamespace(names=["ant", "bee", "cat"])}

    def __iter__(self):
        for i in range(15):
            yield {"image": Image.open(io.BytesIO(png(pixels_of(i)))), "label": i % 3}


def folder_data(tmp_path, request):
    for i in range(15):
        path = tmp_path / "flowers" / ("ant", "bee", "cat")[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels_of(i)))
    return {"torchvision": request.getfixturevalue("torchvision")}


def rows_data(tmp_path, request):
    load = {"pets": {"train": Rows()}}.__getitem__
    return {"datasets": SimpleNamespace(load_dataset=load), "write_shards": write_shards}


def tar_data(tmp_path, request):
    for name, indices in (("train", range(12)), ("val", range(12, 15))):
        files = {}
        for i in indices:
            files[f"{i:04d}.png"], files[f"{i:04d}.cls"] = png(pixels_of(i)), str(i % 3).encode()
        write_tar(tmp_path / f"{name}.tar", files)
    return {}


NAMES, NUMBERS = ["ant", "bee", "cat"], ["0", "1", "2"]
ON_THE_PAGE = {
    "torchvision": (folder_data, "flower-shards", NAMES),
    "hugging face": (rows_data, "pet-shards", NAMES),
    "webdataset": (tar_data, "shards", NUMBERS),
}


@pytest.mark.parametrize("number", range(3), ids=ON_THE_PAGE)
def test_the_lines_of_the_page_make_shards(number, tmp_path, request):
    page = (PROJECT_DIR / "docs" / "data.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == len(ON_THE_PAGE)
    prepare, directory, names = list(ON_THE_PAGE.values())[number]
    given = prepare(tmp_path, request)
    with contextlib.chdir(tmp_path):
        exec(blocks[number], given)
    data = open_data_set(tmp_path / directory)
    # Of five pictures of each class a fifth is val.
    assert (len(data.train), sorted(data.val.labels)) == (12, [0, 1, 2])
    assert data.class_names == names
    known = {decode_picture(png(pixels_of(i))).image.tobytes(): i % 3 for i in range(15)}
    for part in (data.train, data.val):
        for row, label in enumerate(part.labels):
            assert known.pop(part.image(row).tobytes()) == label
    assert not known
