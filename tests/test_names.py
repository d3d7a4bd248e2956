"""Names of files and classes are shown, not obeyed: by no command, and not in labels.csv."""

import contextlib
import csv
import json
import os
import re
import unicodedata

import pytest
from conftest import run, run_here
from PIL import Image
from runs import train, train_command

import replica
from data_prep.errors import printable
from data_prep.files import sha256_of_file
from data_prep.labels_csv import csv_blocks, label_rows
from data_prep.manifest import FileEntry
from data_prep.manifest_json import read_manifest, write_manifest
from data_prep.shards import open_data_set

BUILD, VERIFY = "data_prep/build_shards.py", "data_prep/verify_shards.py"
# A title of the window, the screen cleared, a line of its own, text from right to left, and the
# first byte of a command to a terminal of eight bits.
EVIL = "\x1b]0;owned\x07\x1b[2J\rINJECTED\nINJECTED\u202egpj\u2066\x9b31m\u2028"
CLASSES = (f"cat {EVIL}", f"dog {EVIL}")


def test_a_name_is_shown_with_escapes_and_is_otherwise_as_it_is():
    assert printable(EVIL).isascii()
    assert printable("a\x1bb\n\u202ec") == r"a\x1bb\n\u202ec"
    assert printable(os.fsdecode(b"a\xff\xfe")) == r"a\xff\xfe"
    assert printable("\ud800") == r"\ud800"
    # With joiners, a backslash, a space without a break, a letter of no known kind.
    for name in ("t\u00eate", "\u732b", "\u0645\u06cc\u200c\u062e", "\U0001f469\u200d\U0001f52c"):
        assert printable(name) == name
    for name in (r"C:\x1b", "a\u00a0b\u3000c", "\ue000", ""):
        assert printable(name) == name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory whose own name is evil, with pictures in it whose names and classes are."""
    place = tmp_path_factory.mktemp("names") / f"here {EVIL}"
    for part in ("train", "val"):
        for number, name in enumerate(CLASSES):
            folder = place / "pictures" / part / name
            folder.mkdir(parents=True)
            for i in range(3):
                color = (90 * i, 200 * number, 7)
                Image.new("RGB", (120, 110), color).save(folder / f"{i} {EVIL}.png")
    (folder / f"bad {EVIL}.png").write_text("no picture")
    (folder / f"out {EVIL}.png").symlink_to("/etc/passwd")
    with contextlib.suppress(OSError):  # not every file system takes a name that is no UTF-8
        Image.new("RGB", (120, 110)).save(os.fsencode(folder) + b"/\xff\x9b31m.png")
    shards = str(place / "shards")
    result = run_here(BUILD, "--input", str(place / "pictures"), "--output", shards, *WORKERS)
    assert result.returncode == 0, result.stderr
    assert_harmless(result)
    assert "bad " in result.stdout
    assert "out " in result.stdout
    return place


WORKERS = ("--size", "104", "--workers", "1")


def assert_harmless(result):
    """Nothing but letters, ends of lines, and what a progress bar needs."""
    said = result.stdout + result.stderr
    odd = {x for x in said if unicodedata.category(x) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert odd <= {"\n", "\r", "\t"}, result
    assert not re.search(r"^INJECTED", said, re.MULTILINE), said
    assert r"\x1b]0;owned\x07\x1b[2J\rINJECTED\nINJECTED\u202e" in said, said


@pytest.mark.fault(33)
def test_verification_and_the_contact_sheet_escape_names(place):
    shards = str(place / "shards")
    for options in ((), ("--quick",), ("--contact-sheet", str(place / f"{EVIL}.png"))):
        result = run_here(VERIFY, shards, *options)
        assert result.returncode == 0, result.stderr
        assert_harmless(result)
    (place / "shards" / f"{EVIL}.h5").write_bytes(b"x")
    assert_harmless(run_here(VERIFY, shards))
    (place / "shards" / f"{EVIL}.h5").unlink()
    sheet = ("--contact-sheet", str(place / "sheet.png"), "--class", EVIL)
    assert_harmless(run_here(VERIFY, shards, *sheet))


def test_labels_csv_has_a_line_per_image_and_no_control_character(place):
    data = open_data_set(place / "shards")
    text = (place / "shards" / "labels.csv").read_bytes().decode()
    assert {x for x in text if unicodedata.category(x) in ("Cc", "Cf", "Cs")} == {"\n"}
    rows = list(csv.reader(text.splitlines()))
    assert len(rows) == text.count("\n") == 1 + len(data.train) + len(data.val)
    assert {row[3] for row in rows[1:]} == {printable(name) for name in CLASSES}
    assert data.class_names == list(CLASSES)  # for programs they are as they were


def test_names_that_an_earlier_version_wrote_as_they_are_are_no_fault(place, tmp_path):
    data = open_data_set(place / "shards")
    shards = tmp_path / "shards"
    shards.mkdir()
    for path in (place / "shards").iterdir():
        os.link(path, shards / path.name)
    manifest, path = read_manifest(shards), shards / "labels.csv"
    path.unlink()
    path.write_bytes(b"".join(csv_blocks(label_rows(data.manifest, data.directory), shown=str)))
    entry = FileEntry(path.name, path.stat().st_size, sha256_of_file(path))
    (shards / "manifest.json").unlink()
    write_manifest(shards, type(manifest)(**{**vars(manifest), "labels": entry}))
    assert run_here(VERIFY, str(shards)).returncode == 0
    path.write_bytes(path.read_bytes().replace(b"cat", b"cow"))
    entry = FileEntry(path.name, path.stat().st_size, sha256_of_file(path))
    write_manifest(shards, type(manifest)(**{**vars(manifest), "labels": entry}))
    result = run_here(VERIFY, str(shards))
    assert "labels.csv: does not say what the shards say" in result.stdout


def test_what_is_wrong_with_the_input_is_said_in_harmless_words(place, tmp_path):
    pictures = place / "pictures"
    output = ("--output", str(tmp_path / "out"))
    for options in (
        ("--input", str(pictures), "--strict", *output, *WORKERS),
        ("--input", str(pictures / EVIL), *output),
        ("--input", str(pictures), f"--{EVIL}", *output),
        ("--input", str(pictures), "--source", "kaggle", *output),
        ("--input", str(pictures), "--classes", str(pictures / "no" / EVIL), *output),
        ("--input", str(pictures / "train"), *output),
        ("--finish", "--output", str(place / EVIL)),
    ):
        result = run_here(BUILD, *options)
        assert result.returncode == 2, result
        assert_harmless(result)
    (tmp_path / "train" / f"only here {EVIL}").mkdir(parents=True)
    (tmp_path / "val" / f"loose {EVIL}").mkdir(parents=True)
    (tmp_path / "val" / f"file {EVIL}").write_text("x")
    result = run_here(BUILD, "--input", str(tmp_path), "--output", str(tmp_path / "out"))
    assert_harmless(result)
    result = run_here(BUILD, "--input", str(pictures), *output, "--dry-run", *WORKERS)
    assert result.returncode == 0
    assert_harmless(result)


def test_a_run_and_what_follows_it_escape_names(place):
    out = place / "run"
    options = ("--set", "crop_size=96", "--set", "drop_rule=epochs", "--batch-size", "4")
    result = train(place / "shards", out, *options, "--steps", "1")
    assert result.returncode == 0, result.stderr
    assert_harmless(result)
    checkpoint = next(out.glob("checkpoint-*.pt"))
    for command in (
        ("replica.test", "--checkpoint", str(checkpoint)),
        ("replica.test", "--checkpoint", str(checkpoint), "--part", "test"),
        ("replica.figures", "--run", str(out)),
        ("replica.figures", "curves", str(out), "--picture", str(place / "curves.png")),
        ("replica.figures", "--run", str(place / EVIL)),
        ("replica.report", str(out)),
        ("replica.report", str(out), "--output", str(place / EVIL)),
        ("replica.control", str(out), "--lr", "0.1"),
        ("replica.info", "--recipe", EVIL),
        ("replica.recipes", "diff", "paper", EVIL),
        ("replica.info", "--set", EVIL),
        ("replica.train", "--data", str(place / EVIL)),
        ("replica.train", "--data", str(place / "shards"), "--out", str(out)),
    ):
        assert_harmless(run_here("-m", *command))
    assert replica.load(checkpoint).class_names == list(CLASSES)
    # A request whose name nobody should have, a change by hand with a reason, and a lost loss.
    (out / "requests").mkdir(exist_ok=True)
    (out / "requests" / f"{EVIL}.json").write_text("{}")
    reason = {"changes": {"bias_learning_rate": 0.1}, "actions": [], "reason": f"because {EVIL}"}
    (out / "requests" / "1-1.json").write_text(json.dumps(reason))
    line = {"name": "0-0.json", "step": 3, "changes": {"learning_rate": 1e30}, "actions": []}
    (out / "control.jsonl").write_text(json.dumps(line) + "\n")
    # In a process of its own, with whose end the files end that such an error leaves open.
    result = run(*train_command(place / "shards", out, *options, "--resume", "--steps", "20"))
    assert result.returncode == 1
    assert_harmless(result)
    assert "passed over" in result.stderr
    assert r"(because \x1b" in result.stderr
    assert re.search(
        r"the loss is not finite at step \d+, for \d of \d images \(train/", result.stderr
    )
