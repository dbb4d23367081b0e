"""Commands for what arrives: which, when, and that nobody waits for them."""

import json
import os
import sys
from pathlib import Path

from dcmtools.model.errors import DcmtoolsError
from dcmtools.model.record import Record
from dcmtools.network.hooks import Command, Commands, Hooks
from tests.builders import make_record, uid
from tests.waiting import wait_until


def noting(path: Path) -> Command:
    """A command that adds what it reads to a file."""
    return sys.executable, "-c", f"import sys; open({str(path)!r}, 'a').write(sys.stdin.read())"


def told(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def arrived(*numbers: int) -> Record:
    return {**make_record(*numbers), "state": "received"}


def run(commands: Commands, *records: Record) -> list[DcmtoolsError]:
    problems: list[DcmtoolsError] = []
    with Hooks(commands, problems.append) as hooks:
        for record in records:
            hooks.arrived(record)
    return problems


def test_each_instance_is_handed_to_its_command_once_and_only_what_is_new(tmp_path: Path) -> None:
    out = tmp_path / "out"
    new, again = arrived(1, 1, 1, 1), {**make_record(1, 1, 1, 2), "state": "present"}

    problems = run(Commands(instance=noting(out)), new, again, {"type": "error", "reason": "x"})

    assert told(out) == [new]
    assert not problems


def test_series_and_studies_are_told_at_the_end_with_their_numbers(tmp_path: Path) -> None:
    series, studies = tmp_path / "series", tmp_path / "studies"
    records = [arrived(1, 1, number % 2 + 1, number) for number in range(1, 6)] + [arrived(2, 1, 1, 1)]

    run(Commands(series=noting(series), study=noting(studies)), *records)

    assert {(one["SeriesInstanceUID"], one["instances"]) for one in told(series)} == {
        (uid(1, 1, 1), 2),
        (uid(1, 1, 2), 3),
        (uid(2, 1, 1), 1),
    }
    assert {(one["type"], one["StudyInstanceUID"], one["instances"]) for one in told(studies)} == {
        ("study", uid(1, 1), 5),
        ("study", uid(2, 1), 1),
    }


def test_a_study_is_told_when_nothing_of_it_came_for_a_while(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Hooks(Commands(study=noting(out), settle=0.3), lambda _: None) as hooks:
        hooks.arrived(arrived(1, 1, 1, 1))
        wait_until(lambda: told(out))
        hooks.arrived(arrived(1, 1, 1, 2))

    assert [one["instances"] for one in told(out)] == [1, 1]


def test_a_command_that_fails_or_is_missing_is_told_and_stops_nothing(tmp_path: Path) -> None:
    problems = run(
        Commands(instance=(sys.executable, "-c", "raise SystemExit(3)"), study=(str(tmp_path / "missing"),)),
        arrived(1, 1, 1, 1),
        arrived(1, 1, 1, 2),
    )

    assert [problem.cause for problem in problems] == ["hook"] * 3
    assert "ended with 3" in problems[0].reason
    assert "cannot be run" in problems[2].reason


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    run(Commands(instance=("touch", f"{tmp_path}/a; touch b $(id)")), arrived(1, 1, 1, 1))

    assert [path.name for path in tmp_path.iterdir()] == ["a; touch b $(id)"] or not list(tmp_path.iterdir())


def test_nobody_waits_for_a_command(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    problems: list[DcmtoolsError] = []

    with Hooks(Commands(instance=("cat", str(fifo))), problems.append) as hooks:
        hooks.arrived(arrived(1, 1, 1, 1))  # its command waits for a writer
        fifo.write_text("that came after `arrived` had returned")

    assert not problems
