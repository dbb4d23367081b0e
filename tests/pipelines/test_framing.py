"""Real commands joined by real pipes: what one says of its stream, the next one believes, whatever happens."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartDcmtools
from tests.waiting import wait_until

Shell = Callable[[str], "subprocess.CompletedProcess[str]"]
DCMTOOLS = shlex.join([sys.executable, "-m", "dcmtools"])


@pytest.fixture
def shell(tmp_path: Path, environment: dict[str, str]) -> Shell:
    """Runs a line of bash with pipefail, `dcmtools` in it being ours, in tmp_path."""

    def run(line: str) -> "subprocess.CompletedProcess[str]":
        begun = f'set -o pipefail; dcmtools() {{ {DCMTOOLS} "$@"; }}; '
        return subprocess.run(  # noqa: PLW1510  # the exit code is what tests look at
            ["bash", "-c", begun + line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    return run


@pytest.fixture
def few(shell: Shell) -> str:
    """The words that make three small files, a study each."""
    return "dcmtools phantom out --kinds sr --date 2024-01-31"


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def states(text: str) -> list[str]:
    return [one["state"] for one in records(text) if one["type"] == "instance"]


def test_stream_of_one_command_is_the_input_of_the_next(shell: Shell, few: str) -> None:
    done = shell(f"{few} | dcmtools import - --archive archive | dcmtools index - --index index.jsonl")

    assert (done.returncode, done.stderr) == (0, "")
    assert states(done.stdout) == ["indexed"] * 3
    assert [one["type"] for one in records(done.stdout)] == ["instance"] * 3  # whose frames are not ours


def test_plain_records_of_jq_or_a_file_are_as_good(shell: Shell, few: str) -> None:
    done = shell(f"{few} > made.jsonl; grep instance made.jsonl | grep -v event | dcmtools import - --archive archive")

    assert done.returncode == 0
    assert states(done.stdout) == ["copied"] * 3


def test_names_of_files_from_find_are_read_with_newlines_and_with_zero_bytes(shell: Shell, few: str) -> None:
    lines = shell(f"{few} > /dev/null; find out -name '*.dcm' | dcmtools import - --archive a")
    zeros = shell("find out -name '*.dcm' -print0 | dcmtools import - --archive b")

    assert states(lines.stdout) == states(zeros.stdout) == ["copied"] * 3


def test_upstream_without_its_end_makes_3_and_what_came_is_done(shell: Shell, few: str) -> None:
    done = shell(f"{few} | grep -v '\"end\"' | dcmtools import - --archive archive")

    assert done.returncode == 3
    assert states(done.stdout) == ["copied"] * 3
    assert "broke off" in done.stderr


def test_upstream_that_failed_makes_3_all_along_the_pipe(shell: Shell, few: str) -> None:
    done = shell(
        f"{few} > /dev/null; echo nonsense > out/notes.txt;"
        "dcmtools import out --archive a 2> first.txt | dcmtools index - --index index.jsonl; echo ${PIPESTATUS[*]}"
    )

    assert done.stdout.splitlines()[-1] == "3 3"
    assert "notes.txt" not in done.stderr  # whoever met it has said it


def test_upstream_that_could_not_start_makes_3(shell: Shell) -> None:
    done = shell(
        "dcmtools find --index nowhere.jsonl 2> first.txt | dcmtools import - --archive a; echo ${PIPESTATUS[*]}"
    )

    assert done.stdout.splitlines()[-1] == "66 3"


def test_wrong_words_upstream_make_3(shell: Shell) -> None:
    done = shell("dcmtools phantom 2> first.txt | dcmtools import - --archive a; echo ${PIPESTATUS[*]}")

    assert done.stdout.splitlines()[-1] == "2 3"


def test_kill_9_upstream_is_noticed(start_dcmtools: StartDcmtools, tmp_path: Path) -> None:
    upstream = start_dcmtools("phantom", "out", "--patients", "200", "--kinds", "mr")
    assert upstream.stdout is not None
    last = start_dcmtools("index", "-", "--index", "index.jsonl", stdin=upstream.stdout)
    upstream.stdout.close()
    assert last.stdout is not None
    last.stdout.readline()

    os.kill(upstream.pid, signal.SIGKILL)
    out = last.stdout.read()  # communicate() would lose what was read ahead with the first line

    assert last.wait(timeout=60) == 3
    found = records(out)
    cut = [one for one in found if one.get("event") == "incomplete"]
    assert len(cut) >= 1  # phantom says nothing of series, so all that were under way count


def test_consumer_that_dies_ends_the_commands_before_it_with_75(shell: Shell) -> None:
    done = shell(
        "dcmtools phantom out --patients 50 --kinds mr -q | dcmtools import - --archive archive | head -1 > /dev/null;"
        "echo ${PIPESTATUS[*]}"
    )

    assert done.stdout.splitlines()[-1] == "75 75 0"


def test_archive_is_whole_after_a_consumer_died(shell: Shell, tmp_path: Path) -> None:
    shell(
        "dcmtools phantom out --patients 50 --kinds mr -q | dcmtools import - --archive archive | head -1 > /dev/null"
    )

    indexed = shell("dcmtools find --archive archive --level instance --format paths").stdout.splitlines()
    assert sorted(indexed) == sorted(str(path) for path in (tmp_path / "archive").rglob("*.dcm"))
    assert not list((tmp_path / "archive" / ".dcmtools-incoming").glob("*/*"))


def test_head_behind_a_pure_reader_is_quiet(shell: Shell, few: str) -> None:
    done = shell(
        f"{few} | dcmtools import - --archive a > /dev/null;"
        "dcmtools find --archive a | head -1; echo ${PIPESTATUS[*]}"
    )

    assert done.stdout.splitlines()[-1] == "0 0"
    assert done.stderr == ""


def test_consumer_that_sleeps_holds_nothing_up_and_gets_everything(
    start_dcmtools: StartDcmtools, tmp_path: Path
) -> None:
    """The records are far more than a pipe holds; the work is over before the first of them is read."""
    process = start_dcmtools("phantom", "out", "--patients", "12", "--kinds", "mr")
    assert process.stdout is not None

    wait_until(lambda: len(list((tmp_path / "out").rglob("*.dcm"))) == 12 * 24, timeout=60)
    assert process.poll() is None
    out, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert len(states(out)) == 12 * 24
    assert len(out) > 4 << 16


def test_cron_gets_no_mail_when_all_is_well(shell: Shell, few: str) -> None:
    done = shell(f"{few} | dcmtools import - --archive archive > /dev/null")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
