"""Reports as the tests make them: of a run with hostile names, and read as a browser reads them."""

import json
import shutil
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from conftest import PROJECT_DIR, run_here
from PIL import Image
from runs import CROP_SIZE, NARROW, large_weights, mini_shapes_and_deviations, write_checkpoint

from data_prep.shards import open_data_set
from replica.recipes import MINI, to_record, with_changes

# What would be obeyed if it were not escaped, in a text, an attribute, a style, a comment.
CLASSES = (
    '<img src="http://example.invalid/a.png" onerror="document.title=1">',
    "</title></style><script>document.title='owned'</script>",
    '" onmouseover="alert(1)" style="color:red',
    "'&lt;b&gt;& <!-- \u202egpj \x1b[2J",
    "two, of which one begins so",
    "\u732b, of another script",
)
NUM_TRAIN, NUM_VAL = 3, 4  # of each class
FILE = "p'\"><i>&.png"


def build_shards(place):
    """Shards of noise on six colors, whose folders, files and classes have hostile names."""
    rng = np.random.default_rng(1)
    names = []
    for number, name in enumerate(CLASSES):
        folder = f"class {number} <b>&'\""
        names.append(f"{folder}\t{name}\n")
        for part, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
            (place / "pictures" / part / folder).mkdir(parents=True)
            for i in range(count):
                color = rng.integers(0, 200, 3)
                image = color + rng.integers(0, 56, (104, 104, 3))
                path = place / "pictures" / part / folder / f"{i} {FILE}"
                Image.fromarray(image.astype(np.uint8)).save(path)
    words = ["--input", str(place / "pictures"), "--output", str(place / "shards")]
    (place / "names.txt").write_text("".join(names))
    words += ["--class-names", str(place / "names.txt"), "--size", "104", "--workers", "1"]
    result = run_here("data_prep/build_shards.py", *words)
    assert result.returncode == 0, result.stderr
    return place / "shards"


def write_run(run_dir, shards, weights, *, changes=()):
    """A run of `mini` that ended after two epochs with these weights."""
    run_dir.mkdir()
    data = open_data_set(shards)
    record = json.loads(
        (PROJECT_DIR / "benchmarks" / "results" / "imagenette" / "run.json").read_text()
    )
    recipe = with_changes(MINI, [*NARROW, f"crop_size={CROP_SIZE}", *changes])
    record |= {"recipe": to_record(recipe), "num_classes": len(data.wnids), "seed": 7}
    record["command"] = ["/x/python", "-m", "replica.train", "--out", "<u>a b</u>", "--seed", "7"]
    record["data"] = {
        "directory": str(shards),
        "manifest_sha256": data.manifest_sha256,
        "train_images": len(data.train),
        "val_images": len(data.val),
    }
    (run_dir / "run.json").write_text(json.dumps(record))
    lines = []
    for step in range(1, 9):
        line = {"step": step, "epoch": (step + 3) // 4, "learning_rate": 0.01}
        lines.append({"kind": "step", **line, "loss": 9.0 - step, "images_per_second": 10.0 * step})
        if step % 4 == 0:
            errors = {"top1_error": 0.25 + step / 16, "top5_error": step / 64}
            lines.append({"kind": "val", **line, "loss": 2.0, **errors})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    request = {"name": "1", "step": 5, "changes": {"learning_rate": 0.1}, "reason": "<s>why</s>"}
    (run_dir / "control.jsonl").write_text(json.dumps(request) + "\n")
    write_checkpoint(
        run_dir / "best.pt", weights, data, num_classes=len(data.wnids), changes=changes
    )
    return run_dir


def own_weights():
    """A network of six classes that tells images apart."""
    return large_weights(mini_shapes_and_deviations(num_classes=len(CLASSES))[0], seed=5)


def copy_of(run_dir, place):
    """The same run elsewhere, to be damaged."""
    shutil.copytree(run_dir, place)
    return place


def make(*words):
    return run_here("-m", "replica.report", *map(str, words), "--device", "cpu")


class _Reader(HTMLParser):
    """A tree of the elements, by the standard library's parser."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.builder = ElementTree.TreeBuilder()

    def handle_starttag(self, tag, attributes):
        self.builder.start(tag, {name: value or "" for name, value in attributes})
        if tag in ("meta", "img", "wbr", "br"):
            self.builder.end(tag)

    def handle_startendtag(self, tag, attributes):
        self.builder.start(tag, {name: value or "" for name, value in attributes})
        self.builder.end(tag)

    def handle_endtag(self, tag):
        self.builder.end(tag)

    def handle_data(self, data):
        self.builder.data(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")


@dataclass
class Report:
    """A report: its file's text, and the tree of its elements."""

    text: str
    root: ElementTree.Element

    def section(self, name):
        """A section of the first run."""
        (found,) = [x for x in self.root.iter("section") if x.get("id") == f"run1-{name}"]
        return found

    def words(self, name):
        """All text of a section, with single spaces."""
        return " ".join("".join(self.section(name).itertext()).split())


def tree_of(text):
    """Markup of one element, as a tree."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.builder.close()


def read(path: Path) -> Report:
    text = path.read_text(encoding="utf-8")
    return Report(text, tree_of(text.partition("\n")[2].strip()))


def rows_of(element):
    """The texts of each table's cells, row by row, with single spaces."""
    return [
        [" ".join("".join(cell.itertext()).split()) for cell in row if cell.tag in ("td", "th")]
        for row in element.iter("tr")
    ]
