"""A checkpoint is whole or not there, and what does not fit is refused with every reason."""

import dataclasses
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import zipfile

import golden_values as golden
import pytest
import torch
from conftest import run

from data_prep.errors import UserError
from data_prep.files import sha256_of_file
from replica.network.alexnet import whole_shapes
from replica.recipes import MINI, from_record, to_record, with_changes
from replica.training.checkpoint import (
    NUM_KEPT,
    Checkpoint,
    check_fits_classes,
    check_fits_recipe,
    checkpoint_path,
    checkpoints_of,
    last_whole_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

WNIDS = [f"n{i:08d}" for i in range(10)]
NARROW = [f"conv{i}.num_kernels=8" for i in range(1, 6)] + ["fc6.num_units=8", "fc7.num_units=8"]
# For what saves and loads hundreds of times.
TINY = with_changes(MINI, [*NARROW, "crop_size=64"])


def checkpoint(step=1, best_step=None, recipe=MINI):
    shapes = whole_shapes(recipe, num_classes=10)
    return Checkpoint(
        model={name: torch.full(shape, 0.5) for name, shape in shapes.items()},
        velocities={name: torch.zeros(shape) for name, shape in shapes.items()},
        step=step,
        epoch=1,
        val_errors=[],
        best_step=best_step,
        recipe=recipe,
        num_classes=10,
        seed=1,
        wnids=WNIDS,
        class_names=[str(i) for i in range(10)],
        mean_image=torch.zeros(4, 4, 3),
        eigenvalues=torch.zeros(3),
        eigenvectors=torch.eye(3),
    )


def test_a_checkpoint_opens_with_torch_load_and_holds_whole_tensors(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(step=7))
    loaded = torch.load(path, weights_only=True)
    assert path == checkpoint_path(tmp_path, 7)
    assert loaded["step"] == 7
    assert loaded["model"].keys() == loaded["velocities"].keys()
    assert loaded["model"]["conv2.weight"].shape == (32, 8, 5, 5)
    assert from_record(loaded["recipe"]) == MINI
    digest = (tmp_path / f"{path.name}.sha256").read_text().split()
    result = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    assert digest == [result.stdout.split()[0], path.name]


def test_the_last_two_checkpoints_are_kept(tmp_path):
    for step in range(1, 5):
        save_checkpoint(tmp_path, checkpoint(step=step))
    assert checkpoints_of(tmp_path) == [checkpoint_path(tmp_path, step) for step in (3, 4)]
    assert len(list(tmp_path.iterdir())) == 2 * NUM_KEPT


def test_the_best_checkpoint_stays_and_a_link_points_to_it(tmp_path):
    best = {1: None, 2: 2, 3: 2, 4: 2, 5: 5, 6: 5}
    for step, best_step in best.items():
        save_checkpoint(tmp_path, checkpoint(step=step, best_step=best_step), keep=1)
        left = sorted({step, best_step or step})
        assert checkpoints_of(tmp_path) == [checkpoint_path(tmp_path, x) for x in left]
        if best_step:
            assert load_checkpoint(tmp_path / "best.pt").step == best_step
    # A run that goes on after its end in mid-epoch has no best step until its epoch ends.
    save_checkpoint(tmp_path, checkpoint(step=7), keep=1)
    save_checkpoint(tmp_path, checkpoint(step=8), keep=1)
    assert load_checkpoint(tmp_path / "best.pt").step == 5
    # The digest of the file that the link points to is compared.
    path = checkpoint_path(tmp_path, 5)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"best.pt: damaged: .* checkpoint-00000005.pt.sha256"):
        load_checkpoint(tmp_path / "best.pt")


def flipped(data, bit):
    """The same bytes but for one bit."""
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


@pytest.mark.fault(4)
@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage):
    save_checkpoint(tmp_path, checkpoint(step=1))
    path = save_checkpoint(tmp_path, checkpoint(step=2))
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data[: {"truncated": len(data) - 5, "empty": 0}.get(damage)]))
    with pytest.raises(UserError, match="damaged: its SHA-256 is not the one "):
        load_checkpoint(path)
    found, loaded, passed_over = last_whole_checkpoint(tmp_path)
    assert (found, loaded.step) == (checkpoint_path(tmp_path, 1), 1)
    assert len(passed_over) == 1
    assert path.name in passed_over[0]


@pytest.mark.fault(4)
def test_every_flipped_bit_of_a_copy_without_a_digest_beside_it_is_found(tmp_path):
    path, rng = tmp_path / "best copy.pt", random.Random(4)
    data = save_checkpoint(tmp_path, checkpoint(recipe=TINY)).read_bytes()
    path.write_bytes(data)
    assert load_checkpoint(path).step == 1
    assert zipfile.ZipFile(path).testzip() is None
    # Anywhere, and at each byte of the end that says whether there is a digest, and which.
    ends = range(8 * (len(data) - 90), 8 * len(data), 8)
    for bit in (*(rng.randrange(8 * len(data)) for _ in range(60)), *ends, *range(16)):
        path.write_bytes(flipped(data, bit))
        with pytest.raises(UserError, match=r"damaged: |PyTorch cannot open"):
            load_checkpoint(path)
    for length in (0, 1, 2, 3, 50, len(data) // 2, len(data) - 64, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"damaged: |PyTorch cannot open"):
            load_checkpoint(path)


@pytest.mark.fault(4)
def test_a_checkpoint_of_before_the_digest_opens_and_its_tensors_are_compared(tmp_path):
    """With its .sha256, without it, and with a damaged one."""
    path = tmp_path / "checkpoint-00000004.pt"
    old = golden.OLD_RUN / path.name
    data, rng = old.read_bytes(), random.Random(5)
    assert data.endswith(b"\0\0")
    shutil.copy(old, path)
    assert load_checkpoint(path).step == 4
    beside = path.with_name(f"{path.name}.sha256")
    digest = subprocess.run(["sha256sum", old], capture_output=True, check=True).stdout
    beside.write_bytes(digest)
    assert load_checkpoint(path).step == 4
    beside.write_bytes(b"\xff" + digest[1:])
    with pytest.raises(UserError, match="damaged: its SHA-256 is not the one in checkpoint-"):
        load_checkpoint(path)
    beside.unlink()
    weight = load_checkpoint(path).model["fc6.weight"].numpy().tobytes()
    first = data.index(weight)
    for _ in range(20):
        path.write_bytes(flipped(data, rng.randrange(8 * first, 8 * (first + len(weight)))))
        with pytest.raises(UserError, match="damaged: it is cut off, or some of its bytes are"):
            load_checkpoint(path)


@pytest.mark.fault(4)
def test_a_damaged_digest_beside_a_whole_checkpoint_loses_nothing(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(step=3, recipe=TINY))
    beside = path.with_name(f"{path.name}.sha256")
    for content in (b"\xff\xfe", b"", flipped(beside.read_bytes(), 7)):
        beside.write_bytes(content)
        found, loaded, passed_over = last_whole_checkpoint(tmp_path)
        assert (found, loaded.step, passed_over) == (path, 3, [])


@pytest.mark.fault(4, 41)
def test_a_changed_index_of_tensors_is_refused_in_words(tmp_path):
    """`data.pkl` with flipped bits, packed anew so that all its checksums are right."""
    path, rng = tmp_path / "changed.pt", random.Random(6)
    with zipfile.ZipFile(save_checkpoint(tmp_path, checkpoint(recipe=TINY))) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    (index,) = (name for name in members if name.endswith("/data.pkl"))
    refused = 0
    for _ in range(150):
        content = flipped(members[index], rng.randrange(8 * len(members[index])))
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, content if name == index else data)
        path.write_bytes(buffer.getvalue())
        try:
            load_checkpoint(path)
        except UserError:
            refused += 1
    assert refused > 75


def test_a_damaged_later_checkpoint_is_not_kept_for_a_whole_one(tmp_path):
    """The run went on from the one before it, and saves at other steps."""
    save_checkpoint(tmp_path, checkpoint(step=5, recipe=TINY), keep=1)
    path = save_checkpoint(tmp_path, checkpoint(step=10, recipe=TINY), keep=2)
    path.write_bytes(path.read_bytes()[:-100])
    save_checkpoint(tmp_path, checkpoint(step=8, recipe=TINY), keep=1)
    found, loaded, passed_over = last_whole_checkpoint(tmp_path)
    assert (loaded.step, passed_over) == (8, [])
    assert checkpoints_of(tmp_path) == [found]


def test_a_later_checkpoint_is_removed_where_it_is_whole_too(tmp_path):
    """The run went on from an earlier one, so the later one is not of this run any more."""
    for step in (5, 10, 8):
        path = save_checkpoint(tmp_path, checkpoint(step=step, recipe=TINY), keep=3 - (step == 8))
    assert [x.name for x in checkpoints_of(tmp_path)] == ["checkpoint-00000005.pt", path.name]


def test_a_damaged_earlier_checkpoint_is_not_kept_for_a_whole_one(tmp_path):
    """A run that was stopped between two of its steps to save at, and went on from the first."""
    paths = {}
    for step in (36, 38):
        paths[step] = save_checkpoint(tmp_path, checkpoint(step=step, recipe=TINY), keep=2)
    paths[38].write_bytes(flipped(paths[38].read_bytes(), 4321))
    paths[40] = save_checkpoint(tmp_path, checkpoint(step=40, recipe=TINY), keep=2)
    assert checkpoints_of(tmp_path) == [paths[36], paths[40]]
    assert load_checkpoint(paths[36]).step == 36
    assert len(list(tmp_path.iterdir())) == 4


def test_a_run_without_a_whole_checkpoint_says_so(tmp_path):
    with pytest.raises(UserError, match="expected a whole checkpoint there, found none"):
        last_whole_checkpoint(tmp_path)


class Malicious:
    """Whoever unpickles it makes a directory."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.fault(10)
@pytest.mark.parametrize("kind", ["text", "malicious pickle", "malicious torch file", "folder"])
def test_what_is_no_checkpoint_is_refused_and_not_run(tmp_path, kind):
    path, mark = tmp_path / "checkpoint.pt", tmp_path / "it was run"
    if kind == "text":
        path.write_text("I am a text file\n" * 100)
    elif kind == "malicious pickle":
        path.write_bytes(pickle.dumps(Malicious(mark)))
    elif kind == "malicious torch file":
        torch.save(Malicious(mark), path)
    else:
        path.mkdir()
    with pytest.raises(UserError, match=r"checkpoint.pt: expected a checkpoint"):
        load_checkpoint(path)
    assert not mark.exists()


@pytest.mark.fault(9)
def test_another_kind_of_file_and_another_version_are_refused(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="expected a checkpoint of this project"):
        load_checkpoint(tmp_path / "a.pt")
    path = save_checkpoint(tmp_path, checkpoint())
    torch.save({**torch.load(path, weights_only=True), "version": 9}, path)
    path.with_name(f"{path.name}.sha256").unlink()
    with pytest.raises(UserError, match="expected checkpoint version 2, got 9"):
        load_checkpoint(path)


@pytest.mark.fault(9)
def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    wrong = checkpoint()
    del wrong.model["conv1.bias"]
    wrong.model["conv9.bias"] = torch.zeros(2)
    wrong.velocities["fc8.weight"] = torch.zeros(12, 1024)
    path = save_checkpoint(tmp_path, wrong)
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    message = str(error.value)
    assert "model lacks conv1.bias" in message
    assert "model has an unknown conv9.bias" in message
    assert "velocities has fc8.weight of shape (12, 1024) instead of (10, 1024)" in message


@pytest.mark.fault(9)
def test_another_recipe_is_refused_with_all_fields_but_epochs_may_differ(tmp_path):
    path = tmp_path / "c.pt"
    check_fits_recipe(path, MINI, dataclasses.replace(MINI, epochs=99))
    other = dataclasses.replace(MINI, batch_size=64, momentum=0.8)
    with pytest.raises(UserError) as error:
        check_fits_recipe(path, MINI, other)
    assert "batch_size: 32 against 64" in str(error.value)
    assert "momentum: 0.9 against 0.8" in str(error.value)


@pytest.mark.fault(9)
def test_other_classes_are_refused(tmp_path):
    path = tmp_path / "c.pt"
    check_fits_classes(path, WNIDS, WNIDS, tmp_path)
    with pytest.raises(UserError, match=r"has 10 classes, .* has 9"):
        check_fits_classes(path, WNIDS, WNIDS[:9], tmp_path)
    with pytest.raises(UserError, match=r"class 9 is n00000009, in .* it is n12345678"):
        check_fits_classes(path, WNIDS, [*WNIDS[:9], "n12345678"], tmp_path)


KILLED_AT = """
import itertools, json, os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_checkpoint import SAVED, TINY, checkpoint
from replica.training.checkpoint import save_checkpoint
root, keep = Path(sys.argv[1]), int(sys.argv[2])
def dies_at(name, number):
    # A kill of a process alone loses nothing that was not synchronized.
    function = getattr(os, name) if name != "fsync" else lambda descriptor: None
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    setattr(os, name, call)
for number in itertools.count(1):
    directory = root / str(number)
    directory.mkdir()
    if os.fork() == 0:
        calls = 0
        for name in ("open", "fsync", "replace", "rename", "unlink", "remove", "symlink"):
            dies_at(name, number)
        for done, (step, best) in enumerate(SAVED):
            (directory / "saved").write_text(json.dumps(done))
            save_checkpoint(directory, checkpoint(step, best, TINY), keep=keep)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.wait()[1]) == 0:
        break
print(number)
"""
# Steps, and the best one then; some are saved again, with the validation error they lacked.
SAVED = ((1, None), (2, None), (2, 2), (3, 2), (4, 4), (4, 4))


@pytest.mark.fault(1, 2)
@pytest.mark.parametrize("keep", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_kill_at_any_call_of_saving_leaves_as_many_whole_checkpoints_as_before(keep, tmp_path):
    """One process dies before each of its calls that change the disk, in turn."""
    result = run("-c", KILLED_AT, str(tmp_path), str(keep))
    assert result.returncode == 0, result.stderr
    killed = int(result.stdout) - 1
    assert killed > 40
    for number in range(1, killed + 1):
        directory = tmp_path / str(number)
        steps = sorted({step for step, _ in SAVED[: json.loads((directory / "saved").read_text())]})
        whole = [load_checkpoint(path).step for path in checkpoints_of(directory)]
        assert len(whole) >= min(keep, len(steps)), number
        assert set(whole) >= set(steps[-keep:]) or max(whole) > max(steps), number
        if (directory / "best.pt").is_symlink():
            assert load_checkpoint(directory / "best.pt").step in (2, 4)
        if number % 6:
            continue
        # The next session saves as if nothing had been.
        save_checkpoint(directory, checkpoint(9, recipe=TINY), keep=keep)
        assert last_whole_checkpoint(directory)[2] == []
        assert not list(directory.glob("checkpoint-*.part"))
        for beside in directory.glob("*.sha256"):
            digest, name = beside.read_text().split()
            assert digest == sha256_of_file(directory / name)


# --- Recipes as they are written down and changed


def test_a_recipe_survives_its_record():
    assert from_record(to_record(MINI)) == MINI


def test_a_record_of_another_version_is_refused():
    record = {**to_record(MINI), "color": 1}
    del record["momentum"]
    with pytest.raises(UserError, match=r"missing fields \['momentum'\], unknown .*\['color'\]"):
        from_record(record)


@pytest.mark.fault(41)
@pytest.mark.parametrize("change", [{"convs": [3]}, {"convs": None}, {"changes": [{}, "x"]}, None])
def test_a_damaged_record_is_refused_in_words(change):
    with pytest.raises(UserError, match=r"expected the record of a recipe|missing fields"):
        from_record(change and {**to_record(MINI), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("momentun=0.5", "recipe mini has no field momentun; expected one of towers, "),
        ("momentum", "expected field=value"),
        ("momentum=fast", "expected a number for momentum, got 'fast'"),
        ("momentum=1.5", "momentum: expected at least 0, less than 1, got 1.5"),
        ("learning_rate=nan", "expected a number for learning_rate"),
        ("batch_size=1.5", "expected an integer for batch_size"),
        ("random_flips=maybe", "expected true or false for random_flips"),
        ("drop_epochs=5,3", "drop_epochs: expected rising epochs"),
        ("lrn_n=4", "lrn_n: expected an odd number >= 1, at most 1,000,000, got 4"),
        ("num_classes=1", "num_classes: expected at least 2"),
        ("drop_rule=sometimes", "drop_rule: expected plateau or epochs"),
        ("crop_size=300", "crop_size: expected 1 to 256 pixels, got 300"),
        ("changes=conv1=0", r"expected changes such as 67:conv1=0.00001,67:color_noise=0"),
        ("changes=5:conv9=0", "changes: conv9: expected learning_rate, bias_learning_rate"),
        ("changes=5:conv1=-1", "changes: conv1: expected a number >= 0, got -1"),
        ("changes=0:conv1=0", "changes: expected epochs from 1, at most 1,000,000, got 0:conv1=0"),
        ("bias_learning_rate=-1", "bias_learning_rate: expected a number >= 0"),
        ("bias_learning_rate=fast", "expected a number or none for bias_learning_rate"),
    ],
)
def test_a_wrong_change_of_a_recipe_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        with_changes(MINI, [change])


def test_changes_take_the_type_of_their_field():
    changed = with_changes(
        MINI,
        [
            *("num_classes=12", "drop_epochs=3,5", "random_flips=false", "lrn_k=1"),
            *("drop_rule=plateau", "changes=67:conv1=0.00001, 67:color_noise=0"),
        ],
    )
    assert [str(change) for change in changed.changes] == ["67:conv1=1e-05", "67:color_noise=0"]
    assert from_record(to_record(changed)) == changed
    assert (changed.num_classes, changed.drop_epochs, changed.random_flips) == (12, (3, 5), False)
    assert changed.lrn_k == 1.0
    assert with_changes(changed, ["num_classes=none"]).num_classes is None
