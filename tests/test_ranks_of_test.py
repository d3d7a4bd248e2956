"""Several ranks test together: the same bits as one, for any number of them."""

import json
import os
import signal
import threading
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_user_error, run, run_here
from runs import large_weights, mini_shapes_and_deviations, write_checkpoint

import replica.test as replica_test
from data_prep.errors import UserError
from data_prep.shards import open_data_set
from replica.distributed.devices import Devices
from replica.distributed.mesh import Rank
from replica.distributed.worker import stop_on_signals
from replica.results.evaluation import check_all_have
from replica.results.members import CommonLabels, Member, Network, Share, batches_of
from replica.training.checkpoint import load_checkpoint
from replica.training.weights import network_of

VIEWS = "grid:3"  # seven images per batch: the 20 of val are three batches


@pytest.fixture(scope="module")
def checkpoints(tiny_shards, tmp_path_factory):
    directory, data = tmp_path_factory.mktemp("ranks"), open_data_set(tiny_shards)
    shapes = mini_shapes_and_deviations()[0]
    return [
        write_checkpoint(directory / f"{seed}.pt", large_weights(shapes, seed=seed), data)
        for seed in (7, 8)
    ]


class RecordedMesh:
    """What the other ranks gave, and which of them were asked to stop."""

    device = torch.device("cpu")

    def __init__(self, others=(), stops=0):
        self.others, self.stops, self.given = [list(x) for x in others], stops, []

    def sum_over_all_(self, tensor):
        return tensor + self.stops

    def gather_tensors(self, tensor):
        self.given.append(tensor)
        return [tensor, *(other.pop(0) for other in self.others)]


def batches(checkpoints, data, share):
    members = [Member(path, load_checkpoint(path), "last") for path in checkpoints]
    labels = CommonLabels(data.wnids, np.arange(len(data.wnids)), True)
    networks = [
        Network(
            x.checkpoint,
            labels,
            model=network_of(x.path, x.checkpoint, None),
            device=torch.device("cpu"),
            precision="float32",
        )
        for x in members
    ]
    rows = range(len(data.val))
    return list(batches_of(networks, data.val, rows, labels, views=VIEWS, share=share))


def share_of(index, num_ranks, mesh):
    return Share(Rank(index, Devices("cpu", num_ranks, 1)), mesh, threading.Event())


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_rank_0_has_the_batches_of_one_process_in_their_order(num_ranks, checkpoints, tiny_shards):
    data = open_data_set(tiny_shards)
    expected = batches(checkpoints, data, None)
    assert [len(labels) for _, labels in expected] == [7, 7, 6]
    meshes = [RecordedMesh() for _ in range(1, num_ranks)]
    for index, mesh in enumerate(meshes, start=1):
        assert batches(checkpoints, data, share_of(index, num_ranks, mesh)) == []
    mesh = RecordedMesh([other.given for other in meshes])
    found = batches(checkpoints, data, share_of(0, num_ranks, mesh))
    assert len(found) == len(expected)
    for (several, labels), (others, other_labels) in zip(found, expected, strict=True):
        assert torch.equal(labels, other_labels)
        assert all(map(torch.equal, several, others))


def test_ranks_that_agree_to_stop_give_nothing(checkpoints, tiny_shards):
    share = share_of(0, 2, RecordedMesh(stops=1))
    assert batches(checkpoints, open_data_set(tiny_shards), share) == []
    assert share.is_stopped


def test_ranks_with_other_checkpoints_are_refused(checkpoints):
    """A run that saves while the ranks look for its last checkpoint."""
    mesh = RecordedMesh()
    member = Member(checkpoints[0], load_checkpoint(checkpoints[0]), "last")
    later = replace(member, checkpoint=replace(member.checkpoint, step=9))
    for others, is_refused in (([member, member], False), ([member, later], True)):
        mesh.gather = lambda _, of=others: [[[str(x.path), x.checkpoint.step]] for x in of]
        for own in others:
            with pytest.raises(UserError, match="found other") if is_refused else nullcontext():
                check_all_have([own], share_of(0, 2, mesh))


def test_two_processes_print_and_save_what_one_does(checkpoints, tiny_shards, tmp_path):
    results = []
    for gpus, start in ((1, run_here), (2, run)):
        saved = tmp_path / f"{gpus}.npz"
        command = ["-m", "replica.test", "--data", str(tiny_shards), "--views", VIEWS, "--json"]
        command += ["--table", "classes", "--table", "calibration", "--device", "cpu"]
        command += ["--save-probabilities", str(saved), "--gpus", str(gpus)]
        for path in checkpoints:
            command += ["--checkpoint", str(path)]
        result = start(*command, "--weights-of", "search", OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
        with np.load(saved) as arrays:
            results.append((json.loads(result.stdout), dict(arrays)))
        assert result.stderr.count("(no --gpus given)") == 0
    assert "devices: 2 CPU processes, the whole network each" in result.stderr
    assert result.stderr.count("memory: ") == 1
    (one, arrays), (two, others) = results
    assert one == two
    assert one["num_images"] == 20
    for name, array in arrays.items():
        assert np.array_equal(array, others[name]), name


def test_a_stop_signal_ends_a_test_of_several_with_its_own_line(
    checkpoints, tiny_shards, monkeypatch, capsys
):
    units = []

    def stopped(*_, unit, **__):
        units.append(unit)
        return 143  # as after SIGTERM

    monkeypatch.setattr(replica_test, "run_processes", stopped)
    named = ("--checkpoint", str(checkpoints[0]), "--data", str(tiny_shards), "--device", "cpu")
    result = run_here("-m", "replica.test", *named, "--gpus", "2")
    assert (result.returncode, result.stderr) == (143, "replica.test: interrupted\n")
    before = signal.getsignal(signal.SIGHUP)
    try:
        with stop_on_signals(threading.Event(), unit=units.pop()) as received:
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGHUP, before)  # the command ignores it to its end
    assert received == [signal.SIGINT]
    assert capsys.readouterr().err == "\nstopping after this batch; once more to stop at once\n"


@pytest.mark.slow
def test_what_all_ranks_refuse_is_one_line(tiny_shards, tmp_path):
    command = ("-m", "replica.test", "--data", str(tiny_shards), "--gpus", "2", "--device", "cpu")
    result = run(*command, "--checkpoint", str(tmp_path / "none.pt"))
    assert result.stdout.startswith("devices: 2 CPU processes, the whole network each")
    assert_user_error(result, "none.pt: expected a checkpoint, found no file")
