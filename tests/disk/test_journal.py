import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.disk import journal
from dcmtools.disk.journal import Journal
from dcmtools.model.errors import CannotCreate, DiskFull, Locked
from dcmtools.model.record import encode
from tests.waiting import wait_until

WRITE = """
    import sys
    from pathlib import Path
    from dcmtools.disk.journal import Journal
    from dcmtools.model.record import encode
    journal, name = Journal(Path(sys.argv[1])), sys.argv[2]
    for number in range(int(sys.argv[3])):
        journal.append(encode({"name": name, "number": number, "ballast": "x" * 3000}))
        print(number, flush=True)
"""


def start_writer(file: Path, name: str, count: int, limit: int | None = None) -> subprocess.Popen[str]:
    code = textwrap.dedent(WRITE)
    if limit:
        code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n" + code
    command = [sys.executable, "-c", code, str(file), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def numbers(file: Path, name: str) -> list[int]:
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [record["number"] for record in records if record.get("name") == name]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "index.jsonl"


def test_lines_are_there_when_append_returns(file: Path) -> None:
    Journal(file).append(b'{"a":1}\n')
    Journal(file).append(b'{"a":2}\n{"a":3}\n')

    assert file.read_bytes() == b'{"a":1}\n{"a":2}\n{"a":3}\n'
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in file.parent.iterdir()) == ["index.jsonl", "index.lock"]


@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        (b'{"a":2}', b'{"a":2}\n'),
        (b'{"a":2', b""),
        (b"\0\0\0", b""),
        (b"{", b""),
        (b"[1]", b""),
        (b'{"a":' + b"9" * 200_000, b""),
    ],
)
def test_next_writer_mends_what_a_killed_one_left(file: Path, tail: bytes, kept: bytes) -> None:
    file.write_bytes(b'{"a":1}\n' + tail)

    Journal(file).append(b'{"a":3}\n')

    assert file.read_bytes() == b'{"a":1}\n' + kept + b'{"a":3}\n'


@given(st.integers(0, 60))
def test_file_that_was_cut_anywhere_loses_no_whole_line(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    file = tmp_path_factory.getbasetemp() / "cut.jsonl"
    whole = b'{"number":1}\n{"number":22}\n{"number":333}\n'
    file.write_bytes(whole[:length])

    Journal(file).append(b'{"number":4}\n')

    found = [json.loads(line)["number"] for line in file.read_bytes().splitlines()]
    ended = [
        number for number in (1, 22, 333) if len(whole[: whole.index(b"%d}" % number) + len(b"%d}" % number)]) <= length
    ]
    assert found == [*ended, 4]


def test_two_processes_lose_nothing(file: Path) -> None:
    writers = [start_writer(file, name, 200) for name in ("a", "b")]
    for writer in writers:
        writer.communicate(timeout=60)

    assert numbers(file, "a") == numbers(file, "b") == list(range(200))


def test_what_a_killed_writer_had_reported_is_there(file: Path) -> None:
    chance = random.Random(7)
    steady = start_writer(file, "steady", 300)
    reported: dict[str, int] = {}
    for round_ in range(6):
        name = f"killed {round_}"
        with start_writer(file, name, 100_000) as writer:
            assert writer.stdout
            for _ in range(chance.randrange(1, 40)):
                reported[name] = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
    steady.communicate(timeout=60)
    Journal(file).append(encode({"name": "last", "number": 0}))

    assert numbers(file, "steady") == list(range(300))
    for name, last in reported.items():
        found = numbers(file, name)
        assert found == list(range(len(found)))
        assert found[-1] >= last


def test_full_disk_leaves_the_file_as_it_was(file: Path) -> None:
    writer = start_writer(file, "a", 100, limit=100_000)
    said, error = writer.communicate(timeout=60)

    assert "DiskFull" in error
    reported = [int(line) for line in said.split()]
    assert numbers(file, "a") == reported
    assert file.read_bytes().endswith(b"\n")

    Journal(file).append(encode({"name": "a", "number": len(reported)}))
    assert numbers(file, "a")[-1] == len(reported)


def test_threads_share_writes_and_lose_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    real = journal._sync

    def count(descriptor: int) -> None:
        syncs.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(journal, "_sync", count)
    shared = Journal(file)

    def write(name: str) -> None:
        for number in range(50):
            shared.append(encode({"name": name, "number": number}))

    threads = [threading.Thread(target=write, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(numbers(file, str(number)) == list(range(50)) for number in range(8))
    assert len(syncs) <= 400


def test_failure_is_told_to_all_threads_of_the_batch(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Journal(file)
    entered, go_on = threading.Event(), threading.Event()

    def fail(descriptor: int) -> None:
        entered.set()
        go_on.wait(20)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "_sync", fail)
    told: list[str] = []

    def write(number: int) -> None:
        try:
            shared.append(b'{"number":%d}\n' % number)
        except DiskFull:
            told.append("full")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    threads[0].start()
    entered.wait(20)
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: len(shared._collected.lines) == 3)
    go_on.set()
    for thread in threads:
        thread.join()

    assert told == ["full"] * 4
    assert file.read_bytes() == b""


def test_writer_that_was_stopped_in_the_act_does_not_stop_the_others_for_ever(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "PATIENCE", 0.2)

    with Journal(file).locked(), pytest.raises(Locked):
        Journal(file).append(b"{}\n")

    Journal(file).append(b"{}\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_folder_that_may_not_be_written_is_said_to_be(file: Path) -> None:
    file.parent.chmod(0o500)

    with pytest.raises(CannotCreate):
        Journal(file).append(b"{}\n")

    file.parent.chmod(0o700)


def test_a_fork_holds_the_lock_for_itself(tmp_path: Path) -> None:
    program = """
import os, sys, time
from pathlib import Path
from dcmtools.disk.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.append(b"parent 1\\n")
due, go = os.pipe()
child = os.fork()
if not child:
    os.read(due, 1)
    journal.append(b"child\\n")
    os._exit(0)
with journal.locked():
    os.write(go, b"!")
    for _ in range(30):  # it must not come through meanwhile
        if os.waitpid(child, os.WNOHANG)[0]:
            sys.exit("it did not wait")
        time.sleep(0.01)
os.waitpid(child, 0)
journal.append(b"parent 2\\n")
"""
    file = tmp_path / "index.jsonl"

    subprocess.run([sys.executable, "-c", program, str(file)], check=True, timeout=60)

    assert file.read_bytes() == b"parent 1\nchild\nparent 2\n"
