"""Every option of every command with every wrong value: one line, status 2, nothing written.

The options are asked of the parsers themselves, so a new one is tried without being named here.
"""

import argparse
import contextlib
import fcntl
import importlib
import sys
from pathlib import Path

import pytest
from conftest import assert_user_error, run_here

from data_prep.errors import UserError
from data_prep.files import locked
from replica.recipes.changes import settable_fields, settable_layer_fields
from replica.recipes.recipe import Conv, FullyConnected

# Module -> what comes before its options; SHARDS and RUN are replaced.
COMMANDS = {
    "data_prep.build_shards": [],
    "data_prep.verify_shards": ["SHARDS"],
    "replica.__main__": [],
    # Short, where it begins all the same.
    "replica.train": ["--data", "SHARDS", "--out", "out", "--recipe", "mini", "--steps", "1"],
    "replica.control": ["nowhere"],
    "replica.test": [],
    "replica.predict": ["a file"],
    "replica.neighbors": [],
    "replica.export": ["a file", "--format", "onnx", "--output", "x.onnx"],
    "replica.info": [],
    "replica.recipes.__main__": [],
    "replica.recipes.__main__ diff": ["paper", "mini"],
    "replica.compare": ["nowhere"],
    "replica.figures": [],
    "replica.figures curves": ["nowhere"],
    "replica.figures augmentation": [],
    "replica.figures kernels": [],
    "replica.figures architecture": [],
    "replica.figures activations": ["a file"],
    "replica.figures predictions": [],
    "replica.figures grid": [],
    "replica.figures classes": [],
    "replica.figures confusion": [],
    "replica.report": ["nowhere"],
    "replica.demo": [],
    "replica.reproduce": ["size"],
    "replica.sweep": [
        *("--data", "SHARDS", "--recipe", "mini", "--out", "out", "--grid", "lr=0.1"),
    ],
    "cuda_ext.__main__": [],
}
HUGE = "9" * 30
# By what an option takes: texts that can be none of it.
NO_NUMBER = ("x", "", "-1", "nan", "inf", "1e400", "0x10", "1,5", "\u0661 1")
NO_WHOLE_NUMBER = (*NO_NUMBER, "1.5", "1e3", HUGE, "9" * 5000)
# For options whose texts are read further in: wrong in each of them.
NO_CHANGE = ("", "x", "=", "x=1", "lr=", "batch_size", "conv1.x=1", "conv9.stride=1", "without=x")
WRONG_TEXTS = {
    "--set": NO_CHANGE,
    "--freeze": ("", ",", "conv9", "conv1,x", "conv1.x"),
    "--rate": ("", "x", "conv1", "conv1=", "conv1=x", "conv1=-1", "conv1=nan", "x=1"),
    "--color-noise": ("", "x"),
    "--grid": (*NO_CHANGE, "lr", "lr=0.1,", "lr=0.1,0.10", "lr=-1", "lr=0.1..0.2", "momentum=1"),
    "--model": (
        "",
        "x",
        ":",
        ":build",
        "nowhere.py:build",
        "/:build",
        "/dev/null:build",
        "a.py:b c",
    ),
    "--lr": NO_NUMBER,
    "--momentum": (*NO_NUMBER, "1", HUGE),
    "--ema": (*NO_NUMBER, "0", "1", HUGE),
    "--val-fraction": (*NO_NUMBER, "0", "1", "1/3", HUGE),
    "--weight-decay": NO_NUMBER,
    "--batch-size": (*NO_WHOLE_NUMBER, "0", "1000001", "100000000"),
    "--epochs": (*NO_WHOLE_NUMBER, "0", "1000001"),
    "--classes": (*NO_WHOLE_NUMBER, "0", "1", "1000001", "100000000000"),
    "--per-class": (
        "",
        "x",
        "0",
        "-1",
        "1.5",
        HUGE,
        "1,1",
        "0,1,1",
        "1,1,-1",
        "1,1,1,1",
        f"{HUGE},1,1",
    ),
    "--shard": ("", "x", "1", "0/1", "2/1", "-1/2", f"1/{HUGE}", "1/1/1", "1.5/2"),
    "--new-layers": ("",),
    "--recipe": ("", "x", "PAPER", "mini,paper"),
    "--class": ("",),
    "--weights-of": ("", ",", "x", "0", "-1", "nan", "inf", "1,1", "1;1"),
    "--views": ("", "x", "CENTER", "grid", "grid:", "grid:0", "grid:9", "grid:-1", "grid:2x2"),
}
# That may hold any text.
FREE = {"--reason"}
# A least value above 0, where 0 is wrong, too.
ZERO_IS_RIGHT = {
    *("--seed", "--lr", "--bias-lr", "--wait", "--weight-decay", "--momentum", "--loader-threads")
}
CONTRADICTIONS = {
    "data_prep.build_shards": [
        ["--quality", "90"],
        ["--finish", "--size", "8"],
        ["--val-fraction", "0.2", "--per-class", "1,1,1"],
        ["--val-fraction", "0.2", "--per-class", "1"],
        ["--seed", "1", "--per-class", "1,1,1"],
        ["--seed", "1"],
        ["--source", "kaggle"],
        ["--source", "toy", "--input", "a file"],
        ["--input", "a file"],
        ["--input", "nowhere"],
        ["--source", "toy", "--input", "in", "--output", "in"],
        ["--finish"],
        ["nonsense"],
    ],
    "data_prep.verify_shards": [
        ["--quick", "--contact-sheet", "x.png"],
        ["--class", "x"],
        ["--seed", "1"],
        ["--contact-sheet", "x.jpg"],
        ["--contact-sheet", "nowhere/x.png"],
        ["nonsense"],
    ],
    "replica.__main__": [["nonsense"], ["--x"]],
    "replica.train": [
        ["nonsense"],
        ["--resume", "--dry-run"],
        ["--resume", "--init", "x"],
        ["--new-head"],
        ["--new-layers", "fc6"],
        ["--gpus", "1", "--split", "2"],
        ["--gpus", "3"],
        ["--device", "cpu", "--precision", "tf32"],
        ["--gpus", "2", "--timeout", "1e300"],
        ["--set", "crop_size=10"],
        ["--set", "crop_size=30"],
        ["--set", "crop_size=257"],
        ["--set", "pool_window=100"],
        ["--set", "drop_epochs=,"],
        ["--set", "without="],
        ["--set", "without=conv1", "--set", "conv1.stride=2"],
        ["--set", "without=conv1,conv2,conv3,conv4,conv5"],
        ["--freeze", "conv1", "--set", "without=conv1"],
        ["--data", "nowhere"],
        ["--data", "a file"],
        ["--out", "a file"],
        ["--init", "a file"],
        ["--replay", "nowhere"],
        ["--resume"],
    ],
    "replica.control": [[], ["--lr", "1"], ["--lr", "1", "--rate", "learning_rate=2"], ["--stop"]],
    "replica.test": [
        ["--checkpoint", "nowhere"],
        ["--checkpoint", "a file"],
        ["--ten-crop", "--views", "center"],
        ["--json", "--csv"],
        ["--csv", "--table", "classes", "--table", "confusion"],
        ["--save-probabilities", "x.npy"],
        ["--save-probabilities", "nowhere/x.npz"],
        ["--submission", "x.txt"],
        ["--pictures", "in"],
        ["--submission", "x.txt", "--pictures", "in", "--devkit", "in", "--json"],
        ["--submission", "x.txt", "--pictures", "in", "--devkit", "in", "--checkpoint", "a file"],
        ["--checkpoint", "a file", "--checkpoint", "a file", "--weights-of", "1"],
        [],
        ["nonsense"],
    ],
    "replica.predict": [
        ["--checkpoint", "nowhere"],
        ["--checkpoint", "a file"],
        ["--checkpoint", "in"],
        ["--picture", "x.xyz"],
        ["--picture", "nowhere/x.png"],
        ["--x"],
        [],
    ],
    "replica.neighbors": [
        ["--checkpoint", "nowhere"],
        ["--checkpoint", "a file"],
        ["--picture", "x.xyz"],
        ["--queries", "3", "a file"],
        ["--x"],
        [],
    ],
    "replica.export": [
        ["--output", "x.pt2"],
        ["--output", "nowhere/x.onnx"],
        ["--card", "x.txt"],
        ["nonsense"],
        [],
    ],
    "replica.info": [["nonsense"], ["--set", "crop_size=10"], ["--set", "pool_window=100"]],
    "replica.recipes.__main__": [["nonsense"], ["diff"], ["diff", "paper"]],
    "replica.recipes.__main__ diff": [["x"], ["--json", "--markdown"]],
    "replica.compare": [["--json", "--csv"], ["--csv", "--markdown"]],
    "replica.figures": [["--run", "nowhere"], ["nonsense"], []],
    "replica.figures curves": [["--picture", "x.xyz"], ["--picture", "nowhere/x.png"]],
    "replica.figures augmentation": [["--run", "nowhere"], ["--data", "nowhere"], ["nonsense"], []],
    "replica.figures kernels": [["--checkpoint", "nowhere"], ["--picture", "x.xyz"], []],
    "replica.figures architecture": [
        ["--checkpoint", "a file"],
        ["--checkpoint", "in", "--recipe", "mini"],
        ["--checkpoint", "in", "--set", "towers=1"],
        ["--set", "crop_size=10"],
        ["--picture", "nowhere/x.png"],
    ],
    "replica.figures activations": [["--checkpoint", "in"], ["--picture", "x"], ["x"], []],
    "replica.figures predictions": [["--checkpoint", "a file"], ["--images", "9"], []],
    "replica.figures grid": [["--checkpoint", "a file"], ["--images", "37"], []],
    "replica.figures classes": [["--checkpoint", "a file"], ["nonsense"], []],
    "replica.figures confusion": [["--checkpoint", "a file"], ["nonsense"], []],
    "replica.report": [["in"], ["--output", "x.pdf"], ["--output", "nowhere/x.html"], ["--x"], []],
    "replica.demo": [
        ["--x"],
        ["nonsense"],
        ["--resume"],
        ["--dry-run"],
        ["--set", "x=1"],
        ["--freeze", ","],
    ],
    "replica.reproduce": [
        *(["nonsense"], ["--json", "--markdown"], ["--data", "nowhere"], ["--data", "in"]),
    ],
    "replica.sweep": [
        ["nonsense"],
        ["--trials", "3"],
        ["--sampler", "random"],
        ["--grid", "lr=0.1", "lr=0.2"],
        ["--grid", "epochs=1,2", "--epochs", "3"],
        ["--grid", "classes=2,10"],
        ["--grid", "crop_size=224,257"],
        ["--sampler", "tpe", "--trials", "2", "--grid", "lr=0..1:log"],
        ["--gpus", "3"],
        ["--device", "cpu", "--precision", "tf32"],
        ["--data", "nowhere"],
        ["--out", "a file"],
        ["--storage", "a file"],
        ["--storage", "nowhere/x.db"],
    ],
    "cuda_ext.__main__": [["--x"], ["nonsense"], ["--json=1"]],
}


def parser_of(command, monkeypatch):
    """The parser that a command reads its words with."""
    module, *words = command.split()
    found = []

    def take(parser, *_):
        found.append(parser)
        raise SystemExit

    with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_known_args", take)
        patch.setattr(sys, "argv", [module])
        importlib.import_module(module).main()
    parser = found[0]
    for word in words:
        (chosen,) = [x for x in parser._actions if isinstance(x, argparse._SubParsersAction)]
        parser = chosen.choices[word]
    return parser


def wrong_values(option, action):
    """Texts that an option must refuse."""
    if action.choices is not None:
        return ("nonsense", "", str(next(iter(action.choices))).upper() + "x")
    if option in FREE:
        return ()
    if option in WRONG_TEXTS and not is_path(action):
        return WRONG_TEXTS[option]
    zero = () if option in ZERO_IS_RIGHT else ("0",)
    for kind, texts in ((int, (*NO_WHOLE_NUMBER, *zero)), (float, (*NO_NUMBER, "1e308"))):
        with contextlib.suppress(argparse.ArgumentTypeError, TypeError):
            if isinstance(action.type("7"), kind):
                return texts
    if is_path(action):
        return ("", " ")
    raise AssertionError(f"{option}: say in WRONG_TEXTS what is wrong for it")


def is_path(action):
    with contextlib.suppress(argparse.ArgumentTypeError, TypeError):
        return isinstance(action.type("7"), Path)
    return False


def wrong_lines(command, parser):
    """Of a command, all lines with one wrong option, and the contradictions."""
    for action in parser._actions:
        if action.dest == "help" or isinstance(action, argparse._SubParsersAction):
            continue
        if not action.option_strings:
            continue
        option, *aliases = action.option_strings
        if action.nargs == 0:
            yield [f"{option}=1"]
            continue
        for name in (option, *aliases):
            yield [name]
            for text in wrong_values(option, action):
                yield [f"{name}={text}"]
    yield from CONTRADICTIONS[command]


def files_in(directory):
    return {path: path.is_dir() or path.stat().st_mtime_ns for path in directory.rglob("*")}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_wrong_command_line_is_one_line_and_writes_nothing(
    command, shards_dir, tmp_path, monkeypatch
):
    parser = parser_of(command, monkeypatch)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "a file").write_text("x")
    before = files_in(tmp_path), files_in(shards_dir)
    module, *words = command.split()
    first = [*words, *(str(shards_dir) if x == "SHARDS" else x for x in COMMANDS[command])]
    wrong = []
    lines = list(wrong_lines(command, parser))
    for line in lines:
        result = run_here("-m", module.removesuffix(".__main__"), *first, *line, cwd=tmp_path)
        is_one_line = len(result.stderr.splitlines()) == 1 and result.stderr.endswith("\n")
        if result.returncode != 2 or not is_one_line or "Traceback" in result.stderr:
            wrong.append((line, result.returncode, result.stderr[-300:]))
        now = files_in(tmp_path), files_in(shards_dir)
        assert now == before, (line, now[0].keys() ^ before[0].keys())
    assert not wrong, f"{len(wrong)} of {len(lines)}: {wrong[:20]}"


@pytest.mark.parametrize("text", ["", ",", "x", "nan", "-1", "inf", HUGE, "9" * 5000])
def test_no_field_of_a_recipe_takes_what_it_cannot_be(text):
    """Each field that --set changes, of a recipe and of its layers."""
    numbers = "int", "float", "tuple", "int | None", "float | None"
    fields = dict(settable_fields())
    for layer, kind in (("conv2", Conv), ("fc6", FullyConnected)):
        fields |= {f"{layer}.{name}": x for name, x in settable_layer_fields(kind).items()}
    for name, hint in fields.items():
        if text == "" and "tuple" in str(hint):  # none
            continue
        is_number = getattr(hint, "__name__", str(hint)) in numbers
        # A huge rate or deviation is a number; a bias may be any.
        is_float = "float" in str(hint)
        if is_float and (text == HUGE or "9999" in text or (text == "-1" and "bias" in name)):
            continue
        if is_number or text in ("", ",", "x"):
            result = run_here("-m", "replica.info", "--set", f"{name}={text}")
            assert_user_error(result, name.rpartition(".")[2])


# --- What is refused late leaves nothing, too


def test_a_lock_whose_work_fails_leaves_neither_file_nor_directory(tmp_path):
    lock = tmp_path / "a" / "b" / "build.lock"

    def work(name):
        with locked(lock, title="x", when_held="held"):
            (lock.parent / name).touch()
            raise UserError("wrong")

    with pytest.raises(UserError, match="wrong"):
        work("build.lock")
    assert not (tmp_path / "a").exists()
    # What was there before stays, and what the work made.
    lock.parent.mkdir(parents=True)
    lock.touch()
    with pytest.raises(UserError, match="wrong"):
        work("build.lock")
    assert lock.exists()
    lock.unlink()
    with pytest.raises(UserError, match="wrong"):
        work("shard")
    assert [path.name for path in lock.parent.iterdir()] == ["shard"]


@pytest.mark.fault(12, 35)
def test_a_lock_is_held_by_one_also_where_its_file_was_removed(tmp_path):
    lock = tmp_path / "run.lock"
    with locked(lock, title="x", when_held="held"):
        with (
            pytest.raises(UserError, match="x: held"),
            locked(lock, title="x", when_held="held"),
        ):
            pass
        assert lock.exists()


def test_a_lock_whose_file_is_removed_while_it_is_taken_is_taken_anew(tmp_path, monkeypatch):
    """As by a build that fails between our opening of the file and our locking of it."""
    lock, flock = tmp_path / "build.lock", fcntl.flock

    def after_the_other(file, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        lock.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", after_the_other)
    with locked(lock, title="x", when_held="held"):
        assert lock.exists()
        with (
            pytest.raises(UserError, match="x: held"),
            locked(lock, title="x", when_held="held"),
        ):
            pass


def test_a_build_into_a_directory_in_use_leaves_no_lock(toy_dir, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    build = ("data_prep/build_shards.py", "--source", "kaggle", "--input", str(toy_dir))
    result = run_here(*build, "--output", str(tmp_path))
    assert_user_error(result, "is in use", "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_batch_larger_than_the_data_is_the_data(tiny_shards, tmp_path):
    train = ("-m", "replica.train", "--data", str(tiny_shards), "--no-tensorboard")
    more = (
        "--recipe",
        "mini",
        "--set",
        "crop_size=96",
        "--set",
        "fc6.num_units=64",
        "--set",
        "fc7.num_units=64",
    )
    size = ("--batch-size", "1000000", "--epochs", "2", "--device", "cpu")
    result = run_here(*train, *more, *size, "--out", str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    assert "batch: all 10 training images (recipe mini: 1000000)" in result.stdout
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count('"step",') == 2
    result = run_here(*train, *more, *size, "--out", str(tmp_path / "x"), "--dry-run")
    assert "each with 10 images of the 10 of a batch" in result.stdout
