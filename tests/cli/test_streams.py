"""What comes in on stdin: records, paths, nonsense, and what a stream says about itself."""

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.cli.signals import Stop
from dcmtools.cli.streams import Stream
from dcmtools.model.record import Record, encode, event

BEGIN = event("begin", command="move")
END = event("end", command="move", exit_code=0)
ONE = {"type": "instance", "StudyInstanceUID": "1", "SeriesInstanceUID": "1.1", "SOPInstanceUID": "1.1.1"}
COMPLETE = event("series-complete", StudyInstanceUID="1", SeriesInstanceUID="1.1")
ERROR = {"type": "error", "cause": "truncated", "reason": "x", "exit_code": 65}


def stream_of(*chunks: bytes) -> Stream:
    out, into = os.pipe()

    def write() -> None:
        with os.fdopen(into, "wb", buffering=0) as pipe:
            for chunk in chunks:
                pipe.write(chunk)

    threading.Thread(target=write).start()
    return Stream(Stop(), out)


def read(records: Iterable[Record]) -> tuple[Stream, list[Record]]:
    stream = stream_of(*map(encode, records))
    return stream, list(stream.records())


def test_records_pass_in_their_order_and_the_frame_is_taken_out() -> None:
    transfer = {"type": "transfer", "of": "another day"}

    stream, records = read([BEGIN, ONE, transfer, COMPLETE, END])

    assert records == [ONE, transfer, COMPLETE]
    assert (stream.failed, stream.died) == (False, False)


@pytest.mark.parametrize(
    "records",
    [
        [BEGIN, ERROR, END],
        [ERROR],
        [BEGIN, event("incomplete", SeriesInstanceUID="1.1"), END],
        [BEGIN, event("end", exit_code=3)],
        [BEGIN, event("end")],
        [BEGIN, event("end", exit_code=69), BEGIN, END],
        [BEGIN],
        [BEGIN, BEGIN, END],
    ],
)
def test_stream_that_tells_of_a_failure_or_breaks_off_has_failed(records: list[Record]) -> None:
    stream, _ = read(records)

    assert stream.failed


@pytest.mark.parametrize("records", [[], [ONE], [BEGIN, END], [BEGIN, END, BEGIN, ONE, END], [COMPLETE, ONE]])
def test_stream_without_frame_or_with_whole_frames_has_not_failed(records: list[Record]) -> None:
    stream, _ = read(records)

    assert not stream.failed


def test_series_that_was_cut_off_is_incomplete_and_one_that_was_complete_is_not() -> None:
    other = {**ONE, "SeriesInstanceUID": "1.2", "SOPInstanceUID": "1.2.1"}

    stream, records = read([BEGIN, ONE, COMPLETE, other, {**other, "SOPInstanceUID": "1.2.2"}])

    assert stream.died
    last = records[-1]
    assert (last["event"], last["SeriesInstanceUID"], last["received"]) == ("incomplete", "1.2", 2)
    assert [record.get("event") for record in records].count("incomplete") == 1
    assert stream.has_told(last)


@pytest.mark.parametrize("code", [1, 66, 69, 73, 74, 75, 76, 130, 143, None])
def test_series_is_cut_off_by_an_end_that_came_before_all_was_done(code: int | None) -> None:
    stream, records = read([BEGIN, ONE, event("end", command="import", exit_code=code)])

    assert [record.get("event") for record in records] == [None, "incomplete"]
    assert (records[-1]["SeriesInstanceUID"], records[-1]["received"]) == ("1.1", 1)
    assert stream.failed
    assert stream.has_told(records[-1])


@pytest.mark.parametrize("code", [0, 3, 65])
def test_series_is_whole_when_all_was_done_though_some_failed(code: int) -> None:
    _, records = read([BEGIN, ONE, event("end", command="import", exit_code=code)])

    assert records == [ONE]


def test_series_without_frame_is_complete_at_the_end_of_input() -> None:
    _, records = read([ONE])

    assert records == [ONE]


def test_failure_from_upstream_is_told_from_our_own() -> None:
    stream, (record,) = read([ERROR])

    assert stream.has_told(dict(record))
    assert not stream.has_told({**record, "reason": "another"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (b"a.dcm", b"b.dcm", b"caf\xe9.dcm", b"a\nb.dcm", b"[1] a.dcm"):
        (tmp_path / os.fsdecode(name)).touch()
    return tmp_path


def test_plain_lines_are_paths(folder: Path) -> None:
    stream = stream_of(os.fsencode(folder / "a.dcm") + b"\nb.dcm\r\n\n  \ncaf\xe9.dcm\n")

    records = list(stream.records())

    assert [record["type"] for record in records] == ["file"] * 3
    assert [record["path"] for record in records[:2]] == [str(folder / "a.dcm"), str(folder / "b.dcm")]
    assert records[2]["path_b64"]


def test_paths_between_zero_bytes_may_have_newlines(folder: Path) -> None:
    stream = stream_of(b"a\nb.dcm\0b.dcm\0")

    assert [record["path"] for record in stream.records()] == [str(folder / "a\nb.dcm"), str(folder / "b.dcm")]


@pytest.mark.parametrize("line", [b'{"a":1', b'{"a":"\xff"}', b'{"a":1}{"b":2}', b"{}x", b"{'a':1}"])
def test_line_that_is_no_record_becomes_an_error_and_the_rest_goes_on(line: bytes) -> None:
    stream = stream_of(line + b"\n" + encode(ONE))

    bad, good = stream.records()

    assert (bad["type"], bad["cause"], bad["line"], bad["exit_code"]) == ("error", "not-json", 1, 65)
    assert good == ONE
    assert not stream.has_told(bad)


def test_path_may_begin_with_a_bracket(folder: Path) -> None:
    (record,) = stream_of(b"[1] a.dcm").records()

    assert record["path"] == str(folder / "[1] a.dcm")


def test_record_comes_before_the_next_line_is_there() -> None:
    out, into = os.pipe()
    os.write(into, encode(ONE) + b'{"type":')
    records = Stream(Stop(), out).records()

    assert next(records) == ONE

    os.write(into, b'"event"}\n')
    os.close(into)
    assert list(records) == [{"type": "event"}]


def test_reason_to_stop_ends_a_wait_for_input() -> None:
    out, into = os.pipe()
    stop = Stop()
    threading.Timer(0.05, stop.by_reader).start()

    stream = Stream(stop, out)

    assert list(stream.records()) == []
    assert not stream.failed
    os.close(into)


values = st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), st.lists, max_leaves=4)


@given(st.lists(st.dictionaries(st.text(), values), max_size=5), st.data())
def test_records_are_the_same_however_the_bytes_are_cut(records: list[dict[str, Any]], data: st.DataObject) -> None:
    text = "".join(json.dumps(record, ensure_ascii=data.draw(st.booleans())) + "\n" for record in records).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    found = list(stream_of(*chunks).records())

    framing = {"begin", "end"}
    assert found == [one for one in records if not (one.get("type") == "event" and one.get("event") in framing)]


def test_record_printed_for_people_is_refused_without_a_word_of_it() -> None:
    pretty = json.dumps([{**ONE, "PatientName": "DOE^JANE"}], indent=2).encode()

    records = list(stream_of(pretty + b"\nDOE^JANE,1.2.3\n").records())

    assert {record["cause"] for record in records} == {"not-json", "missing"}
    assert "DOE" not in json.dumps(records)
