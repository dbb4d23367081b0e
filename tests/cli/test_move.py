"""`dcmtools move` as a process: in a pipe with find, beside a listen, and when something goes wrong."""

import json
import resource
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcmtools.disk.index import Index
from dcmtools.model.record import Record
from tests.builders import uid, write_series
from tests.conftest import RunDcmtools, StartDcmtools
from tests.network.pacs import fill, scripted, write_studies
from tests.peers.processes import Orthanc, Peer, RunTool, StartOrthanc
from tests.waiting import is_listening, wait_until

STUDY = ["--study-uid", uid(1, 1)]


@pytest.fixture
def port(free_port: Callable[[], int]) -> int:
    """The port at which PACS know us as DEST."""
    return free_port()


@pytest.fixture
def environment(environment: dict[str, str], tmp_path: Path, port: int) -> dict[str, str]:
    """That of all tests, with our AE title, our port and our archive."""
    ours = {"AE_TITLE": "DEST", "PORT": str(port), "BIND": "127.0.0.1", "ARCHIVE": str(tmp_path / "archive")}
    return {**environment, **{f"DCMTOOLS_{key}": value for key, value in ours.items()}}


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    return write_studies(tmp_path / "studies")


@pytest.fixture
def pacs(orthanc: StartOrthanc, tool: RunTool, studies: Path, port: int) -> Orthanc:
    """An Orthanc with all studies, which knows us."""
    peer = orthanc({"DEST": port})
    fill(peer, studies, tool)
    return peer


@pytest.fixture
def big_pacs(orthanc: StartOrthanc, tool: RunTool, tmp_path: Path, port: int) -> Orthanc:
    """An Orthanc with one series of 150 instances, which knows us."""
    peer = orthanc({"DEST": port})
    write_series(tmp_path / "big", 150, side=128)
    fill(peer, tmp_path / "big", tool)
    return peer


def records(stdout: str) -> list[Record]:
    return [json.loads(line) for line in stdout.splitlines()]


def counted(stdout: str) -> dict[str, int]:
    """How many records there are of each state or event, but for the frame's own."""
    words = Counter(str(one.get("state") or one.get("event") or one["type"]) for one in records(stdout))
    assert words.pop("begin", 0) == words.pop("end", 0) == 1
    return dict(words)


def held(tmp_path: Path) -> int:
    """How many instances the archive has."""
    return sum(1 for _ in Index(tmp_path / "archive" / "index.jsonl").instances())


def test_what_find_finds_is_moved_and_a_second_run_transfers_nothing(
    start_dcmtools: StartDcmtools, pacs: Orthanc, tmp_path: Path
) -> None:
    def run() -> str:
        find = start_dcmtools("find", "--node", pacs.node, "--patient-name", "müller*")
        assert find.stdout is not None
        move = start_dcmtools("move", "-", stdin=find.stdout)
        find.stdout.close()
        out, _ = move.communicate(timeout=60)
        assert (find.wait(10), move.returncode) == (0, 0)
        return out

    assert counted(run()) == {"received": 12, "series-complete": 4, "study-complete": 2}
    assert counted(run()) == {"present": 12, "series-complete": 4, "study-complete": 2}
    assert held(tmp_path) == 12
    assert (tmp_path / "stderr-2.txt").read_text() == ""


def test_selectors_choose_at_the_node(dcmtools: RunDcmtools, pacs: Orthanc) -> None:
    done = dcmtools("move", "--from", pacs.node, "--modality", "CT", "--level", "series")

    assert done.returncode == 0, done.stderr
    assert counted(done.stdout) == {"received": 3, "series-complete": 1}


def test_new_leaves_out_what_was_here(dcmtools: RunDcmtools, pacs: Orthanc) -> None:
    dcmtools("move", "--from", pacs.node, "--study-uid", uid(1, 1))

    done = dcmtools("move", "--from", pacs.node, "--patient-id", "P1", "--new")

    assert done.returncode == 0, done.stderr
    assert counted(done.stdout)["received"] == 6
    assert "present" not in counted(done.stdout)


def test_a_dry_run_tells_the_plan_and_opens_no_port(
    dcmtools: RunDcmtools, pacs: Orthanc, tmp_path: Path, port: int
) -> None:
    with socket.create_server(("127.0.0.1", port)):
        done = dcmtools("move", "--from", pacs.node, *STUDY, "--dry-run")

    assert done.returncode == 0, done.stderr
    assert counted(done.stdout) == {"planned": 2}
    assert held(tmp_path) == 0


def test_records_of_several_levels_and_strangers_go_through_one_run(dcmtools: RunDcmtools, pacs: Orthanc) -> None:
    wanted: list[Record] = [
        {"type": "study", "StudyInstanceUID": uid(1, 1), "node": pacs.node},
        {"type": "volume", "path": "/x.nii.gz"},
        {"type": "series", "StudyInstanceUID": uid(1, 2), "SeriesInstanceUID": uid(1, 2, 1), "node": pacs.node},
        {"type": "study", "StudyInstanceUID": uid(2, 3)},
        {"type": "study", "StudyInstanceUID": uid(2, 3), "node": "NOBODY"},
        {"type": "error", "cause": "x", "reason": "from upstream", "exit_code": 69},
    ]

    done = dcmtools("move", "-", stdin="".join(json.dumps(record) + "\n" for record in wanted))

    told = records(done.stdout)
    assert done.returncode == 3
    assert counted(done.stdout)["received"] == 9
    assert {"type": "volume", "path": "/x.nii.gz"} in told
    assert [record["exit_code"] for record in told if record["type"] == "error"] == [2, 78, 69]
    assert "a study record names no node; give --from NODE" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "A@b:1"], "nothing was chosen; use a selector, records on stdin (-), or --all"),
        (["--all"], "from which node?; give --from NODE"),
        (["-", "--all"], "selectors do not choose from what is given"),
        (["study", "--from", "A@b:1"], "move takes no 'study'"),
        (["-", "--grace", "soon"], "'soon' is not a duration"),
        (["-", "--index", "x"], "the archive keeps its own index"),
    ],
)
def test_a_call_that_means_nothing_ends_with_2(dcmtools: RunDcmtools, arguments: list[str], words: str) -> None:
    done = dcmtools("move", *arguments)

    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize("kind", ["orthanc", "dcmqrscp"])
def test_a_pacs_that_does_not_know_us_ends_with_77_and_says_what_to_register(
    kind: str, request: pytest.FixtureRequest, dcmtools: RunDcmtools, tool: RunTool, studies: Path, port: int
) -> None:
    peer: Peer = request.getfixturevalue(kind)({})
    fill(peer, studies, tool)

    done = dcmtools("move", "--from", peer.node, *STUDY)

    assert done.returncode == 77
    assert f"register AE title DEST, this machine's address and port {port} at it" in done.stderr
    assert [record["event"] for record in records(done.stdout) if record["type"] == "event"] == [
        "begin", "incomplete", "incomplete", "end"
    ]  # fmt: skip


def test_an_unreachable_node_ends_with_69(dcmtools: RunDcmtools, free_port: Callable[[], int]) -> None:
    done = dcmtools("move", "--from", f"PACS@127.0.0.1:{free_port()}", "--all")

    assert done.returncode == 69
    assert "Connection refused" in done.stderr


def test_a_port_that_another_program_holds_ends_with_75_unless_there_is_time_to_wait(
    dcmtools: RunDcmtools, pacs: Orthanc, port: int
) -> None:
    holder = socket.create_server(("127.0.0.1", port))
    done = dcmtools("move", "--from", pacs.node, *STUDY)
    assert done.returncode == 75
    assert f"port {port} is held by another program" in done.stderr

    threading.Timer(1.0, holder.close).start()
    assert dcmtools("move", "--from", pacs.node, *STUDY, "--wait", "30s").returncode == 0


def test_a_running_listen_receives_for_a_move_of_its_archive(
    dcmtools: RunDcmtools, start_dcmtools: StartDcmtools, pacs: Orthanc, port: int
) -> None:
    listen = start_dcmtools("listen")
    wait_until(lambda: is_listening(port), what="our listen")

    done = dcmtools("move", "--from", pacs.node, *STUDY)

    assert done.returncode == 0, done.stderr
    assert counted(done.stdout) == {"received": 6, "series-complete": 2, "study-complete": 1}
    listen.send_signal(signal.SIGTERM)
    assert listen.wait(20) == 0


def test_a_second_move_at_the_same_time_ends_with_75(
    dcmtools: RunDcmtools, start_dcmtools: StartDcmtools, pacs: Orthanc, port: int
) -> None:
    first = start_dcmtools("move", "-", "--from", pacs.node, stdin=subprocess.PIPE)
    assert first.stdin is not None
    first.stdin.write(json.dumps({"type": "study", "StudyInstanceUID": uid(1, 1)}) + "\n")
    first.stdin.flush()
    wait_until(lambda: is_listening(port), what="the first move")

    second = dcmtools("move", "--from", pacs.node, *STUDY)
    out, _ = first.communicate(timeout=30)

    assert second.returncode == 75
    assert "is being filled by process" in second.stderr
    assert first.returncode == 0
    assert counted(out)["received"] == 6


def test_nobody_has_to_read_what_move_writes_while_it_moves(
    start_dcmtools: StartDcmtools, big_pacs: Orthanc, tmp_path: Path
) -> None:
    move = start_dcmtools("move", "--from", big_pacs.node, "--all")
    wait_until(lambda: held(tmp_path) == 150, what="all instances", timeout=60)

    out, _ = move.communicate(timeout=30)

    assert move.returncode == 0
    assert len(out) > 1 << 17  # more than a pipe takes
    assert counted(out) == {"received": 150, "series-complete": 1, "study-complete": 1}


def test_sigterm_in_the_middle_ends_with_143_and_the_next_run_completes(
    dcmtools: RunDcmtools, start_dcmtools: StartDcmtools, big_pacs: Orthanc, tmp_path: Path
) -> None:
    move = start_dcmtools("move", "--from", big_pacs.node, "--all")
    wait_until(lambda: held(tmp_path) > 0, what="the first instance")
    move.send_signal(signal.SIGTERM)
    out, _ = move.communicate(timeout=30)

    assert move.returncode == 143
    received = counted(out)["received"]
    assert counted(out) == {"received": received, "incomplete": 1}
    assert received < 150

    done = dcmtools("move", "--from", big_pacs.node, "--all")
    assert done.returncode == 0, done.stderr
    assert counted(done.stdout) == {
        "present": received, "received": 150 - received, "series-complete": 1, "study-complete": 1
    }  # fmt: skip


def test_a_move_that_was_killed_is_completed_by_the_next_run(
    dcmtools: RunDcmtools, start_dcmtools: StartDcmtools, big_pacs: Orthanc, tmp_path: Path
) -> None:
    move = start_dcmtools("move", "--from", big_pacs.node, "--all")
    wait_until(lambda: held(tmp_path) > 0, what="the first instance")
    move.kill()
    move.wait()
    before = held(tmp_path)

    done = dcmtools("move", "--from", big_pacs.node, "--all", "--wait", "10s")

    assert done.returncode == 0, done.stderr
    told = counted(done.stdout)
    assert told["present"] >= before
    assert told["present"] + told["received"] == held(tmp_path) == 150


def test_a_reader_that_goes_ends_it_with_75(start_dcmtools: StartDcmtools, big_pacs: Orthanc, tmp_path: Path) -> None:
    move = start_dcmtools("move", "--from", big_pacs.node, "--all")
    assert move.stdout is not None
    move.stdout.readline()
    move.stdout.close()

    assert move.wait(30) == 75


def test_a_deadline_ends_a_silent_node_with_75(dcmtools: RunDcmtools) -> None:
    def say_nothing(association: Any) -> None:
        association.receive(idle=20)
        association.read_data()
        association.wait(20)

    with scripted(say_nothing) as pacs_port:
        done = dcmtools("move", "--from", f"PACS@127.0.0.1:{pacs_port}", "--all", "--deadline", "1s")

    assert done.returncode == 75
    assert "the deadline passed" in done.stderr


def test_a_full_disk_ends_it_with_74_and_what_came_before_is_kept(
    start_dcmtools: StartDcmtools, dcmtools: RunDcmtools, big_pacs: Orthanc, tmp_path: Path
) -> None:
    """The limit on the size of files stands for a disk that takes no more: the index outgrows it."""
    move = start_dcmtools("move", "--from", big_pacs.node, "--all")
    resource.prlimit(move.pid, resource.RLIMIT_FSIZE, (40_000, 40_000))
    out, _ = move.communicate(timeout=60)

    assert move.returncode == 74
    assert "free some space" in (tmp_path / "stderr-1.txt").read_text()
    before = held(tmp_path)
    assert counted(out).get("received", 0) == before < 150

    done = dcmtools("move", "--from", big_pacs.node, "--all")
    assert done.returncode == 0, done.stderr
    assert held(tmp_path) == 150


def test_a_node_that_sends_to_another_port_is_told_apart(
    dcmtools: RunDcmtools, pacs: Orthanc, tmp_path: Path, environment: dict[str, str]
) -> None:
    nodes = tmp_path / "nodes.ini"
    nodes.write_text(
        f"[one]\nae_title = {pacs.ae_title}\nhost = 127.0.0.1\nport = {pacs.port}\n"
        f"[two]\nae_title = {pacs.ae_title}\nhost = 127.0.0.1\nport = {pacs.port}\nlisten_port = 104\n"
    )
    wanted = [{"type": "study", "StudyInstanceUID": uid(1, 1), "node": name} for name in ("one", "two")]

    done = dcmtools("move", "-", "--nodes", nodes, stdin="".join(json.dumps(one) + "\n" for one in wanted))

    assert done.returncode == 3
    assert "two sends to port 104, and this move receives at" in done.stderr
    assert counted(done.stdout)["received"] == 6


def test_neither_a_move_nor_an_echo_loads_what_is_slow(
    dcmtools: RunDcmtools, pacs: Orthanc, environment: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import sys; sys.argv = ['dcmtools', *sys.argv[1:]]\n"
        "from dcmtools.cli.main import app\n"
        "app(standalone_mode=False)\n"
        "slow = {'numpy', 'pydicom', 'pynetdicom', 'rich', 'nibabel', 'PIL', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {slow}' if slow else 0)\n"
    )
    import sys

    for words in (["echo", pacs.node], ["find", "--node", pacs.node], ["move", "--from", pacs.node, *STUDY]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_limit_beside_records_is_refused(dcmtools: RunDcmtools) -> None:
    done = dcmtools("move", "-", "--limit", "1")

    assert (done.returncode, "--limit" in done.stderr) == (2, True)
