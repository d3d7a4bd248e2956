"""A checkpoint is whole or not there, and what does not fit is refused with every reason."""

import dataclasses
import os
import pickle
import subprocess

import pytest
import torch
from conftest import run

from data_prep.errors import UserError
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


def checkpoint(step=1, best_step=None):
    shapes = whole_shapes(MINI, num_classes=10)
    return Checkpoint(
        model={name: torch.full(shape, 0.5) for name, shape in shapes.items()},
        velocities={name: torch.zeros(shape) for name, shape in shapes.items()},
        step=step,
        epoch=1,
        val_errors=[],
        best_step=best_step,
        recipe=MINI,
        num_classes=10,
        seed=1,
        wnids=WNIDS,
        class_names=[str(i) for i in range(10)],
        mean_image=torch.zeros(256, 256, 3),
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


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage):
    save_checkpoint(tmp_path, checkpoint(step=1))
    path = save_checkpoint(tmp_path, checkpoint(step=2))
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data[: {"truncated": len(data) - 5, "empty": 0}.get(damage)]))
    with pytest.raises(UserError, match="damaged: its SHA-256 is not the one in"):
        load_checkpoint(path)
    found, loaded, passed_over = last_whole_checkpoint(tmp_path)
    assert (found, loaded.step) == (checkpoint_path(tmp_path, 1), 1)
    assert len(passed_over) == 1
    assert path.name in passed_over[0]


def test_a_run_without_a_whole_checkpoint_says_so(tmp_path):
    with pytest.raises(UserError, match="expected a whole checkpoint there, found none"):
        last_whole_checkpoint(tmp_path)


class Malicious:
    """Whoever unpickles it makes a directory."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


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


def test_another_kind_of_file_and_another_version_are_refused(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="expected a checkpoint of this project"):
        load_checkpoint(tmp_path / "a.pt")
    path = save_checkpoint(tmp_path, checkpoint())
    torch.save({**torch.load(path, weights_only=True), "version": 9}, path)
    path.with_name(f"{path.name}.sha256").unlink()
    with pytest.raises(UserError, match="expected checkpoint version 2, got 9"):
        load_checkpoint(path)


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


def test_another_recipe_is_refused_with_all_fields_but_epochs_may_differ(tmp_path):
    path = tmp_path / "c.pt"
    check_fits_recipe(path, MINI, dataclasses.replace(MINI, epochs=99))
    other = dataclasses.replace(MINI, batch_size=64, momentum=0.8)
    with pytest.raises(UserError) as error:
        check_fits_recipe(path, MINI, other)
    assert "batch_size: 32 against 64" in str(error.value)
    assert "momentum: 0.9 against 0.8" in str(error.value)


def test_other_classes_are_refused(tmp_path):
    path = tmp_path / "c.pt"
    check_fits_classes(path, WNIDS, WNIDS, tmp_path)
    with pytest.raises(UserError, match=r"has 10 classes, .* has 9"):
        check_fits_classes(path, WNIDS, WNIDS[:9], tmp_path)
    with pytest.raises(UserError, match=r"class 9 is n00000009, in .* it is n12345678"):
        check_fits_classes(path, WNIDS, [*WNIDS[:9], "n12345678"], tmp_path)


KILLED_AT = """
import os, signal, sys
sys.path.insert(0, "tests")
from pathlib import Path
import torch
from test_checkpoint import checkpoint
from replica.training.checkpoint import save_checkpoint
calls = 0
def dies_at(function, number):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
for directory in map(Path, sys.argv[1:]):
    if os.fork() == 0:
        save_checkpoint(directory, checkpoint(step=1))
        number = int(directory.name)
        os.fsync = dies_at(os.fsync, number)
        Path.replace = dies_at(Path.replace, number)
        Path.unlink = dies_at(Path.unlink, number)
        for step in (2, 3):
            save_checkpoint(directory, checkpoint(step=step))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_kill_at_any_moment_of_saving_leaves_a_whole_checkpoint(tmp_path):
    """After so many calls that reach the disk; each time a copy of one process dies."""
    directories = [tmp_path / str(number) for number in (1, 3, 4, 8, 9)]
    for directory in directories:
        directory.mkdir()
    result = run("-c", KILLED_AT, *map(str, directories))
    assert result.stdout.split() == ["-9"] * 5, result.stderr
    for directory in directories:
        _, loaded, passed_over = last_whole_checkpoint(directory)
        assert loaded.step >= 1
        assert passed_over == []


# --- Recipes as they are written down and changed


def test_a_recipe_survives_its_record():
    assert from_record(to_record(MINI)) == MINI


def test_a_record_of_another_version_is_refused():
    record = {**to_record(MINI), "color": 1}
    del record["momentum"]
    with pytest.raises(UserError, match=r"missing fields \['momentum'\], unknown .*\['color'\]"):
        from_record(record)


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
