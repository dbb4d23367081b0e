import fcntl
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dcmtools.disk import archive as archive_module
from dcmtools.disk import atomic, journal
from dcmtools.disk.archive import INCOMING, Archive, Committed, Incoming
from dcmtools.disk.header import check_received, encode_meta, read_header, read_meta
from dcmtools.model.errors import BadData, CannotCreate, DcmtoolsError, DiskFull
from dcmtools.model.record import Record
from tests.builders import make_record, uid, write_instance


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


def received(incoming: Incoming, *numbers: int, sender: str = "PACS", **keys: Any) -> tuple[Path, Record]:
    """A file as the receiver leaves it: our meta information, the sender's data set; and its record."""
    temporary = incoming.new_path()
    made = write_instance(temporary, *numbers, **keys)
    meta = read_meta(made)
    head = encode_meta(meta.sop_class, meta.sop_instance, meta.syntax, sender)
    temporary.write_bytes(head + made.read_bytes()[meta.offset :])
    return temporary, check_received(temporary, meta.sop_class, meta.sop_instance, meta.syntax, len(head))


def names(archive: Archive) -> set[str]:
    """What lies in the archive, but for the index."""
    ours = {"index.jsonl", "index.lock", f"{INCOMING}/.lock"}
    files = (str(path.relative_to(archive.root)) for path in archive.root.rglob("*") if path.is_file())
    return {name for name in files if not name.startswith("index.sqlite")} - ours


def run_all(tasks: list[Callable[[], Any]]) -> None:
    """Runs functions at the same time; what one raises is raised."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        for future in [pool.submit(task) for task in tasks]:
            future.result(20)


PLACE = f"{uid(1, 1)}/{uid(1, 1, 1)}/{uid(1, 1, 1, 1)}.dcm"


def test_instance_gets_its_name_and_its_line(archive: Archive) -> None:
    with archive.incoming() as incoming:
        temporary, record = received(incoming)
        committed = archive.commit(temporary, record)

    assert committed.state == "received"
    assert committed.path == archive.root / PLACE
    assert committed.record == {**record, "path": str(committed.path), "state": "received"}
    assert names(archive) == {PLACE}
    (indexed,) = archive.index.instances()
    assert {**indexed, "state": "received"} == committed.record
    assert read_header(committed.path) == indexed


def test_folders_and_files_are_private(archive: Archive) -> None:
    with archive.incoming() as incoming:
        committed = archive.commit(*received(incoming))

    assert committed.path.parent.stat().st_mode & 0o777 == 0o700
    assert archive.root.stat().st_mode & 0o777 == 0o700


def test_same_data_set_again_is_present_and_writes_nothing(archive: Archive) -> None:
    with archive.incoming() as incoming:
        archive.commit(*received(incoming))
        before = archive.index.file.read_bytes()
        temporary, record = received(incoming, sender="ANOTHER_SENDER")
        again = archive.commit(temporary, record)

        assert again.state == "present"
        assert again.path == archive.root / PLACE
        assert again.record["size"] == again.path.stat().st_size
        assert not temporary.exists()
    assert archive.index.file.read_bytes() == before
    assert names(archive) == {PLACE}


@pytest.mark.parametrize("series", [1, 2], ids=["same series", "another series"])
def test_other_content_of_the_same_uid_is_kept_in_quarantine(archive: Archive, series: int) -> None:
    other: dict[str, Any] = {"PatientID": "OTHER", "SeriesInstanceUID": uid(1, 1, series)}
    with archive.incoming() as incoming:
        archive.commit(*received(incoming))
        conflict = archive.commit(*received(incoming, **other))
        before = archive.index.file.read_bytes()
        again = archive.commit(*received(incoming, **other))

    assert conflict.state == again.state == "conflict"
    assert conflict.path == again.path
    assert conflict.path.parent == archive.root / "quarantine"
    assert conflict.path.name.startswith(f"{uid(1, 1, 1, 1)}.")
    assert read_header(conflict.path)["PatientID"] == "OTHER"
    assert conflict.record["duplicate_of"] == str(archive.root / PLACE)
    assert [record["PatientID"] for record in archive.index.instances()] == ["P1"]
    assert archive.index.file.read_bytes() == before
    assert names(archive) == {PLACE, str(conflict.path.relative_to(archive.root))}


def test_file_without_its_line_gets_it_when_it_arrives_again(archive: Archive) -> None:
    with archive.incoming() as incoming:
        archive.commit(*received(incoming))
        archive.index.file.unlink()
        again = archive.commit(*received(incoming))

    assert again.state == "present"
    assert [record["path"] for record in archive.index.instances()] == [str(archive.root / PLACE)]


@pytest.mark.parametrize(("length", "cause"), [(0, "not-dicom"), (500, "truncated")])
def test_damaged_file_makes_way_for_a_good_one(archive: Archive, length: int, cause: str) -> None:
    with archive.incoming() as incoming:
        committed = archive.commit(*received(incoming))
        whole = committed.path.read_bytes()
        committed.path.write_bytes(whole[:length])

        again = archive.commit(*received(incoming))
        present = archive.commit(*received(incoming))

    assert (again.state, present.state) == ("received", "present")
    assert committed.path.read_bytes() == whole
    (event,) = archive.index.events()
    assert (event["event"], event["cause"], event["SOPInstanceUID"]) == ("quarantined", cause, uid(1, 1, 1, 1))
    assert Path(event["path"]).read_bytes() == whole[:length]
    assert [record["size"] for record in archive.index.instances()] == [len(whole)]


def test_whole_file_never_makes_way(archive: Archive) -> None:
    with archive.incoming() as incoming:
        committed = archive.commit(*received(incoming))
        write_instance(committed.path, SeriesDescription="changed by hand, so that its size is another")
        whole = committed.path.read_bytes()

        assert archive.commit(*received(incoming)).state == "conflict"
    assert committed.path.read_bytes() == whole


def test_damaged_file_of_the_size_that_it_had_is_not_looked_into(archive: Archive) -> None:
    with archive.incoming() as incoming:
        committed = archive.commit(*received(incoming))
        committed.path.write_bytes(bytes(committed.path.stat().st_size))

        assert archive.commit(*received(incoming)).state == "conflict"


def test_file_that_is_gone_does_not_hide_the_one_in_another_study(archive: Archive) -> None:
    with archive.incoming() as incoming:
        archive.commit(*received(incoming)).path.unlink()
        committed = archive.commit(*received(incoming, StudyInstanceUID=uid(9, 9)))
        before = archive.index.file.read_bytes()
        again = archive.commit(*received(incoming, StudyInstanceUID=uid(9, 9)))

    assert (committed.state, again.state) == ("received", "present")
    assert archive.index.file.read_bytes() == before
    assert [record["path"] for record in archive.index.by_study(uid(9, 9))] == [str(committed.path)]
    assert list(archive.index.by_study(uid(1, 1))) == []


@pytest.mark.parametrize("processes", [1, 2], ids=["threads", "processes"])
def test_same_uid_in_two_studies_at_once_is_a_conflict(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    both = threading.Barrier(2)
    real = atomic.link_into

    def together(*args: Any) -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.3)
        real(*args)

    outcomes: list[Committed] = []
    archives = [archive, archive if processes == 1 else Archive(archive.root)]
    with archive.incoming() as incoming:
        items = [received(incoming, StudyInstanceUID=uid(7, number)) for number in (1, 2)]
        monkeypatch.setattr(archive_module, "link_into", together)
        run_all(
            [
                partial(lambda to, item: outcomes.append(to.commit(*item)), *pair)
                for pair in zip(archives, items, strict=True)
            ]
        )

    assert sorted(outcome.state for outcome in outcomes) == ["conflict", "received"]
    (stored,) = (outcome for outcome in outcomes if outcome.state == "received")
    (kept,) = (outcome for outcome in outcomes if outcome.state == "conflict")
    assert [record["path"] for record in archive.index.instances()] == [str(stored.path)]
    assert kept.record["duplicate_of"] == str(stored.path)
    assert names(archive) == {str(path.relative_to(archive.root)) for path in (stored.path, kept.path)}


def test_same_uid_in_two_studies_never_shares_one_write_of_the_index(archive: Archive) -> None:
    outcomes: list[Committed] = []
    writer = archive.index._journal

    def let_both_come() -> None:
        for _ in range(30):
            if len(writer._collected.lines) == 2:
                break
            time.sleep(0.01)
        writer._writing.release()

    with archive.incoming() as incoming:
        items = [received(incoming, StudyInstanceUID=uid(7, number)) for number in (1, 2)]
        writer._writing.acquire()
        run_all(
            [let_both_come, *(partial(lambda item: outcomes.append(archive.commit(*item)), item) for item in items)]
        )

    assert sorted(outcome.state for outcome in outcomes) == ["conflict", "received"]


def test_instances_of_other_threads_share_the_syncs_of_the_index(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    linked = threading.Semaphore(0)
    real = atomic.fsync_folder

    def counted(folder: Path) -> None:
        real(folder)
        linked.release()

    def slow(descriptor: int) -> None:
        if not syncs:
            for _ in range(6):
                linked.acquire(timeout=5)
        syncs.append(descriptor)

    with archive.incoming() as incoming:
        items = [received(incoming, 1, 1, 1, number) for number in range(1, 7)]
        monkeypatch.setattr(archive_module, "fsync_folder", counted)
        monkeypatch.setattr(journal, "_sync", slow)
        run_all([partial(archive.commit, *item) for item in items])

    assert len(syncs) < 6
    assert len(list(archive.index.instances())) == 6


def test_line_that_is_not_durable_yet_is_no_reason_to_call_an_instance_present(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, answered = threading.Event(), threading.Event()
    real = journal._sync

    def fails_once(descriptor: int) -> None:
        if written.is_set():
            real(descriptor)
            return
        written.set()
        answered.wait(0.5)
        raise OSError(5, "Input/output error")

    def first() -> None:
        with pytest.raises(DcmtoolsError, match="index"):
            archive.commit(*one)

    def second() -> None:
        written.wait(5)
        assert Archive(archive.root).commit(*two).state == "present"
        answered.set()

    with archive.incoming() as incoming:
        one, two = received(incoming), received(incoming)
        monkeypatch.setattr(journal, "_sync", fails_once)
        run_all([first, second])

    assert len(list(archive.index.instances())) == 1


def test_folder_that_another_thread_is_making_is_not_used_before_it_is_durable(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    with archive.incoming():
        pass
    making, used = threading.Event(), threading.Event()
    real = os.fsync
    order: list[str] = []

    def slow(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")) == archive.root and not making.is_set():
            making.set()
            used.wait(0.3)
            order.append("durable")
        real(descriptor)

    def enter() -> None:
        making.wait(5)
        with archive._folder("study"):
            order.append("used")
            used.set()

    def make() -> None:
        with archive._folder("study"):
            pass

    monkeypatch.setattr(os, "fsync", slow)
    run_all([make, enter])

    assert order == ["durable", "used"]


def test_disk_is_asked_in_the_order_that_makes_it_durable(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def note(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **keys: Any) -> Any:
            on = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else str(args[0])
            steps.append(f"{name} {Path(on).name.split('-')[0]}")
            return real(*args, **keys)

        return noted

    with archive.incoming() as incoming:
        item = received(incoming)
        monkeypatch.setattr(os, "fsync", note("fsync", os.fsync))
        monkeypatch.setattr(os, "link", note("link", os.link))
        monkeypatch.setattr(journal, "_sync", note("fdatasync", journal._sync))
        archive.commit(*item)

    study, series = uid(1, 1), uid(1, 1, 1)
    assert steps == [
        "fsync .dcmtools",  # the file
        "fsync archive",  # the new study folder's name
        f"fsync {study}",  # the new series folder's name
        "link .dcmtools",
        f"fsync {series}",  # the file's name
        "fdatasync index.jsonl",
        "fsync archive",  # the new index's name
    ]


@pytest.mark.parametrize("where", ["study", "series"])
def test_link_planted_in_the_archive_leads_nowhere(archive: Archive, tmp_path: Path, where: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    planted = archive.root / Path(PLACE).parts[0] / ("" if where == "study" else Path(PLACE).parts[1])
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.symlink_to(outside)

    with archive.incoming() as incoming:
        bad = received(incoming)
        good = received(incoming, 2)
        with pytest.raises(CannotCreate, match="link"):
            archive.commit(*bad)
        outcomes = archive.commit_all([bad, good])

    assert isinstance(outcomes[0], CannotCreate)
    assert isinstance(outcomes[1], Committed)
    assert list(outside.iterdir()) == []


def test_link_planted_under_the_name_is_not_followed(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (archive.root / PLACE).parent.mkdir(parents=True)
    (archive.root / PLACE).symlink_to(tmp_path / "target")

    with archive.incoming() as incoming:
        committed = archive.commit(*received(incoming))

    assert committed.state == "conflict"
    assert (tmp_path / "target").read_text() == "precious"


def test_archive_may_itself_be_named_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    archive = Archive(tmp_path / "alias")

    with archive.incoming() as incoming:
        assert archive.commit(*received(incoming)).path == tmp_path / "real" / PLACE


@pytest.mark.parametrize("hostile", ["../../x", "", "1.2/3", "a" * 70, "..", None])
@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"])
def test_hostile_uid_has_no_place(archive: Archive, keyword: str, hostile: Any) -> None:
    with pytest.raises(BadData) as caught:
        archive.path_for(make_record(**{keyword: hostile}))

    assert caught.value.cause == "bad-uid"


def test_many_are_committed_with_one_sync_of_the_index(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    monkeypatch.setattr(journal, "_sync", syncs.append)

    with archive.incoming() as incoming:
        items = [received(incoming, 1, 1, 1, number) for number in (1, 2, 3, 3)]
        outcomes = archive.commit_all([*items, received(incoming, 1, 1, 1, 2, PatientID="X")])

    states = [outcome.state for outcome in outcomes if isinstance(outcome, Committed)]
    assert states == ["received", "received", "received", "present", "conflict"]
    assert len(syncs) == 1
    assert len(list(archive.index.instances())) == 3


def test_what_is_no_usable_instance_is_kept_with_its_cause(archive: Archive) -> None:
    with archive.incoming() as incoming:
        kept = []
        for _ in range(2):
            temporary = incoming.new_path()
            temporary.write_bytes(b"damaged")
            kept.append(archive.quarantine(temporary, {"SOPInstanceUID": "../../x"}, "truncated"))

    assert kept[0] == kept[1]
    assert kept[0].parent == archive.root / "quarantine"
    assert kept[0].read_bytes() == b"damaged"
    (event,) = archive.index.events()
    assert (event["event"], event["cause"], event["path"]) == ("quarantined", "truncated", str(kept[0]))
    assert list(archive.index.instances()) == []


def test_index_that_cannot_be_written_is_no_success(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with archive.incoming() as incoming:
        monkeypatch.setattr(journal, "_sync", full)
        with pytest.raises(DiskFull):
            archive.commit(*received(incoming))
        monkeypatch.undo()
        assert list(archive.index.instances()) == []

        assert archive.commit(*received(incoming)).state == "present"
    assert len(list(archive.index.instances())) == 1


def test_space_that_must_stay_free_is_asked_for(archive: Archive) -> None:
    archive.require_free(1)

    with pytest.raises(DiskFull) as caught:
        archive.require_free(1 << 60)

    assert caught.value.exit_code == 74


def test_own_folder_goes_and_those_of_the_dead_are_swept(archive: Archive) -> None:
    code = textwrap.dedent("""
        import sys
        from dcmtools.disk.archive import Archive
        with Archive(sys.argv[1]).incoming() as incoming:
            incoming.new_path().write_text("half")
            print(incoming.folder, flush=True)
            sys.stdin.read()
    """)
    command = [sys.executable, "-c", code, str(archive.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        folder = Path(other.stdout.readline().strip())
        with archive.incoming() as mine:
            assert folder.exists()
        assert not mine.folder.exists()
        other.send_signal(signal.SIGKILL)
        other.wait()

    assert folder.exists()
    with archive.incoming():
        assert not folder.exists()
    assert names(archive) == set()


def test_folder_that_is_just_being_made_is_not_swept(archive: Archive) -> None:
    def use(found: list[bool]) -> None:
        for _ in range(25):
            with archive.incoming() as incoming:
                incoming.new_path().touch()
                found.append(incoming.folder.exists())

    found: list[bool] = []
    threads = [threading.Thread(target=use, args=(found,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [True] * 100


def test_stopped_sweeper_does_not_stop_the_others_for_ever(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    with archive.incoming():
        pass
    monkeypatch.setattr(archive_module, "_PATIENCE", 0.1)
    lock = os.open(archive.root / INCOMING / ".lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)

    with pytest.raises(DcmtoolsError) as caught, archive.incoming():
        pass

    os.close(lock)
    assert caught.value.exit_code == 75


RECEIVE = """
    import sys
    from pathlib import Path
    from dcmtools.disk.archive import Archive
    from dcmtools.disk.copying import copy
    from dcmtools.disk.header import read_header
    archive = Archive(sys.argv[1])
    with archive.incoming() as incoming:
        for source in sorted(Path(sys.argv[2]).iterdir()):
            temporary = incoming.new_path()
            copy(source, temporary)
            committed = archive.commit(temporary, read_header(temporary))
            print(committed.record["SOPInstanceUID"], flush=True)
"""


def test_what_a_killed_receiver_had_acknowledged_is_there_and_whole(archive: Archive, tmp_path: Path) -> None:
    for number in range(1, 121):
        write_instance(tmp_path / "in" / f"{number:03}", 1, 1, number % 4 + 1, number)
    chance = random.Random(11)
    command = [sys.executable, "-c", textwrap.dedent(RECEIVE), str(archive.root), str(tmp_path / "in")]
    acknowledged: set[str] = set()

    for _ in range(6):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiver:
            assert receiver.stdout
            for _ in range(chance.randrange(1, 100)):
                acknowledged.add(receiver.stdout.readline().strip())
            receiver.send_signal(signal.SIGKILL)
        index = archive.index.lookup(acknowledged)
        assert set(index) == acknowledged
        for record in index.values():
            assert {**read_header(record["path"]), "mtime_ns": record["mtime_ns"]} == record
    subprocess.run(command, check=True, capture_output=True)

    assert len(list(archive.index.instances())) == 120
    assert len(names(archive)) == 120
