"""Where pictures and labels are found, and what is said when they are not."""

import json
import shutil

import numpy as np
import pytest
from conftest import SMALL, assert_user_error, run_here
from PIL import Image

from data_prep.errors import UserError
from data_prep.shards import open_data_set
from data_prep.sources import folder, kaggle, tiny_imagenet, toy
from data_prep.sources.trees import Folder

BUILD = "data_prep/build_shards.py"


@pytest.fixture
def pictures(toy_dir, tmp_path):
    """A copy of the small toy set that a test may damage."""
    return shutil.copytree(toy_dir, tmp_path / "pictures")


def val_dir(pictures):
    return pictures / "ILSVRC" / "Data" / "CLS-LOC" / "val"


# --- The toy set


def test_the_drawing_is_a_pure_function_of_its_seed_and_size(toy_dir, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    toy.draw(again, size=SMALL, num_workers=1)
    toy.draw(other, size=toy.ToySize(8, SMALL.train_per_class, SMALL.val_per_class), num_workers=1)
    files = sorted(p.relative_to(toy_dir) for p in toy_dir.rglob("*") if p.is_file())
    assert len(files) == 60 + 2 * 30 + 3
    assert all((again / file).read_bytes() == (toy_dir / file).read_bytes() for file in files)
    pictures = [file for file in files if file.suffix == ".JPEG"]
    assert all((other / file).read_bytes() != (toy_dir / file).read_bytes() for file in pictures)


def test_the_toy_pictures_vary_in_size_shape_and_mode(toy_dir):
    modes, sizes = set(), set()
    for path in toy_dir.rglob("*.JPEG"):
        with Image.open(path) as picture:
            modes.add(picture.mode)
            sizes.add(picture.size)
    assert modes == {"RGB", "L", "CMYK"}
    assert len(sizes) > 80
    assert any(width > height for width, height in sizes)
    assert any(width < height for width, height in sizes)


def test_another_toy_set_in_the_directory_is_refused(toy_dir):
    with pytest.raises(UserError, match=r"found one with .*give another directory with --input"):
        toy.find(toy_dir)


def test_the_toy_set_is_not_drawn_into_a_directory_with_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="expected an empty directory"):
        toy.find(tmp_path, size=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# --- Kaggle


def test_labels_are_lines_of_the_mapping_from_the_csv_and_from_the_xml(pictures):
    from_csv = kaggle.find(Folder(pictures))
    (pictures / "LOC_val_solution.csv").unlink()
    from_xml = kaggle.find(Folder(pictures))
    assert from_csv.parts == from_xml.parts
    assert "30 of them were compared with their XML files: no difference" in from_csv.notes
    assert from_csv.wnids == toy.WNIDS
    assert [len(from_csv.parts[part]) for part in ("train", "val")] == [60, 30]
    for path, label, _ in from_csv.parts["train"]:
        assert path.split("/")[-2] == toy.WNIDS[label]


@pytest.mark.fault(30)
def test_the_mapping_decides_the_label_not_the_order_of_folders(pictures):
    mapping = pictures / "LOC_synset_mapping.txt"
    mapping.write_text("".join(reversed(mapping.read_text().splitlines(keepends=True))))
    found = kaggle.find(Folder(pictures))
    assert found.wnids == tuple(reversed(toy.WNIDS))
    for path, label, _ in found.parts["train"]:
        assert path.split("/")[-2] == found.wnids[label]


def test_the_directory_may_be_given_with_or_without_ilsvrc(pictures):
    shutil.move(pictures / "LOC_synset_mapping.txt", pictures / "ILSVRC")
    inner, outer = (kaggle.find(Folder(path)) for path in (pictures / "ILSVRC", pictures))
    for part in ("train", "val"):
        assert [p.place for p in inner.parts[part]] == [p.place for p in outer.parts[part]]


@pytest.mark.fault(31)
def test_missing_validation_labels_are_an_error_with_the_way_out(pictures):
    (pictures / "LOC_val_solution.csv").unlink()
    shutil.rmtree(pictures / "ILSVRC" / "Annotations")
    result = run_here(BUILD, "--input", str(pictures), "--output", str(pictures / "out"))
    assert_user_error(result, "30 of 30 validation pictures have no label", "LOC_val_solution.csv")


@pytest.mark.fault(30)
def test_a_class_folder_that_the_mapping_lacks_is_refused(pictures):
    (pictures / "ILSVRC/Data/CLS-LOC/train/n12345678").mkdir()
    with pytest.raises(UserError, match=r"got 1 other names .such as n12345678"):
        kaggle.find(Folder(pictures))


@pytest.mark.fault(29)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01440764 tench\nkangaroo\n", "line 2: expected `nXXXXXXXX name`, got 'kangaroo'"),
        ("n01440764 tench\nn01440764 tench\n", "line 2: n01440764 stands there a second time"),
        ("", "got an empty file"),
    ],
)
def test_a_wrong_mapping_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "mapping.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        kaggle.read_mapping(Folder(tmp_path), "mapping.txt")


@pytest.mark.fault(29)
def test_a_mapping_with_bom_and_crlf_is_read(tmp_path):
    (tmp_path / "mapping.txt").write_bytes(b"\xef\xbb\xbfn01440764 tench, Tinca tinca\r\n")
    assert kaggle.read_mapping(Folder(tmp_path), "mapping.txt") == (
        ("n01440764",),
        ("tench, Tinca tinca",),
    )


@pytest.mark.fault(29)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Image,Words\na,b\n", "line 1: expected the columns ImageId,PredictionString"),
        ("ImageId,PredictionString\na,\n", "line 2: expected `ImageId,wnid box...`"),
        ("ImageId,PredictionString\n../a,n1 1 1 2 2\n", "line 2: expected"),
        ("ImageId,PredictionString\na,n1 1 1 2 2\na,n1 1 1 2 2\n", "line 3: a stands there twice"),
        ("ImageId,PredictionString\na,n1 1 1 2 2 n2 1 1 2 2\n", "line 2: a has two classes"),
    ],
)
def test_a_wrong_solution_file_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "solution.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        kaggle.read_solution(Folder(tmp_path), "solution.csv")


@pytest.mark.fault(28)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "without a document type"),
        ("<annotation>", "expected XML, got"),
        ("<annotation></annotation>", "expected objects of one class"),
        (
            "<annotation><object><name>n1</name></object><object><name>n2</name></object>"
            "</annotation>",
            "expected objects of one class",
        ),
        ("<annotation>" + " " * (1 << 20) + "</annotation>", "at most 1048576 bytes"),
    ],
)
def test_wrong_annotations_are_refused(tmp_path, text, message):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(UserError, match=message):
        kaggle.read_annotation(Folder(tmp_path), "a.xml")


@pytest.mark.fault(30)
def test_classes_without_pictures_are_counted_and_strict_refuses_them(pictures, tmp_path):
    train = pictures / "ILSVRC/Data/CLS-LOC/train"
    shutil.rmtree(train / toy.WNIDS[3])
    for picture in (train / toy.WNIDS[5]).iterdir():
        picture.unlink()
    arguments = [BUILD, "--input", str(pictures), "--output", str(tmp_path / "out")]
    assert_user_error(run_here(*arguments, "--strict"), "2 of 10 classes have no train pictures")
    result = run_here(*arguments)
    assert result.returncode == 0, result.stderr
    assert "train: 2 of 10 classes have no pictures (such as n90000003)" in result.stdout
    data = open_data_set(tmp_path / "out")
    assert data.manifest.plan.classes_without_pictures["train"] == [toy.WNIDS[3], toy.WNIDS[5]]
    assert len(data.wnids) == 10


# --- Class folders


def make_folders(root, classes=("cat", "dog"), parts=("train", "val"), count=2):
    rng = np.random.default_rng(0)
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def test_class_folders_are_labelled_in_sorted_order(tmp_path):
    found = folder.find(Folder(make_folders(tmp_path, classes=("dog", "cat", "ant"))))
    assert found.wnids == ("ant", "cat", "dog")
    assert [picture.label for picture in found.parts["val"]] == [0, 0, 1, 1, 2, 2]
    assert found.parts["val"][2].name == "val/cat/0.png"


@pytest.mark.fault(30)
def test_an_empty_class_folder_is_an_error(tmp_path):
    make_folders(tmp_path)
    (tmp_path / "val" / "dog" / "0.png").unlink()
    (tmp_path / "val" / "dog" / "1.png").unlink()
    with pytest.raises(UserError, match="val/dog is empty"):
        folder.find(Folder(tmp_path))


@pytest.mark.fault(31)
def test_flat_validation_pictures_are_refused_and_all_problems_named(tmp_path):
    make_folders(tmp_path, parts=("train",))
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "val_0.JPEG").write_bytes(b"x")
    with pytest.raises(UserError) as error:
        folder.find(Folder(tmp_path))
    assert "val/ holds 1 files outside of class folders (such as val_0.JPEG)" in str(error.value)
    assert "val/ lacks 2 classes of train/ (such as cat)" in str(error.value)


def test_a_directory_with_neither_layout_is_refused(tmp_path):
    result = run_here(BUILD, "--input", str(tmp_path), "--output", str(tmp_path / "out"))
    assert_user_error(result, str(tmp_path), "found nothing", "kaggle: ILSVRC", "folder: train")
    result = run_here(
        BUILD, "--input", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")
    )
    assert_user_error(result, "nowhere", "expected a directory, a zip file or a tar")
    result = run_here(BUILD, "--source", "kaggle", "--output", str(tmp_path / "out"))
    assert_user_error(result, "--source kaggle: expected --input PATH")


# --- Bad pictures


@pytest.mark.fault(24, 33)
def test_bad_pictures_are_listed_with_their_reason_and_the_rest_is_built(pictures, tmp_path):
    train = pictures / "ILSVRC/Data/CLS-LOC/train" / toy.WNIDS[0]
    (train / "a_text.JPEG").write_text("hello")
    (train / "a_folder").mkdir()
    (train / "loop").symlink_to(train / "loop")
    picture = next(train.glob("n9*.JPEG"))
    picture.write_bytes(picture.read_bytes()[:1500])
    arguments = [BUILD, "--input", str(pictures), "--output", str(tmp_path / "out")]
    strict = run_here(*arguments, "--strict")
    assert strict.returncode == 2
    assert "--strict stops here" in strict.stderr.splitlines()[-1]
    result = run_here(*arguments)
    assert result.returncode == 0, result.stderr
    assert "train: 4 pictures could not be read" in result.stdout
    data = open_data_set(tmp_path / "out")
    assert len(data.train) == 59
    listed = {
        item["picture"].split("/")[-1]: item["reason"]
        for shard in json.loads((tmp_path / "out/manifest.json").read_text())["parts"]["train"][
            "shards"
        ]
        for item in shard["bad_pictures"]
    }
    assert listed.keys() == {"a_text.JPEG", "a_folder", "loop", picture.name}
    assert "neither JPEG, PNG" in listed["a_text.JPEG"]
    assert "truncated" in listed[picture.name]


@pytest.mark.fault(33)
def test_a_picture_outside_of_the_input_is_listed_and_read_only_when_asked_for(tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    Image.new("RGB", (40, 40)).save(secret / "secret.png")
    pictures = make_folders(tmp_path / "pictures")
    cat = pictures / "train" / "cat"
    (cat / "near.png").symlink_to("0.png")
    (cat / "far.png").symlink_to(secret / "secret.png")
    (cat / "far").symlink_to(secret)
    arguments = [BUILD, "--input", str(pictures), "--size", "32", "--workers", "1"]
    result = run_here(*arguments, "--output", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    reason = "is a link that leads out of the input: --follow-links reads it"
    for name in ("far", "far.png"):
        assert f"  train/cat/{name}: {reason}\n" in result.stdout
    data = open_data_set(tmp_path / "out")
    assert len(data.train) == 5
    assert [bad.picture for bad in data.manifest.parts["train"][0].bad_pictures] == [
        "train/cat/far",
        "train/cat/far.png",
    ]
    followed = run_here(*arguments, "--follow-links", "--output", str(tmp_path / "followed"))
    assert followed.returncode == 0, followed.stderr
    assert "train/cat/far: is a folder" in followed.stdout
    assert len(open_data_set(tmp_path / "followed").train) == 6
    # What was built without them is no beginning of a build with them.
    mixed = run_here(*arguments, "--follow-links", "--output", str(tmp_path / "out"))
    assert_user_error(mixed, "holds another data set (differs in pictures_sha256)")
    (pictures / "val" / "dog").rename(tmp_path / "dog")
    (pictures / "val" / "dog").symlink_to(tmp_path / "dog")
    result = run_here(*arguments, "--output", str(tmp_path / "third"))
    assert_user_error(result, f"{pictures}/val/dog: is a link that leads out of the input")


def test_follow_links_needs_a_directory_of_pictures(tmp_path):
    for options in ([], ["--source", "toy"], ["--source", "toy", "--input", str(tmp_path)]):
        result = run_here(BUILD, "--follow-links", *options, cwd=tmp_path)
        assert_user_error(result, "--follow-links: expected --input beside it")


# --- Tiny ImageNet


@pytest.fixture
def tiny(tmp_path):
    """Three classes in the layout of Tiny ImageNet, out of order in every file."""
    directory = tmp_path / "tiny-imagenet-200"
    wnids = ("n02124075", "n01698640", "n07695742")
    for wnid in wnids:
        images = directory / "train" / wnid / "images"
        images.mkdir(parents=True)
        (images.parent / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
        for i in range(4):
            Image.new("RGB", (64, 64), (i * 50, 0, 0)).save(images / f"{wnid}_{i}.JPEG")
    (directory / "wnids.txt").write_text("\n".join(wnids) + "\n")
    names = {wnid: f"name of {wnid}, other" for wnid in wnids}
    lines = [f"{wnid}\t{name}" for wnid, name in {"n00001740": "entity", **names}.items()]
    (directory / "words.txt").write_text("\n".join(lines) + "\n")
    val = directory / "val" / "images"
    val.mkdir(parents=True)
    lines = []
    for i, wnid in enumerate((wnids[2], wnids[0], wnids[1], wnids[1])):
        Image.new("RGB", (64, 64)).save(val / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t3\t63\t57")
    (directory / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (directory / "test" / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(directory / "test" / "images" / "test_0.JPEG")
    return directory


def test_tiny_imagenets_labels_are_places_of_sorted_wnids(tiny):
    found = tiny_imagenet.find(Folder(tiny))
    assert found.wnids == ("n01698640", "n02124075", "n07695742")
    assert found.class_names[0] == "name of n01698640, other"
    assert len(found.parts["train"]) == 12
    for path, label, _ in found.parts["train"]:
        assert path.split("/")[1] == found.wnids[label]
    assert [picture[:2] for picture in found.parts["val"]] == [
        (f"val/images/val_{i}.JPEG", label) for i, label in enumerate((2, 1, 0, 0))
    ]
    assert found.notes == ("the test pictures have no labels and are left out",)


def test_tiny_imagenet_is_recognised_and_built(tiny, tmp_path):
    output = tmp_path / "shards"
    result = run_here(BUILD, "--input", str(tiny), "--output", str(output), "--workers", "1")
    assert result.returncode == 0, result.stderr
    assert "source: tiny-imagenet (found at" in result.stdout
    data = open_data_set(output)
    assert [len(data.train), len(data.val)] == [12, 4]
    assert data.train.image(0).shape == (256, 256, 3)


def damage_tiny(directory, what):
    if what == "an unknown folder":
        (directory / "train" / "n00000000").mkdir()
    elif what == "a class without a folder":
        shutil.rmtree(directory / "train" / "n01698640")
    elif what == "no folder images":
        (directory / "train" / "n01698640" / "images").rename(directory / "train" / "moved")
    elif what == "no annotations":
        (directory / "val" / "val_annotations.txt").unlink()
    elif what == "no names":
        (directory / "words.txt").write_text("n01698640\ta name\n")
    else:
        path, old, new = {
            "a wrong wnid": ("wnids.txt", "n02124075", "cat"),
            "a wnid twice": ("wnids.txt", "n02124075", "n01698640"),
            "an unlabelled picture": ("val/val_annotations.txt", "val_0.JPEG", "val_9.JPEG"),
            "a picture twice": ("val/val_annotations.txt", "val_0.JPEG", "val_1.JPEG"),
            "an unknown class": ("val/val_annotations.txt", "n07695742", "n00000000"),
            "spaces for tabs": ("val/val_annotations.txt", "\t", " "),
        }[what]
        text = (directory / path).read_text()
        assert old in text
        (directory / path).write_text(text.replace(old, new))


@pytest.mark.fault(29, 30, 31)
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("an unknown folder", "1 names are no class .such as n00000000"),
        ("a class without a folder", "1 classes have no folder .such as n01698640"),
        ("no folder images", "1 classes have no folder images .such as n01698640"),
        ("no annotations", "val_annotations.txt: expected the classes of the validation pictures"),
        ("no names", "words.txt: expected a name for each class of wnids.txt, got none for 2"),
        ("a wrong wnid", "wnids.txt line 1: expected `nXXXXXXXX`, got 'cat'"),
        ("a wnid twice", "wnids.txt line 2: n01698640 stands there a second time"),
        ("an unlabelled picture", "1 of 4 validation pictures have no label .such as val_0"),
        ("a picture twice", "line 2: val_1.JPEG stands there a second time"),
        ("an unknown class", "expected wnids of wnids.txt, got 1 others .such as n00000000"),
        ("spaces for tabs", "line 1: expected `name<tab>wnid<tab>box`, got"),
    ],
)
def test_a_damaged_tiny_imagenet_is_refused_with_the_rule(tiny, what, message):
    damage_tiny(tiny, what)
    with pytest.raises(UserError, match=message):
        tiny_imagenet.find(Folder(tiny))


def test_a_directory_of_no_known_layout_is_refused(tmp_path):
    (tmp_path / "input").mkdir()
    result = run_here(
        BUILD, "--input", str(tmp_path / "input"), "--output", str(tmp_path / "shards")
    )
    assert_user_error(result, "tiny-imagenet: wnids.txt and train", "found nothing")
