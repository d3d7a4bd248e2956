"""The table of what --gpus means (docs: README, "Devices"), row by row."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import assert_user_error, run_here

from data_prep.errors import UserError
from replica.distributed import launch
from replica.distributed.devices import choose_devices
from replica.training.numerics import check_precision


def choose(gpus, present, *, split=None, device="auto", towers=2, notes=None):
    return choose_devices(
        gpus=gpus,
        num_gpus_present=present,
        split=split,
        device=device,
        towers=towers,
        say=([] if notes is None else notes).append,
    )


@pytest.mark.fault(43)
@pytest.mark.parametrize(
    ("gpus", "present", "kind", "processes", "split", "note"),
    [
        (None, 0, "cpu", 1, 1, "one process on the CPU"),
        (None, 1, "cuda", 1, 1, "one process on the CUDA"),
        (None, 2, "cuda", 1, 1, "one process on the CUDA"),
        (1, 0, "cpu", 1, 1, "one CPU process (no GPU here)"),
        (1, 1, "cuda", 1, 1, None),
        (1, 2, "cuda", 1, 1, None),
        (2, 0, "cpu", 2, 2, "two CPU processes, a tower each (no GPU here)"),
        (2, 2, "cuda", 2, 2, None),
        (2, 8, "cuda", 2, 2, None),
        (4, 0, "cpu", 4, 2, "4 CPU processes in 2 pairs, a tower each"),
        (8, 8, "cuda", 8, 2, None),
    ],
)
def test_each_row_of_the_table(gpus, present, kind, processes, split, note):
    notes = []
    devices = choose(gpus, present, notes=notes)
    assert (devices.kind, devices.num_processes, devices.split) == (kind, processes, split)
    if note is None:
        assert notes == []
    else:
        assert len(notes) == 1
        assert note in notes[0]


@pytest.mark.fault(43)
@pytest.mark.parametrize(
    ("gpus", "present", "message"),
    [
        (2, 1, "--gpus 2: this machine has 1: use --gpus 1"),
        (4, 2, "--gpus 4: this machine has 2: use --gpus 2"),
        (3, 0, "--gpus 3: expected an even number .*--split 1"),
        (3, 1, "--gpus 3: expected an even number .*--split 1"),
        (3, 8, "--gpus 3: expected an even number .*--split 1"),
        (0, 0, "--gpus 0: expected at least 1"),
        (-2, 4, "--gpus -2: expected at least 1"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_the_way_out(gpus, present, message):
    with pytest.raises(UserError, match=message):
        choose(gpus, present)


def test_split_1_is_plain_data_parallelism():
    notes = []
    devices = choose(3, 0, split=1, notes=notes)
    assert (devices.num_processes, devices.split, devices.num_copies) == (3, 1, 3)
    assert "3 CPU processes, the whole network each" in notes[0]
    assert choose(2, 2, split=1).num_copies == 2
    assert choose(4, 4).num_copies == 2
    assert choose(2, 0, towers=1).split == 1


def test_split_2_needs_two_towers_and_two_devices():
    with pytest.raises(UserError, match="--split 2: expected two devices, got one: use --gpus 2"):
        choose(1, 0, split=2)
    with pytest.raises(UserError, match="--split 2: expected two devices"):
        choose(None, 2, split=2)
    with pytest.raises(UserError, match="the recipe has one tower: expected --split 1"):
        choose(2, 2, split=2, towers=1)


def test_device_cpu_never_uses_a_gpu_and_device_cuda_needs_one():
    notes = []
    assert choose(2, 8, device="cpu", notes=notes).kind == "cpu"
    assert "(--device cpu)" in notes[0]
    with pytest.raises(UserError, match="--device cuda: expected a CUDA device"):
        choose(2, 0, device="cuda")


def test_tf32_needs_cuda():
    with pytest.raises(UserError, match="--precision tf32: expected a CUDA device"):
        check_precision("tf32", kind="cpu")
    check_precision("tf32", kind="cuda")


@pytest.mark.fault(43)
def test_the_command_refuses_what_the_table_refuses(shards_dir):
    train = ("-m", "replica.train", "--data", str(shards_dir))

    def refused(*options):
        result = run_here(*train, *options)
        assert result.returncode == 2
        assert len(result.stderr.strip().splitlines()) == 1
        return result.stderr

    assert "--split 1" in refused("--gpus", "3")
    assert "--precision tf32" in refused("--precision", "tf32", "--device", "cpu")
    if not torch.cuda.is_available():
        assert_user_error(run_here(*train, "--device", "cuda"), "--device cuda", "--device cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_store_of_a_run_listens_to_this_machine_only():
    store = launch.local_store()
    listening = "0A"
    places = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, place, _, state, *_ = line.split()
            if state == listening and int(place.split(":")[1], 16) == store.port:
                places.append(place.split(":")[0])
    assert places == ["0100007F"]  # 127.0.0.1
    store.set("key", "value")
    assert store.get("key") == b"value"
