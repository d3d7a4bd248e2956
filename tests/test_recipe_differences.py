"""`python -m replica.recipes`: the list, and every field in which two recipes differ."""

import itertools
import json
import re

import pytest
from conftest import PROJECT_DIR, assert_user_error, run_here

from data_prep.errors import UserError
from replica.recipes import MINI, PAPER, RECIPES, SOURCE_2012, find_recipe, with_changes
from replica.recipes.differences import (
    EFFECTS_FILE,
    NO_EVIDENCE,
    NOT_MEASURED,
    as_markdown,
    differences,
)
from replica.recipes.evidence import evidence_of
from replica.recipes.expected import EXPECTED
from replica.recipes.record import fields_by_name

FAMILY = [name for name in RECIPES if name.startswith(("paper", "source"))]
AFTER_THE_POOLING = "normalization,pooling,activation"
IN_THE_TEXT = "activation,normalization,pooling"
# Read from the paper and from the facts of the source; the sections of the facts are behind them.
PAPER_AGAINST_SOURCE = {
    "lrn_alpha": ("0.0001", "2e-05"),  # 2
    "pool_ties": ("first", "all"),  # 3
    "pool_rounding": ("down", "up"),  # 3
    "shared_crops": ("1", "32"),  # 4
    "color_scale": ("eigenvalues", "standard-deviations"),  # 4
    "color_division": ("false", "true"),  # 4
    "mean": ("place", "center"),  # 4
    "bias_learning_rate": ("none", "0.02"),  # 1
    "epochs": ("90", "91"),  # 5
    "drop_rule": ("plateau", "epochs"),  # 5
    "changes": ("none", "67:conv1.weight=1e-05,67:color_noise=0,72:conv1=0"),  # 5
    "conv1.order": (IN_THE_TEXT, AFTER_THE_POOLING),  # 0
    "conv2.normalization": ("lrn", "lrn,same-map"),  # 0
    "conv3.weight_standard_deviation": ("0.01", "0.03"),  # 0
    "conv4.weight_standard_deviation": ("0.01", "0.03"),  # 0
    "conv5.weight_standard_deviation": ("0.01", "0.03"),  # 0
    "conv5.order": (IN_THE_TEXT, AFTER_THE_POOLING),  # 1
}
# Of the others, against `source-2012`.
AGAINST_SOURCE_2012 = {
    "source-2010": {
        "epochs": "93",
        "drop_epochs": "23,51,78",
        "changes": "23:bias_learning_rate=0.002,68:conv1.weight=1e-05,68:color_noise=0,72:conv1=0",
    },
    "source-2012-half": {
        "towers": "1",
        "epochs": "96",
        "drop_epochs": "20,48,79",
        "changes": "20:bias_learning_rate=0.002,66:conv1.weight=1e-05,66:color_noise=0,72:conv1=0",
        "conv1.num_kernels": "48",
        "conv2.num_kernels": "128",
        "conv3.num_kernels": "192",
        "conv4.num_kernels": "192",
    },
    "source-2012-no-overlap": {
        "pool_window": "2",
        "epochs": "90",
        "drop_epochs": "23,51,79",
        "changes": "79:conv1=0",
        "conv2.padding": "1,1",
        "conv5.padding": "0,0",
    },
    "source-2012-no-norm": {
        "epochs": "97",
        "drop_epochs": "22,44,86",
        "changes": "69:conv1.weight=1e-05,69:color_noise=0,73:conv1=0",
        "conv1.normalization": "none",
        "conv2.normalization": "none",
    },
    "source-2012-no-communication": {
        "epochs": "92",
        "drop_epochs": "25,49,79",
        "changes": "66:conv1.weight=1e-05,66:color_noise=0,72:conv1=0",
        "conv2.num_kernels": "320",
        "conv3.reads_both_towers": "false",
        "fc6.reads_both_towers": "false",
        "fc6.num_units": "8192",
        "fc7.reads_both_towers": "false",
        "fc7.num_units": "8192",
    },
    "source-2011-conv6": {
        "fc8.num_units": "21843",
        "conv6": "256 outputs, 590,080 parameters",
        "bottleneck": "2048 outputs, 8,390,656 parameters",
    },
    "source-2012-conv6": {
        "learning_rate": "0.001",
        "bias_learning_rate": "0.002",
        "epochs": "54",
        "drop_epochs": "22,42",
        "changes": "5:conv1.weight=1e-05,7:conv1=0,9:fc8.weight=0.001,38:color_noise=0",
        "conv1.learning_rate": "0.0001",
        "conv6": "256 outputs, 590,080 parameters",
    },
}


# Of other systems, against `paper`; section 10 of the facts, and the systems' own files.
OF_CAFFE = {
    "crop_size": "227",
    "conv1.padding": "0,0",
    "lrn_k": "1.0",
    "lrn_alpha": "2e-05",  # 0.0001 divided by the size, 5
    "lrn_scope": "layer",
    "pool_rounding": "up",
    "dropout_scale": "training",
    "color_noise": "0.0",
    "channels": "bgr",
    "batch_size": "256",
    "bias_learning_rate": "0.02",
    "drop_rule": "epochs",
    "drop_epochs": "21,41,61,81",
    "changes": "21:bias_learning_rate=0.002,41:bias_learning_rate=0.0002,"
    "61:bias_learning_rate=2e-05,81:bias_learning_rate=2e-06",
    "fc6.weight_standard_deviation": "0.005",
    "fc7.weight_standard_deviation": "0.005",
}
ONE_BIASES = ("conv2", "conv4", "conv5", "fc6", "fc7")
# What one output of torchvision's layers is a sum over.
FAN_INS = {"conv1": 363, "conv2": 1600, "conv3": 1728, "conv4": 3456, "conv5": 2304}
FAN_INS |= {"fc6": 9216, "fc7": 4096, "fc8": 4096}
AGAINST_PAPER = {
    "caffe-alexnet": {**OF_CAFFE, **{f"{layer}.bias": "0.1" for layer in ONE_BIASES}},
    "caffenet": {**OF_CAFFE, "order": "activation,pooling,normalization"},
    "torchvision": {
        "towers": "1",
        "conv1.num_kernels": "64",
        "conv2.num_kernels": "192",
        "conv4.num_kernels": "256",
        "conv1.padding": "2,2",
        "conv1.normalization": "none",
        "conv2.normalization": "none",
        "conv5.dropout": "true",
        "fc7.dropout": "false",
        "dropout_scale": "training",
        "pixel_mean": ",".join(f"{255 * x:.6g}" for x in (0.485, 0.456, 0.406)),
        "pixel_divisor": ",".join(f"{255 * x:.6g}" for x in (0.229, 0.224, 0.225)),
        "image_order": "reshuffle",
        "random_crops": "false",
        "resized_crops": "0.08,1.0",
        "color_noise": "0.0",
        "batch_size": "256",
        "weight_decay": "0.0001",
        "decay_biases": "true",
        "drop_rule": "epochs",
        "drop_epochs": "31,61",
        **{f"{layer}.bias": "0.0" for layer in ONE_BIASES},
        **{f"{x}.weight_standard_deviation": str((3 * n) ** -0.5) for x, n in FAN_INS.items()},
    },
}


def test_paper_and_source_differ_in_the_fields_of_the_facts():
    rows = differences(PAPER, SOURCE_2012)
    assert {row.field: row.values for row in rows} == PAPER_AGAINST_SOURCE


def test_each_difference_is_a_change_that_set_takes():
    """All of them make the one recipe the other, in both directions."""
    for first, second in ((PAPER, SOURCE_2012), (SOURCE_2012, PAPER)):
        rows = differences(first, second)
        changes = [f"{row.field}={row.values[1]}" for row in rows]
        assert differences(with_changes(first, changes), second) == []
        for change in changes:
            assert len(differences(with_changes(first, [change]), first)) == 1, change


def test_the_others_differ_from_the_source_where_their_files_do():
    assert AGAINST_SOURCE_2012.keys() | {"source-2012"} == {
        name for name in RECIPES if name.startswith("source")
    }
    for name, fields in AGAINST_SOURCE_2012.items():
        rows = differences(SOURCE_2012, find_recipe(name))
        assert {row.field: row.values[1] for row in rows} == fields, name


def test_every_value_of_the_family_has_evidence():
    """Of the paper its section, of the source a file; of a layer that is not there nothing."""
    for one, other in itertools.combinations(FAMILY, 2):
        first, second = RECIPES[one], RECIPES[other]
        rows = differences(first, second)
        assert rows
        for row in rows:
            for name, value, evidence in zip((one, other), row.values, row.evidence, strict=True):
                kind = r"\d|silent" if name.startswith("paper") else r"\.(cfg|py|cu)\b|not recorded"
                expected = "-$" if value == "no such layer" else kind
                assert re.match(f".*({expected})", evidence), (name, row.field, evidence)


@pytest.mark.parametrize("name", ["paper", "source-2012", *AGAINST_PAPER])
def test_every_value_has_evidence_not_those_alone_that_differ(name):
    recipe = find_recipe(name)
    without = [x for x in fields_by_name(recipe) if evidence_of(recipe, x) is None]
    assert without == ["name", "claim"]
    assert evidence_of(recipe, "conv4.pool_ties") == evidence_of(recipe, "pool_ties")


def test_other_systems_differ_from_the_paper_where_their_files_do():
    for name, fields in AGAINST_PAPER.items():
        rows = differences(PAPER, find_recipe(name))
        found = {row.field: row.values[1] for row in rows}
        for field in [field for field in fields if field.endswith("deviation")]:
            assert float(found.pop(field)) == pytest.approx(float(fields[field]), rel=1e-12)
        assert found == {k: v for k, v in fields.items() if not k.endswith("deviation")}, name
        for row in rows:
            assert re.search(r"\.(py|cpp|proto|prototxt|md)\b", row.evidence[1]), row


def test_other_systems_changes_are_changes_that_set_takes():
    for name in AGAINST_PAPER:
        rows = differences(PAPER, find_recipe(name))
        changes = [f"{row.field}={row.values[1]}" for row in rows]
        assert differences(with_changes(PAPER, changes), find_recipe(name)) == []


def test_what_nobody_wrote_down_is_said_not_invented():
    for recipe, evidence in ((PAPER, "5"), (MINI, NO_EVIDENCE)):
        (row,) = differences(recipe, with_changes(recipe, ["momentum=0.8"]))
        assert (row.field, row.evidence) == ("momentum", (evidence, NO_EVIDENCE))
    assert differences(PAPER, PAPER) == []


def test_the_table_of_the_document_is_what_the_command_prints():
    text = (PROJECT_DIR / "REPRODUCE.md").read_text()
    section = text.split("\n## Paper and source\n")[1].split("\n## ")[0]
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    command = "replica.recipes diff paper source-2012 --markdown"
    assert f"python -m {command}" in section
    printed = run_here("-m", *command.split())
    assert (printed.returncode, printed.stderr) == (0, "")
    assert table == printed.stdout.strip()
    assert table == as_markdown(PAPER, SOURCE_2012, differences(PAPER, SOURCE_2012))


def test_each_departure_says_what_its_effect_is():
    text = (PROJECT_DIR / "REPRODUCE.md").read_text()
    section = text.split("\n## Departures\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert rows[0].endswith("| measured effect |")
    assert all(row.count(" | ") == rows[0].count(" | ") for row in rows)


def test_an_effect_is_what_a_record_says_of_that_pair(tmp_path):
    path = tmp_path / "differences.json"
    path.write_text(json.dumps({"paper source-2012": {"mean": "-0.1 points (-0.4 to 0.2), n = 3"}}))
    rows = differences(PAPER, SOURCE_2012, effects=path)
    known = {row.field: row.effect for row in rows if row.effect != NOT_MEASURED}
    assert known == {"mean": "-0.1 points (-0.4 to 0.2), n = 3"}
    rows = differences(SOURCE_2012, PAPER, effects=path)
    assert {row.effect for row in rows} == {NOT_MEASURED}


@pytest.mark.parametrize("text", ["{", "[]", '{"a b": {"mean": 3}}', '{"a b": ["mean"]}', "\xff"])
def test_a_damaged_file_of_effects_is_one_line(text, tmp_path):
    path = tmp_path / "differences.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as error:
        differences(PAPER, SOURCE_2012, effects=path)
    assert str(error.value).startswith(f"{path}: expected")


def test_the_recorded_effects_are_of_fields_that_differ():
    if not EFFECTS_FILE.exists():
        return
    for pair, of in json.loads(EFFECTS_FILE.read_text()).items():
        first, second = map(find_recipe, pair.split())
        assert of.keys() <= {row.field for row in differences(first, second)}, pair


def test_the_list_has_claim_cost_and_expected_result():
    result = run_here("-m", "replica.recipes", "--json")
    assert result.returncode == 0, result.stderr
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert list(rows) == list(RECIPES)
    assert rows["source-2012"]["cost"] == {
        "parameters": 60_965_224,
        "multiply_adds_per_image": 724_406_816,
        "epochs": 91,
    }
    assert rows["source-2012"]["expected"] == {
        "data": "ILSVRC-2012 validation",
        "top1_error": 0.40664,
        "top5_error": 0.1821,
        "evidence": "layer-params-145.cfg:182",
        "views": "ten crops",
    }
    assert rows["mini"]["expected"] is None
    text = run_here("-m", "replica.recipes").stdout
    for name, recipe in RECIPES.items():
        assert f"{name}\n  claim     {recipe.claim}\n  cost      " in text
    assert "no figure on record" in text


# Top-1 and top-5 error in percent, of the paper's tables or of the notes of the source (S 1).
RECORDED = {
    "paper": (40.7, 18.2),
    "paper-conv6": (39.0, 16.6),
    "source-2012": (40.664, 18.21),
    "source-2010": (37.4727, 16.9987),
    "source-2012-half": (39.168, 18.2287),
    "source-2012-no-overlap": (41.058, 18.51),
    "source-2012-no-norm": (42.034, 19.362),
    "source-2012-no-communication": (41.828, 19.33),
    "source-2012-conv6": (38.99, 16.622),
    "torchvision": (100 - 56.522, 100 - 79.066),
    "caffe-alexnet": (100 - 57.1, 100 - 80.2),
    "caffenet": (100 - 57.4, 100 - 80.4),
    # Of earlier projects, which published accuracies, mostly of top 1 alone.
    "imagenet-one-gpu": (55.8, 29.9),
    "tiny10": (100 - 54.6, None),
    "tiny-baseline": (100 - 30.32, None),
    "tiny-crop": (100 - 35.49, None),
    "tiny-pixels": (100 - 33.31, None),
    "tiny-dropout": (100 - 33.57, None),
    "tiny-batch-norm": (100 - 31.4, None),
    "tiny-large": (100 - 48.22, None),
    "tiny-small": (100 - 46.83, None),
    "tiny-average-pooling": (100 - 49.64, None),
    "cifar10-transfer": (100 - 86.57, None),
}
OTHER_DATA = {"tiny10": "Tiny Image10 test", "cifar10-transfer": "CIFAR-10 test"}


def test_expected_results_are_those_on_record_and_claims_say_them():
    assert EXPECTED.keys() == RECORDED.keys()
    for name, (top1, top5) in RECORDED.items():
        expected = EXPECTED[name]
        assert 100 * expected.top1_error == pytest.approx(top1)
        assert (expected.top5_error is None) == (top5 is None)
        if top5 is not None:
            assert 100 * expected.top5_error == pytest.approx(top5)
        for error in (top1, top5):
            if error is None:
                assert "top-5" not in str(expected)
                continue
            assert f"{round(error, 2)} %" in str(expected)
            assert f"{round(error, 2)} %" in RECIPES[name].claim
        is_ten = name.startswith(("paper", "source"))
        assert expected.views == ("ten crops" if is_ten else "central crop")
        is_2010 = name in ("source-2010", "source-2012-half")
        usual = "ILSVRC-2010 test" if is_2010 else "ILSVRC-2012 validation"
        usual = "Tiny ImageNet validation" if name.startswith("tiny-") else usual
        assert expected.data == OTHER_DATA.get(name, usual)


def test_a_difference_is_printed_as_text_and_as_json():
    words = ("-m", "replica.recipes", "diff", "source-2012", "source-2012-no-overlap")
    text = run_here(*words).stdout
    assert text.startswith("source-2012 against source-2012-no-overlap: 6 fields differ\n")
    assert "\nconv2.padding: 2,2 against 1,1\n" in text
    assert "\n  source-2012-no-overlap  layers-147.cfg: so that fc6 still reads" in text
    content = json.loads(run_here(*words, "--json").stdout)
    assert (content["first"], content["second"]) == words[3:]
    assert content["fields"][0] == {
        "field": "pool_window",
        "values": ["3", "2"],
        "evidence": ["layers-145.cfg:47-63", "layers-147.cfg"],
        "effect": NOT_MEASURED,
    }


def test_an_unknown_recipe_is_one_line():
    result = run_here("-m", "replica.recipes", "diff", "paper", "source")
    assert_user_error(result, "diff source: expected one of caffe-alexnet, ", "source-2012-half")
