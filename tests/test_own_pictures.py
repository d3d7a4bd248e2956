"""Own pictures: layouts without parts, their division, and what is said of an unknown layout."""

import hashlib
import json
import tarfile
from fractions import Fraction

import numpy as np
import pytest
from conftest import assert_user_error, run_here
from PIL import Image

from data_prep.errors import UserError
from data_prep.shards import open_data_set
from data_prep.sources import class_folders, flat, folder, path_csv
from data_prep.sources.picture_set import Picture, PictureSet
from data_prep.sources.recognize import recognize
from data_prep.sources.text import read_names
from data_prep.sources.trees import Folder, open_tree

BUILD = "data_prep/build_shards.py"


def write_picture(path, value=0, **options):
    """A picture of one gray level, which tells where it came from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path, **options)


def build(*options, **places):
    return run_here(BUILD, *options, "--size", "8", "--workers", "1", **places)


# --- Class folders


@pytest.fixture
def animals(tmp_path):
    """Three classes of 10, 5 and 2 pictures, with what desktops leave among them."""
    root = tmp_path / "animals"
    for label, (name, count) in enumerate({"ant": 10, "bee": 5, "cat": 2}.items()):
        for i in range(count):
            write_picture(root / name / f"{i}.png", 50 * label + i)
        for rubbish in (".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png", "._0.png"):
            (root / name / rubbish).write_bytes(b"no picture")
    (root / ".DS_Store").write_bytes(b"no picture")
    (root / "Thumbs.db").write_bytes(b"no picture")
    (root / "__MACOSX").mkdir()
    return root


def val_by_the_rule(names_of_class, fraction, seed):
    """The rule as the documents say it, written again."""
    chosen = set()
    for names in names_of_class.values():
        count = int(fraction * len(names) * 2 + 1) // 2  # a half up
        count = min(max(count, 1), len(names) - 1)
        key = {name: hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest() for name in names}
        chosen |= set(sorted(names, key=key.__getitem__)[:count])
    return chosen


@pytest.mark.parametrize("seed", [2012, 7])
@pytest.mark.parametrize("fraction", ["0.2", "0.5", "0.9", "0.01", "0.29"])
def test_the_val_pictures_are_those_of_the_rule(animals, fraction, seed):
    found = class_folders.find(Folder(animals))
    assert found.wnids == ("ant", "bee", "cat")
    whole = found.parts["train"]
    assert [p.label for p in whole] == [0] * 10 + [1] * 5 + [2] * 2
    names = {w: [p.name for p in whole if p.name.startswith(f"{w}/")] for w in found.wnids}
    divided = found.with_val_fraction(Fraction(fraction), seed=seed)
    wanted = val_by_the_rule(names, Fraction(fraction), seed)
    assert {p.name for p in divided.parts["val"]} == wanted
    # Each part in the order of the whole, and both together are the whole.
    for part, is_val in (("train", False), ("val", True)):
        assert divided.parts[part] == tuple(p for p in whole if (p.name in wanted) == is_val)


def test_a_half_is_rounded_up_in_exact_numbers():
    train = tuple(Picture(f"{i}.png", 0, "") for i in range(50))
    whole = PictureSet("x", "x", ("a",), ("a",), {"train": train})
    # 0.29 * 50 is 14.499999999999998 in float64.
    assert len(whole.with_val_fraction(Fraction("0.29"), seed=1).parts["val"]) == 15


def test_a_class_does_not_change_how_another_is_divided(animals):
    whole = class_folders.find(Folder(animals)).with_val_fraction(Fraction("0.4"), seed=1)
    write_picture(animals / "aaa" / "0.png")
    write_picture(animals / "aaa" / "1.png")
    more = class_folders.find(Folder(animals)).with_val_fraction(Fraction("0.4"), seed=1)
    names = {p.name for p in more.parts["val"] if not p.name.startswith("aaa/")}
    assert names == {p.name for p in whole.parts["val"]}


def test_class_folders_are_built_with_a_fraction(animals, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "names.txt").write_text("ant\tAnts, Formicidae\nbee\ta bee\nzebra\tzebra\n")
    options = ["--input", str(animals), "--val-fraction", "0.2"]
    names = ["--class-names", str(tmp_path / "names.txt")]
    result = build(*options, *names, "--output", str(out))
    assert result.returncode == 0, result.stderr
    assert "source: class-folders" in result.stdout
    assert "val: 4 of 17 train pictures, of each class 0.2, by seed 2012 and names" in result.stdout
    assert (
        f"1 classes have no name in --class-names {tmp_path}/names.txt (such as cat)"
        in result.stdout
    )
    data = open_data_set(out)
    assert (len(data.train), len(data.val)) == (13, 4)
    assert data.manifest.plan.class_names == ("Ants, Formicidae", "a bee", "cat")
    assert not any(entry.bad_pictures for entry in data.manifest.parts["train"])
    for part in (data.train, data.val):
        for i, label in enumerate(part.labels):
            assert part.image(i)[0, 0, 0] // 50 == label
    # Another seed is another data set.
    mixed = build(*options, *names, "--seed", "3", "--output", str(out))
    assert_user_error(mixed, "holds another data set (differs in pictures_sha256)")


def test_class_folders_are_divided_by_counts_and_refused_undivided(animals, tmp_path):
    result = build("--input", str(animals), "--output", str(tmp_path / "out"))
    assert_user_error(result, "expected val or test pictures", "--val-fraction 0.2")
    assert not (tmp_path / "out").exists()
    options = ["--per-class", "1,1,0", "--output", str(tmp_path / "out")]
    assert build("--input", str(animals), *options).returncode == 0
    assert len(open_data_set(tmp_path / "out").val) == 3


@pytest.mark.parametrize("seed", [2012, 7])
@pytest.mark.parametrize("number", [1, 4])
def test_so_many_val_pictures_of_each_class_are_those_of_the_rule(animals, number, seed):
    for i in range(3):
        write_picture(animals / "cat" / f"more{i}.png")
    whole = class_folders.find(Folder(animals))
    divided = whole.with_val_per_class(number, seed=seed)
    wanted = set()
    for wnid in whole.wnids:
        names = [p.name for p in whole.parts["train"] if p.name.startswith(f"{wnid}/")]
        key = {name: hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest() for name in names}
        wanted |= set(sorted(names, key=key.__getitem__)[:number])
    assert len(wanted) == 3 * number
    for part, is_val in (("train", False), ("val", True)):
        of_part = tuple(p for p in whole.parts["train"] if (p.name in wanted) == is_val)
        assert divided.parts[part] == of_part


def test_a_class_keeps_a_train_picture_and_val_pictures_are_not_cut_again(animals):
    whole = class_folders.find(Folder(animals))  # 10, 5 and 2 pictures
    divided = whole.with_val_per_class(1, seed=1)
    message = (
        r"--per-class 2: expected at least 3 training pictures of each class, but 1 classes have "
        r"fewer \(such as cat\): give a smaller number, or --val-fraction 0.2"
    )
    with pytest.raises(UserError, match=message):
        whole.with_val_per_class(2, seed=1)
    with pytest.raises(UserError, match=r"--per-class: expected .* no val .* found 3 val pictures"):
        divided.with_val_per_class(1, seed=1)


@pytest.mark.parametrize("layout", ["class folders", "flat folder"])
def test_own_pictures_are_built_with_so_many_of_each_class(animals, tmp_path, layout):
    source = animals
    if layout == "flat folder":
        source = tmp_path / "flat"
        source.mkdir()
        for wnid, name in (("n00000001", "ant"), ("n00000002", "bee"), ("n00000003", "cat")):
            for path in (animals / name).glob("[0-9].png"):
                path.rename(source / f"{wnid}_{path.name}")
    options = ["--input", str(source), "--output", str(tmp_path / "out"), "--per-class", "1"]
    result = build(*options)
    assert result.returncode == 0, result.stderr
    assert "val: 3 of 17 train pictures, 1 of each class, by seed 2012 and names" in result.stdout
    data = open_data_set(tmp_path / "out")
    assert (len(data.train), sorted(data.val.labels)) == (14, [0, 1, 2])
    before = data.val.picture(0), data.val.picture(1), data.val.picture(2)
    seeded = build(*options[:2], "--output", str(tmp_path / "b"), *options[4:], "--seed", "5")
    assert seeded.returncode == 0, seeded.stderr
    other = open_data_set(tmp_path / "b").val
    assert (other.picture(0), other.picture(1), other.picture(2)) != before
    too_many = build(*options[:2], "--output", str(tmp_path / "c"), "--per-class", "2")
    assert_user_error(too_many, "--per-class 2: expected at least 3 training pictures of each")
    assert not (tmp_path / "c").exists()


def test_class_folders_in_a_zip_or_a_folder_around_them_are_recognized(animals, tmp_path):
    with tarfile.open(tmp_path / "animals.tar", "w") as tar:
        tar.add(animals, "animals")
    tree = open_tree(tmp_path / "animals.tar")
    name, inner = recognize(tree, tmp_path / "animals.tar")
    assert name == "class-folders"
    found = class_folders.find(inner)
    assert [p[:2] for p in found.parts["train"]] == [
        p[:2] for p in class_folders.find(Folder(animals)).parts["train"]
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loose", r"each with pictures, found 1 pictures outside of them .such as 0.jpg"),
        ("empty", r"found 1 without any .such as dodo"),
    ],
)
def test_wrong_class_folders_are_refused(animals, change, message):
    if change == "loose":
        write_picture(animals / "0.jpg")
    else:
        (animals / "dodo").mkdir()
        (animals / "dodo" / ".DS_Store").touch()
    with pytest.raises(UserError, match=message):
        class_folders.find(Folder(animals))


def test_other_files_beside_class_folders_are_named(animals):
    (animals / "README.txt").touch()
    notes = class_folders.find(Folder(animals)).notes
    assert notes == ("1 files beside the folders are not read (such as README.txt)",)


def test_val_pictures_that_are_there_are_not_cut_anew(tmp_path):
    for part in ("train", "val"):
        for i in range(3):
            write_picture(tmp_path / part / "a" / f"{i}.png")
            (tmp_path / part / "a" / "Thumbs.db").touch()
    found = folder.find(Folder(tmp_path))
    assert [len(found.parts[part]) for part in ("train", "val")] == [3, 3]
    with pytest.raises(UserError, match=r"no val pictures in .*, found 3 val pictures: leave"):
        found.with_val_fraction(Fraction("0.2"), seed=1)


def test_a_class_folder_of_hidden_files_alone_is_empty(tmp_path):
    for part in ("train", "val"):
        write_picture(tmp_path / part / "a" / "0.png")
        (tmp_path / part / "b").mkdir()
        (tmp_path / part / "b" / ".DS_Store").touch()
    with pytest.raises(UserError, match="train/b is empty"):
        folder.find(Folder(tmp_path))


# --- nXXXXXXXX_name.JPEG


def test_flat_pictures_have_the_class_and_the_name_of_their_file(tmp_path):
    for name in (
        *("n01484850_great_white_shark.JPEG", "n01440764_tench.JPEG", "n01443537_1023.JPEG"),
        *("n01443537_77.JPEG", "n01440764_tench_2.JPEG", "n02000000_a.png", "n02000000_b.png"),
    ):
        write_picture(tmp_path / name)
    (tmp_path / "README.md").touch()
    name, tree = recognize(Folder(tmp_path), tmp_path)
    assert name == "flat"
    found = flat.find(tree)
    assert found.wnids == ("n01440764", "n01443537", "n01484850", "n02000000")
    assert found.class_names == ("tench", "n01443537", "great white shark", "n02000000")
    for path, label, _ in found.parts["train"]:
        assert path[:9] == found.wnids[label]
    assert found.notes == ("1 other entries are not read (such as README.md)",)


def test_one_picture_of_each_class_is_cut_across_the_classes(tmp_path):
    for i in range(10):
        write_picture(tmp_path / f"n0000000{i}_x.png")
    found = flat.find(Folder(tmp_path)).with_val_fraction(Fraction("0.2"), seed=1)
    assert [len(found.parts[part]) for part in ("train", "val")] == [8, 2]
    assert "across classes of one picture" in found.notes[-1]
    train, val = ({p.label for p in found.parts[part]} for part in ("train", "val"))
    assert not train & val


def test_a_single_picture_of_a_class_among_others_is_train(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        write_picture(tmp_path / name)
    found = class_folders.find(Folder(tmp_path)).with_val_fraction(Fraction("0.9"), seed=1)
    assert [p.label for p in found.parts["train"]] == [0, 1]
    assert [p.label for p in found.parts["val"]] == [0]


# --- A CSV


def write_csv(root, text, name="labels.csv"):
    for i in range(3):
        write_picture(root / "deep" / "in" / f"{i}.png", 50 * i)
    (root / name).write_bytes(text.encode())
    return root


@pytest.mark.parametrize("name", ["labels.csv", "my own.csv"])
def test_a_csv_names_pictures_labels_and_parts(tmp_path, name):
    text = "\ufefflabel,path,part,other\r\n10,deep/in/0.png,train,x\r\n9,deep/in/1.png,train,\r\n"
    text += '"10",deep/in/2.png,val,"a, b"\r\n\r\n'
    root = write_csv(tmp_path / "in", text, name)
    given = root if name == "labels.csv" else root / name
    result = build("--input", str(given), "--output", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert "source: csv" in result.stdout
    data = open_data_set(tmp_path / "out")
    assert data.manifest.plan.wnids == ("9", "10")  # as numbers
    assert data.train.labels.tolist() == [1, 0]
    assert [data.train.image(i)[0, 0, 0] for i in range(2)] == [0, 50]
    assert data.val.labels.tolist() == [1]


def test_a_csv_is_no_input_of_another_source(tmp_path):
    root = write_csv(tmp_path / "in", "path,label\ndeep/in/0.png,a\n")
    given = ["--source", "folder", "--input", str(root / "labels.csv")]
    result = build(*given, "--output", str(tmp_path / "out"))
    assert_user_error(result, "labels.csv: expected a directory, a zip file or a tar file")


def test_labels_that_are_texts_are_in_the_order_of_texts(tmp_path):
    write_csv(tmp_path, "path,label\ndeep/in/0.png,dog\ndeep/in/1.png,10\ndeep/in/2.png,9\n")
    found = path_csv.find(Folder(tmp_path))
    assert found.wnids == ("10", "9", "dog")
    assert [p[:2] for p in found.parts["train"]] == [
        ("deep/in/0.png", 2), ("deep/in/1.png", 0), ("deep/in/2.png", 1)
    ]  # fmt: skip
    assert found.parts["val"] == found.parts["test"] == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,name\n", "line 1: expected the columns path,label or path,label,part, got"),
        ("path,label,path\n", "line 1: expected the columns"),
        ("", "line 1: expected the columns"),
        ("path,label\ndeep/in/0.png\n", "line 2: expected 2 columns, got 1"),
        ("path,label\ndeep/in/0.png,a,b\n", "line 2: expected 2 columns, got 3"),
        ("path,label\ndeep/in/0.png, \n", "line 2: expected a label, got none"),
        ("path,label,part\ndeep/in/0.png,a,valid\n", "line 2: expected the part .* got 'valid'"),
        ("path,label\n\nnowhere.png,a\n", "line 3: expected the path of a file below"),
        ("path,label\n../x.png,a\n", "line 2: expected the path of a file below .* got '../x"),
        ("path,label\n/etc/passwd,a\n", "line 2: expected the path of a file below"),
        ("path,label\ndeep/in,a\n", "line 2: expected the path of a file below"),
        ("path,label\ndeep/in/0.png,a\ndeep/in/0.png,b\n", "line 3: .* 'deep/in/0.png' a second"),
        ('path,label\n"deep/in/0.png,a\n', "line 2: expected a CSV .* but unexpected end of data"),
    ],
    ids=["columns", "column twice", "empty", "few", "many", "no label", "part", "missing", "above",
         "absolute", "folder", "twice", "quote"],
)  # fmt: skip
def test_a_wrong_csv_is_refused_with_its_line(tmp_path, text, message):
    write_csv(tmp_path / "in", text)
    (tmp_path / "x.png").touch()
    with pytest.raises(UserError, match=message):
        path_csv.find(Folder(tmp_path / "in"))


def test_a_csv_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"path,label\n\xff,a\n")
    with pytest.raises(UserError, match=r"labels.csv: expected text in UTF-8"):
        path_csv.find(Folder(tmp_path))


# --- Names of classes


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a\tan ant\nb c\t bee, of honey \n", {"a": "an ant", "b c": "bee, of honey"}),
        ("n01440764 tench, Tinca tinca\n0 x\n", {"n01440764": "tench, Tinca tinca", "0": "x"}),
    ],
    ids=["tab", "space"],
)
def test_names_of_classes_are_read(tmp_path, text, names):
    (tmp_path / "names.txt").write_text(text)
    assert read_names(Folder(tmp_path), "names.txt") == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tx\nb y\n", "line 2: expected `class<tab>name`, got 'b y'"),
        ("a\n", "line 1: expected `class name`, got 'a'"),
        ("a x\na y\n", "line 2: a stands there a second time"),
    ],
    ids=["no tab", "no name", "twice"],
)
def test_wrong_names_of_classes_are_refused(tmp_path, text, message):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_names(Folder(tmp_path), "names.txt")


def test_names_of_other_classes_are_refused(animals, tmp_path):
    (tmp_path / "names.txt").write_text("x\ty\n")
    names = ["--class-names", str(tmp_path / "names.txt"), "--val-fraction", "0.2"]
    result = build("--input", str(animals), *names, "--output", str(tmp_path / "out"))
    assert_user_error(result, "expected names for the classes of", "(such as ant), got none")
    assert not (tmp_path / "out").exists()


# --- Orientation


def test_a_build_records_that_it_turned_the_pictures(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    for path in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / path, exif=exif)
    options = ["--input", str(tmp_path / "in"), "--val-fraction", "0.5"]
    for way, said, turns in (("ignore", "ignored", 0), ("apply", "applied", 3)):
        out = tmp_path / way
        result = build(*options, "--exif-orientation", way, "--output", str(out))
        assert result.returncode == 0, result.stderr
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["exif_orientation"] == said
        assert manifest["parts"]["train"]["shards"][0]["pictures_seen"]["rotated by EXIF"] == 2
        image = open_data_set(out).train.image(0)
        assert np.array_equal(image, np.rot90(pixels, turns))
    mixed = build(*options, "--exif-orientation", "apply", "--output", str(tmp_path / "ignore"))
    assert_user_error(mixed, "differs in exif_orientation")


# --- Unknown layouts


UNKNOWN = {
    "folder": ["training/cat/1.jpg", "validation/cat/2.jpg"],
    "class-folders": ["cats/indoor/1.jpg", "dogs/outdoor/2.jpg"],
    "csv": ["label.csv", "images/1.jpg"],
    "flat": ["n0144076_tench.JPEG", "n01443537_goldfish.JPEG"],
    "class-tars": ["n01440764.tgz", "n01443537.tgz"],
    "ilsvrc2012": ["ILSVRC2012_img_val.zip", "ILSVRC2012_devkit_t12.zip"],
}


@pytest.mark.parametrize("nearest", UNKNOWN)
def test_an_unknown_layout_is_answered_with_the_nearest_one(tmp_path, nearest):
    for path in UNKNOWN[nearest]:
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).touch()
    result = build("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert result.returncode == 2
    first, *drawn = result.stderr.rstrip("\n").split("\n")
    shown = sorted({path.split("/")[0] for path in UNKNOWN[nearest]})
    assert f"expected a layout that is known (--help lists them), found {', '.join(shown)}" in first
    assert first.endswith(f"the nearest is {nearest}:")
    assert drawn[0] == "  in/"
    assert len(drawn) < 10
    assert all(line.startswith("    ") for line in drawn[1:])
    assert not (tmp_path / "out").exists()


def test_names_in_the_answer_cannot_steer_the_terminal(tmp_path):
    (tmp_path / "in\x1b[2J" / "a\nb").mkdir(parents=True)
    result = build("--input", str(tmp_path / "in\x1b[2J"), "--output", str(tmp_path / "out"))
    assert result.returncode == 2
    assert "\x1b" not in result.stderr
    assert "a\\nb" in result.stderr
