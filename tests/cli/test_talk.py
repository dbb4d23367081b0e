"""stderr: errors in one line each, and nothing that a terminal could take for a command."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.cli.talk import Talk, defect, printable, sentence


def said(talk: Talk) -> list[str]:
    lines: list[str] = []
    talk.show = lines.append
    return lines


def test_error_is_one_line_with_reason_and_advice() -> None:
    lines = said(talk := Talk("find"))

    talk.error({"reason": "PACS: refused\n\x1b[31m", "advice": "try later", "path": "/data/a.dcm"})

    assert lines == ["dcmtools find: /data/a.dcm: PACS: refused\\n\\x1b[31m; try later"]


def test_path_is_not_said_twice() -> None:
    assert sentence({"reason": "/data/a.dcm is truncated", "path": "/data/a.dcm"}) == "/data/a.dcm is truncated"


def test_error_without_words_still_says_something() -> None:
    assert sentence({}) == "failed"
    assert sentence({"cause": "truncated"}) == "truncated"


@pytest.mark.parametrize(
    ("talk", "heard"),
    [
        (Talk("x"), ["error", "warning"]),  # without a terminal
        (Talk("x", quiet=True), ["error"]),
        (Talk("x", verbose=1), ["error", "warning", "info"]),
        (Talk("x", verbose=2), ["error", "warning", "info", "debug"]),
        (Talk("x", quiet=True, verbose=2), ["error"]),
    ],
)
def test_quiet_and_verbose_say_less_and_more(talk: Talk, heard: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = said(talk)

    talk.error({"reason": "error"})
    talk.warning("warning")
    talk.info("info")
    talk.debug("debug")

    assert [line.rpartition(" ")[2] for line in lines] == heard


def test_summary_without_a_terminal_is_said_when_something_failed_only() -> None:
    lines = said(talk := Talk("move"))

    talk.summary("3 instances", failed=False)
    assert lines == []

    talk.summary("3 instances, 1 failure", failed=True)
    assert lines == ["dcmtools move: 3 instances, 1 failure"]


def test_json_log_has_one_object_a_line_without_values_of_patients() -> None:
    lines = said(talk := Talk("store", as_json=True))

    talk.error({"reason": "x", "exit_code": 76, "node": "PACS", "PatientName": "Doe^John", "SOPInstanceUID": "1.2"})

    (line,) = map(json.loads, lines)
    assert {**line, "time": ""} == {
        "time": "", "level": "error", "command": "store", "message": "x",
        "reason": "x", "exit_code": 76, "node": "PACS", "SOPInstanceUID": "1.2",
    }  # fmt: skip


@given(st.text())
def test_printable_is_one_printable_line(text: str) -> None:
    assert printable(text).isprintable()


def test_defect_tells_its_place_and_not_its_text() -> None:
    with pytest.raises(ValueError, match="Doe") as caught:
        int("Doe^John")

    told = defect(caught.value)

    assert told.reason.startswith("a defect of dcmtools: ValueError at test_talk.py:")
    assert "Doe" not in str(told.record())
    assert told.exit_code == 1


def test_volume_is_named_by_its_series_and_not_by_a_path_made_from_names() -> None:
    record = {"type": "volume", "path": "/nifti/DOE_John/x.nii.gz", "SeriesInstanceUID": "1.2.3", "reason": "look"}

    assert sentence(record) == "series 1.2.3: look"


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".json", ".png", ".bval", ".bvec"])
def test_error_of_a_file_named_by_people_names_the_series_and_no_path(ending: str) -> None:
    path = f"/nifti/DOE_John/x{ending}"
    record = {"type": "error", "path": path, "source": path, "SeriesInstanceUID": "1.2.3", "reason": "look"}
    text, log = Talk("x"), Talk("x", as_json=True)
    lines = [said(text), said(log)]

    text.error(record)
    log.error(record)

    assert lines[0] == ["dcmtools x: series 1.2.3: look"]
    assert "DOE" not in lines[1][0]


def test_error_of_an_instance_still_names_its_path() -> None:
    record = {"type": "error", "path": "/archive/1.2/1.3/1.4.dcm", "SeriesInstanceUID": "1.3", "reason": "look"}

    assert sentence(record) == "/archive/1.2/1.3/1.4.dcm: look"
