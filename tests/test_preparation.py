"""From files to shards against an oracle: Pillow, NumPy and h5py alone (paper 2, 4.1)."""

import csv

import h5py
import numpy as np
import oracles
import pytest
from conftest import run_here
from PIL import Image

SIZE = 64
# Not in sorted order: a label is the line of the mapping file.
CLASSES = {"n00000003": "third, of three", "n00000001": "first", "n00000002": "second"}
TRAIN = {
    "n00000003": {"b.JPEG": "RGB", "a.JPEG": "CMYK"},
    "n00000001": {"n00000001_10.JPEG": "L", "n00000001_9.JPEG": "PNG"},
    "n00000002": {"x.JPEG": "RGB", "y.JPEG": "palette", "z.JPEG": "turned"},
}
VAL = {"ILSVRC2012_val_00000002": "n00000002", "ILSVRC2012_val_00000001": "n00000003"}
VAL |= {"ILSVRC2012_val_00000003": "n00000001"}
# Wide and tall, of odd remainders, smaller than an image, of its size in one direction.
SIZES = [(97, 64), (64, 131), (110, 70), (31, 40), (64, 64), (200, 81), (90, 91), (65, 64)]


def picture(rng, size, kind):
    """Smooth waves and noise, so that each step of the preparation shows."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / rng.uniform(3, 30) + y / rng.uniform(3, 30)) for _ in range(3)]
    pixels = 128 + 80 * np.stack(waves, axis=-1) + rng.normal(0, 25, (height, width, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return {"L": image.convert("L"), "CMYK": image.convert("CMYK")}.get(
        kind, image.quantize(32) if kind == "palette" else image
    )


def save(image, path, kind):
    exif = Image.Exif()
    if kind == "turned":
        exif[0x0112] = 6  # to be rotated by viewers; no known pipeline for ImageNet did
    is_png = kind in ("PNG", "palette")
    image.save(path, "PNG" if is_png else "JPEG", exif=exif, **({} if is_png else {"quality": 90}))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A small ImageNet as Kaggle packs it."""
    root = tmp_path_factory.mktemp("kaggle")
    rng = np.random.default_rng(8)
    sizes = iter(SIZES * 2)
    base = root / "ILSVRC" / "Data" / "CLS-LOC"
    for wnid, files in TRAIN.items():
        (base / "train" / wnid).mkdir(parents=True)
        for name, kind in files.items():
            save(picture(rng, next(sizes), kind), base / "train" / wnid / name, kind)
    (base / "val").mkdir()
    for name in VAL:
        save(picture(rng, next(sizes), "RGB"), base / "val" / f"{name}.JPEG", "RGB")
    mapping = "".join(f"{wnid} {name}\n" for wnid, name in CLASSES.items())
    (root / "LOC_synset_mapping.txt").write_text(mapping)
    rows = "".join(f"{name},{wnid} 1 1 20 20 \n" for name, wnid in VAL.items())
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    return root


def prepared(path):
    """Paper 2: the shorter side rescaled, the central square cut; of two squares the later."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    shorter = min(image.size)
    width, height = (max(SIZE, round(side * SIZE / shorter)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - SIZE + 1) // 2, (height - SIZE + 1) // 2
    return np.asarray(image)[top : top + SIZE, left : left + SIZE]


@pytest.fixture(scope="module")
def shards(tree, tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    options = ("--size", str(SIZE), "--images-per-shard", "3", "--workers", "2")
    command = ("data_prep/build_shards.py", "--input", str(tree), "--output", str(directory))
    result = run_here(*command, *options)
    assert result.returncode == 0, result.stderr
    return directory


def test_the_shards_hold_what_the_oracle_makes_of_the_files(tree, shards):
    base = "ILSVRC/Data/CLS-LOC"
    labels = {wnid: label for label, wnid in enumerate(CLASSES)}
    # Class by class in the order of the mapping, file by file in the order of their names.
    files = {"train": [], "val": []}
    for wnid in CLASSES:
        files["train"] += [(f"{base}/train/{wnid}/{n}", labels[wnid]) for n in sorted(TRAIN[wnid])]
    files["val"] = [(f"{base}/val/{name}.JPEG", labels[VAL[name]]) for name in sorted(VAL)]

    data = oracles.read_data(shards)
    listed = []
    for part, pictures in files.items():
        images = np.stack([prepared(tree / path) for path, _ in pictures])
        assert np.array_equal(data[part][0], images), part
        assert data[part][1].tolist() == [label for _, label in pictures]
        names = []
        for path in sorted(shards.glob(f"{part}-*.h5")):
            with h5py.File(path, "r") as file:
                names += [name.decode() for name in file["pictures"][:]]
                assert [wnid.decode() for wnid in file["wnids"][:]] == list(CLASSES)
                assert [name.decode() for name in file["names"][:]] == list(CLASSES.values())
        assert names == [path for path, _ in pictures]
        for path, label in pictures:
            wnid = list(CLASSES)[label]
            listed.append([path, wnid, str(label), CLASSES[wnid], part])
    with (shards / "labels.csv").open(newline="") as file:
        assert list(csv.reader(file))[1:] == listed


def test_the_statistics_are_those_of_all_training_pixels(shards):
    images = oracles.read_data(shards)["train"][0].astype(np.float64)
    with h5py.File(shards / "statistics.h5", "r") as file:
        got = {name: file[name][:] for name in file}
    assert np.array_equal(got["mean_image"], images.mean(axis=0).astype(np.float32))
    pixels = images.reshape(-1, 3)
    covariance = np.cov(pixels.T / 255, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), range(3)])
    for name, expected in (
        ("rgb_mean", pixels.mean(axis=0)),
        ("rgb_covariance", covariance),
        ("eigenvalues", values),
        ("eigenvectors", vectors),
        ("standard_deviations", 255 * np.sqrt(values)),
    ):
        np.testing.assert_allclose(got[name], expected, rtol=1e-12, atol=1e-12, err_msg=name)
    # Channels, and rows and columns of the vectors, are not alike: a swap would be seen.
    assert np.ptp(pixels.mean(axis=0)) > 1
    assert np.abs(vectors - vectors.T).max() > 0.1
    assert values[0] > 2 * values[2] > 0
