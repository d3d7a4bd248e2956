"""Folders, tars and zips are read in place, and what is not what it should be is refused."""

import os
import re
import sys
import tarfile
import zipfile

import pytest
from archives import bomb_gz, sparse_head, tar_bytes, tar_header, zip_bytes
from conftest import run

from data_prep.errors import UserError
from data_prep.sources.archives import nested_tar_files, tar_files
from data_prep.sources.places import Held, InputChangedError, Reader, Span
from data_prep.sources.text import read_bytes
from data_prep.sources.trees import Folder, open_tree

FILES = [
    ("a/one.JPEG", b"first"),
    ("a/b/two.JPEG", b"x" * 5000),
    ("three", b""),
    ("a/\u00e4 \u732b.txt", bytes(range(256)) * 40),
]


def written(path, kind):
    if kind == "folder":
        for name, data in FILES:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path
    if kind.startswith("zip"):
        method = zipfile.ZIP_STORED if kind == "zip stored" else zipfile.ZIP_DEFLATED
        path.write_bytes(zip_bytes(FILES, compression=method))
    else:
        path.write_bytes(tar_bytes(FILES, mode="w" + kind.removeprefix("tar")))
    return path


KINDS = ("folder", "zip", "zip stored", "tar", "tar:gz", "tar:bz2", "tar:xz")


@pytest.mark.parametrize("kind", KINDS)
def test_every_container_shows_the_same_tree(tmp_path, kind):
    tree = open_tree(written(tmp_path / "set", kind))
    assert tree.names("") == ["a", "three"]
    assert tree.names("a") == ["b", "one.JPEG", "\u00e4 \u732b.txt"]
    assert tree.names("nowhere") == tree.names("three") == []
    assert tree.is_dir("a/b")
    assert not tree.is_dir("three")
    assert not tree.is_file("a")
    for name, data in FILES:
        assert tree.is_file(name)
        assert Reader().read(tree.place(name)) == data
    below = tree.below("a")
    assert below.names("") == tree.names("a")
    assert Reader().read(below.place("b/two.JPEG")) == b"x" * 5000
    assert below.is_file("one.JPEG")
    assert below.is_dir("b")
    assert below.title.endswith("/a")


def test_uncompressed_archives_are_read_in_place_and_compressed_tars_from_memory(tmp_path):
    places = {
        kind: open_tree(written(tmp_path / kind, kind)).place("a/one.JPEG")
        for kind in ("tar", "zip", "tar:gz")
    }
    assert isinstance(places["tar"], Span)
    assert isinstance(places["zip"], Span)
    assert places["tar:gz"] == Held(b"first")
    content = (tmp_path / "tar").read_bytes()
    assert content[places["tar"].offset :][:5] == b"first"


def test_a_tar_in_a_tar_is_read_without_unpacking_either(tmp_path):
    inner = [(f"n0000000{i}.tar", tar_bytes([(f"{i}_{j}", b"%d%d" % (i, j)) for j in range(3)]))
             for i in range(4)]  # fmt: skip
    (tmp_path / "outer.tar").write_bytes(tar_bytes(inner))
    tree = open_tree(tmp_path / "outer.tar")
    found = {}
    for name in tree.names(""):
        for path, span in nested_tar_files(name, tree.place(name)):
            found[path] = Reader().read(span)
    assert found == {f"{i}_{j}": b"%d%d" % (i, j) for i in range(4) for j in range(3)}


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    for data in (b"", b"hello", b"\x89PNG" * 300):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(
            UserError, match="expected a directory, a zip file or a tar file, found"
        ):
            open_tree(tmp_path / "x")
    with pytest.raises(UserError, match="found none there"):
        open_tree(tmp_path / "nowhere")


def test_a_tar_of_before_1988_is_read(tmp_path):
    buffer = tar_bytes(FILES[:2])
    old = bytearray(buffer)
    for start in (0, 1024):
        old[start + 257 : start + 500] = bytes(243)
        old[start + 148 : start + 156] = b" " * 8
        old[start + 148 : start + 156] = b"%06o\0 " % sum(old[start : start + 512])
    (tmp_path / "old.tar").write_bytes(bytes(old))
    assert open_tree(tmp_path / "old.tar").names("a") == ["b", "one.JPEG"]


# --- Evil and damaged archives


def linked(kind):
    def change(info):
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    return change


EVIL = {
    "parent": ([("../../etc/x", b"1")], None, "expected names below the archive itself"),
    "inside": ([("a/../../x", b"1")], None, "expected names below the archive itself"),
    "absolute": ([("/etc/x", b"1")], None, "expected names below the archive itself"),
    "backslash": ([("a\\..\\x", b"1")], None, "expected names below the archive itself"),
    "symlink": ([("x", b"")], linked(tarfile.SYMTYPE), "expected plain files, got 'x'"),
    "hard link": ([("x", b"")], linked(tarfile.LNKTYPE), "expected plain files, got 'x'"),
    "device": ([("x", b"")], linked(tarfile.CHRTYPE), "expected plain files, got 'x'"),
    "pipe": ([("x", b"")], linked(tarfile.FIFOTYPE), "expected plain files, got 'x'"),
    "twice": ([("x", b"1"), ("x", b"2")], None, "expected each name once, got 'x' twice"),
}


@pytest.mark.fault(27)
@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("compressed", [False, True])
def test_an_evil_tar_is_refused_as_a_whole(tmp_path, evil, compressed):
    files, change, message = EVIL[evil]
    mode = "w:gz" if compressed else "w"
    path = tmp_path / "evil.tar"
    path.write_bytes(tar_bytes([("good", b"1"), *files], mode=mode, change=change and (
        lambda info: info.name == "x" and change(info))))  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        open_tree(path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_an_evil_zip_is_refused(tmp_path, name):
    (tmp_path / "evil.zip").write_bytes(zip_bytes([("good", b"1"), (name, b"2")]))
    with pytest.raises(UserError, match="expected names below the archive itself"):
        open_tree(tmp_path / "evil.zip")


@pytest.mark.fault(27)
def test_a_tar_that_is_cut_off_anywhere_is_refused(tmp_path):
    """Also where a whole file ends: Python's tarfile takes that for the end."""
    whole = tar_bytes(FILES)
    path = tmp_path / "cut.tar"
    for size in (100, 512, 600, 1024, 1025, 2000, 4096, 7168, len(whole) - 10_240):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut off|expected a whole tar|found something else"):
            list(open_tree(path).names(""))
        if size >= 512:
            with pytest.raises(UserError, match=r"cut off|expected a whole tar"):
                list(tar_files(path))


@pytest.mark.parametrize("kind", ["tar:gz", "tar:bz2", "tar:xz", "zip", "zip stored"])
def test_a_compressed_archive_that_is_cut_off_is_refused(tmp_path, kind):
    whole = written(tmp_path / "whole", kind).read_bytes()
    for size in (30, len(whole) // 2, len(whole) - 5):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"expected a whole|cut off|cannot be read"):
            open_tree(tmp_path / "cut")


@pytest.mark.fault(27)
def test_a_nested_tar_that_is_none_is_refused_with_both_names(tmp_path):
    (tmp_path / "outer.tar").write_bytes(tar_bytes([("n00000001.tar", b"I am no tar" * 100)]))
    tree = open_tree(tmp_path / "outer.tar")
    with pytest.raises(UserError, match=r"n00000001.tar: .*outer.tar: expected a whole tar file"):
        list(nested_tar_files("n00000001.tar", tree.place("n00000001.tar")))


@pytest.mark.fault(27)
def test_a_compressed_tar_that_grows_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.sources.archives.MAX_COMPRESSED_TAR_BYTES", 1 << 20)
    (tmp_path / "bomb.tar.gz").write_bytes(tar_bytes([("zeros", bytes(2 << 20))], mode="w:gz"))
    with pytest.raises(UserError, match="decompress it, and give the plain tar"):
        open_tree(tmp_path / "bomb.tar.gz")


def test_a_zip_entry_that_lies_about_its_size_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "bomb.zip"
    path.write_bytes(zip_bytes([("zeros", bytes(1 << 20))]))
    place = open_tree(path).place("zeros")
    assert Reader().read(place) == bytes(1 << 20)
    with pytest.raises(ValueError, match="has not the 1000 bytes that the zip file names"):
        Reader().read(place._replace(size=1000))
    with pytest.raises(ValueError, match="has 1048576 bytes, more than 500"):
        Reader().read(place, limit=500)


def test_an_encrypted_zip_is_refused(tmp_path):
    data = bytearray(zip_bytes([("secret", b"1234")]))
    directory = data.index(b"PK\x01\x02")
    data[directory + 8] |= 1
    (tmp_path / "secret.zip").write_bytes(bytes(data))
    with pytest.raises(UserError, match="is encrypted or compressed in a way"):
        open_tree(tmp_path / "secret.zip")


# In a process that may take 256 MiB more than it has after its imports.
READ_IN_LITTLE = """
import resource, sys, time
from pathlib import Path
from data_prep.errors import UserError
from data_prep.sources.trees import open_tree
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
began = time.process_time()
try:
    open_tree(Path(sys.argv[1]))
except UserError as error:
    print(error)
print(f"{time.process_time() - began:.1f}")
"""
HEADS = {
    "a long name": tar_header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 1 << 32),
    "a long link": tar_header("././@LongLink", tarfile.GNUTYPE_LONGLINK, 1 << 32),
    "a PAX header": tar_header("x", tarfile.XHDTYPE, 1 << 32),
    "a global PAX header": tar_header("x", tarfile.XGLTYPE, 1 << 32),
    "a long name after a file": tar_header("x", tarfile.REGTYPE, 1)
    + b"1".ljust(512, b"\0")
    + tar_header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 1 << 32),
    "holes without an end": sparse_head(),
}


@pytest.mark.fault(27)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["gz", "plain"])
def test_a_header_of_gigabytes_is_refused_in_little_memory_and_time(tmp_path, head, kind):
    path = tmp_path / "bomb.tar"
    if kind == "gz":
        filler = b"0\n" if "holes" in head else b"\0\0"
        path.write_bytes(bomb_gz(HEADS[head], gigabytes=4, filler=filler))
        assert path.stat().st_size < 5 << 20
    elif "holes" in head:
        path.write_bytes(HEADS[head] + b"0\n" * (1 << 20))
    else:
        path.write_bytes(HEADS[head])
        os.truncate(path, 5 << 30)  # a hole of the file system: no block is written
    result = run("-c", READ_IN_LITTLE, str(path))
    assert result.returncode == 0, result.stderr
    message, seconds = result.stdout.splitlines()
    assert "what it says of its files is longer than any genuine archive's" in message
    assert float(seconds) < 5


@pytest.mark.fault(27)
def test_files_without_bytes_count_against_the_limit_of_a_compressed_tar(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.sources.archives.MAX_COMPRESSED_TAR_BYTES", 1 << 20)
    path = tmp_path / "names.tar.gz"
    # 400 files have 0.8 MiB in the tar; in memory each letter beside such a cat takes four bytes.
    names = [f"{i}" + "x" * 600 + "\U0001f431" for i in range(400)]
    for num_files, is_refused in ((100, False), (400, True)):
        data = tar_bytes([(name, b"") for name in names[:num_files]], mode="w:gz")
        path.write_bytes(data)
        if is_refused:
            with pytest.raises(UserError, match="decompress it, and give the plain tar"):
                open_tree(path)
        else:
            assert len(open_tree(path).names("")) == num_files
    path.write_bytes(tar_bytes([(f"{i}/", b"") for i in range(9)], mode="w:gz", change=as_folder))
    assert open_tree(path).names("") == []
    folders = tar_bytes([(f"{i}/", b"") for i in range(3000)], mode="w:gz", change=as_folder)
    path.write_bytes(folders)  # nothing of them is held, but reading them takes time
    with pytest.raises(UserError, match="decompress it, and give the plain tar"):
        open_tree(path)


def as_folder(info):
    info.type = tarfile.DIRTYPE


@pytest.mark.fault(33)
@pytest.mark.parametrize("kind", ["tar", "tar:gz", "zip"])
def test_a_name_longer_than_a_path_can_be_is_refused(tmp_path, kind):
    for length in (4096, 4097):
        files = [("x" * length, b"1")]
        data = zip_bytes(files) if kind == "zip" else tar_bytes(files, mode="w" + kind[3:])
        (tmp_path / "set").write_bytes(data)
        if length == 4096:
            assert len(open_tree(tmp_path / "set").names("")) == 1
        else:
            with pytest.raises(UserError, match="names of at most 4096 letters, got one of 4097"):
                open_tree(tmp_path / "set")


@pytest.mark.fault(27)
def test_a_zip_whose_entries_share_their_bytes_is_refused(tmp_path):
    """A few megabytes that a million names share would be decompressed a million times."""
    whole = bytearray(zip_bytes([(f"{i}", bytes(1 << 16)) for i in range(9)]))
    first = whole.index(b"PK\x01\x02")
    for entry in re.finditer(b"PK\x01\x02", bytes(whole)):
        whole[entry.start() + 42 : entry.start() + 46] = bytes(4)  # where the file begins
    # Between the files and their list nothing but one file is needed.
    start = whole.index(b"PK\x03\x04", 4)
    small = whole[:start] + whole[first:]
    small[-6:-2] = start.to_bytes(4, "little")
    (tmp_path / "bomb.zip").write_bytes(bytes(small))
    with pytest.raises(UserError, match="expected files side by side, got some over each other"):
        open_tree(tmp_path / "bomb.zip")


@pytest.mark.fault(27)
def test_a_zip_with_a_list_of_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.sources.archives.MAX_ZIP_LIST_BYTES", 1000)
    for num_files in (10, 100):
        (tmp_path / "set.zip").write_bytes(zip_bytes([(f"{i}", b"1") for i in range(num_files)]))
        if num_files == 10:
            assert len(open_tree(tmp_path / "set.zip").names("")) == 10
        else:
            with pytest.raises(UserError, match="longer than any genuine archive's"):
                open_tree(tmp_path / "set.zip")


def test_of_a_zip_entry_no_more_is_read_than_a_picture_may_have(tmp_path):
    path = tmp_path / "set.zip"
    path.write_bytes(zip_bytes([("noise", os.urandom(5000))]))
    place = open_tree(path).place("noise")
    with pytest.raises(ValueError, match=r"has 50\d\d bytes, more than 500"):
        Reader().read(place._replace(size=100), limit=500)


# --- Input that changes


@pytest.mark.fault(33)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_that_changed_is_noticed_before_it_is_read(tmp_path, kind):
    path = written(tmp_path / "set", kind)
    place = open_tree(path).place("a/one.JPEG")
    content = path.read_bytes()
    path.write_bytes(content + b"x")
    with pytest.raises(InputChangedError, match="changed while it was read"):
        Reader().read(place)
    path.write_bytes(content)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    with pytest.raises(InputChangedError, match="changed while it was read"):
        Reader().read(place)
    path.unlink()
    with pytest.raises(InputChangedError, match="cannot be opened any more"):
        Reader().read(place)


@pytest.mark.fault(33)
def test_an_archive_that_shrinks_under_the_reader_is_noticed(tmp_path):
    path = written(tmp_path / "set", "tar")
    tree, reader = open_tree(path), Reader()
    reader.read(tree.place("a/one.JPEG"))
    os.truncate(path, 600)
    with pytest.raises(InputChangedError, match="became shorter"):
        reader.read(tree.place("a/b/two.JPEG"))


def test_only_a_few_archives_are_open_at_once(tmp_path):
    reader = Reader()
    places = [
        open_tree(written(tmp_path / f"{i}.tar", "tar")).place("a/one.JPEG") for i in range(20)
    ]
    before = len(os.listdir("/proc/self/fd"))
    assert [reader.read(place) for place in places * 2] == [b"first"] * 40
    assert len(os.listdir("/proc/self/fd")) <= before + 8
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


# --- Folders


@pytest.mark.fault(33)
def test_names_are_sorted_by_their_bytes_and_need_not_be_utf8(tmp_path):
    for name in (b"b", b"B", b"\xff\xfe", b"a\xcc\x88", "\u00e4".encode()):
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    tree = Folder(tmp_path)
    names = tree.names("")
    assert [os.fsencode(name) for name in names] == sorted(os.fsencode(name) for name in names)
    for name in names:
        assert Reader().read(tree.place(name)) == os.fsencode(name)


@pytest.mark.fault(33)
def test_what_is_no_plain_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    tree = Folder(tmp_path)
    with pytest.raises(ValueError, match="is no plain file"):
        Reader().read(tree.place("pipe"))
    with pytest.raises(ValueError, match="is a folder"):
        Reader().read(tree.place("folder"))
    with pytest.raises(OSError, match="symbolic links"):
        Reader().read(tree.place("loop"))
    with pytest.raises(UserError, match="expected a list, found no file"):
        read_bytes(tree, "nowhere", "a list")


def test_a_file_larger_than_the_limit_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(bytes(1001))
    with pytest.raises(ValueError, match="has 1001 bytes, more than 1000"):
        Reader().read(str(tmp_path / "x"), limit=1000)
    assert len(Reader().read(str(tmp_path / "x"), limit=1001)) == 1001


# --- Links


def with_links(top, outside):
    """A tree whose links lead to its own files, and to others'."""
    (top / "a" / "b").mkdir(parents=True)
    outside.mkdir()
    (top / "a" / "picture").write_bytes(b"inside")
    (top / "beside").write_bytes(b"inside")
    (outside / "picture").write_bytes(b"outside")
    links = {
        "a/near": "picture",
        "a/beside": "../beside",
        "a/b/up": "../picture",
        "a/whole path": str(top / "a" / "picture"),
        "folder": "a",
        "a/near of near": "near",
        "a/far": str(outside / "picture"),
        "a/b/far up": "../../../outside/picture",
        "a/far of far": "far",
        "a/nowhere": "/nowhere",
        "far folder": str(outside),
    }
    for path, target in links.items():
        (top / path).symlink_to(target)
    return top


INSIDE = (
    "a/near",
    "a/beside",
    "a/b/up",
    "a/whole path",
    "a/near of near",
    "folder/near",
    "folder/b/up",
)
OUTSIDE = ("a/far", "a/b/far up", "a/far of far", "folder/far")


@pytest.mark.fault(33)
def test_links_are_read_inside_of_the_input_and_refused_where_they_lead_out(tmp_path):
    top = with_links(tmp_path / "input", tmp_path / "outside")
    (tmp_path / "link").symlink_to(top)  # the input itself may be one
    for tree, above in (
        (open_tree(top), ""),
        (open_tree(tmp_path / "link"), ""),
        (open_tree(top).below("a"), "../"),
    ):
        for path in INSIDE:
            assert Reader().read(tree.place(above + path)) == b"inside"
        for path in (*OUTSIDE, "a/nowhere"):
            with pytest.raises(ValueError, match="a link that leads out of the input: --follow-l"):
                Reader().read(tree.place(above + path))
    tree = open_tree(top)
    for use in (tree.names, lambda path: tree.place(f"{path}/picture")):
        with pytest.raises(UserError, match=r"far folder: is a link that leads out .*--follow-l"):
            use("far folder")
    for path in ("../outside/picture", str(tmp_path / "outside" / "picture")):
        with pytest.raises(UserError, match="leads out of the input"):
            tree.place(path)
    with pytest.raises(UserError, match=r"a/far: is a link that leads out .*: expected a list"):
        read_bytes(tree, "a/far", "a list")
    with pytest.raises(UserError, match=r"x\.tar: is a link that leads out"):
        list(nested_tar_files("x.tar", tree.place("a/far")))


@pytest.mark.fault(33)
def test_follow_links_reads_them_all(tmp_path):
    tree = open_tree(with_links(tmp_path / "input", tmp_path / "outside"), follow_links=True)
    for path in OUTSIDE:
        assert Reader().read(tree.place(path)) == b"outside"
    assert tree.names("far folder") == ["picture"]
    assert Reader().read(tree.below("a").place("far")) == b"outside"
    (tmp_path / "x.tar").write_bytes(tar_bytes(FILES))
    with pytest.raises(UserError, match=r"--follow-links: expected a directory, but .*x.tar is a"):
        open_tree(tmp_path / "x.tar", follow_links=True)
