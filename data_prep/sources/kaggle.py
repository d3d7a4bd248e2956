"""ImageNet as Kaggle packs it (CLS-LOC): the classes are the lines of LOC_synset_mapping.txt.

In the directory or zip file: `ILSVRC/Data/CLS-LOC/{train/<wnid>/*,val/*}`,
`ILSVRC/Annotations/CLS-LOC/val` (one XML per picture), and beside `ILSVRC` or in it the files
`LOC_synset_mapping.txt` and `LOC_val_solution.csv`. A label is the line of the mapping file,
counted from 0; that is the position of the wnid in sorted order, which is not the ILSVRC2012_ID of
the devkit.
"""

import csv
import io
import re
import xml.etree.ElementTree as ElementTree
from contextlib import closing
from pathlib import PurePath

from data_prep.errors import UserError
from data_prep.sources.picture_set import WNID, PictureSet, class_pictures, validation_pictures
from data_prep.sources.places import Reader
from data_prep.sources.text import read_table, read_text
from data_prep.sources.trees import Tree, visible_names

LAYOUT = "ILSVRC/Data/CLS-LOC/train/<wnid>: ImageNet as Kaggle packs it, also its zip file"
TREE = """\
ILSVRC/
  Data/CLS-LOC/train/n01440764/
  Data/CLS-LOC/val/
LOC_synset_mapping.txt
LOC_val_solution.csv"""
MAPPING_FILE = "LOC_synset_mapping.txt"
SOLUTION_FILE = "LOC_val_solution.csv"
# A genuine annotation is a few kilobytes: more is refused before it is parsed.
MAX_XML_BYTES = 1 << 20


def _base(tree: Tree) -> str | None:
    """What stands before Data/CLS-LOC: `ILSVRC/` or nothing."""
    bases = (base for base in ("ILSVRC/", "") if tree.is_dir(f"{base}Data/CLS-LOC/train"))
    return next(bases, None)


def is_here(tree: Tree) -> bool:
    """Whether the tree looks like this layout."""
    return _base(tree) is not None


def find(tree: Tree) -> PictureSet:
    """Lists the train and val pictures with their labels."""
    base = _base(tree)
    if base is None:
        raise UserError(
            f"{tree.title}: expected ILSVRC/Data/CLS-LOC/train below it, found none: give the "
            "directory into which Kaggle's archive was unpacked, or its zip file"
        )
    mapping = _beside(tree, base, MAPPING_FILE)
    if mapping is None:
        where = base or "it"
        raise UserError(f"{tree.title}: expected the file {MAPPING_FILE} there, or in {where}")
    wnids, class_names = read_mapping(tree, mapping)
    labels = {wnid: label for label, wnid in enumerate(wnids)}

    train_dir = f"{base}Data/CLS-LOC/train"
    folders = visible_names(tree, train_dir)
    unknown = [name for name in folders if name not in labels]
    if unknown:
        raise UserError(
            f"{tree.title}/{train_dir}: expected only classes of {MAPPING_FILE}, got "
            f"{len(unknown)} other names (such as {unknown[0]}): move them away or correct the "
            "mapping"
        )
    folders.sort(key=labels.__getitem__)
    train = class_pictures(tree, ((f"{train_dir}/{name}", labels[name]) for name in folders))

    val_dir = f"{base}Data/CLS-LOC/val"
    if not tree.is_dir(val_dir):
        raise UserError(
            f"{tree.title}/{val_dir}: expected the validation pictures, found no folder"
        )
    val_names = visible_names(tree, val_dir)
    val_wnids, origin, notes = _validation_wnids(tree, base, val_names)
    val, absent = validation_pictures(
        tree,
        val_dir,
        val_wnids,
        labels,
        key=lambda name: PurePath(name).stem,
        origin=origin,
        classes_file=MAPPING_FILE,
        expected=f"{SOLUTION_FILE} or an XML file in {tree.title}/{base}Annotations/CLS-LOC/val",
    )
    notes += absent
    return PictureSet(
        "kaggle", tree.title, wnids, class_names, {"train": train, "val": val}, notes=tuple(notes)
    )


def _beside(tree: Tree, base: str, name: str) -> str | None:
    return next((path for path in (name, f"{base}{name}") if tree.is_file(path)), None)


def read_mapping(tree: Tree, path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Reads `LOC_synset_mapping.txt`: wnids and names, in the order of the lines."""
    what, pattern = "a wnid and its names per line", rf"\s*({WNID.pattern}) (.*\S)\s*"
    names = read_table(tree, path, what, form="nXXXXXXXX name", pattern=pattern)
    if not names:
        raise UserError(f"{tree.title}/{path}: expected one class per line, got an empty file")
    return tuple(names), tuple(names.values())


def _validation_wnids(
    tree: Tree, base: str, val_names: list[str]
) -> tuple[dict[str, str], str, list[str]]:
    """Maps each picture's name without its suffix to its wnid, and says where that came from."""
    xml_dir = f"{base}Annotations/CLS-LOC/val"
    with_xml = {PurePath(name).stem for name in tree.names(xml_dir)}
    from_xml = {
        stem: read_annotation(tree, f"{xml_dir}/{stem}.xml")
        for stem in (PurePath(name).stem for name in val_names)
        if stem in with_xml
    }
    solution = _beside(tree, base, SOLUTION_FILE)
    origin = f"{tree.title}/{solution or xml_dir}"
    notes = [f"validation labels come from {origin}"]
    if solution is None:
        return from_xml, origin, notes
    wnids = read_solution(tree, solution)
    shared = wnids.keys() & from_xml.keys()
    differing = sorted(stem for stem in shared if wnids[stem] != from_xml[stem])
    if differing:
        stem = differing[0]
        raise UserError(
            f"{origin}: expected the labels of {tree.title}/{xml_dir}, but {len(differing)} of "
            f"{len(shared)} differ (such as {stem}: {wnids[stem]} there, {from_xml[stem]} in its "
            "XML file): one of the two is damaged"
        )
    if shared:
        notes.append(f"{len(shared)} of them were compared with their XML files: no difference")
    return wnids, origin, notes


def read_solution(tree: Tree, path: str) -> dict[str, str]:
    """Reads `LOC_val_solution.csv`: ImageId -> wnid, the first word of PredictionString."""
    wnids: dict[str, str] = {}
    title = f"{tree.title}/{path}"
    columns = "the columns ImageId,PredictionString"
    reader = csv.DictReader(io.StringIO(read_text(tree, path, columns), newline=""))
    try:
        if not {"ImageId", "PredictionString"} <= set(reader.fieldnames or ()):
            raise UserError(
                f"{title} line 1: expected {columns}, got {str(reader.fieldnames)[:80]}"
            )
        for row in reader:
            image_id, words = row["ImageId"] or "", (row["PredictionString"] or "").split()
            if not words or not re.fullmatch(r"[\w.-]+", image_id):
                raise UserError(
                    f"{title} line {reader.line_num}: expected `ImageId,wnid box...`, "
                    f"got {str(list(row.values()))[:80]}"
                )
            # Every fifth word begins a box; all boxes of one picture are of one class.
            if len(set(words[::5])) != 1:
                raise UserError(f"{title} line {reader.line_num}: {image_id} has two classes")
            if image_id in wnids:
                raise UserError(f"{title} line {reader.line_num}: {image_id} stands there twice")
            wnids[image_id] = words[0]
    except csv.Error as error:
        raise UserError(f"{title} line {reader.line_num}: expected CSV, got {error}") from None
    return wnids


def read_annotation(tree: Tree, path: str) -> str:
    """Reads the one wnid of a validation picture's XML file (annotation/object/name)."""
    title = f"{tree.title}/{path}"
    with closing(Reader()) as reader:
        try:
            return parse_annotation(reader.read(tree.place(path), limit=MAX_XML_BYTES), title)
        except UserError:
            raise
        except ValueError:
            raise UserError(f"{title}: expected at most {MAX_XML_BYTES} bytes of XML") from None
        except OSError as error:
            raise UserError(f"{title}: cannot be read: {error.strerror}") from None


def parse_annotation(text: bytes, title: str) -> str:
    """The one wnid of the objects in a validation picture's XML, as it is in ImageNet's files.

    Raises:
        UserError: it is no XML, has a document type, no object, or objects of two classes.
    """
    # Without a DTD there are no entities, so neither expansion nor access to other files. UTF-16
    # could hide the word from this search, and ImageNet's files are plain ASCII.
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text or b"\0" in text:
        raise UserError(f"{title}: expected XML without a document type, as ImageNet's is")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise UserError(f"{title}: expected XML, got {error}") from None
    wnids = {name.text or "" for name in root.iterfind("object/name")}
    if len(wnids) != 1:
        raise UserError(f"{title}: expected objects of one class, got {sorted(wnids)[:5]}")
    return wnids.pop()
