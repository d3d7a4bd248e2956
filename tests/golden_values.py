"""What today's version computes, kept in `goldens/`: a refactoring may not change a bit.

`python tests/golden_values.py` writes the old shards, the old run and the values anew; only a
commit that changes results on purpose does that, and says why. The widths of the old run are its
own, narrow ones, so that it is small enough to keep.
"""

import dataclasses
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from conftest import SMALL
from runs import NARROW as OLD_WIDTHS

from data_prep.build_shards import main as build_shards
from data_prep.shards import open_data_set
from data_prep.sources import toy
from replica.distributed.devices import Devices
from replica.distributed.mesh import Rank
from replica.feed.feed import TrainFeed
from replica.recipes import MINI as TODAYS_MINI
from replica.recipes import PAPER, with_changes
from replica.training.loop import run_rank
from replica.training.numerics import Numerics
from replica.training.run import Run
from replica.training.run_directory import read_metrics
from replica.training.state import begin
from replica.training.step import train_step_

GOLDENS = Path(__file__).resolve().parent / "goldens"
SHARDS, OLD_RUN, VALUES = GOLDENS / "shards", GOLDENS / "run", GOLDENS / "values.json"
SEED, BATCH_SIZE, STEPS = 17, 4, 10
CROP_SIZE = 64  # of images of 68 pixels: the last maps have one pixel

# As `mini` was when the goldens were written.
MINI = with_changes(TODAYS_MINI, OLD_WIDTHS)
RECIPES = {
    recipe.name: dataclasses.replace(recipe, crop_size=CROP_SIZE, batch_size=BATCH_SIZE)
    for recipe in (MINI, PAPER)
}
# At their own size, on the small set of 256 x 256 pixels that tests draw.
FULL_SIZE = {
    recipe.name: dataclasses.replace(recipe, batch_size=BATCH_SIZE) for recipe in (MINI, PAPER)
}
# Eight pictures in batches of three: an epoch ends in a smaller batch.
NARROW = dataclasses.replace(
    RECIPES["mini"],
    convs=tuple(dataclasses.replace(c, num_kernels=8) for c in MINI.convs),
    fully_connected=tuple(dataclasses.replace(f, num_units=8) for f in MINI.fully_connected),
    batch_size=3,
    epochs=3,
    learning_rate=0.02,
    drop_epochs=(3,),
)
OLD_STEPS = 4  # the old run stopped in the middle of its second epoch


def machine() -> dict[str, object]:
    """What last bits depend on: versions, the processor with its caches, threads."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    known = ("vendor_id", "cpu family", "model", "stepping", "flags", "cache size")
    processor = sorted(line for line in lines if line.split("\t")[0].strip() in known)
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    text = "\n".join([*processor, *(path.read_text() for path in caches)])
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "processor": hashlib.sha256(text.encode()).hexdigest()[:16],
    }


def run_of(recipe, data_dir, run_dir, *, num_classes, **options):
    return Run(
        recipe=recipe,
        num_classes=num_classes,
        data_dir=data_dir,
        run_dir=run_dir,
        devices=Devices("cpu", 1, 1),
        numerics=Numerics(),
        seed=SEED,
        checkpoint_steps=None,
        resume_from=None,
        command=["python", "tests/golden_values.py"],
        **{"steps": None, **options},
    )


def first_losses(recipe, data_dir, run_dir):
    """Mean losses of the first steps of a recipe on a data set, in float32."""
    num_classes = len(open_data_set(data_dir).wnids)
    run = run_of(recipe, data_dir, run_dir, num_classes=num_classes)
    state = begin(run, Rank(0, run.devices))
    losses = []
    for batch in state.feed.batches(0, STEPS):
        measured = train_step_(state, batch, settings=state.settings(batch.step + 1))
        losses.append(measured.counts().mean_loss)
    return losses


def batches():
    """Of the first batches: SHA-256 of images and labels, and the mean absolute value."""
    feed = TrainFeed(open_data_set(SHARDS), RECIPES["mini"], SEED)
    found = []
    for step in range(4):
        batch = feed.batch(step)
        images = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
        digest = hashlib.sha256(images.tobytes() + batch.labels.numpy().tobytes()).hexdigest()
        found.append({"sha256": digest, "mean": float(np.abs(images.astype(np.float64)).mean())})
    return found


def lines_after(run_dir, step):
    """What metrics.jsonl says of the steps after one: kind, step, loss and errors."""
    names = ("kind", "step", "loss", "top1_error", "top5_error", "learning_rate")
    return [
        [getattr(line, name) for name in names]
        for line in read_metrics(run_dir)
        if line.kind in ("step", "val") and line.step > step
    ]


class NoStop:
    """Nobody asks the run to stop."""

    def is_set(self):
        return False

    def set(self):
        raise AssertionError


def write() -> None:
    """Makes everything in `goldens/` anew."""
    shutil.rmtree(GOLDENS, ignore_errors=True)
    GOLDENS.mkdir()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        toy.draw(scratch / "toy", size=toy.ToySize(SEED, 2, 1), num_workers=1)
        (scratch / "classes.txt").write_text("\n".join(toy.WNIDS[:4]))
        arguments = ["--source", "kaggle", "--input", str(scratch / "toy"), "--size", "68"]
        arguments += ["--classes", str(scratch / "classes.txt"), "--output", str(SHARDS)]
        assert build_shards([*arguments, "--workers", "1"]) == 0
        (SHARDS / "build.lock").unlink()
        whole = run_of(NARROW, SHARDS, scratch / "whole", num_classes=4)
        old = run_of(NARROW, SHARDS, OLD_RUN, num_classes=4, steps=OLD_STEPS, keep=1)
        for run in (whole, old):
            run.run_dir.mkdir()
            run_rank(Rank(0, run.devices), run, NoStop())
        for path in OLD_RUN.iterdir():
            if path.name not in ("run.json", "metrics.jsonl", f"checkpoint-{OLD_STEPS:08d}.pt"):
                path.unlink()
        record = json.loads((OLD_RUN / "run.json").read_text())
        record["data"]["directory"] = "tests/goldens/shards"
        for rank in record["ranks"]:
            rank["host"] = "of the golden run"
        (OLD_RUN / "run.json").write_text(json.dumps(record, indent=1) + "\n")
        toy.draw(scratch / "large", size=SMALL, num_workers=1)
        arguments = ["--source", "kaggle", "--input", str(scratch / "large"), "--workers", "1"]
        assert build_shards([*arguments, "--output", str(scratch / "shards")]) == 0
        values = {
            "machine": machine(),
            "batches": batches(),
            "old_run": lines_after(scratch / "whole", OLD_STEPS),
            "losses": {
                name: first_losses(recipe, SHARDS, scratch) for name, recipe in RECIPES.items()
            },
            "losses_at_full_size": {
                name: first_losses(recipe, scratch / "shards", scratch)
                for name, recipe in FULL_SIZE.items()
            },
        }
    VALUES.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    write()
