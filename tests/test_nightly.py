"""scripts/nightly.sh as cron calls it, mostly with a stand-in for the commands: the script's own part is tried here."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.waiting import wait_until

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "nightly.sh"
# find prints a record, the others add their name to it; the stage named by FAILING ends with 69, each with its own of
# CODES, and find waits while a file `wait` lies in its folder.
STAND_IN = """#!/bin/bash
echo "$*" >>calls
while [[ $1 == find && -e wait ]]; do sleep 0.05; done
if [[ $1 == find ]]; then echo '{"StudyInstanceUID":"1.2.3"}'; else sed "s/}$/,\\"$1\\":true}/"; fi
if [[ $1 == "$FAILING" ]]; then echo "PACS is away" >&2; exit 69; fi
declare -A codes
read -r codes[find] codes[move] codes[convert-nifti] codes[sort-by-physician] <<<"$CODES"
exit "${codes[$1]:-0}"
"""

Nightly = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def nightly(tmp_path: Path) -> Nightly:
    """A function that starts the script in tmp_path."""
    command = tmp_path / "bin" / "dcmtools"
    command.parent.mkdir()
    command.write_text(STAND_IN)
    command.chmod(0o755)

    def start(*args: str, **settings: str) -> subprocess.Popen[str]:
        path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            [SCRIPT, *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "FAILING": "", "CODES": "", **settings},
        )

    return start


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, talk = process.communicate(timeout=60)
    return process.returncode, out, talk


def test_good_night_is_silent_and_leaves_its_records(nightly: Nightly, tmp_path: Path) -> None:
    assert ended(nightly("PACS")) == (0, "", "")

    record = json.loads((tmp_path / "logs" / "nightly.jsonl").read_text())
    assert list(record) == ["StudyInstanceUID", "move", "convert-nifti", "sort-by-physician"]
    assert "PACS: exit code 0" in (tmp_path / "logs" / "nightly.log").read_text()
    assert [path.stat().st_mode & 0o077 for path in (tmp_path / "logs").iterdir()] == [0, 0, 0]


def test_it_asks_for_several_days_so_that_a_missed_night_is_caught_up(nightly: Nightly, tmp_path: Path) -> None:
    ended(nightly("PACS", "--modality", "MR", DAYS="5"))

    calls = (tmp_path / "calls").read_text().splitlines()
    assert "find --quiet --node PACS --date=-5d..yesterday --modality MR" in calls


@pytest.mark.parametrize("stage", ["find", "move", "convert-nifti", "sort-by-physician"])
def test_stage_that_fails_gives_the_exit_code_and_the_words(nightly: Nightly, tmp_path: Path, stage: str) -> None:
    assert ended(nightly("PACS", FAILING=stage)) == (69, "", "PACS is away\n")

    assert "exit code 69\nPACS is away\n" in (tmp_path / "logs" / "nightly.log").read_text()


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ("69 3 3 3", 69),  # the PACS is away
        ("0 69 3 3", 69),
        ("0 75 78 3", 78),  # nobody reads what move still says
        ("0 75 75 74", 74),
        ("0 3 3 3", 3),
        ("0 0 0 3", 3),
        ("0 0 0 0", 0),
    ],
)
def test_exit_code_tells_the_cause_and_not_what_came_of_it(nightly: Nightly, codes: str, code: int) -> None:
    assert ended(nightly("PACS", CODES=codes))[0] == code


def test_real_commands_tell_of_a_node_that_is_away(
    tmp_path: Path, environment: dict[str, str], free_port: Callable[[], int]
) -> None:
    node = f"PACS@127.0.0.1:{free_port()}"
    own = {**environment, "DCMTOOLS_ARCHIVE": str(tmp_path / "archive")}

    answer = subprocess.run([SCRIPT, node], env=own, cwd=tmp_path, capture_output=True, check=False, text=True)

    assert (answer.returncode, answer.stdout) == (69, "")
    assert f"cannot reach {node}" in answer.stderr


def test_second_run_beside_the_first_ends_with_75_and_starts_nothing(nightly: Nightly, tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    first = nightly("PACS")
    wait_until(lambda: (tmp_path / "calls").exists() and "find" in (tmp_path / "calls").read_text())

    code, _, talk = ended(nightly("OTHER"))
    (tmp_path / "wait").unlink()

    assert (code, "has not ended" in talk) == (75, True)
    assert ended(first)[0] == 0
    assert "OTHER" not in (tmp_path / "calls").read_text()


def test_night_after_a_killed_one_runs(nightly: Nightly, tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    first = nightly("PACS")
    wait_until(lambda: (tmp_path / "calls").exists() and "find" in (tmp_path / "calls").read_text())
    first.kill()
    (tmp_path / "wait").unlink()  # its stages end by themselves, and the lock with the last of them
    ended(first)

    def runs() -> bool:
        return ended(nightly("PACS"))[0] == 0

    wait_until(runs)


def test_no_node_is_a_usage_error(nightly: Nightly) -> None:
    code, _, talk = ended(nightly())

    assert (code, talk.startswith("usage:")) == (2, True)


def test_folder_of_logs_that_cannot_be_used_ends_with_73(nightly: Nightly, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "nightly.lock").mkdir(parents=True)

    for logs in ("file/logs", "taken"):
        code, _, talk = ended(nightly("PACS", LOGS=logs))
        assert (code, logs in talk) == (73, True)
    assert not (tmp_path / "calls").exists()
