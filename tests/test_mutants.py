"""The table of mutants fits the code, and its record says that all of them are noticed."""

import dataclasses
import importlib.util
import json
import re
import sys

import pytest
from conftest import PROJECT_DIR

_SPEC = importlib.util.spec_from_file_location(
    "mutants", PROJECT_DIR / "tests" / "mutants" / "run.py"
)
mutants = importlib.util.module_from_spec(_SPEC)
sys.modules["mutants"] = mutants  # dataclasses look their module up
_SPEC.loader.exec_module(mutants)


@pytest.fixture(scope="module")
def table():
    return mutants.read_table()


def test_every_old_text_stands_once_in_the_code(table):
    assert len(table) >= 100
    assert all(len(mutant.breaks) > 5 for mutant in table)


def test_those_that_no_whole_run_has_tried_yet_fit_the_code_too(table):
    assert len(mutants.read_table(mutants.TABLE, mutants.WAITING)) > len(table)


def test_a_mutant_that_no_longer_fits_is_an_error(table):
    mutant = table[0]
    for change, message in (
        ({"old": "no such text"}, "stands 0 times in replica/paper.py, expected once"),
        ({"old": "= "}, r"stands \d\d+ times"),
        ({"new": mutant.old}, "changes nothing"),
        ({"new": "CROP_SIZE = ("}, "is no Python"),
        ({"file": "replica/gone.py"}, "replica/gone.py is gone"),
    ):
        assert re.search(message, dataclasses.replace(mutant, **change).problem())


def test_the_record_says_that_a_test_notices_each(table):
    record = json.loads(mutants.RECORD.read_text())
    assert record["mutants"].keys() == {mutant.name for mutant in table}
    for name, entry in record["mutants"].items():
        assert entry["killed_by"], name
        path, *function = entry["killed_by"].split("::")
        text = (PROJECT_DIR / path).read_text()
        assert not function or f"def {function[0].split('[')[0]}(" in text, entry


def test_the_map_names_modules_that_exist_and_covers_each_mutant(table):
    coverage = mutants.read_map()
    assert all((PROJECT_DIR / module).is_file() for module in coverage)
    for mutant in table:
        assert mutants.modules_for(mutant, coverage), mutant.name


def test_a_mutant_is_in_the_function_around_it(table):
    by_name = {mutant.name: mutant for mutant in table}
    for name, function in (
        ("k-1", "replica/paper.py:<module>"),
        ("alpha-over-n", "replica/network/alexnet.py:AlexNet._normalization"),
        ("color-by-rows", "replica/feed/augment.py:draw_color_shifts"),
        ("validation-of-one-share", "replica/training/loop.py:validate"),
    ):
        assert by_name[name].function() == function


@pytest.mark.parametrize("document", ["README.md", "REPRODUCE.md"])
def test_the_documents_say_how_many_there_are(document, table):
    text = (PROJECT_DIR / document).read_text()
    assert re.findall(r"(?:each of|holds)\s+(\d+)\s+(?:one-line )?mistakes", text) == [
        str(len(table))
    ]
