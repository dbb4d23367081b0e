"""Formats: what one reads back is what went in, and nothing steers a terminal."""

import csv
import io
import json
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.cli.formats import cell, format_for, width
from dcmtools.model.keys import QUERY_BY_KEYWORD
from dcmtools.model.record import Record, event, path_keys

NAMES = ["jsonl", "table", "csv", "tsv", "json", "dicom-json", "paths", "paths0", "uids"]
STUDY = {
    "type": "study",
    "StudyDate": "20240131",
    "PatientID": "P1",
    "PatientName": "Müller^Jürgen=山田",
    "ModalitiesInStudy": ["CT", "MR"],
    "StudyDescription": None,
    "StudyInstanceUID": "1.2.3",
}
ERROR = {"type": "error", "cause": "truncated", "reason": "x", "exit_code": 65}

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
values = scalars | st.lists(st.text(), max_size=3)
records = st.lists(st.dictionaries(st.text(min_size=1), values, min_size=1), max_size=5)


def written(name: str, found: list[Record], *, fields: list[str] | None = None, to_terminal: bool = False) -> bytes:
    form = format_for(name, fields, to_terminal=to_terminal)
    return b"".join([*map(form.render, found), form.end()])


def is_data(record: Record) -> bool:
    return record.get("type") not in {"error", "event"}


@given(records, st.booleans())
def test_json_lines_and_arrays_give_back_every_record(found: list[Record], to_terminal: bool) -> None:
    lines = written("jsonl", found, to_terminal=to_terminal)
    array = written("json", found, to_terminal=to_terminal)

    assert [json.loads(line) for line in lines.splitlines()] == found
    assert json.loads(array) == found


@given(records, st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True))
def test_csv_gives_back_every_value_as_text(found: list[Record], fields: list[str]) -> None:
    text = written("csv", found, fields=fields).decode("utf-8", "surrogateescape")

    rows = list(csv.reader(io.StringIO(text, newline="")))
    wanted = [[cell(one.get(key)) for key in fields] for one in found if is_data(one)]
    assert rows == ([fields, *wanted] if wanted else [])


@given(records, st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True))
def test_tsv_has_one_line_a_record_and_one_tab_between_values(found: list[Record], fields: list[str]) -> None:
    lines = written("tsv", found, fields=fields).decode("utf-8", "surrogateescape").split("\n")[:-1]

    data = [one for one in found if is_data(one)]
    assert len(lines) == (len(data) + 1 if data else 0)
    assert {line.count("\t") for line in lines} <= {len(fields) - 1}


@given(st.sampled_from(NAMES), records)
def test_nothing_that_steers_a_terminal_is_written_to_one(name: str, found: list[Record]) -> None:
    pathed = [{**one, "path": cell(next(iter(one.values())))} for one in found]

    text = written(name, pathed, to_terminal=True).decode()

    allowed = set("\n\t\0")
    assert not [one for one in text if not one.isprintable() and one not in allowed]


@given(records)
def test_table_has_one_line_a_record_below_the_keys(found: list[Record]) -> None:
    lines = written("table", found, fields=["type", "StudyDate"]).decode().splitlines()

    data = [one for one in found if is_data(one)]
    assert len(lines) == (len(data) + 1 if data else 0)


def test_table_lines_up_wide_and_combining_characters() -> None:
    rows = [{"a": "山田", "b": "x"}, {"a": "u\u0308", "b": "y"}, {"a": "abcd", "b": "z"}]

    lines = written("table", rows, fields=["a", "b"]).decode().splitlines()

    assert {width(line) for line in lines} == {7}


def test_table_fits_a_terminal_and_shows_what_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")

    lines = (
        written("table", [{"a": "x" * 50, "b": "y" * 30}], fields=["a", "b"], to_terminal=True).decode().splitlines()
    )

    assert all(width(line) <= 40 for line in lines)
    assert lines[1].count("…") == 2
    assert "…" not in written("table", [{"a": "x" * 50}], fields=["a"]).decode()


def test_table_holds_rows_back_until_it_knows_the_widths() -> None:
    form = format_for("table", ["a"], to_terminal=False)

    assert (form.render({"a": "1"}), form.waiting) == (b"", True)
    assert (form.flush(), form.waiting) == (b"a\n1\n", False)
    assert form.render({"a": "2"}) == b"2\n"


def test_table_of_several_types_has_the_columns_of_all() -> None:
    skipped = {"type": "series", "state": "skipped", "SeriesInstanceUID": "1.2"}

    head = written("table", [skipped, {"type": "volume", "state": "converted", "path": "/x"}]).decode().splitlines()[0]

    assert head.split()[0] == "state"
    assert {"SeriesInstanceUID", "path"} <= set(head.split())


@pytest.mark.parametrize("name", ["table", "csv", "tsv", "dicom-json", "paths", "uids"])
def test_events_and_errors_are_no_rows(name: str) -> None:
    assert written(name, [event("begin"), ERROR]) in {b"", b"[]\n"}


def test_events_and_errors_are_json_lines_whatever_fields_were_asked_for() -> None:
    lines = written("jsonl", [STUDY, event("end", exit_code=3), ERROR], fields=["PatientID", "Nothing"]).splitlines()

    assert json.loads(lines[0]) == {"type": "study", "PatientID": "P1"}
    assert [json.loads(line) for line in lines[1:]] == [event("end", exit_code=3), ERROR]


def test_table_of_studies_has_its_columns_without_being_told() -> None:
    head = written("csv", [STUDY]).decode().splitlines()[0].split(",")

    assert head[:3] == ["StudyDate", "PatientID", "PatientName"]
    assert head[-1] == "StudyInstanceUID"


@pytest.mark.parametrize("name", ["paths", "paths0"])
def test_paths_are_the_bytes_of_the_name(name: str) -> None:
    raw = "/data/caf\udce9\n.dcm"

    end = b"\n" if name == "paths" else b"\0"
    assert written(name, [{"type": "instance", **path_keys(raw)}, STUDY]) == b"/data/caf\xe9\n.dcm" + end


def test_uids_are_those_of_the_records_level() -> None:
    found: list[Record] = [
        STUDY,
        {"StudyInstanceUID": "1", "SOPInstanceUID": "1.1.1"},
        {"type": "volume", "StudyInstanceUID": "1", "SeriesInstanceUID": "1.1"},
        {"type": "patient", "PatientID": "P1"},
        {"type": "node", "node": "PACS"},
    ]

    assert written("uids", found) == b"1.2.3\n1.1.1\n1.1\nP1\n"


def test_dicom_json_is_read_by_pydicom() -> None:
    extra: dict[str, Any] = {"SeriesNumber": 3, "EchoTime": 4.5, "path": "/x", "PatientBirthDate": None}

    (found,) = json.loads(written("dicom-json", [{**STUDY, **extra}]))

    dataset = pydicom.Dataset.from_json(found)
    assert str(dataset.PatientName) == "Müller^Jürgen=山田"
    assert dataset.PatientName.ideographic == "山田"
    assert list(dataset.ModalitiesInStudy) == ["CT", "MR"]
    assert (dataset.SeriesNumber, dataset.EchoTime, dataset.PatientBirthDate) == (3, 4.5, "")
    assert len(dataset) == 9


vrs = {
    "PN": st.text(max_size=10).filter(lambda text: "\\" not in text),
    "IS": st.integers(0, 999),
    "DS": st.floats(0, 9),
}
attributes = st.sampled_from(sorted(QUERY_BY_KEYWORD)).flatmap(
    lambda key: st.tuples(st.just(key), vrs.get(QUERY_BY_KEYWORD[key].vr, st.text("ABC123. ", max_size=8)))
)


@given(st.lists(attributes, max_size=8))
def test_dicom_json_has_every_attribute_in_the_order_of_the_tags(found: list[tuple[str, Any]]) -> None:
    record = dict(found)

    (elements,) = json.loads(written("dicom-json", [record]))

    assert list(elements) == sorted(f"{QUERY_BY_KEYWORD[key].tag:08X}" for key in record)
    assert all(elements[f"{QUERY_BY_KEYWORD[key].tag:08X}"]["vr"] == QUERY_BY_KEYWORD[key].vr for key in record)
