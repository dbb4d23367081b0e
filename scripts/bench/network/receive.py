#!/usr/bin/env -S .venv/bin/python
"""How fast `dcmtools listen` receives, against the peers' own receivers: whole processes, over loopback, side by side.

    scripts/bench/network/receive.py [ROW...] [--runs 3] [--small N] [--data DIR] [--work DIR]

Every row sends the same files with the same sender to each receiver in turn, into fresh folders, and compares the
medians of the sender's wall times; a ratio above 1 means that dcmtools is faster. Only ratios within a row mean
anything. Small files are those of fmri-philips-5460.tar.xz in $DCMTOOLS_TEST_DATA (21 KB each), the others are made.
dcmtools has each object on the disk before it answers, but in the rows that say otherwise; no other receiver has.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DCMTOOLS = [str(ROOT / ".venv" / "bin" / "python"), "-m", "dcmtools"]
# pynetdicom has programs of the same names as DCMTK's: the system's come first.
PATH = os.pathsep.join(["/usr/local/bin", "/usr/bin", "/usr/sbin", "/bin", os.environ.get("PATH", os.defpath)])
NODELAY, SHIPPED = {"TCP_NODELAY": "1"}, {"TCP_NODELAY": "0"}
MANY = 300  # files where every one costs a peer 20 to 90 ms
ASSOCIATIONS = 64

Words = Callable[["Bench", Path, int], list[str]]  # a fresh folder and a port -> the command


@dataclass(frozen=True)
class Bench:
    """Where the files are, and how often each is sent."""

    work: Path
    runs: int
    small: int

    def files(self, kind: str) -> Path:
        """The folder with the files of a kind."""
        return self.work / kind


@dataclass(frozen=True)
class Row:
    """One comparison: what is sent by whom to which receiver, and how many times faster ours must be."""

    kind: str
    theirs: Words
    least: float
    ours: Words
    sender: Words
    our_sender: Words | None = None
    environment: dict[str, str] | None = None
    sync: bool = False


def storescu(_bench: Bench, folder: Path, port: int) -> list[str]:
    """DCMTK's sender."""
    return ["storescu", "+sd", "127.0.0.1", str(port), str(folder)]


def storescu_tls(_bench: Bench, folder: Path, port: int) -> list[str]:
    """The same through TLS."""
    return ["storescu", "--anonymous-tls", "-ic", "+sd", "127.0.0.1", str(port), str(folder)]


def store(_bench: Bench, folder: Path, port: int) -> list[str]:
    """Our own sender."""
    return [
        *DCMTOOLS,
        "store",
        str(folder),
        "--to",
        f"PEER@127.0.0.1:{port}",
        "--output",
        str(folder.parent / "sent.jsonl"),
    ]


def listen(_bench: Bench, folder: Path, port: int) -> list[str]:
    """Our receiver."""
    return [*DCMTOOLS, "listen", "--archive", str(folder), "--port", str(port), "--bind", "127.0.0.1"]


def listen_unsynced(bench: Bench, folder: Path, port: int) -> list[str]:
    """Ours, when it answers before the disk has it, as the others do."""
    return [*listen(bench, folder, port), "--fsync", "off"]


def listen_tls(bench: Bench, folder: Path, port: int) -> list[str]:
    """Ours through TLS."""
    return [*listen(bench, folder, port), "--tls-cert", str(bench.work / "server.pem")]


def storescp(_bench: Bench, folder: Path, port: int) -> list[str]:
    """DCMTK's receiver."""
    return ["storescp", "-q", "-od", str(folder), str(port)]


def storescp_tls(bench: Bench, folder: Path, port: int) -> list[str]:
    """The same through TLS."""
    certificate = str(bench.work / "server.pem")
    return ["storescp", "-q", "+tls", certificate, certificate, "-ic", "-od", str(folder), str(port)]


def pynetdicom(_bench: Bench, folder: Path, port: int) -> list[str]:
    """The receiver that comes with pynetdicom."""
    return [DCMTOOLS[0], "-m", "pynetdicom", "storescp", str(port), "-od", str(folder), "-q"]


def orthanc(_bench: Bench, folder: Path, port: int) -> list[str]:
    """Orthanc as it is, without its HTTP server."""
    told = {
        "DicomPort": port,
        "HttpServerEnabled": False,
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
    }
    told |= {
        "DicomAlwaysAllowStore": True,
        "DicomCheckCalledAet": False,
        "Plugins": [],
        "UnknownSopClassAccepted": True,
    }
    configuration = folder.with_suffix(".json")
    configuration.write_text(json.dumps(told))
    return ["Orthanc", str(configuration)]


ROWS = {
    "small": Row("small", storescp, 1.4, listen, storescu),
    "small, no fsync": Row("small", storescp, 1.4, listen_unsynced, storescu),
    "1 MB": Row("mb", storescp, 1.05, listen, storescu),
    "500 MB, then sync": Row("large", storescp, 0.9, listen, storescu, sync=True),
    "500 MB, no fsync": Row("large", storescp, 1.8, listen_unsynced, storescu),
    "both ends: small": Row("small", storescp, 2.5, listen, storescu, store),
    "both ends: 1 MB": Row("mb", storescp, 1.4, listen, storescu, store),
    "as shipped": Row("some", storescp, 12, listen, storescu, environment=SHIPPED),
    "as shipped, both ends": Row("some", storescp, 40, listen, storescu, store, environment=SHIPPED),
    "Orthanc": Row("some", orthanc, 4, listen, storescu),
    "pynetdicom": Row("some", pynetdicom, 5, listen, storescu),
    "TLS: small": Row("small", storescp_tls, 1.5, listen_tls, storescu_tls),
    "TLS: 500 MB": Row("large", storescp_tls, 1.0, listen_tls, storescu_tls),
}


def timed(bench: Bench, row: Row, receiver: Words, sender: Words) -> tuple[float, float]:
    """Seconds that a sender takes for all files of a row, and the receiver's peak of memory in MB."""
    environment = {**os.environ, **(row.environment or NODELAY), "PATH": PATH}
    with receiving(bench, receiver, environment) as (folder, port, process):
        os.sync()  # what the last one left for the disk to do is no matter of this one
        begun = time.perf_counter()
        words = sender(bench, bench.files(row.kind), port)
        subprocess.run(words, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if row.sync and receiver is row.theirs:
            words = ["sync", *map(str, folder.iterdir())]
            subprocess.run(words, check=True)
        return time.perf_counter() - begun, peak(process.pid)


@contextlib.contextmanager
def receiving(
    bench: Bench, receiver: Words, environment: dict[str, str]
) -> Iterator[tuple[Path, int, "subprocess.Popen[bytes]"]]:
    """A receiver that listens: its fresh folder, its port, its process."""
    # The folders of earlier runs stay until the end: ext4 takes long over making files where some were just removed.
    folder = Path(tempfile.mkdtemp(dir=bench.work, prefix="received-"))
    port = free_port()
    words = receiver(bench, folder, port)
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not listens(port):
            if process.poll() is not None:
                raise SystemExit(f"{words[0]} ended with {process.returncode}")
            time.sleep(0.02)
        yield folder, port, process
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody listens; asked of the kernel, for a connection would disturb it."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return any(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port for row in rows)


def peak(pid: int) -> float:
    """The peak of a process's resident memory in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def compare(bench: Bench, name: str, row: Row) -> bool:
    """Runs both sides in turn and prints the medians; whether ours is fast enough."""
    theirs, ours = [], []
    for _ in range(bench.runs):
        theirs.append(timed(bench, row, row.theirs, row.sender))
        ours.append(timed(bench, row, row.ours, row.our_sender or row.sender))
    a, b = (statistics.median(seconds for seconds, _ in side) for side in (theirs, ours))
    memory = [max(megabytes for _, megabytes in side) for side in (theirs, ours)]
    told(
        f"{name:24} {row.theirs.__name__:14} {a:8.2f} s {memory[0]:6.0f} MB   ours {b:8.2f} s {memory[1]:6.0f} MB"
        f"   {a / b:5.2f}x, wanted {row.least:g}x {'' if a / b >= row.least else 'MISSED'}"
    )
    return a / b >= row.least


def told(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def many_associations(bench: Bench) -> bool:
    """Sends over so many associations at once and prints our peak of memory."""
    environment = {**os.environ, **NODELAY, "PATH": PATH}
    with receiving(bench, listen, environment) as (_, port, process):
        words = storescu(bench, bench.files("few"), port)
        senders = [
            subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(ASSOCIATIONS)
        ]
        failed = sum(bool(sender.wait()) for sender in senders)
        memory = peak(process.pid)
    told(f"{ASSOCIATIONS} associations: {failed} failed, peak {memory:.0f} MB, wanted 192 MB at most")
    return not failed and memory <= 192


def prepare(bench: Bench, data: Path) -> None:
    """Makes what is sent."""
    for kind in ("small", "some", "few", "mb", "large"):
        bench.files(kind).mkdir()
    with tarfile.open(data / "fmri-philips-5460.tar.xz") as archive:
        members = [one for one in archive if one.isfile()]
        for number, member in enumerate(members[: bench.small]):
            path = bench.files("small") / f"{number:05}.dcm"
            with archive.extractfile(member) or open(os.devnull, "rb") as content:
                path.write_bytes(content.read())
            for kind, count in (("some", MANY), ("few", 20)):
                if number < count:
                    (bench.files(kind) / path.name).hardlink_to(path)
    make(bench.files("mb"), 200, 724, 1)
    make(bench.files("large"), 2, 1024, 250)
    certificate = bench.work / "server.pem"
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-keyout",
        "-",
        "-out",
        "-",
    ]
    certificate.write_bytes(subprocess.run(words, check=True, capture_output=True).stdout)
    certificate.chmod(0o600)


def make(folder: Path, count: int, side: int, frames: int) -> None:
    """Writes MR objects of so many pixels."""
    sys.path.insert(0, str(ROOT))
    from tests.builders import make_instance

    for number in range(1, count + 1):
        made = make_instance(5, 1, frames, number, side=side)
        made.NumberOfFrames, made.PixelData = frames, os.urandom(side * side * 2) * frames
        made.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def main(words: Sequence[str] | None = None) -> int:
    """Runs the rows named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join([*ROWS, "associations"]))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--small", type=int, default=5460, help="so many of the small files")
    parser.add_argument("--data", type=Path, default=os.environ.get("DCMTOOLS_TEST_DATA"))
    parser.add_argument(
        "--work", type=Path, help="a folder on the disk that is meant; default: the system's temporary one"
    )
    asked = parser.parse_args(words)
    if not asked.data:
        parser.error("set DCMTOOLS_TEST_DATA, or give --data")
    names = asked.rows or [*ROWS, "associations"]
    if unknown := set(names) - {*ROWS, "associations"}:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    work = Path(tempfile.mkdtemp(dir=asked.work, prefix="dcmtools-receive-"))
    try:
        bench = Bench(work, asked.runs, asked.small)
        prepare(bench, asked.data)
        told("senders: storescu, for both ends dcmtools store; receivers: the one named, and dcmtools listen")
        done = [
            many_associations(bench) if name == "associations" else compare(bench, name, ROWS[name]) for name in names
        ]
    finally:
        shutil.rmtree(work)
    return 0 if all(done) else 3


if __name__ == "__main__":
    sys.exit(main())
