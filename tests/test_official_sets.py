"""The data sets as they are given out: labels from every form, and what is wrong with a copy."""

import importlib
import io
import pickle
import shutil

import numpy as np
import pytest
from archives import (
    color_of,
    files_below,
    ilsvrc_ids,
    number_of,
    picture,
    tar_bytes,
    wnid_of,
    write_ilsvrc,
    zip_bytes,
)
from conftest import PROJECT_DIR, assert_user_error, run_here
from PIL import Image

from data_prep.build_shards import main as build_shards
from data_prep.errors import UserError
from data_prep.manifest import Storage
from data_prep.pictures import PictureFormat
from data_prep.plan import check_pictures
from data_prep.shard_builder import BuildSettings, ShardTask, build_shard
from data_prep.shard_writer import Classes
from data_prep.shards import Shard, open_data_set
from data_prep.sources import (
    cifar10,
    class_tars,
    folder,
    ilsvrc2010,
    ilsvrc2012,
    kaggle,
    tiny_image10,
    tiny_imagenet,
)
from data_prep.sources.picture_set import Picture, halves
from data_prep.sources.places import Reader
from data_prep.sources.recognize import SOURCES, recognize
from data_prep.sources.trees import Folder, open_tree

BUILD = "data_prep/build_shards.py"


def told_labels(pictures):
    """What the color of each picture says of its class."""
    reader = Reader()
    numbers = []
    for item in pictures:
        with Image.open(io.BytesIO(reader.read(item.place))) as image:
            numbers.append(number_of(image.convert("RGB").getpixel((3, 3))))
    return numbers


# --- ILSVRC 2010 and 2012


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return {
        year: write_ilsvrc(tmp_path_factory.mktemp("official") / str(year), year=year)
        for year in (2010, 2012)
    }


@pytest.mark.parametrize(("source", "year"), [(ilsvrc2010, 2010), (ilsvrc2012, 2012)])
def test_labels_of_the_official_tars_are_places_of_sorted_wnids(official, source, year):
    found = source.find(Folder(official[year]))
    assert found.wnids == tuple(wnid_of(1000 + i) for i in range(1000))
    assert found.class_names[3] == f"name of {wnid_of(1003)}"
    parts = {"train": 1000, "val": 40} | ({"test": 40} if year == 2010 else {})
    assert {part: len(pictures) for part, pictures in found.parts.items()} == parts
    for part, pictures in found.parts.items():
        assert told_labels(pictures) == [item.label for item in pictures], part
    # The ids are in another order: taken for labels, nearly all would be wrong.
    ids = [id_ - 1 for _, id_ in sorted(ilsvrc_ids().items())]
    assert sum(id_ == label for label, id_ in enumerate(ids)) < 10
    assert [item.name for item in found.parts["val"]][:2] == [
        f"ILSVRC{year}_{'img' if year == 2012 else 'images'}_val.tar/val/ILSVRC{year}_val_0000000"
        f"{i}.JPEG"
        for i in (1, 2)
    ]


def test_the_development_kit_may_be_unpacked(official, tmp_path):
    copy = shutil.copytree(official[2012], tmp_path / "copy")
    kit = copy / "ILSVRC2012_devkit_t12.tar.gz"
    shutil.unpack_archive(kit, copy / "ILSVRC2012_devkit_t12", filter="data")
    kit.unlink()
    found, before = ilsvrc2012.find(Folder(copy)), ilsvrc2012.find(Folder(official[2012]))
    assert [item[:2] for item in found.parts["val"]] == [item[:2] for item in before.parts["val"]]


@pytest.mark.parametrize("year", [2010, 2012])
def test_official_tars_are_recognised_and_built_without_unpacking(official, year, tmp_path):
    before = sorted(official[year].rglob("*"))
    out = tmp_path / "out"
    result = run_here(BUILD, "--input", str(official[year]), "--output", str(out), "--size", "8")
    assert result.returncode == 0, result.stderr
    assert f"source: ilsvrc{year} (found at" in result.stdout
    assert "published for ImageNet" in result.stdout
    assert sorted(official[year].rglob("*")) == before
    data = open_data_set(out)
    assert len(data.train) == 1000
    for row in (0, 1, 517, 999):
        assert number_of(data.train.image(row)[4, 4]) == data.train.labels[row] == row
    held_out = data.test if year == 2010 else data.val
    assert number_of(held_out.image(7)[4, 4]) == held_out.labels[7]


def damage_official(directory, what):
    """Damages a copy of the files of 2012."""
    ids = ilsvrc_ids()
    wnids = list(ids)
    if what == "999 classes":
        write_ilsvrc(directory, train_wnids=wnids[:-1])
    elif what == "1001 classes":
        write_ilsvrc(directory, train_wnids=[*wnids, wnid_of(77)])
    elif what == "another class":
        write_ilsvrc(directory, train_wnids=[*wnids[1:], wnid_of(77)])
    elif what == "999 ids":
        write_ilsvrc(directory, ids=dict(list(ids.items())[:-1]) | {wnids[-1]: 1}, num_val=0)
    elif what == "no tar inside":
        files = [(f"{wnid}.tar", b"x" * 2000) for wnid in wnids]
        (directory / ilsvrc2012.TRAIN_TAR).write_bytes(tar_bytes(files))
    elif what == "a val picture too few":
        tree = open_tree(directory / ilsvrc2012.VAL_TAR)
        files = [(f"val/{name}", Reader().read(tree.place(f"val/{name}")))
                 for name in tree.names("val")]  # fmt: skip
        (directory / ilsvrc2012.VAL_TAR).write_bytes(tar_bytes(files[:-1]))
    elif what == "another name":
        (directory / ilsvrc2012.VAL_TAR).write_bytes(tar_bytes([("val/cat.JPEG", b"1")]))
    elif what == "no devkit":
        (directory / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    elif what == "no val":
        (directory / ilsvrc2012.VAL_TAR).unlink()
    elif what == "damaged meta.mat":
        kit = [("data/meta.mat", b"MATLAB 5.0 MAT-file" + bytes(200))]
        (directory / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(tar_bytes(kit, mode="w:gz"))
    elif what == "empty devkit":
        (directory / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(tar_bytes([], mode="w:gz"))


@pytest.mark.fault(30)
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("999 classes", r"got 999: 1 are missing, 0 are no classes .* lacks n00001999"),
        ("1001 classes", r"got 1001: 0 are missing, 1 are no classes .* has n00000077"),
        ("another class", r"got 1000: 1 are missing, 1 are no classes"),
        ("999 ids", "expected 1000 classes without children, with the ids 1 to 1000, got 1000 wi"),
        ("no tar inside", r"img_train.tar/n00001000.tar: .* expected a whole tar file"),
        ("a val picture too few", "expected the pictures 1 to 40, one for each line of the ground"),
        ("another name", "expected pictures named ILSVRC2012_val_00000001.JPEG and on"),
        ("no devkit", r"expected the development kit \(ILSVRC2012_devkit\*.tar.gz\) there"),
        ("no val", "expected ILSVRC2012_img_val.tar there, found none"),
        ("damaged meta.mat", "meta.mat: expected the synsets of ILSVRC2012, got"),
        ("empty devkit", "expected data/meta.mat in the development kit"),
    ],
)
def test_official_files_that_do_not_fit_are_refused_with_the_difference(
    official, tmp_path, what, message
):
    copy = shutil.copytree(official[2012], tmp_path / "copy")
    damage_official(copy, what)
    with pytest.raises(UserError, match=message):
        ilsvrc2012.find(Folder(copy))


def test_the_test_labels_of_2010_are_needed_and_checked(official, tmp_path):
    copy = shutil.copytree(official[2010], tmp_path / "copy")
    labels = copy / ilsvrc2010.TEST_LABELS
    lines = labels.read_text().splitlines()
    for wrong in ("0", "1001", "cat", "-1", "\u0663"):
        labels.write_text("\n".join([*lines[:4], wrong, *lines[5:]]))
        with pytest.raises(UserError, match=f"line 5: expected an ILSVRC2010_ID .*got '{wrong}'"):
            ilsvrc2010.find(Folder(copy))
    labels.unlink()
    with pytest.raises(UserError, match="expected the public test labels"):
        ilsvrc2010.find(Folder(copy))


def test_the_test_part_of_2010_can_be_trained_against(official, tmp_path):
    """`replica.test --part test` is what the paper's 37.5 and 17.0 % need."""
    result = run_here("-m", "replica.test", "--help")
    assert "--part {train,val,test}" in result.stdout


# --- Kaggle's zip file


def test_kaggles_zip_is_read_in_place_and_gives_the_bytes_of_the_folder(
    toy_dir, shards_dir, tmp_path
):
    (tmp_path / "imagenet.zip").write_bytes(zip_bytes(files_below(toy_dir)))
    out = tmp_path / "out"
    arguments = ["--input", str(tmp_path / "imagenet.zip"), "--output", str(out)]
    assert build_shards([*arguments, "--images-per-shard", "40", "--workers", "2"]) == 0
    for path in [*shards_dir.glob("*.h5"), shards_dir / "manifest.json", shards_dir / "labels.csv"]:
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imagenet.zip", "out"]


def test_labels_that_differ_between_xml_and_csv_are_refused(toy_dir, tmp_path):
    copy = shutil.copytree(toy_dir, tmp_path / "copy")
    path = next((copy / "ILSVRC/Annotations/CLS-LOC/val").glob("*_00000003.xml"))
    text = path.read_text()
    wnid = text.split("<name>")[1].split("<")[0]
    other = "n90000001" if wnid == "n90000000" else "n90000000"
    path.write_text(text.replace(wnid, other))
    result = run_here(BUILD, "--input", str(copy), "--output", str(tmp_path / "out"))
    assert_user_error(result, "1 of 30 differ", f"_00000003: {wnid} there, {other} in its XML file")
    assert not (tmp_path / "out").exists()


@pytest.mark.fault(30)
def test_a_mapping_with_more_or_fewer_classes_shows_the_difference(toy_dir, tmp_path):
    copy = shutil.copytree(toy_dir, tmp_path / "copy")
    mapping = copy / "LOC_synset_mapping.txt"
    lines = mapping.read_text().splitlines(keepends=True)
    mapping.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"got 1 other names \(such as n90000009\)"):
        kaggle.find(Folder(copy))
    mapping.write_text("".join([*lines, "n90000010 nothing\n"]))
    result = run_here(BUILD, "--input", str(copy), "--output", str(tmp_path / "out"), "--strict")
    assert_user_error(result, "1 of 11 classes have no train pictures (such as n90000010)")


# --- One tar a class


def write_class_tars(directory, num_classes, pictures_of=lambda label: 5 + label % 3):
    directory.mkdir(exist_ok=True)
    for label in range(num_classes):
        wnid = wnid_of(2 * label + 1)
        files = [(f"{wnid}_{i}.JPEG", picture(color_of(label))) for i in range(pictures_of(label))]
        (directory / f"{wnid}.tar").write_bytes(tar_bytes(files))
    return directory


def test_class_tars_are_cut_in_half_by_a_rule(tmp_path):
    directory = write_class_tars(tmp_path / "fall", 12)
    (directory / "words.txt").write_text("n00000001\tone, first\nn00000003\tthree\n")
    found = class_tars.find(Folder(directory))
    assert found.wnids == tuple(wnid_of(2 * label + 1) for label in range(12))
    assert found.class_names[:3] == ("one, first", "three", "n00000005")
    assert "10 classes have no name" in found.notes[1]
    for part, size in (("train", lambda n: (n + 1) // 2), ("test", lambda n: n // 2)):
        counts = np.bincount([item.label for item in found.parts[part]], minlength=12)
        assert counts.tolist() == [size(5 + label % 3) for label in range(12)]
        assert told_labels(found.parts[part]) == [item.label for item in found.parts[part]]
    names = [{item.name for item in found.parts[part]} for part in ("train", "test")]
    assert not names[0] & names[1]
    assert class_tars.find(Folder(directory)) == found


def test_the_halves_depend_on_the_seed_and_on_nothing_else():
    pictures = tuple(Picture(f"a/{i}", i % 2, f"{i}") for i in range(40))
    first, second = halves(pictures, seed=1)
    assert set(first) | set(second) == set(pictures)
    again = halves(tuple(reversed(pictures)), seed=1)
    assert set(again[0]) == set(first)
    assert set(halves(pictures, seed=2)[0]) != set(first)
    # Pinned: another rule would cut published sets another way.
    assert [item.place for item in first[:6]] == ["1", "2", "3", "4", "6", "7"]


def test_class_tars_in_one_large_tar_are_read_in_place(tmp_path):
    directory = write_class_tars(tmp_path / "fall", 5)
    (tmp_path / "whole.tar").write_bytes(tar_bytes(files_below(directory)))
    source, tree = recognize(open_tree(tmp_path / "whole.tar"), tmp_path / "whole.tar")
    assert source == "class-tars"
    inside, outside = class_tars.find(tree), class_tars.find(Folder(directory))
    for part in ("train", "test"):
        assert [item[:2] for item in inside.parts[part]] == [
            item[:2] for item in outside.parts[part]
        ]
        assert told_labels(inside.parts[part]) == [item.label for item in inside.parts[part]]


def test_the_training_tar_of_an_official_set_alone_is_not_cut_in_half_unasked(tmp_path):
    directory = write_class_tars(tmp_path / "fall", 3)
    alone = tmp_path / "ILSVRC2012_img_train.tar"
    alone.write_bytes(tar_bytes(files_below(directory)))
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar: expected the directory that"):
        recognize(open_tree(alone), alone)


def test_21843_classes_fit_into_a_shard(tmp_path):
    """HDF5's attributes end at 64 kB; wnids and names are data sets."""
    wnids = tuple(wnid_of(i) for i in range(21_843))
    names = tuple(f"a name of class {i}, and another" for i in range(21_843))
    (tmp_path / "x.JPEG").write_bytes(picture((1, 2, 3)))
    rows = tuple(Picture(f"x{i}", label, str(tmp_path / "x.JPEG")) for i, label in
                 enumerate((0, 21_842)))  # fmt: skip
    settings = BuildSettings(PictureFormat(8), Storage(), Classes(wnids, names, "0" * 64), True)
    _, entry = build_shard(ShardTask("train", 0, tmp_path / "train-00000.h5", rows), settings)
    shard = Shard(tmp_path / "train-00000.h5", entry.file.num_images, 21_843, 8)
    assert tuple(shard.wnids()) == wnids
    assert tuple(shard.class_names()) == names
    assert shard.labels().tolist() == [0, 21_842]


# --- Tiny Image10 and other cuts


def write_tiny(directory, wnids, per_class=6, side=8):
    for label, wnid in enumerate(wnids):
        images = directory / "train" / wnid / "images"
        images.mkdir(parents=True)
        for i in range(per_class):
            data = picture(color_of(label), (side, side))
            (images / f"{wnid}_{i}.JPEG").write_bytes(data)
    (directory / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (directory / "words.txt").write_text("".join(f"{wnid}\tname of {wnid}\n" for wnid in wnids))
    (directory / "val" / "images").mkdir(parents=True)
    (directory / "val" / "images" / "val_0.JPEG").write_bytes(picture(color_of(0), (side, side)))
    (directory / "val" / "val_annotations.txt").write_text(f"val_0.JPEG\t{wnids[0]}\t0\t0\t9\t9\n")
    return directory


def test_tiny_image10_is_ten_classes_of_400_50_and_50(tmp_path):
    others = [wnid_of(i) for i in (5, 6)]
    tiny = write_tiny(tmp_path / "tiny", [*others, *tiny_image10.CLASSES], per_class=500)
    found = tiny_image10.find(Folder(tiny))
    assert found.source == "tiny-image10"
    assert found.wnids == tuple(sorted(tiny_image10.CLASSES))
    names = []
    for part, count in (("train", 400), ("val", 50), ("test", 50)):
        labels = [item.label for item in found.parts[part]]
        assert np.bincount(labels).tolist() == [count] * 10
        for item in found.parts[part][::37]:
            assert item.name.split("/")[1] == found.wnids[item.label]
        names += [item.name for item in found.parts[part]]
    assert len(set(names)) == 5000
    assert all(name.startswith("train/") for name in names)


def test_tiny_image10_is_found_one_level_down_and_blames_no_option_that_was_not_given(tmp_path):
    write_tiny(tmp_path / "download" / "tiny-imagenet-200", [*tiny_image10.CLASSES], per_class=499)
    build = ("--input", str(tmp_path / "download"), "--output", str(tmp_path / "out"))
    result = run_here(BUILD, "--source", "tiny-image10", *build)
    assert_user_error(result, "--source tiny-image10 400,50,50: expected 500 training pictures")
    (tmp_path / "download").rename(tmp_path / "ten")
    write_tiny(tmp_path / "download" / "tiny-imagenet-200", [wnid_of(5)])
    result = run_here(BUILD, "--source", "tiny-image10", *build)
    assert_user_error(result, "build_shards: --source tiny-image10: expected wnids", "no class")
    assert "--classes" not in result.stderr


def test_classes_and_per_class_cut_any_set(tmp_path):
    tiny = write_tiny(tmp_path / "tiny", [wnid_of(i) for i in range(1, 6)])
    (tmp_path / "mine.txt").write_text("name of n00000004\n\nn00000002\n")
    out = tmp_path / "out"
    arguments = ["--input", str(tiny), "--output", str(out), "--size", "8"]
    arguments += ["--classes", str(tmp_path / "mine.txt"), "--per-class", "3,1,2"]
    result = run_here(BUILD, *arguments)
    assert result.returncode == 0, result.stderr
    data = open_data_set(out)
    assert data.wnids == ["n00000002", "n00000004"]
    for part, count in (("train", 3), ("val", 1), ("test", 2)):
        images = data.part(part)
        assert images.labels.tolist() == [0] * count + [1] * count
        # The colors are those of the whole set's classes 1 and 3.
        assert [number_of(images.image(row)[4, 4]) for row in range(len(images))] == (
            [1] * count + [3] * count
        )
    result = run_here(BUILD, *arguments[:-1], "3,2,2", "--output", str(tmp_path / "other"))
    assert_user_error(result, "--per-class 3,2,2: expected 7 training pictures", "2 classes have f")
    (tmp_path / "mine.txt").write_text("unicorn\nn00000002\nn00000002\n")
    result = run_here(BUILD, *arguments)
    assert_user_error(result, "'unicorn' is no class", "'n00000002' stands there a second time")
    result = run_here(BUILD, *arguments[:-1], "3,x")
    assert_user_error(
        result, "--per-class: expected VAL such as 50, or TRAIN,VAL,TEST such", "got 3,x"
    )


def test_small_pictures_keep_their_size_or_are_scaled_up(tmp_path):
    wnids = [wnid_of(i) for i in (1, 2)]
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    tiny = write_tiny(tmp_path / "tiny", wnids)
    target = tiny / "train" / wnids[0] / "images" / f"{wnids[0]}_0.JPEG"
    Image.fromarray(pixels).save(target, "PNG")
    for size in (64, 256):
        out = tmp_path / str(size)
        assert build_shards(["--input", str(tiny), "--output", str(out), "--size", str(size),
                             "--workers", "1"]) == 0  # fmt: skip
        data = open_data_set(out)
        assert data.image_size == size
        image = data.train.image(0)
        if size == 64:
            assert np.array_equal(image, pixels)
        else:
            scaled = Image.fromarray(pixels).resize((256, 256), Image.Resampling.BILINEAR)
            assert np.array_equal(image, np.asarray(scaled))
        assert data.statistics.mean_image.shape == (size, size, 3)
    result = run_here(
        "-m", "replica.train", "--data", str(tmp_path / "64"), "--out", str(tmp_path / "r")
    )
    assert_user_error(result, "has images of 64 pixels", "cuts crops of 224", "--size 224 or more")


# --- CIFAR-10


def cifar_rows(num_rows, first=0):
    """Planar pixels and labels; the first pixel's red tells the row."""
    rng = np.random.default_rng(first)
    planes = rng.integers(0, 256, (num_rows, 3072), np.uint8)
    planes[:, 0] = (np.arange(num_rows) + first) % 256
    return planes, [(row + first) % 10 for row in range(num_rows)]


def write_cifar(directory, form):
    directory.mkdir()
    batches = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for number, name in enumerate(batches):
        planes, labels = cifar_rows(20, first=20 * number)
        if form == "python":
            content = {b"data": planes, b"labels": labels, b"batch_label": b"x"}
            (directory / name).write_bytes(pickle.dumps(content, protocol=2))
        elif form == "binary":
            rows = np.concatenate([np.array(labels, np.uint8)[:, None], planes], axis=1)
            (directory / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            part = "test" if name == "test_batch" else "train"
            for row, label in enumerate(labels):
                inner = directory / part / cifar10.CLASSES[label]
                inner.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(planes[row].reshape(3, 32, 32).transpose(1, 2, 0))
                image.save(inner / f"{20 * number + row:04d}.{form}", quality=95)
    if form == "python":
        meta = {b"label_names": [name.encode() for name in cifar10.CLASSES]}
        (directory / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    elif form == "binary":
        (directory / "batches.meta.txt").write_text("\n".join(cifar10.CLASSES) + "\n\n")
    return directory


@pytest.mark.parametrize("form", ["python", "binary", "png", "jpg"])
@pytest.mark.parametrize("container", ["folder", "tar", "tar.gz"])
def test_every_version_of_cifar10_gives_the_same_pictures(form, container, tmp_path):
    directory = write_cifar(tmp_path / "cifar", form)
    given = directory
    if container != "folder":
        given = tmp_path / f"cifar.{container}"
        mode = "w:gz" if container == "tar.gz" else "w"
        given.write_bytes(tar_bytes(files_below(directory, prefix="cifar-10/"), mode=mode))
    out = tmp_path / "out"
    assert build_shards(["--input", str(given), "--output", str(out), "--size", "32",
                         "--workers", "1"]) == 0  # fmt: skip
    data = open_data_set(out)
    assert data.wnids == list(cifar10.CLASSES)
    assert data.manifest.plan.source == "cifar10"
    assert (len(data.train), len(data.val), len(data.test)) == (100, 0, 20)
    assert data.held_out == "test"
    if form == "jpg":
        return
    everything = [cifar_rows(20, first=20 * number) for number in range(6)]
    planes = np.concatenate([rows for rows, _ in everything])
    labels = [label for _, labels in everything for label in labels]
    expected = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    by_pixels = {image.tobytes(): label for image, label in zip(expected, labels, strict=True)}
    for part in ("train", "test"):
        images = data.part(part)
        for row in range(len(images)):
            assert by_pixels.pop(images.image(row).tobytes()) == images.labels[row]
    assert not by_pixels


class CallsSystem:
    def __reduce__(self):
        import os

        return os.system, ("touch HACKED",)


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CallsSystem(), r"asks for (posix|nt|os).system, which no such file needs"),
        ({b"data": CallsSystem(), b"labels": []}, "which no such file needs"),
        ([1, 2], "expected a dictionary, got list"),
        ({b"data": np.zeros((2, 3072), np.float32), b"labels": [0, 1]}, "uint8 of shape"),
        ({b"data": np.zeros((2, 3071), np.uint8), b"labels": [0, 1]}, "uint8 of shape"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "as many labels"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}, "labels of 0 to 9"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, "cat"]}, "labels of 0 to 9"),
        ({}, "uint8 of shape"),
    ],
)
def test_a_pickle_that_is_no_batch_is_refused_and_runs_nothing(
    content, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=message):
        cifar10.find(Folder(tmp_path))
    assert not (tmp_path / "HACKED").exists()


def test_a_damaged_pickle_or_binary_is_refused(tmp_path):
    planes, labels = cifar_rows(4)
    whole = pickle.dumps({b"data": planes, b"labels": labels}, protocol=2)
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "data_batch_1").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"data_batch_1: expected"):
            cifar10.find(Folder(tmp_path))
    (tmp_path / "data_batch_1").unlink()
    for data in (b"", bytes(3072), bytes([11]) + bytes(3072)):
        (tmp_path / "data_batch_1.bin").write_bytes(data)
        with pytest.raises(UserError, match=r"expected (rows of 3073 bytes|labels of 0 to 9)"):
            cifar10.find(Folder(tmp_path))


def test_pickles_of_an_old_numpy_are_read(tmp_path):
    planes, labels = cifar_rows(4)
    data = pickle.dumps({b"data": planes, b"labels": labels}, protocol=2)
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != data
    (tmp_path / "data_batch_1").write_bytes(old)
    found = cifar10.find(Folder(tmp_path))
    assert [item.label for item in found.parts["train"]] == labels
    assert found.notes[0].startswith("absent: data_batch_2")
    result = run_here(BUILD, "--input", str(tmp_path), "--output", str(tmp_path / "out"))
    assert_user_error(result, "expected val or test pictures beside train", "--val-fraction 0.2")


# --- Recognition


def test_every_source_is_recognised_by_what_it_is(official, toy_dir, tmp_path):
    given = {
        "kaggle": toy_dir,
        "ilsvrc2012": official[2012],
        "ilsvrc2010": official[2010],
        "class-tars": write_class_tars(tmp_path / "fall", 3),
        "tiny-imagenet": write_tiny(tmp_path / "tiny", [wnid_of(1), wnid_of(2)]),
        "cifar10": write_cifar(tmp_path / "cifar", "python"),
    }
    (tmp_path / "mine" / "train" / "cat").mkdir(parents=True)
    given["folder"] = tmp_path / "mine"
    given |= {name: tmp_path / name for name in ("csv", "flat", "class-folders")}
    for path in ("csv/labels.csv", "flat/n00000001_1.JPEG", "class-folders/a/1.png"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("path,label\n")
    (tmp_path / "class-folders" / "b").mkdir()
    (tmp_path / "class-folders" / "b" / "2.JPG").touch()
    # Tiny Image10 is a cut of Tiny ImageNet: it has to be asked for.
    assert set(given) == set(SOURCES) - {"tiny-image10"}
    for name, directory in given.items():
        source, tree = recognize(Folder(directory), directory)
        assert (source, tree.title) == (name, str(directory))


def test_a_folder_around_the_set_is_looked_into(tmp_path):
    write_tiny(tmp_path / "download" / "tiny-imagenet-200", [wnid_of(1), wnid_of(2)])
    source, tree = recognize(Folder(tmp_path / "download"), tmp_path / "download")
    assert source == "tiny-imagenet"
    assert len(tiny_imagenet.find(tree).parts["train"]) == 12
    assert tree.title == str(tmp_path / "download" / "tiny-imagenet-200")


def test_a_named_source_that_is_not_there_says_what_is_missing(tmp_path):
    (tmp_path / "input").mkdir()
    messages = {
        "kaggle": "expected ILSVRC/Data/CLS-LOC/train",
        "ilsvrc2012": "expected the development kit",
        "ilsvrc2010": "expected the development kit",
        "class-tars": "expected tars named nXXXXXXXX.tar, found none",
        "tiny-imagenet": "wnids.txt: expected one wnid per line, found no file",
        "tiny-image10": "wnids.txt: expected one wnid per line, found no file",
        "cifar10": "expected the folders train/<class>/",
        "folder": "expected the folders train/<class>/",
        "csv": "labels.csv: expected a CSV with the columns path and label, found no file",
        "flat": "expected pictures named nXXXXXXXX_name.JPEG, found none",
        "class-folders": "expected two class folders or more, each with pictures, found 0 folders",
    }
    assert set(messages) == set(SOURCES)
    for source, message in messages.items():
        with pytest.raises(UserError, match=message):
            SOURCES[source].find(Folder(tmp_path / "input"))


@pytest.mark.fault(31)
def test_held_out_pictures_that_all_have_one_label_are_refused(tmp_path):
    """Such as a flat folder of pictures that was put into one class folder."""
    for part, classes in (("train", ("cat", "dog")), ("val", ("cat", "dog"))):
        for name in classes:
            (tmp_path / "in" / part / name).mkdir(parents=True)
            count = 60 if (part, name) == ("val", "cat") else 2
            for i in range(count):
                (tmp_path / "in" / part / name / f"{i}.JPEG").write_bytes(picture((1, 2, 3)))
    for path in (tmp_path / "in" / "val" / "dog").iterdir():
        path.rename(path.with_suffix(".txt"))
    found = folder.find(Folder(tmp_path / "in"))
    check_pictures(found, strict=False)
    only_cats = tuple(item for item in found.parts["val"] if item.label == 0)
    found.parts["val"] = only_cats
    with pytest.raises(UserError, match=r"all 60 val pictures have the same label \(cat\)"):
        check_pictures(found, strict=False)


def test_the_source_that_contributing_shows_works_as_it_stands(tmp_path, monkeypatch):
    text = (PROJECT_DIR / "CONTRIBUTING.md").read_text()
    code = text.split("**A data source.**")[1].split("```python\n")[1].split("```")[0]
    (tmp_path / "listed_source.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("listed_source")
    monkeypatch.setitem(SOURCES, "list", module)
    source = tmp_path / "in"
    source.mkdir()
    rows = [("a.JPEG", "dog", "train"), ("b.JPEG", "ant", "train"), ("c.JPEG", "dog", "val")]
    for i, (name, _, _) in enumerate(rows):
        (source / name).write_bytes(picture(color_of(i)))
    (source / "labels.txt").write_text("".join(" ".join(row) + "\n" for row in rows))
    (tmp_path / "in.zip").write_bytes(zip_bytes(files_below(source)))
    for given in (source, tmp_path / "in.zip"):
        out = tmp_path / f"out of {given.name}"
        arguments = ["--input", str(given), "--output", str(out), "--size", "8"]
        assert build_shards([*arguments, "--workers", "1"]) == 0
        data = open_data_set(out)
        assert data.manifest.plan.source == "list"
        assert data.wnids == ["ant", "dog"]
        assert data.train.labels.tolist() == [1, 0]
        assert number_of(data.val.image(0)[4, 4]) == 2
    (source / "labels.txt").write_text("nowhere.JPEG dog train\n")
    with pytest.raises(UserError, match="line 1: expected `path class part`"):
        module.find(Folder(source))
