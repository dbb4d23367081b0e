import errno
import os
import threading
from pathlib import Path

import pytest

from dcmtools.disk import atomic
from dcmtools.disk.atomic import (
    TEMPORARY_PREFIX,
    atomic_file,
    fsync_folder,
    link_into,
    link_new,
    make_folders,
    sync_file_system,
    write_atomic,
)


def test_file_takes_the_place_of_another_whole(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")

    write_atomic(tmp_path / "x", b"new")

    assert (tmp_path / "x").read_bytes() == b"new"
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")

    writing = atomic_file(tmp_path / "x")
    writing.__enter__().write(b"half")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(TEMPORARY_PREFIX)]
    assert not writing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)

    assert (tmp_path / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_link_gives_the_name_and_takes_the_temporary_away(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("new")

    link_new(tmp_path / "t", tmp_path / "x")

    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "none"])
def test_link_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    (tmp_path / "t").write_text("new")
    (tmp_path / "x").write_text("old")
    if not links:
        forbid_links(monkeypatch)

    with pytest.raises(FileExistsError):
        link_new(tmp_path / "t", tmp_path / "x")

    assert (tmp_path / "x").read_text() == "old"
    assert (tmp_path / "t").read_text() == "new"


def forbid_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", fail)


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "none"])
def test_of_many_that_want_one_name_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        forbid_links(monkeypatch)
    won: list[int] = []

    def want(number: int) -> None:
        temporary = tmp_path / f"t{number}"
        temporary.write_text(str(number))
        try:
            link_new(temporary, tmp_path / "x")
        except FileExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=want, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(won) == 1
    assert (tmp_path / "x").read_text() == str(won[0])


def test_folder_that_another_thread_is_making_is_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    making, found = threading.Event(), threading.Event()
    order: list[str] = []
    real = atomic.fsync_folder

    def slow(folder: Path) -> None:
        making.set()
        found.wait(0.3)
        order.append("durable")
        real(folder)

    def second() -> None:
        making.wait(5)
        make_folders(tmp_path / "new")
        order.append("found")
        found.set()

    monkeypatch.setattr(atomic, "fsync_folder", slow)
    threads = [threading.Thread(target=make_folders, args=(tmp_path / "new",)), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert order == ["durable", "found"]


def test_folder_that_is_open_cannot_be_exchanged_for_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "t").write_text("new")
    folder = os.open(tmp_path / "folder", os.O_RDONLY | os.O_DIRECTORY)
    (tmp_path / "folder").rename(tmp_path / "moved")
    (tmp_path / "folder").symlink_to("outside")

    link_into(tmp_path / "t", folder, "x")

    os.close(folder)
    assert (tmp_path / "moved" / "x").exists()
    assert not (tmp_path / "outside" / "x").exists()


def test_other_failures_of_link_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        link_new(tmp_path / "none", tmp_path / "x")


def test_folders_are_made_private_and_synced_into_their_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(atomic, "fsync_folder", synced.append)

    make_folders(tmp_path / "a" / "b")
    make_folders(tmp_path / "a" / "b")

    assert synced == [tmp_path, tmp_path / "a"]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_syncing_works_on_this_machine(tmp_path: Path) -> None:
    fsync_folder(tmp_path)

    assert sync_file_system(tmp_path) in {True, False}
    with pytest.raises(FileNotFoundError):
        sync_file_system(tmp_path / "none")
