"""dcmtools index on a tree of files that are made to harm it, and a few good ones."""

import json
import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dcmtools.disk.header import read_meta
from tests.builders import encode_element, encode_file, write_instance
from tests.cli.conftest import records

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
UIDS = [
    "../../etc/passwd",
    "1.2/../3",
    "",
    "1..2",
    "1." + "2" * 80,
    "1.2\n3",
    "\u202e1.2",
    "1.2;rm -rf",
    "a.b.c",
    "%s%n",
]
MEGABYTE = 1 << 20
MEMORY = 256 * MEGABYTE
GOOD = 40


def cut(folder: Path) -> Iterator[bytes]:
    """Whole files, cut within their preamble, meta information, heads, values, and pixels."""
    for syntax in SYNTAXES:
        path = write_instance(folder / "whole.dcm", syntax=syntax)
        whole = path.read_bytes()
        begin = read_meta(path).offset
        path.unlink()
        yield from (whole[:at] for at in (1, 100, 128, 131, 132, 135, 140, 150, begin - 3, begin))
        if syntax != DeflatedExplicitVRLittleEndian:
            yield from (whole[:at] for at in range(begin + 3, min(len(whole), begin + 163), 8))
        yield from (whole[:-1], whole[:-7])


def lying() -> Iterator[bytes]:
    """Lengths that are not those of what follows."""
    for vr in ("LO", "UI", "OB", "UN", "SQ", "UT", "XX", "\0\0"):
        for length in (1, 7, 0x7FFF, 0xFFFE):
            yield encode_file(encode_element(0x00080005, vr, b"", length))
        if vr in {"OB", "UN", "SQ", "UT"}:
            yield from (encode_file(encode_element(0x00080005, vr, b"", size)) for size in (0x7FFFFFFF, 0xFFFFFFFE))
            yield encode_file(encode_element(0x00091010, vr, b"", 0xFFFFFFFF))


def nested() -> Iterator[bytes]:
    """Sequences in sequences, a hundred thousand deep, and a little more than is allowed."""
    item = b"\xfe\xff\x00\xe0" + b"\xff" * 4
    for depth in (65, 1000, 100_000):
        yield encode_file(encode_element(0x00081140, "SQ", item, 0xFFFFFFFF) * depth)
        yield encode_file((b"\x08\0\x40\x11" + b"\xff" * 4 + item) * depth, ImplicitVRLittleEndian)


def misnamed() -> Iterator[bytes]:
    """Instances whose UIDs are none."""
    for uid in UIDS:
        for keyword in (0x00080018, 0x0020000D, 0x0020000E):
            uids = dict.fromkeys((0x00080018, 0x0020000D, 0x0020000E), "1.2.3") | {keyword: uid}
            yield encode_file(b"".join(encode_element(tag, "UI", text.encode()) for tag, text in sorted(uids.items())))


def strange() -> Iterator[bytes]:
    """What is no DICOM at all, and what inflates to a gigabyte."""
    yield from (b"", b"\0", b"DICM", bytes(132), bytes(128) + b"DICM", b"hello\n" * 100, b"\x89PNG\r\n" + bytes(500))
    pack = zlib.compressobj(9, wbits=-15)
    bomb = b"".join(pack.compress(bytes(MEGABYTE)) for _ in range(200)) + pack.flush()
    yield encode_file(bomb, DeflatedExplicitVRLittleEndian)
    yield encode_file(b"\xff" * 100, DeflatedExplicitVRLittleEndian)
    yield encode_file(b"\xff" * 100)
    yield encode_file(bytes(20))


def fill(tree: Path) -> int:
    """How many bad files there are in the tree now."""
    tree.mkdir()
    contents = [*cut(tree), *lying(), *nested(), *misnamed(), *strange()]
    for number, content in enumerate(contents):
        (tree / f"bad-{number:03}").write_bytes(content)
    for name in (b"\xff\xfe", b"new\nline", b"\x1b[2J", b"-rf", b"$(id)", "\u202eevil".encode(), b"x" * 255):
        (tree / os.fsdecode(name)).write_bytes(b"not DICOM")
    sparse = tree / "sparse.dcm"
    sparse.write_bytes(encode_file(encode_element(0x00080005, "CS", b"ISO_IR 6")))
    os.truncate(sparse, 4 << 30)
    os.mkfifo(tree / "fifo")
    (tree / "loop").symlink_to(tree)
    (tree / "ring").symlink_to(tree / "ring")
    (tree / "nowhere").symlink_to("/nowhere")
    return len(contents) + 8


def test_good_ones_are_found_among_hundreds_of_bad_ones_in_little_memory(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    bad = fill(tree)
    for number in range(1, GOOD + 1):
        write_instance(tree / f"good-{number:02}.dcm", number, syntax=SYNTAXES[number % 4])
    command = [sys.executable, "-m", "dcmtools", "index", "tree", "--follow", "--index", "index.jsonl", "--jobs", "2"]

    monkeypatch.chdir(tree)  # a socket's name must be short
    with (
        socket.socket(socket.AF_UNIX) as door,
        (tmp_path / "out").open("wb") as out,
        (tmp_path / "err").open("wb") as err,
    ):
        door.bind("door")
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=tmp_path)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    stdout, stderr = (tmp_path / "out").read_bytes(), (tmp_path / "err").read_bytes()

    told = records(stdout.decode())
    found = [one for one in told if one["type"] == "instance"]
    errors = [one for one in told if one["type"] == "error"]
    assert bad >= 200
    assert sorted(Path(one["path"]).name for one in found) == [f"good-{number:02}.dcm" for number in range(1, GOOD + 1)]
    assert len(errors) == bad
    assert {one["cause"] for one in errors} == {
        "not-dicom", "truncated", "bad-length", "too-deep", "bad-uid", "unreadable"
    }  # fmt: skip
    assert process.returncode == 3
    assert b"Traceback" not in stderr + stdout
    assert b"\x1b" not in stderr
    assert used.ru_maxrss * 1024 < MEMORY  # kilobytes, on Linux
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_bytes().splitlines()]
    assert {Path(one["path"]).name[:4] for one in lines} == {"good"}
