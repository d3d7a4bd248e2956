"""Parsers hold against any input: properties by hypothesis, and damaged files of every kind.

`make fuzz` gives each kind a minute instead of a second (FUZZ_SECONDS).
"""

import importlib.util
import json
import multiprocessing
import os
import random
import re

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

import fuzzer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.errors import UserError
from data_prep.manifest_json import _manifest_of, read_manifest
from data_prep.pictures import FITS, PictureFormat, _new_size
from data_prep.sources import kaggle, tiny_imagenet
from data_prep.sources.picture_set import Picture, PictureSet, halves
from data_prep.sources.trees import Folder

SECONDS = float(os.environ.get("FUZZ_SECONDS", "1"))
SECONDS_OF_A_HANG = 120  # beyond ten times its processor time, for a busy machine


@pytest.mark.parametrize("target", fuzzer.TARGETS)
def test_damaged_files_are_refused_in_words(target, tmp_path):
    if target == "fast-jpeg" and not (
        importlib.util.find_spec("cv2") and importlib.util.find_spec("simplejpeg")
    ):
        pytest.skip("simplejpeg and OpenCV are not installed")
    # The same files each time, and others each time in `make fuzz`.
    first_seed = random.SystemRandom().randrange(2**32) if "FUZZ_SECONDS" in os.environ else 0
    process = multiprocessing.get_context("spawn").Process(
        target=fuzzer.fuzz, args=(target, tmp_path, SECONDS, first_seed)
    )
    process.start()
    process.join(10 * SECONDS + SECONDS_OF_A_HANG)
    if process.is_alive():
        process.kill()
        pytest.fail(f"a reader hangs; the file is in {tmp_path}")
    assert process.exitcode == 0, f"see the changes above; the last file is in {tmp_path}"


# --- Properties

FAST = settings(
    max_examples=max(50, int(20 * SECONDS)),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
WNIDS = st.integers(0, 10**8 - 1).map(lambda number: f"n{number:08d}")
NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)


@FAST
@given(rows=st.dictionaries(NAMES, WNIDS, min_size=1), boxes=st.integers(1, 3), crlf=st.booleans(),
       bom=st.booleans())  # fmt: skip
def test_every_well_formed_solution_file_is_read_back(tmp_path, rows, boxes, crlf, bom):
    end = "\r\n" if crlf else "\n"
    text = "ImageId,PredictionString" + end
    text += "".join(f"{name},{(wnid + ' 1 2 3 4 ') * boxes}{end}" for name, wnid in rows.items())
    (tmp_path / "s.csv").write_bytes(text.encode("utf-8-sig" if bom else "utf-8"))
    assert kaggle.read_solution(Folder(tmp_path), "s.csv") == rows


@FAST
@given(text=st.text())
@pytest.mark.parametrize(
    "read", [kaggle.read_solution, kaggle.read_mapping, tiny_imagenet.read_annotations,
             tiny_imagenet.read_classes]
)  # fmt: skip
def test_any_text_is_read_or_refused_in_one_line(tmp_path, read, text):
    (tmp_path / "x").write_bytes(text.encode("utf-8", "surrogatepass"))
    message = ""
    try:
        read(Folder(tmp_path), "x")
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 600


@FAST
@given(wnid=WNIDS, count=st.integers(1, 5), spaces=st.text(" \n\t", max_size=5))
def test_every_well_formed_annotation_is_read_back(wnid, count, spaces):
    objects = f"<object>{spaces}<name>{wnid}</name><bndbox/></object>" * count
    text = f"<annotation>{spaces}<size/>{objects}</annotation>".encode()
    assert kaggle.parse_annotation(text, "a.xml") == wnid


@FAST
@given(width=st.integers(1, 5000), height=st.integers(1, 5000), size=st.sampled_from((32, 64, 256)),
       fit=st.sampled_from(FITS))  # fmt: skip
def test_rescaling_keeps_the_aspect_and_leaves_room_for_the_square(width, height, size, fit):
    if fit == "crop" and max(width, height) > 40 * min(width, height):
        return
    new_width, new_height = _new_size((width, height), PictureFormat(size, fit))
    if fit == "squash":
        assert (new_width, new_height) == (size, size)
        return
    side = min(new_width, new_height) if fit == "crop" else max(new_width, new_height)
    assert side == size
    scale = size / (min(width, height) if fit == "crop" else max(width, height))
    assert abs(new_width - max(1, width * scale)) <= 0.5
    assert abs(new_height - max(1, height * scale)) <= 0.5


@FAST
@given(labels=st.lists(st.integers(0, 5), max_size=60), seed=st.integers(0, 2**32))
def test_halves_are_a_partition_with_even_classes(labels, seed):
    pictures = tuple(Picture(f"p{i}", label, f"{i}") for i, label in enumerate(labels))
    first, second = halves(pictures, seed=seed)
    assert sorted(first + second) == sorted(pictures)
    for label in set(labels):
        counts = [sum(item.label == label for item in half) for half in (first, second)]
        assert counts[0] - counts[1] in (0, 1)


@FAST
@given(labels=st.lists(st.integers(0, 3), max_size=40), limit=st.integers(1, 10))
def test_a_limit_keeps_the_first_of_each_class(labels, limit):
    pictures = tuple(Picture(f"p{i}", label, f"{i}") for i, label in enumerate(labels))
    names = tuple("abcd")
    kept = PictureSet("x", "x", names, names, {"train": pictures}).limited(limit).parts["train"]
    for label in range(4):
        of_class = [item for item in pictures if item.label == label]
        assert [item for item in kept if item.label == label] == of_class[:limit]


@pytest.mark.fault(41)
@FAST
@given(path=st.lists(st.sampled_from((
    "wnids", "class_names", "image_size", "cycle_seed", "complete", "recipe", "storage", "parts",
    "statistics", "labels", "train", "shards", "file", "num_images", "num_bytes", "sha256",
    "structure", "large_data", "bad_pictures")), min_size=1, max_size=5), value=JSON)  # fmt: skip
def test_any_value_anywhere_in_a_manifest_is_judged(shards_dir, path, value):
    """A wrong type at any place gives a sentence, never another error."""
    manifest = json.loads((shards_dir / "manifest.json").read_text())
    place = manifest
    for key in path[:-1]:
        if isinstance(place, list):
            place = place[0] if place else {}
        if not isinstance(place, dict) or key not in place:
            return
        place = place[key]
    if isinstance(place, list):
        place = place[0] if place else {}
    if isinstance(place, dict):
        place[path[-1]] = value
    message = "expected nothing else"
    try:
        _manifest_of(manifest)
    except ValueError as error:
        message = str(error)
    assert re.match(r"expected |(train|val|test) lacks shard ", message)


@pytest.mark.fault(41)
@FAST
@given(value=JSON)
def test_any_json_as_a_manifest_is_refused(tmp_path, value):
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match="expected"):
        read_manifest(tmp_path)
