"""ImageNet as Kaggle packs it (CLS-LOC): the classes are the lines of LOC_synset_mapping.txt.

Below the directory: `ILSVRC/Data/CLS-LOC/{train/<wnid>/*,val/*}`, `ILSVRC/Annotations/CLS-LOC/val`
(one XML a picture), and in the directory or in `ILSVRC` the files `LOC_synset_mapping.txt` and
`LOC_val_solution.csv`. A label is the line of the mapping file, counted from 0; that is the
position of the wnid in sorted order, which is not the ILSVRC2012_ID of the devkit.
"""

import csv
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from data_prep.shards import UserError
from data_prep.sources import PictureSet, class_pictures, sorted_entries

MAPPING_FILE = "LOC_synset_mapping.txt"
SOLUTION_FILE = "LOC_val_solution.csv"
# A genuine annotation is a few kilobytes: more is refused before it is parsed.
MAX_XML_BYTES = 1 << 20


def _ilsvrc_dir(directory: Path) -> Path | None:
    """The folder that holds Data/CLS-LOC: `directory/ILSVRC` or `directory` itself."""
    for candidate in (directory / "ILSVRC", directory):
        if (candidate / "Data" / "CLS-LOC" / "train").is_dir():
            return candidate
    return None


def is_here(directory: Path) -> bool:
    """Whether the directory looks like this layout."""
    return _ilsvrc_dir(directory) is not None


def find(directory: Path) -> PictureSet:
    """Lists the train and val pictures with their labels.

    Raises:
        UserError: something is missing, a folder is no class of the mapping file, or a validation
            picture has no label.
    """
    ilsvrc_dir = _ilsvrc_dir(directory)
    if ilsvrc_dir is None:
        raise UserError(
            f"{directory}: expected ILSVRC/Data/CLS-LOC/train below it, found none: give the "
            "directory into which Kaggle's archive was unpacked"
        )
    root = ilsvrc_dir.parent
    wnids, class_names = read_mapping(_beside(ilsvrc_dir, MAPPING_FILE))
    labels = {wnid: label for label, wnid in enumerate(wnids)}

    train_dir = ilsvrc_dir / "Data" / "CLS-LOC" / "train"
    folders = [name for name in sorted_entries(train_dir) if not name.startswith(".")]
    unknown = [name for name in folders if name not in labels]
    if unknown:
        raise UserError(
            f"{train_dir}: expected only classes of {MAPPING_FILE}, got {len(unknown)} other "
            f"names (such as {unknown[0]}): move them away or correct the mapping"
        )
    folders.sort(key=labels.__getitem__)
    train = class_pictures(root, ((train_dir / name, labels[name]) for name in folders))

    val_dir = ilsvrc_dir / "Data" / "CLS-LOC" / "val"
    if not val_dir.is_dir():
        raise UserError(f"{val_dir}: expected the validation pictures there, found no folder")
    val_names = [name for name in sorted_entries(val_dir) if not name.startswith(".")]
    val_wnids, origin = _validation_wnids(ilsvrc_dir, val_names)
    unknown = sorted({wnid for wnid in val_wnids.values() if wnid not in labels})
    if unknown:
        raise UserError(
            f"{origin}: expected wnids of {MAPPING_FILE}, got {len(unknown)} others (such as "
            f"{unknown[0]})"
        )
    unlabelled = [name for name in val_names if Path(name).stem not in val_wnids]
    if unlabelled:
        raise UserError(
            f"{val_dir}: {len(unlabelled)} of {len(val_names)} validation pictures have no label "
            f"(such as {unlabelled[0]}): expected one in {SOLUTION_FILE} or an XML file in "
            f"{ilsvrc_dir / 'Annotations' / 'CLS-LOC' / 'val'}"
        )
    relative = val_dir.relative_to(root)
    val = tuple((str(relative / name), labels[val_wnids[Path(name).stem]]) for name in val_names)
    notes = [f"validation labels come from {origin}"]
    absent = len(val_wnids) - len({Path(name).stem for name in val_names} & val_wnids.keys())
    if absent:
        notes.append(f"{absent} labelled validation pictures are not in {val_dir}")
    return PictureSet(
        "kaggle", root, wnids, class_names, {"train": train, "val": val}, notes=tuple(notes)
    )


def _beside(ilsvrc_dir: Path, name: str) -> Path:
    for candidate in (ilsvrc_dir.parent / name, ilsvrc_dir / name):
        if candidate.is_file():
            return candidate
    raise UserError(f"{ilsvrc_dir.parent}: expected the file {name} there or in {ilsvrc_dir}")


def read_mapping(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Reads `LOC_synset_mapping.txt`: wnids and names, in the order of the lines."""
    wnids, names = [], []
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        wnid, _, name = line.strip().partition(" ")
        if not re.fullmatch(r"n\d{8}", wnid) or not name:
            raise UserError(f"{path} line {number}: expected `nXXXXXXXX name`, got {line[:60]!r}")
        if wnid in wnids:
            raise UserError(f"{path} line {number}: {wnid} stands there a second time")
        wnids.append(wnid)
        names.append(name)
    if not wnids:
        raise UserError(f"{path}: expected one class a line, got an empty file")
    return tuple(wnids), tuple(names)


def _validation_wnids(ilsvrc_dir: Path, val_names: list[str]) -> tuple[dict[str, str], Path]:
    """Maps each picture's name without its suffix to its wnid, and says where that came from."""
    for candidate in (ilsvrc_dir.parent / SOLUTION_FILE, ilsvrc_dir / SOLUTION_FILE):
        if candidate.is_file():
            return read_solution(candidate), candidate
    xml_dir = ilsvrc_dir / "Annotations" / "CLS-LOC" / "val"
    wnids = {}
    for name in val_names:
        xml_path = xml_dir / f"{Path(name).stem}.xml"
        if xml_path.is_file():
            wnids[Path(name).stem] = read_annotation(xml_path)
    return wnids, xml_dir


def read_solution(path: Path) -> dict[str, str]:
    """Reads `LOC_val_solution.csv`: ImageId -> wnid, the first word of PredictionString."""
    wnids: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or not {"ImageId", "PredictionString"} <= set(
            reader.fieldnames
        ):
            raise UserError(
                f"{path} line 1: expected the columns ImageId,PredictionString, "
                f"got {reader.fieldnames}"
            )
        for row in reader:
            image_id, words = row["ImageId"] or "", (row["PredictionString"] or "").split()
            if not words or not re.fullmatch(r"[\w.-]+", image_id):
                raise UserError(
                    f"{path} line {reader.line_num}: expected `ImageId,wnid box...`, got {row}"
                )
            # Every fifth word begins a box; all boxes of one picture are of one class.
            if len(set(words[::5])) != 1:
                raise UserError(f"{path} line {reader.line_num}: {image_id} has two classes")
            if image_id in wnids:
                raise UserError(f"{path} line {reader.line_num}: {image_id} stands there twice")
            wnids[image_id] = words[0]
    return wnids


def read_annotation(path: Path) -> str:
    """Reads the one wnid of a validation picture's XML file (annotation/object/name)."""
    if path.stat().st_size > MAX_XML_BYTES:
        raise UserError(f"{path}: expected at most {MAX_XML_BYTES} bytes of XML")
    text = path.read_bytes()
    # Without a DTD there are no entities, so neither expansion nor access to other files.
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise UserError(f"{path}: expected XML without a document type, as ImageNet's is")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: expected XML, got {error}") from None
    wnids = {name.text or "" for name in root.iterfind("object/name")}
    if len(wnids) != 1:
        raise UserError(f"{path}: expected objects of one class, got {sorted(wnids)}")
    return wnids.pop()
