import os
from pathlib import Path

import pytest

from dcmtools.disk import copying
from dcmtools.disk.copying import copy, link, same_bytes, share_blocks
from dcmtools.model.errors import BadData


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(100_000))
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    return path


def test_copy_has_the_bytes_and_the_time(source: Path, tmp_path: Path) -> None:
    copy(source, tmp_path / "target")

    assert same_bytes(source, tmp_path / "target")
    assert (tmp_path / "target").stat().st_mtime_ns == source.stat().st_mtime_ns
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "target").stat().st_ino != source.stat().st_ino


def test_copy_replaces_nothing(source: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")

    with pytest.raises(FileExistsError):
        copy(source, tmp_path / "target")


def test_source_that_changes_meanwhile_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = copying._copy_bytes

    def disturb(read: int, write: int) -> None:
        real(read, write)
        with source.open("ab") as out:
            out.write(b"more")

    monkeypatch.setattr(copying, "_share_blocks", lambda read, write: False)
    monkeypatch.setattr(copying, "_copy_bytes", disturb)

    with pytest.raises(BadData) as caught:
        copy(source, tmp_path / "target")

    assert caught.value.cause == "changed"


def test_only_regular_files_are_copied(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    with pytest.raises(BadData):
        copy(tmp_path / "fifo", tmp_path / "target")


def test_link_is_a_second_name(source: Path, tmp_path: Path) -> None:
    assert link(source, tmp_path / "target")
    assert (tmp_path / "target").stat().st_ino == source.stat().st_ino


def test_link_to_a_link_is_none(source: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(source)

    assert not link(tmp_path / "alias", tmp_path / "target")
    assert not os.path.lexists(tmp_path / "target")


def test_shared_blocks_are_a_copy_or_nothing(source: Path, tmp_path: Path) -> None:
    if share_blocks(source, tmp_path / "target"):
        assert same_bytes(source, tmp_path / "target")
        assert (tmp_path / "target").stat().st_mtime_ns == source.stat().st_mtime_ns
    else:
        assert not (tmp_path / "target").exists()


def test_one_byte_makes_a_difference(source: Path, tmp_path: Path) -> None:
    whole = source.read_bytes()
    for other in (whole[:-1], whole + b"x", b"x" + whole[1:], b""):
        (tmp_path / "other").write_bytes(other)
        assert not same_bytes(source, tmp_path / "other")
