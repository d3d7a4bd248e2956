"""Another user of the machine can write into a run's key-value store: nothing of it is believed."""

import json
import os
import pickle
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from conftest import PROJECT_DIR
from runs import lines_of, started, train_command, wait_until_ended

from replica.distributed import heartbeat, launch
from replica.distributed.devices import Devices
from replica.distributed.mesh import Mesh, Rank
from replica.training.run_record import read_run_record

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
TIMEOUT_SECONDS = 5


class Bomb:
    """Whoever unpickles it makes a directory."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def listening_port(pid):
    """The one port of TCP that a process listens on."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        match = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
        sockets |= {match[1]} if match else set()
    ports = []
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and words[9] in sockets:
            ports.append(int(words[1].split(":")[1], 16))
    (port,) = ports
    return port


# What a rank publishes is [count, place, name].
GARBAGE = (
    *(b"", b"\xff\xfe\x00", b"1", b"[]", b"{}", b"null", b"[1, 2, 3]", b'["1", "a", "b"]'),
    *(b'[true, "a", "b"]', b'[1e999, "a", "b"]', b"[" * 100_000, b'{"a": 1, "b": 2, "c": 3}'),
)


def wait_until_pulses_are_read(store):
    """Until rank 1 has published again and rank 0, which looks after it publishes, has looked."""
    deadline, changes, last = time.monotonic() + 60, 0, None
    while changes < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        pulses = [store.get(f"liveness/pulse {rank}") for rank in (1, 0)]
        if all(pulse.startswith(b"[") for pulse in pulses) and pulses[1] != last:
            changes, last = changes + 1, pulses[1]


@linux
@pytest.mark.fault(13)
def test_a_run_goes_on_while_its_store_is_filled_with_garbage(shards_dir, tmp_path):
    """Longer than a rank may be without a sign of life; and then one that hangs is still named."""
    out, mark = tmp_path / "run", tmp_path / "a bomb went off"
    options = ("--gpus", "2", "--epochs", "5000", "--timeout", str(TIMEOUT_SECONDS))
    process = started(train_command(shards_dir, out, *options), out)
    ranks = read_run_record(out).ranks
    port = listening_port(process.pid)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n" + os.urandom(4096))
    store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    keys = store.list_keys()
    assert {"liveness/pulse 0", "liveness/pulse 1"} <= set(keys)
    garbage = (pickle.dumps(Bomb(mark)), *GARBAGE)
    for key in keys:
        store.set(key, garbage[0])
    end, number = time.monotonic() + TIMEOUT_SECONDS + 2, 0
    while time.monotonic() < end:
        for key in ("liveness/pulse 0", "liveness/pulse 1"):
            store.set(key, garbage[number % len(garbage)])
        if number % 10 == 0:
            store.delete_key("liveness/pulse 1")
        number += 1
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()
    steps = len(lines_of(out, "step"))
    wait_until_pulses_are_read(store)
    os.kill(ranks[1].pid, signal.SIGSTOP)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 1
    assert f"rank 1 (pid {ranks[1].pid} on {ranks[1].host}) has not moved for" in stderr
    assert steps > 2
    assert not mark.exists()
    wait_until_ended([process.pid, *(rank.pid for rank in ranks)])


def test_garbage_says_nothing_of_a_rank_and_its_name_cannot_write_to_the_terminal():
    for text in GARBAGE:
        assert heartbeat._pulse_of(text) is None, text
    pulse = heartbeat._pulse_of(json.dumps([3, "step\n", "\x1b]0;x\x07rank 1"]).encode())
    assert (pulse.count, pulse.place, pulse.name) == (3, r"step\n", r"\x1b]0;x\x07rank 1")


# --- Between the ranks


def exchange(rank, path, stop):
    """Each rank tells the others its number and a text that is longer with it."""
    values = Mesh(rank).gather([rank.index, "\u00e4\udcff" * 1000 * rank.index, None, 0.1])
    if rank.index == 1:
        Path(path).write_text(json.dumps(values))


@pytest.mark.parametrize("processes", [1, 2])
def test_ranks_exchange_json(processes, tmp_path):
    path = tmp_path / "values.json"
    values = [[i, "\u00e4\udcff" * 1000 * i, None, 0.1] for i in range(processes)]
    if processes == 1:
        assert Mesh(Rank(0, Devices("cpu", 1, 1))).gather((0, "", None, 0.1)) == values
        return
    assert launch.run_processes(exchange, str(path), Devices("cpu", 2, 1), timeout=120) == 0
    assert json.loads(path.read_text()) == values


def test_nothing_between_ranks_is_unpickled():
    """Of PyTorch's exchanges those of objects unpickle; tensors and JSON run nothing."""
    forbidden = re.compile(r"_object\b|_object_list\b|\bpickle\b|\bmultiprocessing\.connection\.C")
    for path in (PROJECT_DIR / "replica").rglob("*.py"):
        text = path.read_text()
        if path.name != "checkpoint.py":  # which names the error of a file that is no checkpoint
            assert not forbidden.search(text), path
    used = {name for name in dir(dist) if "object" in name}
    assert {"all_gather_object", "broadcast_object_list", "scatter_object_list"} <= used
    assert all(forbidden.search(name) for name in used), used
