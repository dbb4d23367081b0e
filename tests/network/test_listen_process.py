"""`dcmtools listen` as a process: with real senders, and through what systems do to servers."""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from dcmtools.disk.archive import Archive
from dcmtools.disk.header import check_received, read_meta
from dcmtools.model.errors import ProtocolError
from dcmtools.model.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from dcmtools.network.echo import verify
from tests.builders import uid, write_instance, write_series
from tests.conftest import StartDcmtools
from tests.network.storing import (
    INSTANCE,
    begin,
    client,
    data_set,
    encoded,
    files,
    finish,
    left_behind,
    resident,
    send,
    takes_connections,
)
from tests.peers.processes import RunTool, StartOrthanc, StartStorescp
from tests.waiting import wait_until

# What makes storescu send a file as it is.
STORESCU = {EXPLICIT_VR_LITTLE_ENDIAN: "-xe", IMPLICIT_VR_LITTLE_ENDIAN: "-xi"}


@pytest.fixture
def serve(start_dcmtools: StartDcmtools, tmp_path: Path) -> Callable[..., "Server"]:
    """A function that starts `dcmtools listen`."""

    def start(*options: object, archive: str = "archive", prefix: Sequence[str] = ()) -> Server:
        words = ("listen", "--archive", tmp_path / archive, "--port", 0, "--aet", "OURS", *options)
        process = start_dcmtools(*words, prefix=prefix)
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
        wait_until(lambda: not takes_connections(server.port))
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


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of one megabyte at a folder."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.getuid() != 0:
        pytest.skip("only root may mount a small disk")
    if subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_answered_a700_until_there_is_room_again(serve: Serve, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
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
        assert server.stop() == 74  # which is told though all was well again


Allow = Callable[[bool], None]
# Root without what makes it root: as any user, it may not write where the mode of a folder says so.
ORDINARY = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


@contextlib.contextmanager
def by_mount(archive: Path) -> Iterator[tuple[Sequence[str], Allow]]:
    """An archive that becomes read-only with its disk, also while files in it are open for writing."""

    def allow(may_write: bool) -> None:
        if may_write:
            subprocess.run(["umount", "--lazy", str(archive)], check=True)
            return
        subprocess.run(["mount", "--bind", str(archive), str(archive)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(archive)], check=True)

    with small_disk(archive):
        yield (), allow


@contextlib.contextmanager
def by_mode(archive: Path) -> Iterator[tuple[Sequence[str], Allow]]:
    """An archive that becomes read-only by the modes of its folders."""

    def allow(may_write: bool) -> None:
        for one in (archive, *(path for path in archive.rglob("*") if path.is_dir())):
            one.chmod(0o700 if may_write else 0o500)

    if os.getuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and there is no setpriv")
    archive.mkdir()
    yield ORDINARY if os.getuid() == 0 else (), allow
    allow(True)


read_only = pytest.mark.parametrize("archive_of", [by_mount, by_mode])
Way = Callable[[Path], contextlib.AbstractContextManager[tuple[Sequence[str], Allow]]]


@read_only
def test_an_archive_that_becomes_read_only_is_answered_a700_until_it_can_be_written_again(
    serve: Serve, tmp_path: Path, archive_of: Way
) -> None:
    with archive_of(tmp_path / "archive") as (prefix, allow):
        server = serve(prefix=prefix)
        with client(server.port) as association:
            first = send(association, encoded())["Status"]
            allow(False)
            refused = [send(association, encoded(2, 1, 1, at), uid(2, 1, 1, at))["Status"] for at in (1, 2, 3)]
            verify(association)
            allow(True)
            again = send(association, encoded(2, 1, 1, 1), uid(2, 1, 1, 1))["Status"]

        assert (first, refused, again) == (0, [0xA700] * 3, 0)
        assert sorted(path.stem for path in server.instances()) == [INSTANCE, uid(2, 1, 1, 1)]
        assert server.stop() == 0
        assert not left_behind(server.archive)


@read_only
def test_a_read_only_archive_is_no_place_to_begin_and_says_so(
    start_dcmtools: StartDcmtools, tmp_path: Path, archive_of: Way
) -> None:
    with archive_of(tmp_path / "archive") as (prefix, allow):
        allow(False)
        process = start_dcmtools("listen", "--archive", "archive", "--port", 0, prefix=prefix)
        code = process.wait(30)
        allow(True)

    assert code == 73
    assert "archive" in (tmp_path / "stderr-1.txt").read_text()


def test_an_archive_that_was_removed_is_answered_a700_and_is_not_made_anew(serve: Serve) -> None:
    """Its disk may only be away: what went to the folder below the mount point would be hidden when it is back."""
    server = serve()
    with client(server.port) as association:
        assert send(association, encoded())["Status"] == 0
        shutil.rmtree(server.archive)
        refused = [send(association, encoded(1, 1, 1, at), uid(1, 1, 1, at))["Status"] for at in (2, 3)]
        assert not server.archive.exists()
        server.archive.mkdir()
        again = send(association, encoded(1, 1, 1, 2), uid(1, 1, 1, 2))["Status"]

    assert refused == [0xA700] * 2
    assert again == 0
    assert [path.stem for path in server.instances()] == [uid(1, 1, 1, 2)]
    assert [one["SOPInstanceUID"] for one in Archive(server.archive).index.instances()] == [uid(1, 1, 1, 2)]
    assert server.stop() == 0


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
        assert _seconds_of(pid) - before < 0.1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, 4096))
        assert send(association, encoded())["Status"] == 0
        for one in outside:
            one.close()
    assert refused["Status"] == 0xA700
    with client(server.port) as association:
        verify(association)
    server.stop()


def test_with_40_descriptors_it_serves_whom_it_can_and_all_again_when_they_have_gone(serve: Serve) -> None:
    server = serve()
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (40, 4096))
    outside = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
    before, begun = _seconds_of(server.process.pid), time.monotonic()
    wait_until(lambda: time.monotonic() > begun + 1)
    assert _seconds_of(server.process.pid) - before < 0.1
    for one in outside:
        one.close()

    with client(server.port) as association:
        assert send(association, encoded())["Status"] == 0
    assert len(server.instances()) == 1
    assert server.stop() == 0


def test_stopped_and_continued_it_goes_on_where_it_was(serve: Serve) -> None:
    server = serve()
    with client(server.port) as association:
        begin(association, encoded()[:200])
        wait_until(lambda: left_behind(server.archive))
        os.kill(server.process.pid, signal.SIGSTOP)
        wait_until(lambda: _state_of(server.process.pid) == "T")
        association.connection.write(association._fragments(1, memoryview(encoded()[200:])), 5)
        os.kill(server.process.pid, signal.SIGCONT)
        assert association.receive().command["Status"] == 0
    assert [data_set(path) for path in server.instances()] == [encoded()]
    assert server.stop() == 0


def test_an_archive_that_goes_away_is_answered_a700_until_it_is_back(serve: Serve) -> None:
    server = serve()
    away = server.archive.with_name("away")
    with client(server.port) as association:
        assert send(association, encoded())["Status"] == 0
        server.archive.rename(away)
        refused = [send(association, encoded(1, 1, 1, 2), uid(1, 1, 1, 2))["Status"] for _ in range(3)]
        assert not server.archive.exists()
        away.rename(server.archive)
        again = send(association, encoded(1, 1, 1, 2), uid(1, 1, 1, 2))["Status"]

    assert refused == [0xA700] * 3
    assert again == 0
    assert len(server.instances()) == 2
    assert server.stop() == 0


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


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
import os, sys
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
writev = os.writev
def sent(descriptor, parts):
    if os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
        write(log, b"send %d\\n" % sum(map(len, parts)))
    return writev(descriptor, parts)
os.writev = sent
from dcmtools.cli.main import main
main()
"""


def steps_of_a_store(tmp_path: Path, environment: dict[str, str], *options: str) -> list[str]:
    """What a listener of its own does between a request and the answer to it."""
    log, archive = tmp_path / "log", tmp_path / "archive"
    where = ["--archive", str(archive), "--port", "0", "--once"]
    words = [sys.executable, "-c", TRACED, str(log), "listen", *where, *options]
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
    return steps


def test_data_name_folders_and_index_are_synced_in_this_order_before_the_answer(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    steps, archive = steps_of_a_store(tmp_path, environment), tmp_path / "archive"

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


def test_with_fsync_off_no_disk_is_waited_for(tmp_path: Path, environment: dict[str, str]) -> None:
    steps, archive = steps_of_a_store(tmp_path, environment, "--fsync", "off"), tmp_path / "archive"

    series = archive / uid(1, 1) / uid(1, 1, 1)
    assert _in_order([f"link {series}/{INSTANCE}.dcm", r"send \d+"], steps)
    synced = {step.partition(" ")[2] for step in steps if "sync" in step.partition(" ")[0]}
    assert synced <= {str(archive), str(series.parent)}, "only folders that were new"
    assert INSTANCE in (archive / "index.jsonl").read_text()


def _in_order(wanted: Sequence[str], steps: Sequence[str]) -> bool:
    import re

    left: Iterator[str] = iter(steps)
    return all(any(re.fullmatch(pattern, step) for step in left) for pattern in wanted)
