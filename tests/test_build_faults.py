"""Builds that are killed, starved, cheated or doubled: nothing is lost, nothing is left behind."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from archives import files_below, tar_bytes
from conftest import PROJECT_DIR, assert_user_error, is_running, run, run_here

from data_prep.errors import UserError
from data_prep.manifest_json import read_manifest
from data_prep.shards import open_data_set
from data_prep.sources import toy

BUILD, VERIFY = "data_prep/build_shards.py", "data_prep/verify_shards.py"
PICTURES_A_SHARD = 10
NUM_SHARDS = 44
# What holds for both is shown quickly for one.
RAW_QUICK = ["raw", pytest.param("jpeg", marks=pytest.mark.slow)]
JPEG_QUICK = [pytest.param("raw", marks=pytest.mark.slow), "jpeg"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """440 pictures, one of them bad: 44 shards of 10."""
    directory = tmp_path_factory.mktemp("pictures") / "toy"
    toy.draw(directory, size=toy.ToySize(3, 40, 4), num_workers=2)
    train = directory / "ILSVRC/Data/CLS-LOC/train" / toy.WNIDS[4]
    next(train.iterdir()).write_bytes(b"not a picture")
    return directory


def command(source, out, *more):
    return [
        *(sys.executable, BUILD, "--input", str(source), "--output", str(out), "--workers", "2"),
        *("--images-per-shard", str(PICTURES_A_SHARD), *more),
    ]


def finished(out):
    """The files of the shards that the manifest lists."""
    try:
        manifest = read_manifest(out)
    except UserError:
        return []
    return [
        out / entry.file.file
        for shards in manifest.parts.values()
        for entry in shards
        if entry is not None
    ]


def assert_same(one, other):
    names = sorted(path.name for path in other.iterdir())
    assert sorted(path.name for path in one.iterdir()) == names
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


class Uninterrupted(dict):
    """Storage -> a build that nobody disturbs, made when it is first asked for."""

    def __init__(self, source, directory):
        self.source, self.directory = source, directory

    def __missing__(self, storage):
        self[storage] = out = self.directory / storage
        result = run(*command(self.source, out, "--storage", storage)[1:])
        assert result.returncode == 0, result.stderr
        return out


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    return Uninterrupted(pictures, tmp_path_factory.mktemp("whole"))


def start(arguments):
    return subprocess.Popen(
        arguments,
        cwd=PROJECT_DIR,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def in_session(leader):
    """The processes of a session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def workers_of(build):
    """The processes that decode: those that spawn started."""
    return [
        pid
        for pid in in_session(build.pid)
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def wait_until(condition, seconds=60):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def many(pictures, tmp_path_factory):
    """The same pictures four times, so that a build is long enough to be killed: 176 shards."""
    directory = tmp_path_factory.mktemp("many")
    for part in ("train", "val"):
        found = sorted((pictures / "ILSVRC/Data/CLS-LOC" / part).rglob("*.JPEG"))
        for i in range(4):
            (directory / part / f"class{i}").mkdir(parents=True)
            for path in found:
                (directory / part / f"class{i}" / path.name).hardlink_to(path)
    return directory


@pytest.fixture(scope="module")
def many_whole(many, tmp_path_factory):
    return Uninterrupted(many, tmp_path_factory.mktemp("many whole"))


@pytest.mark.fault(34, 38)
@pytest.mark.parametrize("storage", RAW_QUICK)
@pytest.mark.parametrize("victim", ["parent", "worker"])
def test_a_build_killed_twice_at_random_goes_on_to_the_same_bytes(
    many, many_whole, tmp_path, storage, victim
):
    """SIGKILL at 20 to 50 % and at 50 to 80 %; the seed is printed where the test fails."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    out = tmp_path / "out"
    arguments = command(many, out, "--storage", storage)
    num_before = 0
    for least, most in ((0.2, 0.5), (0.5, 0.8)):
        build = start(arguments)
        moment = max(num_before + 1, round(4 * NUM_SHARDS * rng.uniform(least, most)))
        wait_until(lambda moment=moment: len(finished(out)) >= moment)
        time.sleep(rng.uniform(0, 0.02))  # anywhere within a shard
        everybody = in_session(build.pid)
        if victim == "parent":
            build.kill()
        else:
            os.kill(rng.choice(workers_of(build)), signal.SIGKILL)
        _, stderr = build.communicate(timeout=60)
        if victim == "worker":
            assert build.returncode == 1, stderr
            last = stderr.strip().splitlines()[-1]
            assert "a worker process ended unexpectedly" in last
            assert "run the same command again" in last
            assert not list(out.glob("*.part"))
        wait_until(lambda pids=everybody: not any(is_running(pid) for pid in pids), 10)
        kept = {path: path.stat().st_mtime_ns for path in finished(out) if path.exists()}
        assert num_before < len(kept) < 4 * NUM_SHARDS
        num_before = len(kept)
        with pytest.raises(UserError, match="the build has not finished"):
            open_data_set(out)
    result = run(*arguments[1:])
    assert result.returncode == 0, result.stderr
    assert "continuing: " in result.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a finished shard was rebuilt"
    assert not list(out.glob("*.part"))
    assert_same(out, many_whole[storage])


# A worker is killed while it holds every lock that it shares with its parent.
KILLED_WITH_LOCKS = """
import os, signal, sys, time
from data_prep import workers

def work(dies):
    for shared in vars(workers._shared).values():
        if dies and hasattr(shared, "get_lock"):
            shared.get_lock().acquire()
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)
    workers.count(0)

if __name__ == "__main__":
    with workers.worker_pool(2) as pool:
        for _ in pool.each(work, [False] * 3 + [True] + [False] * 99, on_wait=pool.counters):
            pass
"""


@pytest.mark.fault(34, 38)
def test_a_worker_killed_with_a_lock_does_not_hold_up_its_parent(tmp_path):
    (tmp_path / "main.py").write_text(KILLED_WITH_LOCKS)
    result = subprocess.run(
        [sys.executable, tmp_path / "main.py"],
        env={**os.environ, "PYTHONPATH": str(PROJECT_DIR)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "RuntimeError: a worker process ended unexpectedly" in result.stderr


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    ("number", "is_for_all"),
    [(signal.SIGTERM, True), (signal.SIGHUP, True), (signal.SIGTERM, False)],
    ids=["SIGTERM to all", "SIGHUP to all", "SIGTERM"],
)
def test_a_build_that_is_stopped_says_one_line_and_leaves_no_part(
    number, is_for_all, pictures, whole, tmp_path
):
    """As a scheduler stops it, which signals the first process or all of them."""
    out = tmp_path / "out"
    build = start(command(pictures, out, "--storage", "jpeg"))
    wait_until(lambda: len(finished(out)) >= 4)
    (os.killpg if is_for_all else os.kill)(build.pid, number)
    _, stderr = build.communicate(timeout=60)
    assert build.returncode == 128 + number, stderr
    *_, last = stderr.replace("\r", "\n").strip().splitlines()
    assert last.startswith("build_shards: interrupted; run the same command again to continue")
    assert "Traceback" not in stderr
    assert not list(out.glob("*.part"))
    assert 4 <= len(finished(out)) < NUM_SHARDS
    assert run_here(*command(pictures, out, "--storage", "jpeg")[1:]).returncode == 0
    assert_same(out, whole["jpeg"])


@pytest.mark.fault(3)
@pytest.mark.parametrize("storage", JPEG_QUICK)
def test_a_full_disk_is_one_line_and_finished_shards_are_kept(pictures, whole, tmp_path, storage):
    def small_disk():
        # A write beyond this size fails, as on a full disk: train shards do not fit, val ones do.
        size = min(path.stat().st_size for path in whole[storage].glob("train-*.h5")) - 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    out = tmp_path / "out"
    arguments = command(pictures, out, "--storage", storage)
    result = subprocess.run(
        arguments, cwd=PROJECT_DIR, capture_output=True, text=True, preexec_fn=small_disk
    )
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("build_shards: cannot write ")
    assert ".h5 (" in last
    assert "make room or choose another directory" in last
    assert "Traceback" not in result.stderr
    assert not list(out.glob("*.part"))
    assert run(*arguments[1:]).returncode == 0
    assert_same(out, whole[storage])


@pytest.mark.fault(3)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("storage", RAW_QUICK)
def test_a_disk_that_really_fills_up_loses_nothing(pictures, whole, tmp_path, storage):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in whole[storage].iterdir()) // 2
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"mount: {mounted.stderr.decode().strip()}")
    try:
        out = disk / "out"
        arguments = command(pictures, out, "--storage", storage)
        result = run(*arguments[1:])
        assert result.returncode == 2, result.stderr
        last = result.stderr.strip().splitlines()[-1]
        assert "GB free" in last if storage == "raw" else "No space left on device" in last
        assert not list(out.glob("*.part"))
        subprocess.run(
            ["mount", "-o", f"remount,size={3 * size}", str(disk)], check=True, capture_output=True
        )
        kept = {path: path.stat().st_mtime_ns for path in finished(out)}
        assert run(*arguments[1:]).returncode == 0
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert_same(out, whole[storage])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.fault(33)
def test_an_input_that_vanishes_stops_the_build_and_is_not_listed_as_bad(pictures, whole, tmp_path):
    source, out = tmp_path / "pictures", tmp_path / "out"
    shutil.copytree(pictures, source)
    build = start(command(source, out))
    wait_until(lambda: len(finished(out)) >= 4)
    source.rename(tmp_path / "gone")
    _, stderr = build.communicate(timeout=60)
    assert build.returncode == 2, stderr
    last = stderr.strip().splitlines()[-1]
    assert "was listed and cannot be read any more (No such file or directory)" in last
    assert not list(out.glob("*.part"))
    num_finished = len(finished(out))
    assert 4 <= num_finished < NUM_SHARDS
    (tmp_path / "gone").rename(source)
    result = run(*command(source, out)[1:])
    assert result.returncode == 0, result.stderr
    assert "1 pictures could not be read" in result.stdout
    assert_same(out, whole["raw"])


@pytest.mark.fault(33)
def test_a_tar_that_changes_in_the_middle_stops_the_build(pictures, tmp_path):
    tar, out = tmp_path / "set.tar", tmp_path / "out"
    tar.write_bytes(tar_bytes(files_below(pictures)))
    build = start(command(tar, out))
    wait_until(lambda: len(finished(out)) >= 2)
    with tar.open("r+b") as file:
        file.write(b"x")
    _, stderr = build.communicate(timeout=60)
    assert build.returncode == 2, stderr
    assert "set.tar: changed while it was read" in stderr.strip().splitlines()[-1]
    assert not list(out.glob("*.part"))


def test_pictures_that_came_or_went_between_two_runs_are_another_data_set(pictures, tmp_path):
    source, out = tmp_path / "pictures", tmp_path / "out"
    shutil.copytree(pictures, source)
    arguments = command(source, out, "--limit", "4", "--workers", "1")[1:]
    assert run_here(*arguments).returncode == 0
    folder = source / "ILSVRC/Data/CLS-LOC/train" / toy.WNIDS[0]
    sorted(folder.iterdir())[0].unlink()
    assert_user_error(run_here(*arguments), "holds another data set (differs in pictures_sha256)")


def test_a_shard_damaged_between_two_runs_is_named_and_can_be_built_again(
    pictures, whole, tmp_path
):
    out = tmp_path / "out"
    shutil.copytree(whole["raw"], out)
    manifest = json.loads((out / "manifest.json").read_text())
    damaged, lost = manifest["parts"]["train"]["shards"][:2]
    # As a killed build leaves it.
    manifest["parts"]["train"]["shards"][1] = None
    manifest["complete"] = False
    for key in ("statistics", "labels"):
        (out / manifest.pop(key)["file"]).unlink()
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / lost["file"]).unlink()
    path = out / damaged["file"]
    data = bytearray(path.read_bytes())
    data[damaged["structure"]["large_data"][0][0] - 1] ^= 1
    path.write_bytes(data)
    arguments = command(pictures, out, "--storage", "raw")[1:]
    result = run_here(*arguments)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        f"build_shards: {out}: {path.name} is not the shard that the manifest names (SHA-256 of "
        "its structure): run the same command again; it builds that shard anew"
    )
    assert run_here(*arguments).returncode == 0
    assert_same(out, whole["raw"])


def test_a_manifest_from_which_shards_were_taken_is_refused(pictures, whole, tmp_path):
    out = shutil.copytree(whole["raw"], tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["parts"]["train"]["shards"].pop()
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert_user_error(
        run_here(*command(pictures, out)[1:]), "expected {'train': 40", "it was changed"
    )


@pytest.mark.fault(35)
def test_two_builds_in_one_directory_are_one_and_a_refusal(pictures, whole, tmp_path):
    out = tmp_path / "out"
    first = start(command(pictures, out))
    wait_until(lambda: (out / "manifest.json").exists())
    second = run(*command(pictures, out)[1:])
    assert_user_error(second, "another build is at work there")
    _, stderr = first.communicate(timeout=120)
    assert first.returncode == 0, stderr
    assert_same(out, whole["raw"])


# --- Job arrays


@pytest.mark.parametrize("storage", JPEG_QUICK)
def test_a_job_array_gives_the_bytes_of_one_machine(pictures, whole, tmp_path, storage):
    out = tmp_path / "out"
    arguments = command(pictures, out, "--storage", storage)
    builds = [start([*arguments, "--shard", f"{i}/3"]) for i in (1, 2, 3)]
    for i, build in enumerate(builds, start=1):
        stdout, stderr = build.communicate(timeout=120)
        assert build.returncode == 0, stderr
        assert f"share {i} of 3 is ready" in stdout
    with pytest.raises(UserError, match="no data at"):
        open_data_set(out)
    result = run(BUILD, "--output", str(out), "--finish")
    assert result.returncode == 0, result.stderr
    assert_same(out, whole[storage])


def test_a_job_array_that_is_not_ready_names_the_shares(pictures, tmp_path):
    out = tmp_path / "out"
    arguments = command(pictures, out, "--size", "8", "--workers", "1")[1:]
    result = run_here(BUILD, "--output", str(out), "--finish")
    assert_user_error(result, "--finish: expected --output with the shares")
    for share in ("1/4", "3/4"):
        assert run_here(*arguments, "--shard", share).returncode == 0
    result = run_here(BUILD, "--output", str(out), "--finish")
    assert_user_error(result, "2/4 has not begun, 4/4 has not begun", "--shard i/4")
    assert run_here(*arguments, "--shard", "2/4").returncode == 0
    victim = out / "train-00003.h5"  # of the fourth share
    assert not victim.exists()
    assert run_here(*arguments, "--shard", "4/4").returncode == 0
    victim.write_bytes(b"x" * victim.stat().st_size)
    assert_user_error(run_here(BUILD, "--output", str(out), "--finish"), "4/4 is not ready")
    result = run_here(*arguments, "--shard", "4/4")
    assert "continuing: " in result.stdout
    assert run_here(BUILD, "--output", str(out), "--finish").returncode == 0
    assert run_here(VERIFY, str(out)).returncode == 0


def test_shares_of_different_plans_or_numbers_are_refused(pictures, tmp_path):
    out = tmp_path / "out"
    arguments = command(pictures, out, "--size", "8", "--workers", "1")[1:]
    assert run_here(*arguments, "--shard", "1/2").returncode == 0
    result = run_here(*arguments, "--shard", "2/2", "--resampling", "box")
    assert_user_error(result, "holds another data set (differs in resampling)")
    assert_user_error(run_here(*arguments), "holds manifest-1-of-2.json", "by several machines")
    assert run_here(*arguments, "--shard", "2/3").returncode == 0
    result = run_here(BUILD, "--output", str(out), "--finish")
    assert_user_error(result, "expected shares of one number of machines", "2 and 3")


@pytest.mark.parametrize("share", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "-1/2"])
def test_a_share_that_is_none_is_refused(share):
    assert_user_error(run_here(BUILD, f"--shard={share}"), "--shard", "such as 3/16", share)


def test_finishing_takes_no_other_option(tmp_path):
    result = run_here(BUILD, "--finish", "--output", str(tmp_path), "--size", "8")
    assert_user_error(result, "--finish: expected nothing but --output beside it, got --size")


# --- What a run says


def test_a_dry_run_says_how_much_and_writes_nothing(pictures, tmp_path):
    before = sorted(path for path in tmp_path.rglob("*"))
    for storage in ("raw", "jpeg"):
        arguments = command(pictures, tmp_path / "out", "--storage", storage)
        result = run_here(*arguments[1:], "--dry-run")
        assert result.returncode == 0, result.stderr
        assert "train: 400 pictures" in result.stdout
        assert "val: 40 pictures" in result.stdout
        disk = float(result.stdout.split("disk: about ")[1].split()[0])
        exact = 440 * 256 * 256 * 3 / 1e9
        assert disk == pytest.approx(exact, abs=0.006) if storage == "raw" else disk < exact / 3
        assert "nothing was written" in result.stdout
        assert "minutes with 2 workers" in result.stdout
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_the_summary_tells_images_modes_bad_files_and_size(pictures, whole, tmp_path):
    result = run_here(*command(pictures, tmp_path / "out")[1:])
    assert "train: 399 images in 40 shards, 0." in result.stdout
    assert "train: 1 pictures could not be read" in result.stdout
    assert "CMYK" in result.stdout
    assert "L " in result.stdout
    assert "10 classes, 439 images of 256 x 256" in result.stdout
    last = result.stderr.replace("\r", "\n").strip().splitlines()[-1]
    assert "440/440" in last
    assert "images/s" in last
    assert "GB written, 1 bad files" in last
    rows = (tmp_path / "out" / "labels.csv").read_text().splitlines()
    assert rows[0] == "image,wnid,index,name,part"
    assert len(rows) == 1 + 439
    name, wnid, index = rows[1].split(",")[:3]
    assert name.split("/")[-2] == wnid == toy.WNIDS[int(index)]
    assert rows[-1].endswith(",val")


def test_memory_stays_below_400_mb_a_worker(pictures, tmp_path):
    """Peak memory of the largest process of the build, at 1024 images per shard."""
    many = tmp_path / "many"
    source = next((pictures / "ILSVRC/Data/CLS-LOC/train" / toy.WNIDS[1]).iterdir())
    for part, number in (("train", 1100), ("val", 2)):
        for name in ("a", "b"):
            (many / part / name).mkdir(parents=True)
            for i in range(number // 2):
                (many / part / name / f"{i}.JPEG").hardlink_to(source)
    code = (
        "import resource, subprocess, sys\n"
        "code = subprocess.run([sys.executable, *sys.argv[1:]]).returncode\n"
        "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, code)\n"
    )
    for storage in ("raw", "jpeg"):
        arguments = ["--input", str(many), "--output", str(tmp_path / storage)]
        result = run("-c", code, BUILD, *arguments, "--storage", storage, "--workers", "2")
        peak, status = result.stdout.strip().splitlines()[-1].split()[1:]
        assert status == "0", result.stderr
        print(f"{storage}: {int(peak) * 1024 / 1e6:.0f} MB")
        assert int(peak) * 1024 < 400e6, f"{storage}: {int(peak) * 1024 / 1e6:.0f} MB"


def test_a_finished_build_is_not_built_again(pictures, whole, tmp_path):
    out = shutil.copytree(whole["raw"], tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.suffix != ".lock"}
    result = run_here(*command(pictures, out)[1:])
    assert result.returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert "439 images" in result.stdout


def test_a_manifest_says_how_the_pixels_were_made(whole):
    manifest = json.loads((whole["jpeg"] / "manifest.json").read_text())
    assert manifest["resampling"] == "bilinear"
    assert manifest["fit"] == "crop"
    assert manifest["exif_orientation"] == "ignored"
    assert manifest["decoder"].startswith("Pillow ")
    assert manifest["storage"]["quality"] == 95
    assert manifest["storage"]["subsampling"] == "4:4:4"
