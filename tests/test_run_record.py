"""run.json keeps its keys, and is read whichever version wrote it."""

import dataclasses
import json
import random
import shutil

import golden_values as golden
import pytest
from conftest import PROJECT_DIR, run

from data_prep.errors import UserError
from replica.distributed.devices import Devices
from replica.training.checkpoint import NUM_KEPT
from replica.training.numerics import Numerics
from replica.training.run_directory import newest_run, read_metrics
from replica.training.run_record import DataRecord, read_run_record, write_run_record

RESULTS = PROJECT_DIR / "benchmarks" / "results"


def test_what_is_written_is_what_was_read_with_the_session_before_in_it(tmp_path):
    shutil.copy(golden.OLD_RUN / "run.json", tmp_path)
    old = json.loads((tmp_path / "run.json").read_text())
    record = read_run_record(tmp_path)
    write_run_record(tmp_path, dataclasses.replace(record, started_at_step=4))
    new = json.loads((tmp_path / "run.json").read_text())
    newer = {"gradient_buckets": None, "convolution_ways": None, "model_file": None}
    assert [name for name in new if name not in newer] == ["version", *old]
    (earlier,) = new["earlier_sessions"]
    assert earlier == {name: old[name] for name in old if name != "earlier_sessions"}
    # What an older version did not choose has its old meaning.
    numerics = {**old["numerics"], "convolution": "library"}
    changes = {"version": 1, "started_at_step": 4, "earlier_sessions": [earlier], **newer}
    assert new == {**old, "numerics": numerics, **changes}
    write_run_record(tmp_path, record)
    assert len(read_run_record(tmp_path).earlier_sessions) == 2


def test_all_that_can_be_null_is_written_and_read(tmp_path):
    content = json.loads((golden.OLD_RUN / "run.json").read_text())
    content["resumed_from"] = {"checkpoint": "checkpoint-00000004.pt", "sha256": None}
    content["initialised_from"] = {"checkpoint": "/a/b.pt", "sha256": "00", "new_layers": ["fc8"]}
    (tmp_path / "run.json").write_text(json.dumps(content))
    record = read_run_record(tmp_path)
    (tmp_path / "run.json").unlink()
    write_run_record(tmp_path, record)
    written = json.loads((tmp_path / "run.json").read_text())
    numerics = {**content["numerics"], "convolution": "library"}
    newer = {"version": 1, "numerics": numerics, "gradient_buckets": None, "convolution_ways": None}
    newer["model_file"] = None
    assert {**written, "begun": content["begun"]} == {**content, **newer}


def test_what_an_older_version_did_not_write_has_its_old_meaning():
    """The first record of real pictures: two towers, before devices and much else was recorded."""
    record = read_run_record(RESULTS / "imagenette")
    assert record.devices == Devices("cpu", 2, 2)
    defaults = {f.name: getattr(record.numerics, f.name) for f in dataclasses.fields(Numerics)}
    assert Numerics(**defaults) == Numerics(convolution="library")
    assert (record.keep, record.loader_threads, record.checkpoint_steps) == (NUM_KEPT, 1, None)
    assert (record.resumed_from, record.initialized_from) == (None, None)
    assert record.data == DataRecord(
        directory="imagenette",
        manifest_sha256=record.data.manifest_sha256,
        train_images=1000,
        val_images=400,
    )


@pytest.mark.parametrize("name", ["imagenette", "tinyimagenet10"])
def test_curves_of_old_runs_are_drawn(name, tmp_path):
    pytest.importorskip("matplotlib")
    assert read_metrics(RESULTS / name)[0].step == 1
    picture = tmp_path / "curves.png"
    command = ("-m", "replica.figures", "curves", str(RESULTS / name), "--picture", str(picture))
    result = run(*command)
    assert result.returncode == 0, result.stderr
    assert picture.exists()


def test_a_directory_without_a_record_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected the run.json of a run there, found none"):
        read_run_record(tmp_path)


@pytest.mark.fault(41)
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"begun": NaN}'),
        *(b'{"begun": 1, "earlier_sessions": []}', b'{"begun": 1, "begun": 2}'),
    ],
    ids=lambda content: str(content[:40]),
)
def test_a_record_that_is_none_is_refused_in_one_line(content, tmp_path):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run.json: damaged: expected the record of a run"):
        read_run_record(tmp_path)


@pytest.mark.fault(41)
def test_a_cut_or_changed_record_is_read_or_refused_in_words(tmp_path):
    whole, rng = (golden.OLD_RUN / "run.json").read_bytes(), random.Random(7)
    path = tmp_path / "run.json"
    refused = 0
    for number in range(300):
        data = bytearray(whole)
        data[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(data if number % 3 else whole[: rng.randrange(len(whole) - 2)])
        try:
            assert read_run_record(tmp_path).recipe.name
        except UserError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1  # noqa: PT017
    assert refused > 100


def test_a_run_whose_record_is_damaged_is_not_the_newest(tmp_path, monkeypatch, capsys):
    for name in ("a", "b", "c"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        shutil.copy(golden.OLD_RUN / "run.json", tmp_path / "runs" / name)
    (tmp_path / "runs" / "c" / "run.json").write_text("{}")
    content = json.loads((tmp_path / "runs" / "a" / "run.json").read_text())
    content["begun"] += 1
    (tmp_path / "runs" / "a" / "run.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    assert newest_run(purpose="test").name == "a"
    assert "passed over runs/c/run.json: damaged" in capsys.readouterr().err


@pytest.mark.fault(9)
def test_a_record_of_a_later_version_is_refused(tmp_path):
    shutil.copy(golden.OLD_RUN / "run.json", tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "version": 2}))
    with pytest.raises(UserError, match=r"expected version 1 of a run's record, got 2: use the"):
        read_run_record(tmp_path)
