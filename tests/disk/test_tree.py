import os
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dcmtools.disk.tree import Skipped, files_below
from dcmtools.model.record import Record, decode, encode


def touched(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(top: Path, found: list[Path | Record]) -> list[str]:
    return [str(path.relative_to(top)) for path in found if isinstance(path, Path)]


def test_files_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    touched(*(tmp_path / name for name in ("b/2", "b/1", "a/x/1", "a/y", "c", "a/z/1")))

    assert names(tmp_path, list(files_below([tmp_path]))) == ["c", "a/y", "a/x/1", "a/z/1", "b/1", "b/2"]


def test_what_we_write_ourselves_is_passed_over(tmp_path: Path) -> None:
    ours = ("index.jsonl", "index.lock", "index.jsonl.old", "index.sqlite-wal", "conversions.jsonl", "physicians.json")
    touched(
        *(tmp_path / name for name in (*ours, ".dcmtools-incoming/x", ".dcmtools-1-2", "quarantine/1.dcm", "1.dcm"))
    )
    skipped = Skipped()

    assert names(tmp_path, list(files_below([tmp_path], skipped=skipped))) == ["1.dcm"]
    assert skipped == {}


def test_quarantine_is_an_ordinary_name_outside_an_archive(tmp_path: Path) -> None:
    touched(tmp_path / "quarantine" / "1.dcm")

    assert names(tmp_path, list(files_below([tmp_path]))) == ["quarantine/1.dcm"]


def test_what_is_plainly_no_instance_is_counted(tmp_path: Path) -> None:
    touched(
        tmp_path / "DICOMDIR",
        tmp_path / "d" / "dicomdir",
        tmp_path / ".hidden",
        tmp_path / ".git" / "x",
        tmp_path / "1",
    )
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("1")
    skipped = Skipped()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))

        assert names(tmp_path, list(files_below([tmp_path], skipped=skipped))) == ["1"]

    assert skipped == Counter(dicomdir=2, hidden=2, special=2, link=1)


def test_named_files_are_taken_whatever_they_are_called(tmp_path: Path) -> None:
    touched(tmp_path / ".hidden", tmp_path / "DICOMDIR")
    (tmp_path / "link").symlink_to("DICOMDIR")

    named = [tmp_path / name for name in (".hidden", "DICOMDIR", "link")]

    assert list(files_below(named)) == named


def test_links_are_followed_when_asked_for_and_loops_end(tmp_path: Path) -> None:
    touched(tmp_path / "a" / "1", tmp_path / "elsewhere" / "2")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "file").symlink_to(tmp_path / "elsewhere" / "2")
    (tmp_path / "a" / "gone").symlink_to("nowhere")
    (tmp_path / "a" / "self").symlink_to("self")

    found = names(tmp_path, list(files_below([tmp_path / "a"], follow=True)))

    assert found == ["a/1", "a/file", "a/out/2"]


def test_folder_named_twice_is_scanned_once(tmp_path: Path) -> None:
    touched(tmp_path / "a" / "b" / "1")
    (tmp_path / "alias").symlink_to("a")

    assert names(tmp_path, list(files_below([tmp_path / "a", tmp_path / "alias", tmp_path / "a" / "b"]))) == ["a/b/1"]


def test_one_file_has_one_name_whichever_way_it_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched(tmp_path / "real" / "1")
    (tmp_path / "alias").symlink_to("real")
    monkeypatch.chdir(tmp_path / "alias")

    ways: list[Path | str] = ["1", tmp_path / "alias" / "1", tmp_path / "real" / ".." / "alias" / "1"]

    assert set(files_below(ways)) == {tmp_path / "real" / "1"}


def test_what_cannot_be_looked_at_becomes_an_error_record(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    touched(tmp_path / "1")

    found = list(files_below([tmp_path / "nothing", tmp_path / "fifo", tmp_path / "1"]))

    errors = [one for one in found if isinstance(one, dict)]
    assert [(error["cause"], error["exit_code"], error["path"]) for error in errors] == [
        ("missing", 66, str(tmp_path / "nothing")),
        ("unreadable", 65, str(tmp_path / "fifo")),
    ]
    assert found[-1] == tmp_path / "1"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_folder_that_may_not_be_read_becomes_an_error_record(tmp_path: Path) -> None:
    touched(tmp_path / "a" / "1", tmp_path / "b" / "1")
    (tmp_path / "a").chmod(0)

    error, path = files_below([tmp_path])

    (tmp_path / "a").chmod(0o700)
    assert isinstance(error, dict)
    assert error["cause"] == "unreadable"
    assert path == tmp_path / "b" / "1"


def test_odd_names_come_through(tmp_path: Path) -> None:
    odd = [b"\xff\xfe", b"new\nline", b"a" * 255, b"-rf", b"\x1b[2J"]
    for name in odd:
        (tmp_path / os.fsdecode(name)).touch()

    found = list(files_below([tmp_path]))

    assert {os.fsencode(path.name) for path in found if isinstance(path, Path)} == set(odd)


@pytest.fixture
def below(tmp_path: Path) -> Iterator[Callable[[str, int], Path]]:
    """Makes so many folders of one name, each in the one before; pytest itself could not remove them."""

    def make(name: str, depth: int) -> Path:
        here = os.getcwd()
        os.chdir(tmp_path)
        for _ in range(depth):
            os.mkdir(name)
            os.chdir(name)
        Path("file").touch()
        os.chdir(here)
        return tmp_path

    yield make
    subprocess.run(["rm", "-rf", tmp_path / "d", tmp_path / ("d" * 250)], check=True)


def test_path_beyond_the_systems_limit_becomes_an_error_record(below: Callable[[str, int], Path]) -> None:
    (error,) = files_below([below("d" * 250, 20)])

    assert isinstance(error, dict)
    assert decode(encode(error))["cause"] == "unreadable"


def test_deep_tree_needs_no_recursion(below: Callable[[str, int], Path]) -> None:
    (found,) = files_below([below("d", 1500)])

    assert isinstance(found, Path)
    assert found.name == "file"
