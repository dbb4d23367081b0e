#!/usr/bin/env -S .venv/bin/python
"""How fast `dcmtools store` sends, against the peers' own senders: whole processes, over loopback, side by side.

    scripts/bench/network/send.py [ROW...] [--runs 3] [--small N] [--data DIR] [--work DIR]

Every row runs its contestants one after the other, in turn, into a fresh receiver each, and compares the medians of
their wall times; a ratio above 1 means that dcmtools is faster. Only ratios within a row mean anything. Small files
are those of fmri-philips-5460.tar.xz in $DCMTOOLS_TEST_DATA (21 KB each), the others are made of one of them.
"""

import argparse
import contextlib
import json
import os
import queue
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NODELAY = {"TCP_NODELAY": "1"}
SHIPPED = {"TCP_NODELAY": "0"}
DCMTOOLS = str(ROOT / ".venv" / "bin" / "dcmtools")
# pynetdicom has programs of the same names as DCMTK's: the system's come first.
PATH = os.pathsep.join(["/usr/local/bin", "/usr/bin", "/usr/sbin", "/bin", os.environ.get("PATH", os.defpath)])
FEW, SOME = 300, 600  # files where every one costs a peer 90 ms, and where it costs 10 to 20


@dataclass(frozen=True)
class Bench:
    """Where the files are, how many small ones, and how often."""

    work: Path
    small: Path
    runs: int
    certificates: dict[str, Path] = field(default_factory=dict)


Sender = Callable[[Path, int], list[str]]  # the folder to send, the port to send to
Start = Callable[[Bench, Path, int], list[str]]  # a fresh folder, the port to listen on


@dataclass(frozen=True)
class Row:
    """One comparison: what is sent where, by whom, and how many times faster we must be than each of the others."""

    name: str
    files: Callable[[Bench], Path]
    receiver: Start
    ours: Sender
    others: dict[str, tuple[Sender, float]]
    environment: dict[str, str] = field(default_factory=lambda: NODELAY)
    delay: float = 0.0
    # A receiver of the others' own, where both ends are compared.
    theirs: Start | None = None


# What is sent


def small(bench: Bench) -> Path:
    """All the small files."""
    return bench.small


def first(count: int) -> Callable[[Bench], Path]:
    """The first of the small files, for peers that take long over each."""

    def make(bench: Bench) -> Path:
        folder = bench.work / f"first-{count}"
        if not folder.exists():
            folder.mkdir()
            for path in sorted(bench.small.iterdir())[:count]:
                os.link(path, folder / path.name)
        return folder

    return make


def of_size(name: str, count: int, size: int) -> Callable[[Bench], Path]:
    """So many files of about this size: one frame a square, or many of them."""

    def make(bench: Bench) -> Path:
        folder = bench.work / name
        if not folder.exists():
            folder.mkdir()
            for number in range(count):
                _write(folder / f"{number:04}.dcm", size, number, next(bench.small.iterdir()))
        return folder

    return make


def _write(path: Path, size: int, number: int, template: Path) -> None:
    """An instance like the template, but for its UID and the size of its pixels."""
    from pydicom import dcmread
    from pydicom.uid import generate_uid

    made = dcmread(template)
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.InstanceNumber = number
    frame = 512 * 512 * 2
    made.Rows = made.Columns = 512
    if (frames := size // frame) > 1:
        made.NumberOfFrames = frames
    made.PixelData = os.urandom(frame) * frames
    made.save_as(path)


# Who sends


def ours(*options: str) -> Sender:
    """This program's own sender."""
    return lambda folder, port: [DCMTOOLS, "store", str(folder), "--to", f"BENCH@127.0.0.1:{port}", *options]


def storescu(*options: str) -> Sender:
    """DCMTK's storescu."""
    return lambda folder, port: ["storescu", *options, "-aec", "BENCH", "127.0.0.1", str(port), "+sd", str(folder)]


def dcmsend(*options: str) -> Sender:
    """DCMTK's dcmsend."""
    return lambda folder, port: ["dcmsend", *options, "-aec", "BENCH", "127.0.0.1", str(port), "+sd", str(folder)]


def pynetdicom_storescu(folder: Path, port: int) -> list[str]:
    """The storescu among pynetdicom's own applications."""
    return [sys.executable, "-m", "pynetdicom", "storescu", "-q", "-aec", "BENCH", "127.0.0.1", str(port), str(folder)]


# Who receives


def storescp(*options: str) -> Start:
    """DCMTK's storescp."""
    return lambda _bench, folder, port: ["storescp", "-q", *options, "-od", str(folder), str(port)]


def storescp_tls(bench: Bench, folder: Path, port: int) -> list[str]:
    """DCMTK's storescp behind TLS, which asks for no certificate of ours."""
    key, certificate = bench.certificates["key"], bench.certificates["certificate"]
    return ["storescp", "-q", "+tls", str(key), str(certificate), "-ic", "-od", str(folder), str(port)]


def orthanc(_bench: Bench, folder: Path, port: int) -> list[str]:
    """Orthanc with an empty store."""
    (http,) = free_ports(1)
    settings = folder.with_suffix(".json")
    settings.write_text(
        json.dumps(
            {
                "DicomAet": "BENCH", "DicomPort": port, "HttpPort": http, "StorageDirectory": str(folder),
                "IndexDirectory": str(folder), "Plugins": [], "DicomCheckCalledAet": False,
                "DicomAlwaysAllowStore": True, "UnknownSopClassAccepted": True, "OverwriteInstances": True,
            }
        )
    )  # fmt: skip
    return ["Orthanc", str(settings)]


def listen(_bench: Bench, folder: Path, port: int) -> list[str]:
    """This program's own receiver, which answers when an instance is safe on disk."""
    return [DCMTOOLS, "listen", "--archive", str(folder), "--port", str(port), "--bind", "127.0.0.1", "--quiet"]


def listen_tls(bench: Bench, folder: Path, port: int) -> list[str]:
    """The same behind TLS."""
    key, certificate = bench.certificates["key"], bench.certificates["certificate"]
    return [*listen(bench, folder, port), "--tls-cert", str(certificate), "--tls-key", str(key)]


def rows(bench: Bench) -> list[Row]:
    """All comparisons, with the ratios that are to be reached."""
    one_mb, large = of_size("1mb", 200, 1 << 20), of_size("500mb", 2, 500 << 20)
    few, some, quick = first(FEW), first(SOME), storescp()
    authority = str(bench.certificates["certificate"])
    secure = ours("--nodes", str(bench.work / "nodes.ini"), "--to", "SECURE")
    scu_tls = storescu("--anonymous-tls", "+cf", authority)
    return [
        Row("21KB", small, quick, ours(), {"storescu": (storescu(), 1.5), "dcmsend": (dcmsend(), 1.5)}),
        Row("1MB", one_mb, quick, ours(), {"storescu": (storescu(), 1.05), "dcmsend": (dcmsend(), 1.05)}),
        Row("500MB", large, quick, ours(), {"storescu": (storescu(), 0.95), "dcmsend": (dcmsend(), 0.95)}),
        Row("as-shipped", few, quick, ours(), {"storescu": (storescu(), 15.0)}, SHIPPED),
        Row("pynetdicom", few, quick, ours(), {"storescu.py": (pynetdicom_storescu, 10.0)}),
        Row("orthanc-jobs-2", some, orthanc, ours("--jobs", "2"), {"storescu": (storescu(), 1.6)}),
        Row("20ms-jobs-4", some, storescp("--fork"), ours("--jobs", "4"), {"storescu": (storescu(), 3.0)}, delay=0.01),
        Row("20ms-window", few, listen, ours(), {"storescu": (storescu(), 3.0)}, theirs=quick, delay=0.01),
        Row("tls-21KB", small, storescp_tls, secure, {"storescu": (scu_tls, 1.5)}),
        Row("tls-500MB", large, storescp_tls, secure, {"storescu": (scu_tls, 1.0)}),
        Row("tls-both-21KB", small, listen_tls, secure, {"storescu": (scu_tls, 1.5)}, theirs=storescp_tls),
        Row("tls-both-500MB", large, listen_tls, secure, {"storescu": (scu_tls, 1.0)}, theirs=storescp_tls),
        Row("durable-21KB", small, listen, ours(), {"storescu": (storescu(), 2.5)}, theirs=quick),
        Row("durable-1MB", one_mb, listen, ours(), {"storescu": (storescu(), 1.4)}, theirs=quick),
        Row("durable-shipped", few, listen, ours(), {"storescu": (storescu(), 40.0)}, SHIPPED, theirs=quick),
    ]


# How a row is run


def measure(bench: Bench, row: Row) -> bool:
    """Runs a row and prints a line for each peer; whether all its ratios are reached."""
    contestants = {"dcmtools": row.ours} | {name: sender for name, (sender, _) in row.others.items()}
    files = row.files(bench)
    os.sync()
    for path in files.iterdir():  # so that the first to send need not read from the disk
        with path.open("rb") as file:
            while file.read(1 << 22):
                pass
    took: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants.items())
    for turn in range(bench.runs):  # each is first in its turn: the first one finds caches and disk as others left them
        for name, sender in order[turn % len(order) :] + order[: turn % len(order)]:
            receiver = row.theirs if row.theirs and name != "dcmtools" else row.receiver
            took[name].append(once(bench, row, receiver, sender, files))
    mine = statistics.median(took["dcmtools"])
    reached = True
    for name, (_, bar) in row.others.items():
        theirs = statistics.median(took[name])
        reached &= theirs / mine >= bar
        ratio, verdict = theirs / mine, "ok" if theirs / mine >= bar else "SHORT"
        spread = " | ".join(" ".join(f"{one:.2f}" for one in took[who]) for who in ("dcmtools", name))
        told = f"{row.name:16} dcmtools {mine:7.2f} s  {name:12} {theirs:7.2f} s  ratio {ratio:6.2f}  bar {bar:5.2f}"
        sys.stdout.write(f"{told}  {verdict:5}  ({spread})\n")
        sys.stdout.flush()
    return reached


def once(bench: Bench, row: Row, start: Start, sender: Sender, files: Path) -> float:
    """The seconds that a sender took for all the files, its start and its end among them."""
    # The folders of earlier runs stay until the end: ext4 takes long over making files where some were just removed.
    folder = Path(tempfile.mkdtemp(dir=bench.work, prefix="received-"))
    (port,) = free_ports(1)
    with running(start(bench, folder, port), port, row.environment), delayed(port, row.delay) as door:
        (bench.work / "nodes.ini").write_text(
            f"[SECURE]\nae_title = BENCH\nhost = 127.0.0.1\nport = {door}\ntls = yes\n"
            f"tls_ca = {bench.certificates['certificate']}\n"
        )
        os.sync()  # what the last contestant left for the disk to do is no matter of this one
        begun = time.perf_counter()
        done = subprocess.run(
            sender(files, door), env=environment(row.environment), capture_output=True, check=False, cwd=bench.work
        )
        took = time.perf_counter() - begun
    _check(done, folder, files)
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 1 << 28:  # these are few, and would fill the disk
            path.unlink()
    return took


def _check(done: "subprocess.CompletedProcess[bytes]", folder: Path, files: Path) -> None:
    """Ends all when a contestant did not do its work: its time would be worth nothing."""
    came = sum(1 for path in folder.rglob("*") if path.is_file())
    wanted = sum(1 for _ in files.iterdir())
    if done.returncode or came < wanted:
        tail = done.stderr[-500:].decode(errors="replace")
        sys.exit(f"{done.args[0]} ended with {done.returncode}, {came} of {wanted} files arrived: {tail}")


@contextlib.contextmanager
def running(command: Sequence[str], port: int, more: dict[str, str]) -> Iterator[None]:
    """A receiver while it runs, from the moment at which it listens."""
    process = subprocess.Popen(command, env=environment(more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not listens(port):
            if process.poll() is not None:
                sys.exit(f"{command[0]} ended with {process.returncode}")
            time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait()


def environment(more: dict[str, str]) -> dict[str, str]:
    """What all processes see: nobody's settings, and Nagle's algorithm as the row wants it at DCMTK's ends."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DCMTOOLS_", "XDG_"))}
    nowhere = str(Path(tempfile.gettempdir()) / "dcmtools-bench-settings")
    return {**kept, **more, "PATH": PATH, "XDG_CONFIG_HOME": nowhere, "XDG_STATE_HOME": nowhere}


def listens(port: int) -> bool:
    """Whether a port of this machine is open; asked of the kernel, as a connection would disturb the receiver."""
    for family in ("tcp", "tcp6"):
        table = Path("/proc/net") / family
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return False


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody uses."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@contextlib.contextmanager
def delayed(port: int, seconds: float) -> Iterator[int]:
    """A port behind which every byte is `seconds` late in either direction; without a delay the port itself."""
    if not seconds:
        yield port
        return
    with socket.create_server(("127.0.0.1", 0), backlog=64) as door:
        threading.Thread(target=_let_in, args=(door, port, seconds), daemon=True).start()
        yield door.getsockname()[1]


def _let_in(door: socket.socket, port: int, seconds: float) -> None:
    while True:
        try:
            client, _ = door.accept()
        except OSError:  # closed: the row is over
            return
        server = socket.create_connection(("127.0.0.1", port))
        for one, other in ((client, server), (server, client)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            late: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
            threading.Thread(target=_take, args=(one, late, seconds), daemon=True).start()
            threading.Thread(target=_give, args=(other, late), daemon=True).start()


def _take(source: socket.socket, late: "queue.SimpleQueue[tuple[float, bytes]]", seconds: float) -> None:
    data = b" "
    while data:
        try:
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            data = source.recv(1 << 18)
        except OSError:
            data = b""
        late.put((time.monotonic() + seconds, data))


def _give(sink: socket.socket, late: "queue.SimpleQueue[tuple[float, bytes]]") -> None:
    while True:
        due, data = late.get()
        time.sleep(max(0.0, due - time.monotonic()))
        with contextlib.suppress(OSError):
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(data)


def certificates(work: Path) -> dict[str, Path]:
    """A key and a certificate for 127.0.0.1 that vouches for itself."""
    key, certificate = work / "key.pem", work / "certificate.pem"
    subprocess.run(
        [shutil.which("openssl") or "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return {"key": key, "certificate": certificate}


def unpacked(archive: Path, work: Path, count: int | None) -> Path:
    """The small files in one folder, or the first of them."""
    folder = work / "small"
    folder.mkdir()
    with tarfile.open(archive) as packed:
        for member in packed:
            if member.isfile() and (source := packed.extractfile(member)):
                (folder / f"{Path(member.name).name}").write_bytes(source.read())
                if count and len(os.listdir(folder)) >= count:
                    break
    return folder


def _check_peers() -> None:
    for program in ("storescu", "dcmsend", "storescp"):
        said = subprocess.run([program, "--version"], env=environment({}), capture_output=True, check=False)
        if b"dcmtk" not in said.stdout:
            sys.exit(f"{program} is not DCMTK's: install dcmtk")


def main() -> None:
    """Runs the rows named, or all; ends with 1 when one falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--small", type=int, metavar="N", help="so many small files instead of 5460")
    parser.add_argument("--data", type=Path, default=os.environ.get("DCMTOOLS_TEST_DATA"), required=False)
    parser.add_argument("--work", type=Path, help="where to put the files; default: a temporary folder")
    asked = parser.parse_args()
    if asked.data is None:
        sys.exit("name the folder that has fmri-philips-5460.tar.xz: --data, or DCMTOOLS_TEST_DATA")
    _check_peers()
    with tempfile.TemporaryDirectory(dir=asked.work, prefix="dcmtools-bench-") as folder:
        work = Path(folder)
        files = unpacked(asked.data / "fmri-philips-5460.tar.xz", work, asked.small)
        bench = Bench(work, files, asked.runs, certificates(work))
        known = {row.name: row for row in rows(bench)}
        if unknown := set(asked.rows) - set(known):
            sys.exit(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        reached = [measure(bench, known[name]) for name in asked.rows or known]
    sys.exit(0 if all(reached) else 1)


if __name__ == "__main__":
    main()
