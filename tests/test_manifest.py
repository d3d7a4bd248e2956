"""The manifest as typed records: what is read is what is written, byte for byte."""

import dataclasses
import json
import shutil

import pytest
from conftest import PROJECT_DIR

from data_prep.errors import UserError
from data_prep.manifest import BadPicture, Storage
from data_prep.manifest_json import read_manifest, write_manifest
from data_prep.shards import open_data_set

GOLDEN = PROJECT_DIR / "tests" / "goldens" / "shards"


def as_written(content):
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def change_none(content):
    """As a build ends."""


def change_to_unfinished(content):
    content["complete"] = False
    content["parts"]["train"]["shards"][0] = None
    del content["statistics"], content["labels"]


def change_to_bad(content):
    bad = [{"picture": "a.JPEG", "reason": "neither JPEG nor PNG (3 bytes)"}]
    entry = {"num_images": 0, "bad_pictures": bad, "pictures_seen": {}}
    content["parts"]["val"]["shards"].append(entry)


def change_to_jpeg(content):
    content["storage"] = {"kind": "jpeg", "quality": 85, "subsampling": "4:4:4", "encoder": "P"}
    content["limit"], content["recipe"] = 3, None


def test_an_orientation_that_is_not_recorded_was_ignored(tmp_path):
    content = json.loads((GOLDEN / "manifest.json").read_text())
    for said, meant in (("ignored", "ignored"), ("applied", "applied"), (None, "ignored")):
        content.pop("exif_orientation", None)
        if said:
            content["exif_orientation"] = said
        (tmp_path / "manifest.json").write_bytes(as_written(content))
        assert read_manifest(tmp_path).plan.exif_orientation == meant
    content["exif_orientation"] = "guessed"
    (tmp_path / "manifest.json").write_bytes(as_written(content))
    with pytest.raises(UserError, match="expected exif_orientation to be ignored or applied"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "change", [change_none, change_to_unfinished, change_to_bad, change_to_jpeg]
)
def test_a_manifest_that_was_read_is_written_with_the_same_bytes(change, tmp_path):
    content = json.loads((GOLDEN / "manifest.json").read_text())
    change(content)
    (tmp_path / "manifest.json").write_bytes(as_written(content))
    manifest = read_manifest(tmp_path)
    write_manifest(tmp_path, manifest, "again.json")
    assert (tmp_path / "again.json").read_bytes() == as_written(content)
    assert manifest.plan_sha256 == manifest.plan.sha256()


def test_the_records_say_what_the_file_says(tmp_path):
    content = json.loads((GOLDEN / "manifest.json").read_text())
    change_to_bad(content)
    change_to_jpeg(content)
    (tmp_path / "manifest.json").write_bytes(as_written(content))
    manifest = read_manifest(tmp_path)
    assert manifest.plan.storage == Storage("jpeg", 85, "4:4:4", "P")
    assert manifest.plan.wnids == tuple(content["wnids"])
    for part, shards in manifest.parts.items():
        listed = content["parts"][part]["shards"]
        sizes = [entry.file.num_images if entry.file else 0 for entry in shards]
        assert sizes == [item["num_images"] for item in listed]
        named = [item["file"] for item in listed if item["num_images"]]
        assert [file.file for file in manifest.shard_files(part)] == named
    (bad,) = manifest.parts["val"][-1].bad_pictures
    assert bad == BadPicture("a.JPEG", "neither JPEG nor PNG (3 bytes)")


def test_a_shard_that_is_added_reopens_the_build(tmp_path):
    manifest = read_manifest(GOLDEN)
    entry = manifest.parts["val"][0]
    again = manifest.with_shard("train", 0, entry)
    assert (again.parts["train"][0], again.complete) == (entry, False)
    assert again.parts["train"][1:] == manifest.parts["train"][1:]
    assert again.statistics == manifest.statistics


@pytest.mark.parametrize(
    "change", [{"new_field": 1}, {"fit": None}, {"storage": {"kind": "raw", "x": 1}}]
)
def test_a_plan_with_other_fields_is_not_that_of_the_shards(change, tmp_path):
    """What this version does not know, or misses, may have decided the bytes of the shards."""
    directory = shutil.copytree(GOLDEN, tmp_path / "shards")
    content = json.loads((GOLDEN / "manifest.json").read_text())
    content = {key: value for key, value in {**content, **change}.items() if key != "fit" or value}
    (directory / "manifest.json").write_bytes(as_written(content))
    with pytest.raises(UserError, match=r"is of another data set than manifest.json, or one of"):
        open_data_set(directory)


def test_plans_name_the_fields_in_which_they_differ():
    plan = read_manifest(GOLDEN).plan
    other = dataclasses.replace(plan, fit="pad", storage=Storage("jpeg", 95))
    assert plan.differing(other) == ["fit", "storage"]
    assert plan.differing(plan) == []
    assert plan.sha256() != other.sha256()
