"""The memory of large tensors: kept, whole, switchable, guarded, and said."""

import json
import sys

import pytest
import torch
from conftest import assert_user_error, run, run_here

import cuda_ext
from cuda_ext import library
from data_prep.errors import UserError
from replica.training import allocator

needs_library = pytest.mark.skipif(
    sys.platform != "linux" or not library.memory_state().is_live,
    reason="no library that keeps large blocks here",
)

START = """
import json, resource, threading, torch
from replica.training.allocator import keep_large_blocks
said = keep_large_blocks()
def new_pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
"""
# Forty tensors of 64 MB one after the other, and how many new pages each of the last ten met.
ONE_SIZE = """
faults = []
for _ in range(40):
    before = new_pages()
    torch.full((2**24,), 1.0)
    faults.append(new_pages() - before)
print(json.dumps({"last": faults[30:], "said": said}))
"""
# Large tensors come and go in each round; small ones that are made in between stay for good.
MANY_SIZES = """
kept, faults = [], []
for number in range(12):
    before = new_pages()
    large = []
    for megabytes in (64, 16, 96, 33, 64, 8, 50):
        large.append(torch.full((megabytes * 2**18,), 1.0))
        kept += [torch.ones(size) for size in (3, 40, 1000, 9000)]
        if megabytes == 33:
            del large[1]
    large.clear()
    faults.append(new_pages() - before)
print(json.dumps(faults))
"""
# Four threads write a number of their own into whole tensors, and look whether it is still there.
THREADS = """
import random
damaged, failed = [], []
def work(seed):
    draws, tensors = random.Random(seed), []
    try:
        for number in range(300):
            value = float(4 * number + seed)
            tensors.append((value, torch.full((draws.randrange(1, 2**19),), value)))
            if len(tensors) > 8:
                value, tensor = tensors.pop(draws.randrange(len(tensors)))
                if not bool((tensor == value).all()):
                    damaged.append(value)
    except Exception as error:
        failed.append(repr(error))
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps([damaged, failed]))
"""
NEIGHBORS = """
quarters = [torch.empty(2**26, dtype=torch.uint8) for _ in range(4)]
first = quarters[0].data_ptr()
touching = all(q.data_ptr() == first + i * 2**26 for i, q in enumerate(quarters))
for number in (1, 3, 0, 2):
    quarters[number] = None
whole = torch.empty(2**28, dtype=torch.uint8)
print(json.dumps([touching, whole.data_ptr() == first, first % 2**21]))
"""
TOO_LARGE = """
try:
    torch.empty(2**50, dtype=torch.uint8)
    said = "nothing"
except RuntimeError as error:
    said = str(error)
grown = torch.full((2**19,), 3.0)
grown.resize_(2**22)
print(json.dumps([said, bool((grown[: 2**19] == 3.0).all()), torch.zeros(2**20).sum().item()]))
"""
NO_ROOM = """
import resource
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
"""


def result_of(program, **environment):
    result = run("-c", program, **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@needs_library
def test_a_freed_tensor_serves_the_next_one_without_new_pages():
    kept, stock = (result_of(START + ONE_SIZE, REPLICA_MALLOC=how) for how in ("keep", "stock"))
    assert kept["said"].startswith("large blocks are kept")
    assert stock["said"] == "REPLICA_MALLOC=stock"
    # 64 MB are 16,384 pages, or 32 huge ones.
    assert min(stock["last"]) >= 32
    assert sum(kept["last"]) < 32


@needs_library
def test_small_tensors_that_stay_do_not_cut_the_room_of_large_ones():
    faults = result_of(START + MANY_SIZES)
    # 331 MB in the first round; then only what the small tensors take, 280 KB a round.
    assert faults[0] >= 331 / 2
    assert max(faults[1:]) < 100


@needs_library
def test_tensors_of_several_threads_do_not_touch_each_other():
    assert result_of(START + THREADS) == [[], []]


@needs_library
def test_neighbors_that_were_freed_are_one_hole():
    assert result_of(START + NEIGHBORS) == [True, True, 0]


@needs_library
def test_what_does_not_fit_is_left_to_pytorch():
    said, is_whole, total = result_of(START + TOO_LARGE)
    assert "you tried to allocate 1125899906842624 bytes" in said
    assert is_whole
    assert total == 0


@needs_library
def test_without_address_space_nothing_is_set():
    program = START.replace("said =", f"{NO_ROOM}said =") + "print(json.dumps(said))"
    assert result_of(program) == (
        "PyTorch's own allocator (no address space: Cannot allocate memory)"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="large blocks are kept on Linux only")
def test_the_library_is_built_wherever_the_operators_are():
    assert library.memory_state().is_live == cuda_ext.compiled_state().is_live
    if library.memory_state().is_live:
        assert library.memory_state().built_for == f"with PyTorch {torch.__version__}"


def test_without_the_library_nothing_is_set():
    program = START + "print(json.dumps(said))"
    assert result_of(program, REPLICA_EXT="off") == "PyTorch's own allocator (REPLICA_EXT=off)"


def test_an_unknown_setting_is_refused(monkeypatch):
    monkeypatch.setenv("REPLICA_MALLOC", "fast")
    with pytest.raises(UserError, match="REPLICA_MALLOC: expected keep or stock, got 'fast'"):
        allocator.keep_large_blocks()


def test_commands_refuse_an_unknown_setting_in_one_line(shards_dir):
    train = ("-m", "replica.train", "--data", str(shards_dir), "--recipe", "mini")
    assert_user_error(
        run_here(*train, REPLICA_MALLOC="fast"), "REPLICA_MALLOC: expected keep or stock"
    )


def test_a_run_says_and_records_what_was_done(shards_dir, tmp_path):
    out = tmp_path / "run"
    options = ("--recipe", "mini", "--steps", "1", "--out", str(out))
    result = run_here(
        "-m", "replica.train", "--data", str(shards_dir), *options, REPLICA_MALLOC="stock"
    )
    assert result.returncode == 0, result.stderr
    assert "memory: REPLICA_MALLOC=stock" in result.stdout
    (rank,) = json.loads((out / "run.json").read_text())["ranks"]
    assert rank["memory"] == "REPLICA_MALLOC=stock"


@needs_library
def test_training_resuming_and_testing_keep_blocks_that_are_reused(shards_dir, tmp_path):
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
