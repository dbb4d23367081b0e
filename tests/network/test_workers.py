"""`dcmtools listen --workers`: several processes at one port, which behave as one receiver."""

import contextlib
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from dcmtools.disk.archive import Archive
from dcmtools.disk.header import check_received, read_meta
from dcmtools.model.errors import DcmtoolsError, ProtocolError, TryLater
from dcmtools.model.node import Local
from dcmtools.model.record import Record
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN
from dcmtools.network import crew, pdu
from dcmtools.network.crew import Crew
from dcmtools.network.echo import verify
from dcmtools.network.listen import Options
from dcmtools.network.requestor import request
from dcmtools.network.worker import Orders
from tests.builders import uid, write_series
from tests.conftest import RunDcmtools, StartDcmtools
from tests.network.certificates import Certificates
from tests.network.storing import (
    MR,
    begin,
    client,
    encoded,
    files,
    finish,
    left_behind,
    node,
    send,
    takes_connections,
)
from tests.peers.processes import RunTool
from tests.waiting import wait_until


class Service:
    """A running `dcmtools listen --workers 2`, and the records that it has printed so far."""

    def __init__(self, process: Popen[str], archive: Path) -> None:
        self.process, self.archive = process, archive
        self.records: list[Record] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(lambda: self.records, what="it listens")
        self.first = self.records[0]
        self.port: int = self.first["port"]

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.records.append(json.loads(line))

    @property
    def workers(self) -> list[int]:
        return children(self.process.pid)

    def instances(self) -> list[Record]:
        return [one for one in self.records if one["type"] == "instance"]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def end_children(self) -> None:
        """Ends what a program runs that was started in place of it, such as strace."""
        for pid in children(self.process.pid):
            os.kill(pid, signal.SIGTERM)

    def wait(self) -> int:
        code = self.process.wait(30)
        self._reader.join(10)
        return code


def children(pid: int) -> list[int]:
    """The processes that a process has started, in whichever of its threads."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(one) for task in tasks for one in task.read_text().split())


def seconds_of(pid: int) -> float:
    """The processor time that a process took so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_there(pid: int) -> bool:
    """Whether a process runs that no one has to bury."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


Serve = Callable[..., Service]


@pytest.fixture
def serve(start_dcmtools: StartDcmtools, tmp_path: Path) -> Serve:
    def start(*options: object) -> Service:
        words = ("listen", "--workers", 2, "--archive", "archive", "--port", 0, "--aet", "OURS", *options)
        return Service(start_dcmtools(*words), tmp_path / "archive")

    return start


def sender_of(port: int, patient: int, count: int) -> threading.Thread:
    """A thread that sends so many instances of one study, the series being numbered by who sends them."""

    def run() -> None:
        with client(port) as association:
            for number in range(1, count + 1):
                data = encoded(1, 1, patient, number)
                assert send(association, data, uid(1, 1, patient, number))["Status"] == 0

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_one_record_tells_the_port_and_two_senders_at_once_are_served_by_two_processes(serve: Serve) -> None:
    service = serve()
    with client(service.port) as one, client(service.port) as two:
        data = {association: encoded(1, 1, number, 1) for number, association in enumerate((one, two), start=1)}
        for association, bytes_ in data.items():
            begin(association, bytes_[:200], uid(1, 1, 1 if association is one else 2, 1))
        wait_until(lambda: len(left_behind(service.archive)) == 2)
        folders = {path.parent.name for path in left_behind(service.archive)}
        for association, bytes_ in data.items():
            assert finish(association, bytes_[200:])["Status"] == 0

    assert len(folders) == 2
    assert {int(name.split("-")[1]) for name in folders} == set(service.workers)
    assert service.end() == 0
    assert service.first == {
        "type": "event", "event": "listening", "port": service.port, "ae_title": "OURS",
        "pid": service.process.pid, "workers": 2,
    }  # fmt: skip
    assert [one["event"] for one in service.records if one["type"] == "event"] == ["listening", "end"]
    assert [one["state"] for one in service.instances()] == ["received"] * 2


def test_kill_of_a_worker_under_load_is_told_it_is_replaced_and_nothing_acknowledged_is_lost(serve: Serve) -> None:
    service = serve()
    before = service.workers
    acknowledged: list[str] = []
    many = threading.Event()
    broken: list[int] = []

    def sender(patient: int) -> None:
        try:
            with client(service.port) as association:
                for number in range(1, 10_000):
                    instance = uid(patient, 1, 1, number)
                    if send(association, encoded(patient, 1, 1, number, side=256), instance)["Status"] == 0:
                        acknowledged.append(instance)
                    if len(acknowledged) > 30:
                        many.set()
                    if broken and number > 100:
                        return
        except ProtocolError:
            broken.append(patient)

    threads = [threading.Thread(target=sender, args=(patient,)) for patient in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    assert many.wait(30)
    os.kill(before[0], signal.SIGKILL)
    for thread in threads:
        thread.join(60)

    assert len(broken) == 2
    wait_until(lambda: len(service.workers) == 2 and before[0] not in service.workers, what="another took its place")
    wait_until(lambda: not leavings_of(service.archive, before[0]), what="what it left is tidied")
    with client(service.port) as one, client(service.port) as two:
        verify(one)
        verify(two)
    assert service.end() == 0

    (told,) = [one for one in service.records if one["type"] == "error" and one["cause"] == "worker-died"]
    assert f"{before[0]} was ended by SIGKILL" in told["reason"]
    assert set(acknowledged) <= {one["SOPInstanceUID"] for one in service.instances()}
    indexed = {one["SOPInstanceUID"]: Path(one["path"]) for one in Archive(service.archive).index.instances()}
    for instance in acknowledged:
        meta = read_meta(indexed[instance])
        assert check_received(indexed[instance], meta.sop_class, meta.sop_instance, meta.syntax, meta.offset)


def leavings_of(archive: Path, pid: int) -> list[Path]:
    return list((archive / ".dcmtools-incoming").glob(f".dcmtools-{pid}-*"))


def test_limits_hold_for_all_workers_together_and_who_is_killed_gives_its_places_back(serve: Serve) -> None:
    service = serve("--max-associations", 3)
    with ExitStack() as stack:
        for _ in range(3):
            verify(stack.enter_context(client(service.port)))
        with pytest.raises(TryLater, match="local limit exceeded"):
            stack.enter_context(client(service.port))
        os.kill(service.workers[0], signal.SIGKILL)
        wait_until(lambda: any(one["type"] == "error" for one in service.records))
        for _ in range(2):  # the one that was killed had two of the three
            verify(stack.enter_context(client(service.port)))
        with pytest.raises(TryLater, match="local limit exceeded"):
            stack.enter_context(client(service.port))


def test_a_host_has_its_share_of_all_workers_and_not_of_each(serve: Serve) -> None:
    service = serve("--max-per-host", 1)
    with client(service.port) as association:
        verify(association)
        with pytest.raises(TryLater, match="local limit exceeded"), client(service.port):
            pass
    assert service.end() == 0


def test_what_ends_it_by_itself_is_counted_over_all_workers(serve: Serve) -> None:
    service = serve("--count", 6)
    for thread in [sender_of(service.port, patient, 3) for patient in (1, 2)]:
        thread.join(30)

    assert service.wait() == 0
    assert len(service.instances()) == 6


def test_once_means_one_association_that_stored_with_any_of_them(serve: Serve) -> None:
    service = serve("--once")
    with client(service.port) as one, client(service.port) as two:
        verify(one)
        assert send(two, encoded())["Status"] == 0
        assert service.process.poll() is None

    assert service.wait() == 0
    assert len(service.instances()) == 1


def test_it_ends_by_itself_when_no_worker_has_an_association_for_a_while(serve: Serve) -> None:
    assert serve("--idle-exit", "0.1s").wait() == 0


def test_a_study_that_came_over_several_workers_runs_its_command_once(serve: Serve, tmp_path: Path) -> None:
    note = f"import sys; open({str(tmp_path / 'studies')!r}, 'a').write(sys.stdin.read())"
    service = serve("--on-study", f'{sys.executable} -c "{note}"', "--settle", "1s")
    for thread in [sender_of(service.port, patient, 4) for patient in (1, 2)]:
        thread.join(30)

    wait_until((tmp_path / "studies").exists)
    assert service.end() == 0
    told = [json.loads(line) for line in (tmp_path / "studies").read_text().splitlines()]
    assert [(one["type"], one["StudyInstanceUID"], one["instances"]) for one in told] == [("study", uid(1, 1), 8)]


def test_sigterm_to_all_of_its_group_lets_every_sender_finish_its_object(serve: Serve) -> None:
    """As systemd ends a service: all of its processes get the signal."""
    service = serve()
    workers = service.workers
    with client(service.port) as one, client(service.port) as two:
        data = {one: encoded(1, 1, 1, 1, side=512), two: encoded(1, 1, 2, 1, side=512)}
        for number, association in enumerate((one, two), start=1):
            begin(association, data[association][:70000], uid(1, 1, number, 1))
        wait_until(lambda: len(left_behind(service.archive)) == 2)
        os.killpg(service.process.pid, signal.SIGTERM)
        wait_until(lambda: not takes_connections(service.port))
        answers = [finish(association, data[association][70000:])["Status"] for association in (one, two)]

    assert answers == [0, 0]
    assert service.wait() == 0
    assert not any(map(is_there, workers))
    assert len(service.instances()) == 2
    assert len([path for path in files(service.archive) if path.suffix == ".dcm"]) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_second_sigterm_or_a_kill_ends_all_of_them_at_once(serve: Serve, dcmtools: RunDcmtools, number: int) -> None:
    service = serve()
    workers = service.workers
    with client(service.port) as association:
        begin(association, encoded()[:200])
        wait_until(lambda: left_behind(service.archive))
        if number == signal.SIGTERM:
            service.process.send_signal(number)
            wait_until(lambda: not takes_connections(service.port))
        service.process.send_signal(number)
        assert service.wait() in {128 + signal.SIGTERM, -signal.SIGKILL}
        wait_until(lambda: not any(map(is_there, workers)), what="no worker is left")
        association.open = False
        association.connection.close()

    again = dcmtools("listen", "--archive", "archive", "--port", 0, "--idle-exit", "0s")
    assert again.returncode == 0
    assert not left_behind(service.archive)


def test_sighup_has_every_worker_read_the_nodes_again(
    serve: Serve, dcmtools: RunDcmtools, tool: RunTool, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    write_series(tmp_path / "in", 1)
    assert dcmtools("import", "in", "--archive", "archive").returncode == 0
    service, back = serve("--query-retrieve"), free_port()
    (tmp_path / "moved").mkdir()

    def moves() -> bool:
        key = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={uid(1, 1)}")
        words = ("movescu", "-S", "-aet", "DEST", "+P", back, "-od", "moved", "127.0.0.1", service.port, *key)
        return tool(*words).returncode == 0

    def each() -> list[bool]:
        """What a retrieval comes to with the first worker, and with the other while the first has a peer."""
        first = moves()
        with client(service.port):
            return [first, moves()]

    before = each()
    assert dcmtools("nodes", "add", "DEST", f"DEST@127.0.0.1:{back}").returncode == 0
    os.kill(service.process.pid, signal.SIGHUP)

    wait_until(lambda: each() == [True, True], what="both know the destination")
    assert before == [False, False]
    assert service.end() == 0


def test_in_the_background_it_is_started_told_of_and_stopped_with_all_its_workers(
    dcmtools: RunDcmtools, tmp_path: Path
) -> None:
    begun = json.loads(
        dcmtools("listen", "start", "--archive", "archive", "--port", 0, "--workers", 2).stdout.splitlines()[0]
    )
    workers = children(begun["pid"])
    with client(begun["port"]) as association:
        verify(association)
    status = json.loads(dcmtools("listen", "status", "--archive", "archive").stdout.splitlines()[0])
    stopped = dcmtools("listen", "stop", "--archive", "archive")

    assert len(workers) == 2
    assert (status["pid"], status["port"], status["workers"]) == (begun["pid"], begun["port"], 2)
    assert stopped.returncode == 0
    assert not any(map(is_there, workers))


def test_through_tls_each_worker_shakes_hands(serve: Serve, certificates: Certificates) -> None:
    files_ = ("--tls-cert", certificates.server, "--tls-key", certificates.key(certificates.server))
    service = serve(*files_)
    peer = node(service.port, tls=True, tls_ca=str(certificates.ca))
    wanted = [(MR, (EXPLICIT_VR_LITTLE_ENDIAN,))]
    with request(peer, Local(), wanted) as one, request(peer, Local(), wanted) as two:
        assert send(one, encoded())["Status"] == 0
        assert send(two, encoded(1, 1, 1, 2), uid(1, 1, 1, 2))["Status"] == 0
    assert service.end() == 0


def test_without_descriptors_a_connection_waits_for_a_worker_that_has_one_and_nobody_spins(serve: Serve) -> None:
    service = serve()
    with client(service.port) as association:
        verify(association)
        for pid in service.workers:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), 4096))
        assert send(association, encoded())["Status"] == 0xA700
        with (
            socket.create_connection(("127.0.0.1", service.port)),
            socket.create_connection(("127.0.0.1", service.port)) as outside,
        ):
            contexts = (pdu.Proposal(1, MR, (EXPLICIT_VR_LITTLE_ENDIAN,)),)
            outside.sendall(pdu.encode_request(pdu.Request("OURS", "X", contexts=contexts)))
            before, begun = sum(map(seconds_of, service.workers)), time.monotonic()
            wait_until(lambda: time.monotonic() > begun + 1)
            assert sum(map(seconds_of, service.workers)) - before < 0.1
            for pid in service.workers:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, 4096))
            assert outside.recv(1) == bytes((pdu.ASSOCIATE_AC,))
        assert send(association, encoded())["Status"] == 0
    assert service.end() == 0


def test_a_worker_that_is_told_to_end_does_so_in_order_and_another_takes_its_place(serve: Serve) -> None:
    service = serve()
    first = service.workers[0]
    with client(service.port) as association:
        verify(association)
        os.kill(first, signal.SIGTERM)
        wait_until(lambda: first not in service.workers and len(service.workers) == 2)
        association.open = False
        association.connection.close()
    with client(service.port) as one, client(service.port) as two:
        verify(one)
        verify(two)

    assert service.end() == 0
    assert not [one for one in service.records if one["type"] == "error"]


# In this process


@contextlib.contextmanager
def crew_of(folder: Path, **keys: Any) -> Iterator[tuple[Crew, list[Record]]]:
    records: list[Record] = []
    orders = Orders(folder, Local(ae_title="PEER", port=0, bind="127.0.0.1"), Options(), **keys)
    with Crew(2, orders, records.append, ignore) as one:
        yield one, records


def ignore(_problem: DcmtoolsError) -> None:
    pass


def test_a_worker_that_stands_still_is_passed_over_and_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_SILENCE", 3.0)
    with crew_of(tmp_path / "archive") as (one, _):
        assert one.is_well
        first = next(iter(one._workers.values()))
        os.kill(first.process.pid, signal.SIGSTOP)
        wait_until(lambda: first.is_silent)
        for _ in range(3):
            with client(one.port) as association:
                verify(association)
        wait_until(lambda: not one.is_well)
        os.kill(first.process.pid, signal.SIGCONT)
        wait_until(lambda: one.is_well)


def test_an_association_with_any_worker_means_that_it_is_not_idle(tmp_path: Path) -> None:
    with crew_of(tmp_path / "archive") as (one, _):
        wait_until(lambda: one.quiet > 0.5)
        with client(one.port), client(one.port) as other:
            verify(other)
            assert one.quiet < 0.5
        wait_until(lambda: one.quiet > 0.5)


def test_a_worker_that_cannot_begin_keeps_the_whole_from_beginning(tmp_path: Path) -> None:
    nothing = tmp_path / "none.pem"
    with (
        pytest.raises(TryLater, match=r"none\.pem") as caught,
        crew_of(tmp_path / "archive", tls=(nothing, None, None)),
    ):
        pass
    assert caught.value.cause == "no-start"
    with crew_of(tmp_path / "archive"):  # which is free
        pass


def test_what_a_worker_left_that_was_killed_at_the_end_is_tidied_too(tmp_path: Path) -> None:
    with crew_of(tmp_path / "archive") as (one, _), client(one.port) as association:
        begin(association, encoded()[:200])
        wait_until(lambda: left_behind(tmp_path / "archive"))
        for worker in list(one._workers.values()):
            os.kill(worker.process.pid, signal.SIGKILL)
        one.drain(0)
        association.open = False
        association.connection.close()

    assert not left_behind(tmp_path / "archive")


def test_a_defect_of_ours_ends_the_whole_and_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with crew_of(tmp_path / "archive") as (one, _):
        workers = [worker.process for worker in one._workers.values()]
        monkeypatch.setattr("dcmtools.network.crew.decode", lambda _: 1 // 0)
        with pytest.raises(DcmtoolsError, match="ZeroDivisionError while workers were attended to"):
            wait_until(lambda: not one.is_well)
        monkeypatch.undo()
    assert all(process.wait(10) for process in workers)


def test_connections_that_come_while_no_worker_is_there_wait_for_the_next(tmp_path: Path) -> None:
    with crew_of(tmp_path / "archive") as (one, records):
        for worker in list(one._workers.values()):
            os.kill(worker.process.pid, signal.SIGKILL)
        with socket.create_connection(("127.0.0.1", one.port)), client(one.port) as association:
            assert send(association, encoded())["Status"] == 0
        assert [record["cause"] for record in records[:2]] == ["worker-died"] * 2
