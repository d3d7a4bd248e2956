"""The C library's memory: kept, switchable, guarded, and said."""

import json
import os
import sys

import pytest
from conftest import assert_user_error, run

from data_prep.shards import UserError
from replica import allocator

# Forty tensors of 64 MB one after the other, and how many new pages each of the last ten met.
PROGRAM = """
import json, resource, torch
from replica.allocator import keep_large_blocks
state = keep_large_blocks()
faults = []
for _ in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.full((2**24,), 1.0)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps({"keeps": state.keeps_large_blocks, "last": faults[30:], "reason": state.reason}))
"""


def is_glibc():
    try:
        return sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith(
            "glibc"
        )
    except ValueError:
        return False


def results_of(setting):
    result = run("-c", PROGRAM, REPLICA_MALLOC=setting)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.skipif(not is_glibc(), reason="the C library is not glibc")
def test_a_freed_tensor_serves_the_next_one_without_new_pages():
    kept, stock = results_of("keep"), results_of("stock")
    assert kept["keeps"]
    assert not stock["keeps"]
    assert stock["reason"] == "REPLICA_MALLOC=stock"
    # 64 MB are 16,384 pages, or 32 huge ones.
    assert min(stock["last"]) >= 32
    assert sum(kept["last"]) < 32


def test_an_unknown_setting_is_refused(monkeypatch):
    monkeypatch.setenv("REPLICA_MALLOC", "fast")
    with pytest.raises(UserError, match="REPLICA_MALLOC: expected keep or stock, got 'fast'"):
        allocator.keep_large_blocks()


def test_commands_refuse_an_unknown_setting_in_one_line(shards_dir):
    train = ("-m", "replica.train", "--data", str(shards_dir), "--recipe", "mini")
    assert_user_error(run(*train, REPLICA_MALLOC="fast"), "REPLICA_MALLOC: expected keep or stock")


def test_where_there_is_no_glibc_nothing_is_set(monkeypatch):
    def confstr(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.delenv("REPLICA_MALLOC", raising=False)
    monkeypatch.setattr(os, "confstr", confstr)
    state = allocator.keep_large_blocks()
    assert not state.keeps_large_blocks
    assert state.reason == "the C library is not glibc"


def test_another_allocator_is_left_alone(monkeypatch):
    class Library:
        def __init__(self, address):
            self.malloc = address

    libraries = {None: Library(1), "libc.so.6": Library(2)}
    monkeypatch.setattr(os, "confstr", lambda _: "glibc 2.36")
    monkeypatch.setattr(allocator.ctypes, "CDLL", libraries.__getitem__)
    state = allocator.keep_large_blocks()
    assert not state.keeps_large_blocks
    assert state.reason == "another allocator was loaded before glibc's"


def test_a_run_says_and_records_what_was_done(shards_dir, tmp_path):
    out = tmp_path / "run"
    options = ("--recipe", "mini", "--steps", "1", "--out", str(out))
    result = run("-m", "replica.train", "--data", str(shards_dir), *options, REPLICA_MALLOC="stock")
    assert result.returncode == 0, result.stderr
    assert "memory: REPLICA_MALLOC=stock" in result.stdout
    (rank,) = json.loads((out / "run.json").read_text())["ranks"]
    assert rank["memory"] == "REPLICA_MALLOC=stock"


@pytest.mark.skipif(not is_glibc(), reason="the C library is not glibc")
def test_training_resuming_and_testing_keep_blocks_that_are_reused(shards_dir, tmp_path):
    """Each command sets it before its first tensor; PyTorch would not align its blocks later."""
    out = tmp_path / "run"
    data = ("--data", str(shards_dir))
    train = ("-m", "replica.train", "--out", str(out), "--steps")
    for command in (
        (*train, "1", *data, "--recipe", "mini"),
        (*train, "2", "--resume"),
        ("-m", "replica.test", "--checkpoint", str(out / "checkpoint-00000002.pt")),
    ):
        result = run(*command)
        assert result.returncode == 0, result.stderr
        assert "memory: large blocks are kept (REPLICA_MALLOC=stock" in result.stdout, command
