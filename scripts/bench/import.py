#!/usr/bin/env python
"""How fast files come into an archive, side by side with how others take them in, in one run.

    DCMTOOLS_TEST_DATA=/srv/data .venv/bin/python scripts/bench/import.py [--rounds 3] [--peer-files 500]

Every row is the wall time of whole processes over the 5,460 instances of one fMRI series (21 kB each), the rows of a
round one after the other, so that a busy machine is busy for all. Peers that take minutes get the first so many files;
ratios are per file. Peers that are not installed are left out, and named.
"""

import argparse
import http.client
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
from contextlib import contextmanager
from functools import partial
from pathlib import Path

DCMTOOLS = [sys.executable, "-m", "dcmtools"]
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
PYDICOM = """
import pathlib, shutil, sys, pydicom
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*")):
    if path.is_file():
        found = pydicom.dcmread(path, stop_before_pixels=True)
        folder = pathlib.Path(sys.argv[2], found.StudyInstanceUID, found.SeriesInstanceUID)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, folder / f"{found.SOPInstanceUID}.dcm")
"""


def main() -> None:
    """Runs the rounds and prints the table."""
    options = _options()
    data = os.environ.get("DCMTOOLS_TEST_DATA") or sys.exit("set DCMTOOLS_TEST_DATA to the folder with the data")
    with tempfile.TemporaryDirectory(prefix="dcmtools-bench-") as name:
        folder = Path(name)
        os.environ |= {"XDG_CACHE_HOME": str(folder / "cache"), "PATH": PATH}
        whole, part = _files(Path(data), folder, options.peer_files)
        rows = _rows(folder, whole, part)
        seconds: dict[str, list[float]] = {}
        for number in range(options.rounds):
            for title, (count, run) in rows.items():
                seconds.setdefault(title, []).append(run(folder / f"round-{number}") / count)
            shutil.rmtree(folder / f"round-{number}")
        _print(seconds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-files", type=int, default=500)
    return parser.parse_args()


def _files(data: Path, folder: Path, count: int) -> tuple[Path, Path]:
    """The folder with all files, and one with the first so many; of an age at which they are no longer racily clean."""
    whole, part = folder / "whole", folder / "part"
    with tarfile.open(data / "fmri-philips-5460.tar.xz") as archive:
        archive.extractall(whole, filter="data")
    part.mkdir()
    for path in sorted(path for path in whole.rglob("*") if path.is_file())[:count]:
        shutil.copy2(path, part / path.name)
    return whole, part


Row = tuple[int, Callable[[Path], float]]


def _rows(folder: Path, whole: Path, part: Path) -> dict[str, Row]:
    count, few = (sum(path.is_file() for path in place.rglob("*")) for place in (whole, part))
    rows: dict[str, Row] = {}
    rows["import --copy"] = rows["import --copy, again"] = count, partial(_import, whole, "copy")
    rows["import --link"] = rows["import --link, again"] = count, partial(_import, whole, "link")
    rows["import --move"] = count, lambda round_: _import(_twin(whole, round_ / "moving"), "move", round_)
    rows["import --copy of a .tar.gz"] = count, lambda round_: _import(_packed(whole, folder), "copy", round_ / "tar")
    rows["cp -r, and sync"] = count, lambda round_: _shell(f"cp -r {whole} {round_ / 'cp'} && sync {round_ / 'cp'}")
    rows["pydicom and shutil"] = few, lambda round_: _run([sys.executable, "-c", PYDICOM, part, round_ / "py"])
    if shutil.which("storescp", path=PATH):
        rows["storescu to storescp"] = few, lambda round_: _storescu(part, round_ / "dcmtk")
    if shutil.which("dcmqridx", path=PATH):
        rows["cp and dcmqridx"] = few, lambda round_: _dcmqridx(part, round_ / "dcmqridx")
    if shutil.which("Orthanc", path=PATH):
        rows["Orthanc over HTTP"] = few, lambda round_: _orthanc(part, round_ / "orthanc")
    return rows


def _import(source: Path, mode: str, round_: Path) -> float:
    return _run([*DCMTOOLS, "import", source, "--archive", round_ / mode, f"--{mode}", "--quiet"])


def _twin(whole: Path, place: Path) -> Path:
    """A copy of the files, to be moved away."""
    shutil.copytree(whole, place)
    return place


def _packed(whole: Path, folder: Path) -> Path:
    path = folder / "whole.tar.gz"
    if not path.exists():
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            archive.add(whole, "whole")
    return path


def _storescu(part: Path, folder: Path) -> float:
    folder.mkdir(parents=True)
    port = _free_port()
    environment = {**os.environ, "TCP_NODELAY": "1"}  # without it DCMTK waits 44 ms a message
    with _running(["storescp", str(port), "-od", str(folder)], port, environment):
        return _run(["storescu", "+sd", "+r", "-xs", "127.0.0.1", port, part], environment)


def _dcmqridx(part: Path, folder: Path) -> float:
    begun = time.perf_counter()
    shutil.copytree(part, folder)
    _run(["dcmqridx", folder, *sorted(folder.iterdir())])
    return time.perf_counter() - begun


def _orthanc(part: Path, folder: Path) -> float:
    folder.mkdir(parents=True)
    port = _free_port()
    settings = {"HttpPort": port, "DicomServerEnabled": False, "StorageDirectory": str(folder), "Plugins": []}
    (folder / "orthanc.json").write_text(json.dumps({**settings, "IndexDirectory": str(folder)}))
    with _running(["Orthanc", str(folder / "orthanc.json")], port, dict(os.environ)):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        begun = time.perf_counter()
        for path in sorted(part.iterdir()):
            connection.request("POST", "/instances", path.read_bytes())
            answer = connection.getresponse()
            if answer.status != http.HTTPStatus.OK:
                sys.exit(f"Orthanc answered {answer.status} to {path.name}")
            answer.read()
        return time.perf_counter() - begun


@contextmanager
def _running(words: list[str], port: int, environment: dict[str, str]) -> Iterator[None]:
    """A server, from when it listens to its end."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            while not _is_listening(port):
                if process.poll() is not None:
                    sys.exit(f"{words[0]} ended with {process.returncode}")
                time.sleep(0.02)
            yield
        finally:
            process.terminate()


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(words: Sequence[object], environment: dict[str, str] | None = None) -> float:
    begun = time.perf_counter()
    subprocess.run(list(map(str, words)), check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - begun


def _shell(line: str) -> float:
    return _run(["sh", "-c", line])


def _print(seconds: dict[str, list[float]]) -> None:
    ours = statistics.median(seconds["import --copy"])
    sys.stdout.write(f"{'':28} {'us a file':>10} {'(range)':>16} {'import --copy is so many times faster':>40}\n")
    for title, values in seconds.items():
        middle = statistics.median(values)
        span = f"({min(values) * 1e6:.0f}-{max(values) * 1e6:.0f})"
        sys.stdout.write(f"{title:28} {middle * 1e6:10.0f} {span:>16} {middle / ours:40.2f}\n")


if __name__ == "__main__":
    main()
