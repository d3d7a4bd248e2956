"""Real ImageNet pictures: labels and pixels checked by code that shares none with the builder."""

import csv
import io
import tarfile

import h5py
import numpy as np
import pytest
import squeezenet
import torch
from conftest import run_here
from PIL import Image
from scipy.io import loadmat

from data_prep.shards import open_data_set
from data_prep.sources import kaggle, tiny_imagenet
from data_prep.sources.devkit import read_devkit
from data_prep.sources.trees import Folder, open_tree
from replica.feed.augment import center_crop, ten_crops
from replica.feed.feed import Batch
from replica.training.evaluation import count, evaluate


@pytest.fixture(scope="module")
def imagenet(real_data, tmp_path_factory):
    """`imagenet_a.tar` unpacked, and its shards."""
    directory = tmp_path_factory.mktemp("imagenet")
    with tarfile.open(real_data / "imagenet_a.tar") as archive:
        archive.extractall(directory, filter="data")
    out = directory / "shards"
    result = run_here("data_prep/build_shards.py", "--input", str(directory), "--output", str(out))
    assert result.returncode == 0, result.stderr
    assert "source: kaggle" in result.stdout
    assert "train: 563 of 1000 classes have no pictures" in result.stdout
    return directory, out


def rows_of(out, part):
    """Names, labels and images straight from the HDF5 files."""
    names, labels, images = [], [], []
    for path in sorted(out.glob(f"{part}-*.h5")):
        with h5py.File(path) as file:
            names += [name.decode() for name in file["pictures"][:]]
            labels += file["labels"][:].tolist()
            images.append(file["images"][:])
    return names, labels, np.concatenate(images)


def test_every_label_of_real_imagenet_is_right(imagenet, real_data):
    """Train labels from the list of files; val labels from the devkit, through ILSVRC2012_ID."""
    _, out = imagenet
    with (real_data / "manifest.csv").open(newline="") as file:
        listed = {
            row["path"]: int(row["label"])
            for row in csv.DictReader(file)
            if row["archive"] == "imagenet_a.tar" and "/train/" in row["path"]
        }
    names, labels, _ = rows_of(out, "train")
    assert dict(zip(names, labels, strict=True)) == listed
    assert len(names) == 455

    with tarfile.open(real_data / "devkit.tar.gz") as archive:
        ids = archive.extractfile("devkit/ILSVRC2012_validation_ground_truth.txt").read().split()
        meta = loadmat(io.BytesIO(archive.extractfile("devkit/meta.mat").read()))["synsets"]
    leaves = [entry for entry in meta.ravel() if entry["num_children"].item() == 0]
    wnid_of = {entry["ILSVRC2012_ID"].item(): entry["WNID"].item() for entry in leaves}
    in_order = sorted(wnid_of.values())
    names, labels, _ = rows_of(out, "val")
    assert len(names) == 44
    for name, label in zip(names, labels, strict=True):
        number = int(name.split("_")[-1].split(".")[0])
        assert in_order[label] == wnid_of[int(ids[number - 1])], name


def test_pixels_of_real_pictures_are_resized_and_cropped_as_pillow_does(imagenet):
    directory, out = imagenet
    modes = set()
    for part, step in (("train", 9), ("val", 3)):
        names, _, images = rows_of(out, part)
        for name, stored in list(zip(names, images, strict=True))[::step]:
            with Image.open(directory / name) as picture:
                modes.add(picture.mode)
                width, height = picture.size
                scale = 256 / min(width, height)
                size = (round(width * scale), round(height * scale))
                resized = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR)
            pixels = np.asarray(resized)
            bottom, right = (size[1] + 257) // 2, (size[0] + 257) // 2
            assert np.array_equal(stored, pixels[bottom - 256 : bottom, right - 256 : right]), name
    assert modes >= {"RGB", "L"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "views", "top1", "top5", "num_images"),
    [
        ("val", "center", 25, 33, 44),
        ("val", "ten", 24, 35, 44),
        ("train", "center", 299, 386, 455),
        ("train", "ten", 306, 397, 455),
    ],
)
def test_a_foreign_network_gets_as_many_right_as_published_code_says(
    imagenet, real_data, part, views, top1, top5, num_images
):
    network = squeezenet.SqueezeNet(real_data / "squeezenet_v1.0_deepcompression_caffe.npz")
    data = open_data_set(imagenet[1])
    cut = ten_crops if views == "ten" else center_crop
    images = getattr(data, part)

    def batches():
        for number, rows in enumerate(np.split(np.arange(len(images)), range(4, len(images), 4))):
            prepared = [squeezenet.prepare(images.image(row)) for row in rows]
            crops = np.concatenate([cut(x, crop_size=squeezenet.CROP_SIZE) for x in prepared])
            labels = torch.from_numpy(images.labels[rows].astype(np.int64))
            crops = torch.from_numpy(crops).permute(0, 3, 1, 2)
            yield Batch(number, crops, labels, torch.from_numpy(rows), len(rows))

    counts = evaluate(batches(), predict=network)
    counts.check(num_images)
    print(f"{part} {views}: {counts.top1_correct} and {counts.top5_correct}")
    assert abs(counts.top1_correct - top1) <= 2
    assert abs(counts.top5_correct - top5) <= 2


# --- Counting, on made-up probabilities


def test_errors_are_counted_and_ties_count_by_their_share():
    probabilities = torch.tensor(
        [
            [0.1, 0.5, 0.4, 0, 0, 0, 0, 0],
            [0.1, 0.5, 0.4, 0, 0, 0, 0, 0],
            [0.125] * 8,
            [0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05, 0.0],
        ]
    )
    counts = count(probabilities, torch.tensor([1, 2, 3, 5]))
    assert counts.num_images == 4
    assert counts.top1_correct == 1 + 0 + 1 / 8 + 0
    assert counts.top5_correct == 1 + 1 + 5 / 8 + 0
    assert counts.loss == pytest.approx(-np.log([0.5, 0.4, 0.125, 0.08]).sum(), rel=1e-6)


def test_an_opinion_that_is_not_a_number_is_never_right():
    counts = count(torch.full((3, 10), float("nan")), torch.tensor([0, 1, 2]))
    assert (counts.num_images, counts.top1_correct, counts.top5_correct) == (3, 0, 0)


def test_with_fewer_than_five_classes_every_top5_is_right():
    counts = count(torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([0]))
    assert (counts.top1_correct, counts.top5_correct) == (0, 1)


def test_every_label_of_real_tiny_imagenet_is_right(real_data, tmp_path):
    """Against the list of files, in which each picture has its class."""
    with tarfile.open(real_data / "tinyimagenet10_a.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    found = tiny_imagenet.find(Folder(tmp_path / "tiny-imagenet-200"))
    with (real_data / "manifest.csv").open(newline="") as file:
        listed = {
            row["path"].removeprefix("tiny-imagenet-200/"): row["wnid"]
            for row in csv.DictReader(file)
            if row["archive"] == "tinyimagenet10_a.tar.xz" and "/test/" not in row["path"]
        }
    pictures = {
        path: found.wnids[label]
        for part in ("train", "val")
        for path, label, _ in found.parts[part]
    }
    assert len(pictures) == 5500
    assert pictures == {path: wnid for path, wnid in listed.items() if path.endswith(".JPEG")}


def test_the_real_devkit_gives_the_labels_of_kaggles_csv(real_data, tmp_path):
    """50,000 labels by two ways that share nothing: ids through meta.mat, and wnids of a CSV."""
    (tmp_path / "devkit.tar.gz").symlink_to(real_data / "devkit.tar.gz")
    devkit = read_devkit(Folder(tmp_path, follow_links=True), year=2012)
    labels = devkit.validation_labels()
    tree = open_tree(real_data / "devkit.tar.gz").below("devkit")
    wnids, names = kaggle.read_mapping(tree, "LOC_synset_mapping.txt")
    assert devkit.wnids == wnids
    assert len(names) == len(devkit.class_names) == 1000
    solution = kaggle.read_solution(tree, "LOC_val_solution.csv")
    assert len(labels) == len(solution) == 50_000
    for number, label in enumerate(labels, start=1):
        assert solution[f"ILSVRC2012_val_{number:08d}"] == wnids[label]


def test_genuine_annotations_are_read(real_data):
    tree = open_tree(real_data / "devkit.tar.gz").below("devkit/xml_real_samples")
    samples = [f"{wnid}/{name}" for wnid in tree.names("") for name in tree.names(wnid)]
    assert len(samples) == 100
    for path in samples:
        assert kaggle.read_annotation(tree, path) == path.split("/")[0]


@pytest.mark.parametrize("decoder", ["pillow", "fast"])
def test_real_pictures_keep_their_look_with_any_decoder_and_storage(imagenet, decoder, tmp_path):
    """The fast decoder and JPEG storage stay near the pixels of `paper`."""
    if decoder == "fast":
        pytest.importorskip("cv2")
        pytest.importorskip("simplejpeg")
    directory, out = imagenet
    arguments = ["--input", str(directory), "--output", str(tmp_path / "out")]
    options = ["--decoder", decoder] if decoder == "fast" else ["--storage", "jpeg"]
    result = run_here("data_prep/build_shards.py", *arguments, *options)
    assert result.returncode == 0, result.stderr
    one, other = open_data_set(out), open_data_set(tmp_path / "out")
    differences = [
        np.abs(one.val.image(row).astype(int) - other.val.image(row)).mean()
        for row in range(len(one.val))
    ]
    assert 0 < np.mean(differences) < 4
    strangers = np.abs(one.val.image(0).astype(int) - other.val.image(1)).mean()
    assert max(differences) < strangers / 3
