"""From what became of everything to one exit code and one sentence."""

import pytest

from dcmtools.cli.tally import Tally
from dcmtools.model.record import Record

DONE = {"type": "instance", "state": "received"}
HERE = {"type": "instance", "state": "present"}


def failure(code: int) -> Record:
    return {"type": "error", "exit_code": code}


def tally_of(*records: Record) -> Tally:
    tally = Tally()
    for record in records:
        if record["type"] == "error":
            tally.fail(record)
        else:
            tally.add(record)
    return tally


@pytest.mark.parametrize(
    ("records", "code"),
    [
        ([], 0),
        ([DONE, HERE], 0),
        ([failure(65)], 65),
        ([failure(66), failure(69)], 69),
        ([DONE, failure(69)], 3),
        ([failure(69), HERE], 3),
        ([failure(74), failure(69)], 74),
        ([DONE, failure(69), failure(74), failure(65)], 74),
        ([DONE, failure(1), failure(65)], 1),
        ([failure(1), failure(74)], 74),
        ([{"type": "error"}], 3),
        ([{"type": "instance", "state": "failed", "exit_code": 76}], 76),
        ([DONE, {"type": "instance", "state": "failed", "exit_code": 76}], 3),
        ([{"type": "volume", "state": "suspect"}], 3),
        ([{"type": "instance", "state": "conflict"}, HERE], 3),
        ([{"type": "instance", "state": "sent", "exit_code": 76}], 0),  # of an earlier stage
    ],
)
def test_exit_code_is_74_else_3_when_anything_succeeded_else_the_last(records: list[Record], code: int) -> None:
    assert tally_of(*records).exit_code() == code


@pytest.mark.parametrize(("records", "code"), [([], 3), ([DONE], 3), ([failure(69)], 69), ([DONE, failure(74)], 74)])
def test_failure_upstream_makes_at_least_3(records: list[Record], code: int) -> None:
    tally = tally_of(*records)
    tally.upstream_failed = True

    assert tally.exit_code() == code


def test_summary_tells_types_states_and_failures() -> None:
    study = {"type": "study"}

    assert tally_of(DONE, DONE, HERE).in_words(0) == "3 instances (2 received, 1 present)"
    assert tally_of(study, study).in_words(0) == "2 studies"
    assert tally_of(study, {"type": "series"}).in_words(1) == "1 study, 1 series, 1 failure"
    assert tally_of(*[DONE] * 1234).in_words(2) == "1,234 instances (1,234 received), 2 failures"
    assert tally_of().in_words(0) == "nothing to do"
