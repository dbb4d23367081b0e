"""What the kernel is asked for before a sender hears of success: the order that a power cut does not break."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.builders import uid
from tests.conftest import StartDcmtools
from tests.network.storing import INSTANCE, client, encoded, send
from tests.network.test_workers import Service

CALLS = "fsync,fdatasync,link,linkat,mkdir,mkdirat,write,writev,sendmsg"
SENT = r"(sendmsg|writev)\(\d+<(TCP|socket).*"
# `[pid] call(what <unfinished ...>` and `[pid] <... call resumed>rest`: other threads came between.
BROKEN_OFF = re.compile(r"(\d+) +(.*) <unfinished \.\.\.>")
RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")


def calls_of(trace: str) -> Iterator[str]:
    """The system calls in the order in which they ended."""
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        if found := BROKEN_OFF.fullmatch(line):
            begun[found[1]] = found[2]
        elif found := RESUMED.fullmatch(line):
            yield begun.pop(found[1], "") + found[2]
        else:
            yield line.partition(" ")[2].strip()


def in_order(wanted: Sequence[str], calls: Sequence[str]) -> bool:
    left = iter(calls)
    return all(any(re.match(pattern, call) for call in left) for pattern in wanted)


@pytest.fixture
def traced(tmp_path: Path, peers: None) -> Sequence[str]:
    """The words that have the system calls of a command written to `trace`."""
    words = ("strace", "-f", "-y", "-qq", "-s", "64", "-e", f"trace={CALLS}", "-o", str(tmp_path / "trace"))
    if subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody trace")
    return words


@pytest.mark.parametrize("workers", [1, 2])
def test_data_name_folder_and_index_are_on_the_disk_and_the_crew_knows_before_the_answer_leaves(
    start_dcmtools: StartDcmtools, traced: Sequence[str], tmp_path: Path, workers: int
) -> None:
    archive = tmp_path / "archive"
    words = ("listen", "--archive", archive, "--port", 0, "--workers", workers)
    service = Service(start_dcmtools(*words, prefix=traced), archive)
    with client(service.port) as association:
        assert send(association, encoded())["Status"] == 0
    service.end_children()
    assert service.wait() == 0

    series = re.escape(str(archive / uid(1, 1) / uid(1, 1, 1)))
    wanted = [
        rf"fsync\(\d+<{archive}/\.dcmtools-incoming/.*\) += 0",
        rf"mkdir(at)?\(.*{re.escape(uid(1, 1))}.* = 0",
        rf"fsync\(\d+<{archive}>\) += 0",
        rf"mkdir(at)?\(.*{re.escape(uid(1, 1, 1))}.* = 0",
        rf"fsync\(\d+<{re.escape(str(archive / uid(1, 1)))}>\) += 0",
        rf"linkat\(.*<{series}>, \"{re.escape(INSTANCE)}\.dcm\".* = 0",
        rf"fsync\(\d+<{series}>\) += 0",
        rf"write\(\d+<{archive}/index\.jsonl>.*",
        rf"f(data)?sync\(\d+<{archive}/index\.jsonl>\) += 0",
        *([r"write\(\d+<pipe:.*\\\"type\\\":\\\"instance.*"] if workers > 1 else []),
        SENT,
    ]
    calls = list(calls_of((tmp_path / "trace").read_text()))
    answer = next(at for at, call in enumerate(calls) if "index.jsonl" in call and "sync" in call)
    assert in_order(wanted, calls), "\n".join(calls)
    early = [call for call in calls[:answer] if re.match(SENT, call)]
    assert len(early) == workers  # the connection is handed on, and the association accepted
