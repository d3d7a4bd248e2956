"""The options of every command: to add or to lose one is a decision, which is written down here."""

import importlib
import re

import pytest

from benchmarks.__main__ import BENCHMARKS
from replica.train import parse_arguments
from replica.training.options import TrainOptions

OPTIONS = {
    "data_prep.build_shards": "--class-names --classes --decoder --dry-run --exif-orientation "
    "--finish --fit --follow-links --images-per-shard --input --limit --output --per-class "
    "--quality --resampling --seed --shard --size --source --storage --strict --val-fraction "
    "--workers",
    "data_prep.verify_shards": "--class --contact-sheet --quick --seed --workers",
    "replica.train": "--batch-size --checkpoint-steps --classes --compile --convolution --data "
    "--deterministic --device --dry-run --ema --epochs --freeze --gpus --init --keep "
    "--loader-threads --lr --memory-format --model --momentum --new-head --new-layers "
    "--no-tensorboard --out --precision --rate --recipe --replay --resume --seed --set --split "
    "--steps --timeout --verify --weight-decay",
    "replica.control": "--bias-lr --checkpoint --color-noise --freeze --lr --rate --reason --stop "
    "--wait",
    "replica.test": "--checkpoint --csv --data --device --devkit --gpus --json --markdown --model "
    "--part --pictures --precision --save-probabilities --submission --table --ten-crop --views "
    "--weights --weights-of",
    "replica.predict": "--checkpoint --json --model --picture --top",
    "replica.neighbors": "--checkpoint --data --json --neighbors --picture --queries",
    "replica.export": "--card --format --output --weights",
    "replica.info": "--channels --classes --json --model --operators --recipe --set",
    "replica.recipes.__main__": "--json",
    "replica.recipes.__main__ diff": "--json --markdown",
    "replica.compare": "--csv --json --markdown",
    "replica.figures": "--out --run",
    "replica.figures curves": "--picture",
    "replica.figures augmentation": "--data --images --picture --run",
    "replica.figures kernels": "--checkpoint --gray --json --picture",
    "replica.figures architecture": "--checkpoint --picture --recipe --set",
    "replica.figures activations": "--checkpoint --picture",
    "replica.figures predictions": "--checkpoint --data --images --picture",
    "replica.figures grid": "--checkpoint --data --images --picture",
    "replica.figures classes": "--checkpoint --data --picture",
    "replica.figures confusion": "--checkpoint --data --picture",
    "replica.report": "--data --device --images --output",
    "replica.demo": "--out",
    "replica.reproduce": "--data --device --gpus --json --list --markdown --minutes --pictures "
    "--records --scale --seeds --work",
    "replica.sweep": "--data --device --epochs --gpus --grid --no-tensorboard --out --precision "
    "--pruner --recipe --sampler --seed --set --split --storage --trials",
    "benchmarks.__main__ local_response_norm": "--json --no-peers --rounds --save --shape "
    "--threads",
    "benchmarks.__main__ local_response_norm_gpu": "--json --rounds --save --shape",
    "benchmarks.__main__ split_conv2d": "--batch-size --device --json --layer --recipe --rounds "
    "--save --threads",
    "benchmarks.__main__ momentum_sgd": "--json --recipe --rounds --save --threads",
    "benchmarks.__main__ relu_lrn_pool": "--json --rounds --save --shape --threads",
    "benchmarks.__main__ feed": "--batch-size --batches --images --json --rounds --save --threads",
    "benchmarks.__main__ drawing": "--json --pictures --rounds --save",
    "benchmarks.__main__ feed_jpeg": "--batch-size --images --json --rounds --save --threads",
    "benchmarks.__main__ first_batch": "--images --json --rounds --save --val-images",
    "benchmarks.__main__ allocator": "--batch-size --json --processes --recipe --save --steps",
    "benchmarks.__main__ training": "--batch-size --json --only --recipe --rounds --save --steps",
    "benchmarks.__main__ training_gpu": "--batch-size --data --device --json --loader-threads "
    "--precision --recipe --save --steps",
    "benchmarks.__main__ towers": "--batch-size --json --picture --precision --recipe --save "
    "--steps",
    "benchmarks.__main__ copies": "--batch-size --json --precision --recipe --save --steps",
    "benchmarks.__main__ ten_crop": "--images --json --recipe --rounds --save --threads",
    "benchmarks.__main__ neighbors": "--json --queries --rounds --save --threads --vectors",
    "benchmarks.__main__ build_shards": "--input --json --pictures --rounds --save --workers",
    "benchmarks.__main__ real_sets": "--json --only --output --save",
    "benchmarks.__main__ demo": "--json --out --records --save",
    "benchmarks.__main__ earlier": "--cifar10 --json --many-classes --records --save --tables "
    "--ten-classes --work",
    "benchmarks.__main__ linear_baseline": "--data --json --save",
}


@pytest.mark.parametrize("command", OPTIONS)
def test_a_command_has_the_options_of_the_table(command, capsys):
    module, *words = command.split()
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main([*words, "--help"])
    assert ended.value.code == 0
    shown = re.findall(r"^  (?:-h, )?(--[\w-]+)", capsys.readouterr().out, re.MULTILINE)
    assert sorted(shown) == sorted([*OPTIONS[command].split(), "--help"])


def test_every_benchmark_is_in_the_table():
    named = {command.split()[1] for command in OPTIONS if command.startswith("benchmarks")}
    assert named == set(BENCHMARKS)


def test_what_is_not_asked_for_is_left_open_and_aliases_are_changes():
    options = parse_arguments(["--lr", "0.1", "--set", "epochs=3", "--deterministic", "off"])
    assert options.changes == ["epochs=3", "learning_rate=0.1"]
    assert options.deterministic is False
    assert parse_arguments(["--workers", "3"]).loader_threads == 3
    options = parse_arguments(["--lr", "0.1"])
    assert (options.changes, options.freeze, options.rate) == (["learning_rate=0.1"], [], [])
    assert parse_arguments([]) == TrainOptions(
        data=None,
        recipe=None,
        changes=[],
        freeze=[],
        rate=[],
        seed=None,
        init=None,
        model=None,
        new_head=False,
        new_layers=None,
        gpus=None,
        split=None,
        device="auto",
        precision=None,
        memory_format=None,
        compile=None,
        deterministic=None,
        convolution=None,
        loader_threads=1,
        timeout=600.0,
        steps=None,
        checkpoint_steps=None,
        keep=None,
        out=None,
        resume=False,
        replay=None,
        tensorboard=True,
        verify=False,
        dry_run=False,
    )
