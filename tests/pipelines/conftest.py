"""A PACS that has yesterday's studies, and the nightly pipeline as real processes joined by real pipes."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunDcmtools
from tests.peers.processes import Peer, StartDcmqrscp, StartOrthanc
from tests.waiting import is_listening, wait_until

Record = dict[str, Any]
WHOLE = ("orthanc", "dcmqrscp")
# Orthanc needs 15 ms to store an instance: the tests of faults do with fewer.
PATIENTS, FEW = ("--patients", 3), ("--patients", 2, "--kinds", "mr,ct,sr")
STAGES = ("find", "move", "convert-nifti", "sort-by-physician")


@dataclass(frozen=True)
class Site:
    """A research unit's machine: a PACS that knows it, an archive, folders for volumes, and the commands for them."""

    pacs: Peer
    port: int
    folder: Path
    environment: dict[str, str]
    dcmtools: RunDcmtools
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def archive(self) -> Path:
        return self.folder / "archive"

    def commands(self) -> dict[str, list[str]]:
        """The stages of the nightly job, each as it is typed."""
        return {
            "find": ["find", "--node", "PACS", "--date", "yesterday"],
            "move": ["move", "-"],
            "convert-nifti": ["convert-nifti", "-", "--out", "nifti"],
            "sort-by-physician": ["sort-by-physician", "-", "--out", "share"],
        }

    def nightly(self, *, last: str = STAGES[-1]) -> tuple[int, dict[str, list[Record]]]:
        """Runs the pipeline in a shell, as cron does; its exit code, and what came out of each stage."""
        stages = STAGES[: STAGES.index(last) + 1]
        words = [f"{shlex.join([sys.executable, '-m', 'dcmtools', *self.commands()[one]])}" for one in stages]
        line = " | tee stage-find.jsonl | ".join(words[:2]) if len(words) > 1 else words[0]
        for stage, word in zip(stages[1:], words[2:], strict=False):
            line += f" | tee stage-{stage}.jsonl | {word}"
        line += f" > stage-{stages[-1]}.jsonl"
        done = subprocess.run(
            ["bash", "-c", line],
            env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        (self.folder / "stderr.txt").write_text(done.stderr)
        return done.returncode, {one: read(self.folder / f"stage-{one}.jsonl") for one in stages}

    def start(self, stage: str, stdin: Any, stdout: Any) -> subprocess.Popen[bytes]:
        """One stage as a process in a group of its own, so that it can be killed whole."""
        process = subprocess.Popen(
            [sys.executable, "-m", "dcmtools", *self.commands()[stage]],
            stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL,
            env=self.environment, cwd=self.folder, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def end(self) -> None:
        """Kills what still runs and closes all pipes."""
        for process in self.started:
            with suppress(ProcessLookupError):
                kill(process)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()

    def pipeline(self) -> list[subprocess.Popen[bytes]]:
        """All stages running, joined by pipes; the last one writes to last.jsonl."""
        processes: list[subprocess.Popen[bytes]] = []
        with (self.folder / "last.jsonl").open("wb") as last:
            for stage in STAGES:
                stdin: Any = processes[-1].stdout if processes else subprocess.DEVNULL
                stdout: Any = last if stage == STAGES[-1] else subprocess.PIPE
                processes.append(self.start(stage, stdin, stdout))
                if stdin is not subprocess.DEVNULL:
                    stdin.close()
        return processes


def read(path: Path) -> list[Record]:
    """The records in a file; a torn last line, as a killed process leaves it, is not one."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def of_type(records: Iterable[Record], kind: str) -> list[Record]:
    return [record for record in records if record.get("type", "instance") == kind]


def states(records: Iterable[Record], kind: str) -> set[str]:
    return {str(record.get("state")) for record in of_type(records, kind)}


def events(records: Iterable[Record], name: str) -> list[Record]:
    return [record for record in of_type(records, "event") if record["event"] == name]


def torn(folder: Path) -> list[Path]:
    """Files under their final names that are not whole: DICOM that does not end with an element, gzip that is cut."""
    import gzip

    from dcmtools.disk.header import check_received, read_meta
    from dcmtools.model.errors import BadData

    bad = []
    for path in (one for one in folder.rglob("*") if one.is_file() and ".dcmtools-" not in str(one)):
        try:
            if path.suffix == ".dcm":
                meta = read_meta(path)
                check_received(path, meta.sop_class, meta.sop_instance, meta.syntax, meta.offset)
            elif path.suffix == ".gz":
                gzip.decompress(path.read_bytes())
        except (BadData, OSError, EOFError):
            bad.append(path)
    return bad


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(params=["orthanc", "dcmqrscp"])
def site(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    environment: dict[str, str],
    dcmtools: RunDcmtools,
    free_port: Callable[[], int],
) -> Iterator[Site]:
    """A site whose PACS has three patients' studies of yesterday; with Orthanc, then with dcmqrscp."""
    port = free_port()
    pacs = _pacs(request, request.param.removeprefix("small "), port)
    wait_until(lambda: is_listening(pacs.port), what="the PACS")
    environment |= {"DCMTOOLS_ARCHIVE": str(tmp_path / "archive"), "DCMTOOLS_PORT": str(port)}
    added = dcmtools("nodes", "add", "PACS", pacs.node)
    assert added.returncode == 0, added.stderr
    made = dcmtools("phantom", "phantoms", *(PATIENTS if request.param in WHOLE else FEW))
    assert made.returncode == 0, made.stderr
    stored = dcmtools("store", "phantoms", "--to", "PACS")
    assert stored.returncode == 0, stored.stderr
    site = Site(pacs, port, tmp_path, environment, dcmtools)
    yield site
    site.end()


def _pacs(request: pytest.FixtureRequest, kind: str, port: int) -> Peer:
    if kind == "orthanc":
        orthanc: StartOrthanc = request.getfixturevalue("orthanc")
        return orthanc({"DCMTOOLS": port})
    dcmqrscp: StartDcmqrscp = request.getfixturevalue("dcmqrscp")
    return dcmqrscp({"DCMTOOLS": port})


one_pacs = pytest.mark.parametrize("site", ["small orthanc"], indirect=True)
