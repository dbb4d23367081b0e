"""The listener as a server: what it accepts, from whom, and how it ends."""

import contextlib
import json
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dcmtools.disk.archive import Archive
from dcmtools.disk.header import check_received, read_meta
from dcmtools.disk.lock import holder
from dcmtools.model.errors import Locked, ProtocolError, Refused, TryLater
from dcmtools.model.node import Local
from dcmtools.model.uids import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    STUDY_ROOT_FIND,
    TRANSFER_SYNTAXES,
    VERIFICATION,
)
from dcmtools.network import command
from dcmtools.network.association import Association, Message, Timeouts
from dcmtools.network.echo import verify
from dcmtools.network.listen import LOCK_NAME, Listener, Until, listen
from dcmtools.network.requestor import request
from tests.builders import uid, write_instance, write_series
from tests.conftest import StartDcmtools
from tests.network.storing import (
    INSTANCE,
    MR,
    ask,
    begin,
    client,
    data_set,
    encoded,
    files,
    finish,
    left_behind,
    listening,
    node,
    resident,
    send,
)
from tests.peers.processes import RunTool, StartOrthanc, StartStorescp
from tests.waiting import wait_until

JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
PRIVATE = "1.2.826.0.1.3680043.10.999.1.1"
# What makes storescu send a file as it is.
STORESCU = {EXPLICIT_VR_LITTLE_ENDIAN: "-xe", IMPLICIT_VR_LITTLE_ENDIAN: "-xi"}


def syntax_for(listener: Listener, abstract: str, *syntaxes: str) -> str | None:
    with client(listener.port, (abstract, syntaxes), (VERIFICATION, (IMPLICIT_VR_LITTLE_ENDIAN,))) as association:
        context = association.context_for(abstract)
        return context.syntax if context else None


# What is accepted


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES)
def test_every_transfer_syntax_is_accepted_for_storage(tmp_path: Path, syntax: str) -> None:
    with listening(tmp_path) as (listener, _):
        assert syntax_for(listener, MR, syntax) == syntax


def test_of_several_transfer_syntaxes_explicit_comes_before_implicit_and_else_the_senders_first(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, _):
        assert (
            syntax_for(listener, MR, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN) == EXPLICIT_VR_LITTLE_ENDIAN
        )
        assert syntax_for(listener, MR, "1.2.3", JPEG_LOSSLESS, EXPLICIT_VR_BIG_ENDIAN) == JPEG_LOSSLESS
        assert syntax_for(listener, MR, "1.2.3") is None


def test_our_compression_comes_before_the_senders_order(tmp_path: Path) -> None:
    with listening(tmp_path, compression=(JPEG_LOSSLESS,)) as (listener, _):
        assert syntax_for(listener, MR, EXPLICIT_VR_LITTLE_ENDIAN, JPEG_LOSSLESS) == JPEG_LOSSLESS


def test_private_classes_come_in_by_option_only(tmp_path: Path) -> None:
    with listening(tmp_path / "one") as (listener, _):
        assert syntax_for(listener, PRIVATE, EXPLICIT_VR_LITTLE_ENDIAN) is None
    with (
        listening(tmp_path / "two", private_classes=True) as (listener, _),
        client(listener.port, (PRIVATE, (EXPLICIT_VR_LITTLE_ENDIAN,))) as association,
    ):
        assert send(association, encoded(SOPClassUID=PRIVATE), AffectedSOPClassUID=PRIVATE)["Status"] == 0


def test_queries_are_accepted_only_where_somebody_answers_them(tmp_path: Path) -> None:
    asked: list[int] = []

    def find(association: Association, message: Message) -> None:
        asked.append(message.field)
        association.read_data()
        rsp = {"CommandField": command.C_FIND_RSP, "MessageIDBeingRespondedTo": message.command["MessageID"]}
        association.send(message.context, {**rsp, "Status": 0})

    with listening(tmp_path / "without") as (listener, _):
        assert syntax_for(listener, STUDY_ROOT_FIND, IMPLICIT_VR_LITTLE_ENDIAN) is None
    with (
        listening(tmp_path / "with", services={command.C_FIND_RQ: find}) as (listener, _),
        client(listener.port, (STUDY_ROOT_FIND, (IMPLICIT_VR_LITTLE_ENDIAN,))) as association,
    ):
        rq = {"CommandField": command.C_FIND_RQ, "AffectedSOPClassUID": STUDY_ROOT_FIND}
        assert ask(association, rq, b"\x08\0\x52\0\0\0\0\0")["Status"] == 0
    assert asked == [command.C_FIND_RQ]


def test_an_unknown_operation_is_answered_0211_and_the_association_lives_on(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, _), client(listener.port) as association:
        answer = ask(association, {"CommandField": 0x0130, "RequestedSOPClassUID": MR}, bytes(64))
        association.send(association.contexts[1], {"CommandField": command.C_CANCEL_RQ, "MessageIDBeingRespondedTo": 1})
        verify(association)

    assert answer["Status"] == 0x0211
    assert answer["CommandField"] == 0x8130


# Who may come in


def test_only_those_allowed_come_in_and_only_by_our_name(tmp_path: Path) -> None:
    with listening(tmp_path, peers=frozenset({"SENDER"}), check_called=True) as (listener, _):
        with client(listener.port) as association:
            verify(association)
        with pytest.raises(Refused, match="calling AE title 'OTHER' not recognized"):
            request(node(listener.port), Local(ae_title="OTHER"), [(VERIFICATION, (IMPLICIT_VR_LITTLE_ENDIAN,))])
        wrong = node(listener.port, ae_title="WRONG")
        with pytest.raises(Refused, match="called AE title 'WRONG' not recognized"):
            request(wrong, Local(ae_title="SENDER"), [(VERIFICATION, (IMPLICIT_VR_LITTLE_ENDIAN,))])
        wait_until(lambda: listener.counts["rejections"] == 2)
        assert listener.counts["connections"] == 3
        assert listener.counts["associations"] == 1


def test_beyond_the_limit_of_associations_comes_a_transient_rejection(tmp_path: Path) -> None:
    with listening(tmp_path, max_associations=2) as (listener, _):
        refused = pytest.raises(TryLater, match="local limit exceeded")
        with client(listener.port), client(listener.port), refused, client(listener.port):
            pass
        wait_until(lambda: listener.active == 0)
        with client(listener.port) as association:
            verify(association)


def test_silent_connections_do_not_hold_up_who_has_something_to_say(tmp_path: Path) -> None:
    with listening(tmp_path, max_associations=16, timeouts=Timeouts(acse=30)) as (listener, _):
        silent = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(60)]
        begun = time.monotonic()
        with client(listener.port) as association:
            assert send(association, encoded())["Status"] == 0
        assert time.monotonic() - begun < 5
        for one in silent:
            one.close()


def test_what_is_no_dicom_is_hung_up_on(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, _):
        for garbage in (
            b"GET / HTTP/1.0\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01",
            b"\x04\0\0\0\0\4abcd",
            b"\x01\0\xff\xff\xff\xff",
        ):
            with socket.create_connection(("127.0.0.1", listener.port), timeout=10) as peer:
                peer.sendall(garbage)
                with contextlib.suppress(ConnectionError):
                    while peer.recv(4096):
                        pass
        with client(listener.port) as association:
            verify(association)


# One listener an archive and a port


def test_a_second_listener_on_the_archive_is_told_who_has_it(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, _):
        told = holder(tmp_path / LOCK_NAME)
        words = f"listen, process {os.getpid()}, PEER on port {listener.port}"
        with pytest.raises(Locked, match=words), listening(tmp_path):
            pass
    assert told is not None
    assert (told["pid"], told["ae_title"], told["port"]) == (os.getpid(), "PEER", listener.port)
    with listening(tmp_path):  # and when it is gone, the archive is free
        pass


def test_a_port_that_is_held_gives_75_and_leaves_the_archive_free(tmp_path: Path) -> None:
    with listening(tmp_path / "one") as (listener, _):
        local = Local(ae_title="PEER", port=listener.port, bind="127.0.0.1")
        with pytest.raises(TryLater, match="held by another program") as caught:
            Listener(Archive(tmp_path / "two"), local, print).__enter__()
        assert caught.value.exit_code == 75
    with listening(tmp_path / "two"):
        pass


@pytest.mark.skipif(os.getuid() == 0, reason="root may have any port")
def test_a_privileged_port_gives_77(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="privileges"):
        Listener(Archive(tmp_path), Local(port=1), print).__enter__()


# How it ends


@pytest.mark.parametrize(
    ("until", "stored"),
    [(Until(once=True), 3), (Until(count=2), 2), (Until(idle=0.5), 0)],
    ids=["once", "count", "idle"],
)
def test_it_ends_by_itself_when_told_so(tmp_path: Path, until: Until, stored: int) -> None:
    records = listen(Archive(tmp_path), Local(port=0, bind="127.0.0.1"), until=until)
    first = next(records)
    assert first["event"] == "listening"

    def sender() -> None:
        with client(first["port"]) as association:
            for number in range(1, stored + 1):
                send(association, encoded(1, 1, 1, number), uid(1, 1, 1, number))

    thread = threading.Thread(target=sender)
    thread.start()
    rest = list(records)
    thread.join()

    assert [record["state"] for record in rest] == ["received"] * stored


def test_a_drain_finishes_the_object_in_hand_and_takes_no_other(tmp_path: Path) -> None:
    half = threading.Event()
    go_on = threading.Event()
    answers: list[Any] = []

    def sender(port: int) -> None:
        with client(port) as association:
            begin(association, encoded()[:200])
            half.set()
            go_on.wait(20)
            answers.append(finish(association, encoded()[200:])["Status"])
            with pytest.raises(ProtocolError):
                send(association, encoded(1, 1, 1, 2), uid(1, 1, 1, 2))

    with listening(tmp_path) as (listener, records), client(listener.port) as idle:
        thread = threading.Thread(target=sender, args=(listener.port,))
        thread.start()
        half.wait(20)
        wait_until(lambda: left_behind(tmp_path))
        drained: queue.SimpleQueue[bool] = queue.SimpleQueue()
        draining = threading.Thread(target=lambda: drained.put(listener.drain(20)))
        draining.start()
        wait_until(lambda: not _takes_connections(listener.port))
        go_on.set()
        thread.join(20)
        draining.join(20)
        idle.open = False
        idle.connection.close()

    assert drained.get() is True
    assert answers == [0x0000]
    assert [record["state"] for record in records] == ["received"]


def _takes_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionError:
        return False
    return True


# As a process, with peers


@pytest.fixture
def serve(start_dcmtools: StartDcmtools, tmp_path: Path) -> Callable[..., "Server"]:
    """A function that starts `dcmtools listen`."""

    def start(*options: object, archive: str = "archive") -> Server:
        process = start_dcmtools("listen", "--archive", tmp_path / archive, "--port", 0, "--aet", "OURS", *options)
        assert process.stdout
        line = process.stdout.readline()
        assert line, (tmp_path / "stderr-1.txt").read_text()
        return Server(process, json.loads(line)["port"], tmp_path / archive)

    return start


class Server:
    """A running `dcmtools listen`."""

    def __init__(self, process: subprocess.Popen[str], port: int, archive: Path) -> None:
        self.process, self.port, self.archive = process, port, archive

    def instances(self) -> list[Path]:
        return [path for path in files(self.archive) if path.suffix == ".dcm"]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


Serve = Callable[..., Server]


def test_storescu_dcmsend_and_pynetdicom_find_it_as_good_as_storescp(
    serve: Serve, storescp: StartStorescp, tool: RunTool, data: Path, tmp_path: Path
) -> None:
    """The same senders to DCMTK's bit preserving receiver and to ours: what arrives is the same, byte for byte."""
    kinds = [data / "vendors" / kind for kind in ("ge", "generic/anatomical", "philips", "siemens")]
    found = {read_meta(path): path for kind in kinds for path in sorted(kind.rglob("*.dcm"))[:4]}
    sent = list({meta.sop_instance: path for meta, path in found.items() if meta.syntax in STORESCU}.values())
    ours = write_instance(tmp_path / "ours.dcm")
    server, reference = serve(), storescp()

    for port in (server.port, reference.port):
        assert tool("echoscu", "-aec", "OURS", "127.0.0.1", port).returncode == 0
        assert tool("dcmsend", "127.0.0.1", port, *sent[::2]).returncode == 0
        for path in sent[1::2]:
            assert tool("storescu", STORESCU[read_meta(path).syntax], "127.0.0.1", port, path).returncode == 0
    own = [sys.executable, "-m", "pynetdicom", "storescu", "127.0.0.1", str(server.port), str(ours)]
    assert subprocess.run(own, capture_output=True, check=False, timeout=60).returncode == 0

    came = {read_meta(path).sop_instance: data_set(path) for path in server.instances()}
    assert came.pop(INSTANCE) == data_set(ours)
    assert came == {read_meta(path).sop_instance: data_set(path) for path in files(reference.folder)}
    assert len(came) == len(sent)
    assert server.stop() == 0


def test_orthanc_sends_into_it(serve: Serve, orthanc: StartOrthanc, tool: RunTool, tmp_path: Path) -> None:
    server = serve()
    pacs = orthanc({"OURS": server.port})
    sent = write_series(tmp_path / "sent", 5)
    assert tool("storescu", "127.0.0.1", pacs.port, *sent).returncode == 0

    ask = urllib.request.Request(
        f"http://127.0.0.1:{pacs.http_port}/modalities/ours/store", json.dumps(pacs.rest("/instances")).encode()
    )
    urllib.request.urlopen(ask, timeout=30).close()

    assert {path.stem for path in server.instances()} == {read_meta(path).sop_instance for path in sent}
    assert server.stop() == 0


def test_kill_in_the_middle_of_a_load_loses_nothing_that_was_acknowledged(
    serve: Serve, start_dcmtools: StartDcmtools
) -> None:
    server = serve()
    acknowledged: list[str] = []
    mean_end = threading.Event()

    def sender(patient: int) -> None:
        with contextlib.suppress(ProtocolError), client(server.port) as association:
            for number in range(1, 10_000):
                instance = uid(patient, 1, 1, number)
                if send(association, encoded(patient, 1, 1, number, side=256), instance)["Status"] == 0:
                    acknowledged.append(instance)
                if len(acknowledged) > 30:
                    mean_end.set()

    threads = [threading.Thread(target=sender, args=(patient,)) for patient in (1, 2, 3)]
    for thread in threads:
        thread.start()
    mean_end.wait(30)
    os.kill(server.process.pid, signal.SIGKILL)
    for thread in threads:
        thread.join(30)

    again = serve()
    assert not left_behind(again.archive)
    assert len(acknowledged) > 30
    indexed = {record["SOPInstanceUID"]: Path(record["path"]) for record in Archive(again.archive).index.instances()}
    for instance in acknowledged:
        path = indexed[instance]
        meta = read_meta(path)
        assert check_received(path, meta.sop_class, meta.sop_instance, meta.syntax, meta.offset)
    assert again.stop() == 0


def test_sigterm_lets_a_sender_finish_its_object(serve: Serve) -> None:
    server = serve()
    with client(server.port) as association:
        data = encoded(side=1024)
        begin(association, data[:70000])
        wait_until(lambda: left_behind(server.archive))
        server.process.terminate()
        wait_until(lambda: not _takes_connections(server.port))
        assert finish(association, data[70000:])["Status"] == 0
    assert server.process.wait(30) == 0
    assert [data_set(path) for path in server.instances()] == [data]


def test_a_file_size_limit_is_answered_a700_and_what_fits_is_stored_after_it(serve: Serve) -> None:
    server = serve()
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (200_000, 200_000))
    with client(server.port) as association:
        too_large = send(association, encoded(side=1024))
        fits = send(association, encoded(1, 1, 1, 2), uid(1, 1, 1, 2))

    assert (too_large["Status"], too_large["ErrorComment"]) == (0xA700, "the disk is full")
    assert fits["Status"] == 0
    assert len(server.instances()) == 1
    assert not left_behind(server.archive)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_answered_a700_until_there_is_room_again(serve: Serve, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mount.returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(700_000))
        server = serve(archive="disk")
        with client(server.port) as association:
            full = [send(association, encoded(side=512), INSTANCE)["Status"] for _ in range(3)]
            ballast.unlink()
            again = send(association, encoded(side=512), INSTANCE)["Status"]
        assert full == [0xA700] * 3
        assert again == 0
        assert len(server.instances()) == 1
        assert not left_behind(server.archive)
        server.stop()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_without_descriptors_it_answers_a700_does_not_spin_and_serves_again(serve: Serve) -> None:
    server = serve()
    pid = server.process.pid
    with client(server.port) as association:
        verify(association)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), 4096))
        refused = send(association, encoded())
        outside = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        before, begun = _seconds_of(pid), time.monotonic()
        wait_until(lambda: time.monotonic() > begun + 1)
        assert _seconds_of(pid) - before < 0.3
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, 4096))
        assert send(association, encoded())["Status"] == 0
        for one in outside:
            one.close()
    assert refused["Status"] == 0xA700
    with client(server.port) as association:
        verify(association)
    server.stop()


def _seconds_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_memory_does_not_grow_with_the_object(serve: Serve) -> None:
    server = serve()
    with client(server.port) as association:
        send(association, encoded(1, 1, 1, 2), uid(1, 1, 1, 2))
        before = resident(server.process.pid)
        answer = send(association, encoded(side=4096))  # 32 MB
    assert answer["Status"] == 0
    assert resident(server.process.pid) - before < 8 << 20
    server.stop()


TRACED = """
import os, socket, sys
log = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def traced(module, name, what):
    original = getattr(module, name)
    def call(*args, **keys):
        told = what(*args, **keys)
        result = original(*args, **keys)
        os.write(log, f"{name} {told}\\n".encode())
        return result
    setattr(module, name, call)
def of(descriptor): return os.readlink(f"/proc/self/fd/{descriptor}")
write = os.write
traced(os, "fsync", of)
traced(os, "fdatasync", of)
traced(os, "link", lambda source, name, **keys: of(keys["dst_dir_fd"]) + "/" + str(name))
traced(os, "mkdir", lambda name, *rest, **keys: (of(keys["dir_fd"]) + "/" if keys.get("dir_fd") else "") + str(name))
class Socket(socket.socket):
    def sendmsg(self, parts, *rest):
        write(log, b"send %d\\n" % sum(map(len, parts)))
        return super().sendmsg(parts, *rest)
socket.socket = Socket
from dcmtools.cli.main import main
main()
"""


def test_data_name_folders_and_index_are_synced_in_this_order_before_the_answer(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    log, archive = tmp_path / "log", tmp_path / "archive"
    words = [sys.executable, "-c", TRACED, str(log), "listen", "--archive", str(archive), "--port", "0", "--once"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    assert process.stdout
    port = json.loads(process.stdout.readline())["port"]
    with client(port) as association:
        log.write_bytes(b"")
        assert send(association, encoded())["Status"] == 0
        steps = log.read_text().splitlines()
    process.stdout.read()
    assert process.wait(30) == 0
    process.stdout.close()

    study, series = archive / uid(1, 1), archive / uid(1, 1) / uid(1, 1, 1)
    wanted = [
        r"fsync .*incoming.*",
        f"mkdir {study}",
        f"fsync {archive}",
        f"mkdir {series}",
        f"fsync {study}",
        f"link {series}/{INSTANCE}.dcm",
        f"fsync {series}",
        f"f(data)?sync {archive}/index.jsonl",
        r"send \d+",
    ]
    assert _in_order(wanted, steps), "\n".join(steps)


def _in_order(wanted: Sequence[str], steps: Sequence[str]) -> bool:
    import re

    left: Iterator[str] = iter(steps)
    return all(any(re.fullmatch(pattern, step) for step in left) for pattern in wanted)
