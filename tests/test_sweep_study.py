"""What a sweep varies, what Optuna keeps of it, and which trial is the best: without a training."""

import sqlite3
import threading

import pytest

from data_prep.errors import UserError
from replica.recipes import find_recipe
from replica.sweeps import outcome
from replica.sweeps.space import Range, Values, check_space, grid_size, read_space
from replica.sweeps.study import DIVERGED, FINISHED, PRUNED, RUNNING, Asked, Study
from replica.sweeps.trials import Measured

pytest.importorskip("optuna", reason="needs the extra sweep")


# --- Which is the best


def shown(number, state=FINISHED, *, error=0.5, loss=1.0, epochs=3):
    found = Measured(epochs, 1, 1.0, 0.5, loss, error, 0.1, 1.0)
    return outcome.Shown(Asked(number, {}, state), None, found)


def test_only_finished_trials_can_be_the_best_and_ties_go_by_the_loss():
    trials = [
        shown(0, error=0.4),
        shown(1, PRUNED, error=0.1),
        shown(2, DIVERGED, error=0.1),
        shown(3, RUNNING, error=0.1),
        shown(4, error=0.3, loss=2.0),
        shown(5, error=0.3, loss=1.5),
        shown(6, error=0.3, loss=1.5),
        shown(7, error=0.3, loss=None),
    ]
    assert outcome.best_of(trials).trial.number == 5
    assert outcome.best_of(trials[1:4]) is None


# --- What is varied

RECIPE = find_recipe("figure1-relu")


def test_short_names_lists_and_ranges_are_read():
    words = ["lr=0.1, 0.2", "batch-size=4..64:log", "drop_epochs=5,8;none", "conv1.stride=1,2"]
    space = read_space([*words, "weight_decay=0.5..2"], RECIPE, [])
    assert space == (
        Values("learning_rate", ("0.1", "0.2")),
        Range("batch_size", 4, 64, is_whole=True, is_log=True),
        Values("drop_epochs", ("5,8", "none")),
        Values("conv1.stride", ("1", "2")),
        Range("weight_decay", 0.5, 2.0, is_whole=False, is_log=False),
    )
    assert grid_size([space[0], space[2], space[3]]) == 8


WRONG = [
    ("lr", "expected FIELD=VALUES"),
    ("=1", "expected FIELD=VALUES"),
    ("lr=", "expected values with commas"),
    ("lr=0.1,,0.2", "expected values with commas"),
    ("drop_epochs=5;", "expected values with semicolons"),
    ("nonsense=1", "has no field nonsense"),
    ("convs=1", "has no field convs"),
    ("conv1.nonsense=1", "has no field of conv1"),
    ("conv9.stride=1", "has no layer conv9"),
    ("lr=0.1..x", "expected a range of numbers"),
    ("lr=0.2..0.1", "the lower first"),
    ("lr=0..1:log", "expected a lower end above 0"),
    ("batch_size=1.5..3", "expected a range of whole numbers"),
    (f"batch_size=1..1{'0' * 400}", "expected a range of whole numbers"),
    ("lr=0.1..inf", "expected a range of numbers"),
]


@pytest.mark.parametrize(("word", "message"), WRONG, ids=[word[:40] for word, _ in WRONG])
def test_a_wrong_word_of_the_grid_is_refused(word, message):
    with pytest.raises(UserError, match=message) as raised:
        read_space([word], RECIPE, [])
    assert str(raised.value).startswith(f"--grid {word}: ")


def test_a_field_is_given_once():
    for words, fixed in ((["lr=1", "learning_rate=2"], []), (["lr=1"], ["learning_rate=2"])):
        with pytest.raises(UserError, match="learning_rate"):
            read_space(words, RECIPE, fixed)


def test_the_grids_epochs_and_the_option_are_told_apart():
    for field, options in (("epochs", "--set of epochs and no --epochs"), ("ema", "--set of ema")):
        with pytest.raises(UserError, match=f"expected no {options} beside it: leave"):
            read_space([f"{field}=0.5,1"], RECIPE, [f"{field}=1"])


def test_each_value_and_each_combination_is_checked_before_anything_runs():
    def refused(*words, recipe=RECIPE):
        space = read_space(words, recipe, [])
        with pytest.raises(UserError) as raised:
            check_space(space, recipe, prepare=lambda _: None)
        return str(raised.value)

    assert "learning_rate=-1: " in refused("momentum=0.5", "lr=0.1,-1")
    assert "momentum=1" in refused("lr=0.1", "momentum=0.5..1")
    assert "drop_factor: expected more than 0" in refused("drop_factor=0.1,0")
    assert refused("lr=0.1,1e-1").endswith("expected each value once, got 1e-1")
    # Only together: crops of 16 are large enough, but not for windows of 5.
    assert "crop_size=16 pool_window=5: " in refused("crop_size=32,16", "pool_window=3,5")
    # Within a range: an even number of kernels for two towers.
    said = refused("conv1.num_kernels=64..66", recipe=find_recipe("paper"))
    assert said.startswith("--grid conv1.num_kernels=65: ")
    assert "expected an even width" in said
    seen = []
    space = read_space(["lr=0.1,0.2", "momentum=0.5"], RECIPE, [])
    check_space(space, RECIPE, prepare=seen.append)
    assert ["learning_rate=0.2", "momentum=0.5"] in seen


# --- Optuna's record

SPACE = (Values("b", ("1", "2")), Values("a", ("3", "4", "5")))
RANGES = (Range("rate", 1e-4, 1e-2, False, True), Range("size", 1, 9, True, False))


def study_of(path, space=SPACE, *, sampler="grid", num_trials=6, seed=1, **settings):
    return Study(
        path,
        path.parent,
        {"what": "x", **settings},
        space,
        sampler=sampler,
        pruner="none",
        seed=seed,
        num_trials=num_trials,
    )


@pytest.mark.parametrize("name", ["journal.log", "a file.db"])
def test_two_processes_go_through_the_grid_once(name, tmp_path):
    path = tmp_path / name
    if path.suffix == ".db":  # as a process leaves it that is killed as it begins
        import optuna

        optuna.storages.RDBStorage(f"sqlite:///{path}")
    studies = [study_of(path), study_of(path)]
    cells = []
    for number, end in enumerate((FINISHED, PRUNED, None, DIVERGED, FINISHED, FINISHED)):
        trial = studies[number % 2].ask()
        assert (trial.number, list(trial.values)) == (number, ["b", "a"])
        cells.append((trial.values["b"], trial.values["a"]))
        if end is not None:
            studies[number % 2].finish(number, end, None if end == PRUNED else 0.25)
    assert sorted(cells) == [(b, a) for b in "12" for a in "345"]
    assert [study.ask() for study in studies] == [None, None]
    states = [trial.state for trial in study_of(path).trials()]
    assert states == [FINISHED, PRUNED, RUNNING, DIVERGED, FINISHED, FINISHED]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_values_are_a_function_of_the_seed_and_the_trials_number(sampler, tmp_path):
    """Of one process, and of two that take turns."""

    def drawn(name, num_studies, seed):
        make = {"sampler": sampler, "num_trials": 4, "seed": seed}
        studies = [study_of(tmp_path / name, RANGES, **make) for _ in range(num_studies)]
        return [studies[i % num_studies].ask().values for i in range(4)]

    one = drawn("one.log", 1, 7)
    assert drawn("two.log", 2, 7) == one
    assert drawn("three.log", 1, 8) != one
    assert len({values["rate"] for values in one}) == 4
    more = study_of(tmp_path / "one.log", RANGES, sampler=sampler, num_trials=5, seed=7)
    assert (more.ask().number, more.ask()) == (4, None)
    for values in one:
        assert 1e-4 <= float(values["rate"]) <= 1e-2
        assert 1 <= int(values["size"]) <= 9


def test_a_log_range_has_as_many_values_in_each_decade(tmp_path):
    study = study_of(tmp_path / "x.log", RANGES[:1], sampler="random", num_trials=60)
    below = sum(float(study.ask().values["rate"]) < 1e-3 for _ in range(60))
    assert 18 < below < 42  # of an even range, 5


def test_a_trial_that_was_interrupted_as_it_was_asked_for_gets_its_values(tmp_path):
    import optuna

    def asked(name, *, is_interrupted):
        study = study_of(tmp_path / name)
        if is_interrupted:
            backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / name))
            other = optuna.load_study(
                study_name="sweep",
                storage=optuna.storages.JournalStorage(backend),
                sampler=optuna.samplers.GridSampler(
                    {x.field: list(x.texts) for x in SPACE}, seed=1
                ),
            )
            other.ask()
            assert study.trials() == [Asked(0, {}, RUNNING)]
            return study.values_of(0)
        return study.ask()

    assert asked("a.log", is_interrupted=True) == asked("b.log", is_interrupted=False)


def test_a_file_that_is_no_sweeps_storage_is_refused_and_stays(tmp_path):
    with sqlite3.connect(tmp_path / "tables.db") as connection:
        connection.execute("create table results (x)")
    connection.close()
    import optuna

    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
    optuna.create_study(storage=optuna.storages.JournalStorage(backend), study_name="other")
    (tmp_path / "directory").mkdir()
    for name, text in (("notes.txt", "hello\n"), ("half.log", '{"op_code"'), ("x.db", "hello\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "list.log").write_text("[1]\n")
    for path in sorted(tmp_path.iterdir()):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(UserError, match="expected the storage of a sweep, found something"):
            study_of(path)
        assert not path.is_file() or path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 7
    (tmp_path / "empty.log").touch()
    assert study_of(tmp_path / "empty.log").trials() == []


def journal_of_three(path):
    """Trials 0 and 1 finished, trial 2 asked for; the journal's lines."""
    study = study_of(path)
    for number in range(3):
        study.ask()
        if number < 2:
            study.finish(number, FINISHED, 0.5)
    return path.read_bytes().splitlines(keepends=True)


CUTS = {"half": 9, "without its end": -1, "one byte": 1}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("behind", [b"", b"\0" * 50, b"\n"], ids=["nothing", "zeros", "line end"])
def test_a_journal_cut_in_its_last_line_loses_no_other(cut, behind, tmp_path, capsys):
    path = tmp_path / "x.log"
    *whole, last = journal_of_three(path)
    left = last[:cut] + behind
    path.write_bytes(b"".join(whole) + left)
    is_damaged = left != last
    states = [trial.state for trial in study_of(path).trials()]
    assert states == [FINISHED, FINISHED, RUNNING]
    study = study_of(path)
    assert study.ask().number == 3
    study.finish(3, FINISHED, 0.5)
    assert [x.state for x in study_of(path).trials()] == [FINISHED, FINISHED, RUNNING, FINISHED]
    aside = tmp_path / "x.log.damaged"
    said = f"{path}: damaged in its last line, which is put aside in {aside}\n"
    assert capsys.readouterr().out == (said if is_damaged else "")
    assert aside.exists() == is_damaged
    assert not is_damaged or aside.read_bytes() == left
    # Nothing but Optuna's lock, which it takes away, was beside it.
    assert len(list(tmp_path.iterdir())) == 1 + is_damaged


def test_a_journal_damaged_in_its_middle_is_refused_and_stays(tmp_path):
    path = tmp_path / "x.log"
    lines = journal_of_three(path)
    lines[4] = lines[4][:9]  # as an older Optuna that appended to the half line
    path.write_bytes(b"".join(lines))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"damaged: line 5 is no JSON: .* only the 4 lines before"):
        study_of(path)
    assert [x.read_bytes() for x in tmp_path.iterdir()] == [before]
    path.write_bytes(b"".join(lines[:4]))
    assert study_of(path).trials() != []


def test_a_line_that_another_process_is_writing_is_waited_for(tmp_path):
    path = tmp_path / "x.log"
    *whole, last = journal_of_three(path)
    path.write_bytes(b"".join(whole) + last[:9])
    lock = tmp_path / "x.log.lock"
    lock.symlink_to(path)  # Optuna's, held by the other

    def write_the_rest():
        with path.open("ab") as file:
            file.write(last[9:])
        lock.unlink()

    other = threading.Timer(0.2, write_the_rest)
    other.start()
    assert [x.state for x in study_of(path).trials()] == [FINISHED, FINISHED, RUNNING]
    other.join()
    assert path.read_bytes().startswith(b"".join(whole) + last)  # Optuna's own follow
    assert [x.name for x in tmp_path.iterdir()] == ["x.log"]


def test_the_settings_of_another_sweep_are_named(tmp_path):
    path = tmp_path / "x.log"
    study_of(path, seed_of_runs=1)
    study_of(path, seed_of_runs=1)
    with pytest.raises(UserError, match=r"another sweep \(seed_of_runs: 1, here 2\): choose"):
        study_of(path, seed_of_runs=2)
