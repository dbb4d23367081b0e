import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.model.record import Record, decode, encode, event, is_event, path_keys, path_of, pick, type_of

TEXT = st.text(st.characters(codec="utf-8"))
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
RECORDS = st.dictionaries(TEXT, VALUES, max_size=8)


@given(RECORDS)
def test_record_comes_back_as_it_went(record: Record) -> None:
    assert decode(encode(record)) == record


@given(RECORDS)
def test_record_is_one_line_that_any_json_reader_reads(record: Record) -> None:
    line = encode(record)

    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert not any(byte < 0x20 for byte in line[:-1])
    assert json.loads(line) == record


@given(st.binary(max_size=40))
def test_any_bytes_are_a_record_or_a_value_error(line: bytes) -> None:
    with suppress(ValueError):
        assert isinstance(decode(line), dict)


@pytest.mark.parametrize("line", ["", "[]", "1", '"x"', "{", "null", b"\xff", '{"a":1}{"b":2}'])
def test_what_is_no_object_is_a_value_error(line: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is msgspec's
        decode(line)


def test_infinity_does_not_become_bad_json() -> None:
    assert json.loads(encode({"x": math.inf})) == {"x": None}


@given(st.binary(min_size=1, max_size=60).filter(lambda raw: b"\0" not in raw))
def test_any_path_comes_back_through_a_line(raw: bytes) -> None:
    path = os.fsdecode(raw)

    record = decode(encode(path_keys(path)))

    assert path_of(record) == Path(path)
    assert ("path_b64" in record) == (not raw.isascii() and path.encode("utf-8", "replace") != raw)


@pytest.mark.parametrize("record", [{}, {"path": ""}, {"path": None}, {"path": 7}, {"path": "x", "path_b64": "***"}])
def test_record_without_a_path_has_none(record: dict[str, Any]) -> None:
    assert path_of(record) is None


def test_line_without_a_type_is_an_instance() -> None:
    assert type_of({}) == "instance"
    assert type_of({"type": "image"}) == "instance"
    assert type_of({"type": "study"}) == "study"


def test_event_is_recognised_by_its_name() -> None:
    assert is_event(event("series-complete", SeriesInstanceUID="1.2"), "series-complete")
    assert not is_event({"event": "series-complete"}, "series-complete")


def test_pick_takes_what_is_there() -> None:
    assert pick({"a": 1, "b": None}, "a", "b", "c") == {"a": 1, "b": None}
