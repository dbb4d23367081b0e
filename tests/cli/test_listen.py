import contextlib
import json
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dcmtools.disk.archive import Archive
from dcmtools.model.record import Record
from tests.builders import uid, write_instance, write_series
from tests.conftest import RunDcmtools, StartDcmtools
from tests.peers.processes import RunTool

Lines = Iterator[Record]


def lines(process: subprocess.Popen[str]) -> Lines:
    assert process.stdout
    return map(json.loads, process.stdout)


def test_the_first_record_says_where_it_listens_and_the_next_what_came(
    start_dcmtools: StartDcmtools, tool: RunTool, tmp_path: Path
) -> None:
    process = start_dcmtools("listen", "--port", 0, "--aet", "OURS", "--archive", "archive", "--count", 3)
    told = lines(process)
    first = next(told)
    assert (first["event"], first["ae_title"], first["pid"]) == ("listening", "OURS", process.pid)

    sent = tool(
        "storescu", "-aet", "THEM", "-aec", "OURS", "127.0.0.1", first["port"], *write_series(tmp_path / "in", 3)
    )

    assert sent.returncode == 0
    *came, end = told
    assert (end["event"], end["exit_code"]) == ("end", 0)
    assert [one["state"] for one in came] == ["received"] * 3
    assert {one["node"] for one in came} == {"THEM"}
    assert [one["SOPInstanceUID"] for one in came] == [uid(1, 1, 1, number) for number in (1, 2, 3)]
    assert all(Path(one["path"]).is_file() for one in came)
    assert process.wait(20) == 0


@pytest.mark.parametrize("answer", ["first", "newest"])
def test_of_two_contents_under_one_uid_both_are_kept_and_the_one_that_was_chosen_is_the_answer(
    start_dcmtools: StartDcmtools, tool: RunTool, tmp_path: Path, answer: str
) -> None:
    process = start_dcmtools("listen", "--port", 0, "--archive", "archive", "--on-duplicate", answer)
    told = lines(process)
    port = next(told)["port"]

    for name in ("old", "new"):
        tool("storescu", "127.0.0.1", port, write_instance(tmp_path / name, PatientID=name))
    states = [one["state"] for one in (next(told), next(told))]
    process.terminate()

    assert process.wait(20) == 0
    assert states == (["received", "conflict"] if answer == "first" else ["received", "received"])
    archive = Archive(tmp_path / "archive")
    assert [one["PatientID"] for one in archive.index.instances()] == ["old" if answer == "first" else "new"]
    (everywhere,) = archive.index.everywhere([uid(1, 1, 1, 1)]).values()
    assert {one["PatientID"] for one in everywhere} == {"old", "new"}
    assert all(Path(one["path"]).is_file() for one in everywhere)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_it(start_dcmtools: StartDcmtools, number: int) -> None:
    process = start_dcmtools("listen", "--port", 0, "--archive", "archive")
    next(lines(process))

    process.send_signal(number)

    assert process.wait(20) == (0 if number == signal.SIGTERM else 130)


def test_who_only_looks_whether_the_port_is_open_is_not_told_of(start_dcmtools: StartDcmtools, tmp_path: Path) -> None:
    process = start_dcmtools("listen", "--port", 0, "--archive", "archive", "--bind", "127.0.0.1")
    port = next(lines(process))["port"]
    for said in (b"", b"GET / HTTP/1.0\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(said)
            peer.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while peer.recv(4096):
                    pass
    process.terminate()

    assert process.wait(20) == 0
    (told,) = (tmp_path / "stderr-1.txt").read_text().splitlines()
    assert "the peer sent no DICOM PDU" in told


def test_a_reader_that_goes_away_ends_it_with_75(start_dcmtools: StartDcmtools, tool: RunTool, tmp_path: Path) -> None:
    process = start_dcmtools("listen", "--port", 0, "--archive", "archive")
    port = next(lines(process))["port"]
    assert process.stdout
    process.stdout.close()
    process.stdout = None

    tool("storescu", "127.0.0.1", port, *write_series(tmp_path / "in", 1))

    assert process.wait(30) == 75


def test_two_on_one_archive_or_one_port_end_with_75_and_say_who_is_in_the_way(
    start_dcmtools: StartDcmtools, dcmtools: RunDcmtools, free_port: Callable[[], int]
) -> None:
    port = free_port()
    process = start_dcmtools("listen", "--port", port, "--aet", "FIRST", "--archive", "archive")
    next(lines(process))

    same_archive = dcmtools("listen", "--port", 0, "--archive", "archive")
    same_port = dcmtools("listen", "--port", port, "--archive", "other")

    assert same_archive.returncode == same_port.returncode == 75
    assert f"process {process.pid}, FIRST on port {port}" in same_archive.stderr
    assert json.loads(same_archive.stdout)["holder"]["pid"] == process.pid
    assert f"port {port} is held by another program" in same_port.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--min-free", "lots"], 2, "is not a size"),
        (["--aet", "a name that is far too long"], 78, "is not an AE title"),
        (["--compression", "jpeg-xyz"], 78, "is not a transfer syntax"),
        (["--index", "x.jsonl"], 2, "the archive keeps its own index"),
        (["--dry-run"], 2, "--dry-run"),
        (["--allow-host", "pacs"], 2, "is not an address"),
        (["--tls-ca", "ca.pem"], 2, "go with --tls-cert"),
        (["--tls-cert", "none.pem"], 78, "none.pem"),
        (["--fsync", "maybe"], 2, "fsync"),
        (["--archive", "file/archive"], 73, "file/archive"),
    ],
)
def test_what_cannot_begin_says_why(
    dcmtools: RunDcmtools, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    (tmp_path / "file").write_text("in the way")

    done = dcmtools("listen", "--port", 0, *words)

    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_as_a_small_pacs_it_answers_queries_and_retrievals(
    start_dcmtools: StartDcmtools, dcmtools: RunDcmtools, tool: RunTool, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    write_series(tmp_path / "in", 3)
    assert dcmtools("import", "in", "--archive", "archive").returncode == 0
    back = free_port()
    assert dcmtools("nodes", "add", "DEST", f"DEST@127.0.0.1:{back}").returncode == 0
    process = start_dcmtools("listen", "--port", 0, "--aet", "OURS", "--archive", "archive", "--query-retrieve")
    port = next(lines(process))["port"]
    key = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={uid(1, 1)}")

    found = tool("findscu", "-S", "127.0.0.1", port, *key, "-k", "PatientName")
    (tmp_path / "moved").mkdir()
    (tmp_path / "got").mkdir()
    moved = tool("movescu", "-S", "-aet", "DEST", "+P", back, "-od", "moved", "127.0.0.1", port, *key)
    got = tool("getscu", "-S", "-od", "got", "127.0.0.1", port, *key)

    assert "Patient^Number 1" in found.stdout + found.stderr
    assert (moved.returncode, got.returncode) == (0, 0), moved.stderr + got.stderr
    assert len(list((tmp_path / "moved").iterdir())) == len(list((tmp_path / "got").iterdir())) == 3
    process.terminate()
    assert process.wait(20) == 0


def test_its_stream_is_framed_by_its_first_word_and_its_end(
    start_dcmtools: StartDcmtools, dcmtools: RunDcmtools, tmp_path: Path
) -> None:
    process = start_dcmtools("listen", "--port", 0, "--archive", "archive", "--bind", "127.0.0.1")
    assert process.stdout is not None
    first = process.stdout.readline()
    process.terminate()
    rest = process.stdout.read()

    assert process.wait(30) == 0
    assert dcmtools("find", "-", stdin=first + rest).returncode == 0
    assert dcmtools("find", "-", stdin=first).returncode == 3
