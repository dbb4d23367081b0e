import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from dcmtools.disk.sources import Place, Sources

HOUR = 3_600_000_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dcmtools" / "sources"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that was written an hour ago."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    aged(path)
    return path


def aged(path: Path, by: int = HOUR) -> None:
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns - by))


def note(root: Path, path: Path, place: Path) -> None:
    state = path.stat()
    with Sources(root) as sources:
        sources.note([(path, state.st_size, state.st_mtime_ns, place)])


def recall(root: Path, *paths: Path) -> dict[Path, Place]:
    with Sources(root) as sources:
        return sources.recall(paths)


def test_unchanged_file_is_recalled_in_its_archive_only(tmp_path: Path, file: Path) -> None:
    place = tmp_path / os.fsdecode(b"not UTF-8 \xff")
    place.write_bytes(b"kept")

    note(tmp_path / "a", file, place)

    state = place.stat()
    assert recall(tmp_path / "a", file, place) == {file: Place(os.fspath(place), 4, state.st_mtime_ns)}
    assert recall(tmp_path / "b", file) == {}


def write(path: Path) -> None:
    path.write_bytes(b"changed")


def write_and_keep_its_time(path: Path) -> None:
    before = path.stat()
    write(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchange(path: Path) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"content")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [write, write_and_keep_its_time, exchange, Path.unlink])
def test_changed_file_is_not_recalled(tmp_path: Path, file: Path, change: Callable[[Path], None]) -> None:
    note(tmp_path, file, file)

    change(file)

    assert recall(tmp_path, file) == {}


def test_file_that_was_just_written_or_changed_while_it_was_read_is_not_noted(tmp_path: Path, file: Path) -> None:
    (tmp_path / "new").write_bytes(b"x")
    note(tmp_path, tmp_path / "new", file)
    with Sources(tmp_path) as sources:
        sources.note([(file, 3, file.stat().st_mtime_ns, file), (file, 7, 0, file)])

    assert recall(tmp_path, tmp_path / "new", file) == {}


def test_nothing_is_made_where_nothing_is_noted(tmp_path: Path, file: Path, cache: Path) -> None:
    assert recall(tmp_path, file) == {}
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_damaged_cache_is_thrown_away(tmp_path: Path, file: Path, cache: Path, content: bytes) -> None:
    note(tmp_path, file, file)
    (database,) = cache.iterdir()
    database.write_bytes(content)

    assert recall(tmp_path, file) == {}
    note(tmp_path, file, file)
    assert list(recall(tmp_path, file)) == [file]


def test_cache_of_another_shape_and_one_that_cannot_be_made_are_no_hindrance(
    tmp_path: Path, file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(tmp_path, file, file)
    (database,) = cache.iterdir()
    database.unlink()
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE source (other TEXT)")
    connection.close()
    assert recall(tmp_path, file) == {}

    monkeypatch.setenv("XDG_CACHE_HOME", str(file / "below a file"))
    note(tmp_path, file, file)
    assert recall(tmp_path, file) == {}


def test_cache_is_for_its_user_alone(tmp_path: Path, file: Path, cache: Path) -> None:
    note(tmp_path, file, file)

    assert [path.stat().st_mode & 0o777 for path in (cache, *cache.iterdir())] == [0o700, 0o600]
