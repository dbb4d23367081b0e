"""The command set codec against itself, against garbage, and against pynetdicom's."""

from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.model.errors import ProtocolError
from dcmtools.network import command

NUMBERS = st.integers(0, 0xFFFF)
COMMANDS = st.fixed_dictionaries(
    {"CommandField": st.just(command.C_STORE_RQ), "MessageID": NUMBERS, "CommandDataSetType": st.just(1)},
    optional={
        "AffectedSOPClassUID": st.from_regex(r"[12](\.[1-9][0-9]{0,6}){1,6}", fullmatch=True),
        "AffectedSOPInstanceUID": st.from_regex(r"[12](\.[1-9][0-9]{0,6}){1,6}", fullmatch=True),
        "Priority": NUMBERS,
        "ErrorComment": st.from_regex(r"[A-Za-z](?:[A-Za-z ]{0,40}[A-Za-z])?", fullmatch=True),
        "OffendingElement": st.lists(st.integers(0, 0xFFFFFFFF), max_size=4),
        "MoveOriginatorMessageID": NUMBERS,
    },
)


@given(COMMANDS)
def test_a_command_comes_back_as_it_was(wanted: dict[str, Any]) -> None:
    assert command.decode(command.encode(wanted)) == wanted


@given(COMMANDS)
def test_pynetdicom_reads_our_command_as_we_meant_it(wanted: dict[str, Any]) -> None:
    from pynetdicom.dsutils import decode

    theirs = decode(BytesIO(command.encode(wanted)), is_implicit_vr=True, is_little_endian=True)

    assert theirs.CommandGroupLength == len(command.encode(wanted)) - 12
    for keyword, value in wanted.items():
        if keyword != "OffendingElement":
            assert getattr(theirs, keyword) == value


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_and_nothing_else(data: bytes) -> None:
    with suppress(ProtocolError):
        command.decode(data)


def test_an_unknown_keyword_is_our_own_defect() -> None:
    with pytest.raises(KeyError):
        command.encode({"CommandField": 1, "Nonsense": 2})


@pytest.mark.parametrize("field", [command.C_STORE_RSP, command.C_FIND_RSP, command.C_MOVE_RSP, command.C_ECHO_RSP])
def test_a_response_without_a_status_is_no_success(field: int) -> None:
    bare = command.encode({"CommandField": field, "MessageIDBeingRespondedTo": 1})
    short = bare + b"\0\0\0\x09\0\0\0\0"

    for data in (bare, short):
        with pytest.raises(ProtocolError, match="without a Status"):
            command.decode(data)
