"""A data set that is walked while it arrives gives what a walk through its file gives, however it is cut."""

import random
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from dcmtools.disk.arriving import Arriving, OutlinesBySyntax
from dcmtools.disk.dataset import walk
from dcmtools.disk.header import check_received, encode_meta
from dcmtools.model.errors import BadData
from dcmtools.model.record import Record
from dcmtools.model.uids import EXPLICIT_VR_BIG_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from tests.builders import make_instance, uid

MR = "1.2.840.10008.5.1.4.1.1.4"
SYNTAXES = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)


def data_set(
    instance: int = 1, syntax: str = EXPLICIT_VR_LITTLE_ENDIAN, *, undefined: bool = True, **keys: Any
) -> bytes:
    """An encoded data set with a sequence of two items, of undefined or defined lengths."""
    made = make_instance(1, 1, 1, instance, **keys)
    item, inner = Dataset(), Dataset()
    inner.CodeValue, inner.CodingSchemeDesignator = "121", "DCM"
    item.ReferencedSOPInstanceUID = uid(9, instance)
    item.PurposeOfReferenceCodeSequence = [inner]
    made.ReferencedImageSequence = [item, item]
    made["ReferencedImageSequence"].is_undefined_length = undefined
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = syntax != EXPLICIT_VR_BIG_ENDIAN, syntax == IMPLICIT_VR_LITTLE_ENDIAN
    write_dataset(out, made)
    return out.getvalue()


def pieces(data: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    yield from (data[start:end] for start, end in pairwise(places))


def arrived(data: bytes, cuts: Iterable[int] = (), outlines: OutlinesBySyntax | None = None, **keys: Any) -> Arriving:
    arriving = Arriving(keys.get("syntax", EXPLICIT_VR_LITTLE_ENDIAN), {} if outlines is None else outlines)
    size = 0
    for piece in pieces(data, cuts):
        size += len(piece)
        buffer = bytearray(piece)
        arriving.take(memoryview(buffer), last=size == len(data))
        buffer[:] = random.Random(size).randbytes(len(buffer))  # as the next fragment overwrites this one
    return arriving


def record(data: bytes, cuts: Iterable[int] = (), instance: int = 1, **keys: Any) -> Record:
    return arrived(data, cuts, **keys).record(MR, uid(1, 1, 1, instance))


def walked(data: bytes, folder: Path, syntax: str = EXPLICIT_VR_LITTLE_ENDIAN) -> Record:
    meta = encode_meta(MR, uid(1, 1, 1, 1), syntax)
    path = folder / "walked.dcm"
    path.write_bytes(meta + data)
    told = check_received(path, MR, uid(1, 1, 1, 1), syntax, len(meta))
    return {key: value for key, value in told.items() if key not in {"path", "size", "mtime_ns"}}


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_it_tells_what_a_walk_through_the_file_tells(tmp_path: Path, syntax: str, undefined: bool) -> None:
    data = data_set(syntax=syntax, undefined=undefined)

    assert record(data, syntax=syntax) == walked(data, tmp_path, syntax)
    assert record(data, range(len(data)), syntax=syntax) == walked(data, tmp_path, syntax)


@given(cuts=st.lists(st.integers(0, 1 << 16), max_size=12), undefined=st.booleans())
def test_it_does_not_matter_how_it_is_cut_into_fragments(cuts: list[int], undefined: bool) -> None:
    data = data_set(undefined=undefined)

    assert record(data, cuts) == record(data)


@given(kept=st.integers(0, len(data_set()) - 1), cuts=st.lists(st.integers(0, 1 << 16), max_size=4))
def test_what_was_cut_is_refused_exactly_where_a_walk_through_the_whole_refuses_it(kept: int, cuts: list[int]) -> None:
    data = data_set()[:kept]
    try:
        walk(data, 0, EXPLICIT_VR_LITTLE_ENDIAN, ())
    except BadData:
        with pytest.raises(BadData) as caught:
            record(data, cuts)
        assert caught.value.cause in {"truncated", "bad-length"}
    else:  # between two elements, so that others may be missing, but not a part of one
        assert arrived(data, cuts)._walked() is not None


@pytest.mark.parametrize("zeros", [2, 6, 8, 1000])
def test_zeros_behind_the_last_element_belong_to_it_and_other_bytes_do_not(zeros: int) -> None:
    data = data_set()

    assert record(data + bytes(zeros), range(0, 9000, 7)) == record(data)
    with pytest.raises(BadData):
        record(data + bytes(zeros) + b"\1\0" * 8, range(0, 9000, 7))


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"\2\0\x10\0UI\x04\x001.2\0" + data_set(), "bad-length"),
        (data_set(StudyInstanceUID=None), "bad-uid"),
        (data_set(SOPInstanceUID="1.2.3"), "mismatch"),
        (data_set(SOPClassUID="1.2.840.10008.5.1.4.1.1.2"), "mismatch"),
    ],
    ids=["meta information", "no study", "other instance", "other class"],
)
def test_what_is_wrong_is_told_at_the_end(data: bytes, cause: str) -> None:
    arriving = arrived(data)

    with pytest.raises(BadData) as caught:
        arriving.record(MR, uid(1, 1, 1, 1))
    assert caught.value.cause == cause


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("syntax", SYNTAXES[:2])
def test_an_object_that_is_built_as_one_before_is_told_by_its_outline(syntax: str, undefined: bool) -> None:
    outlines: OutlinesBySyntax = {}
    arrived(data_set(1, syntax, undefined=undefined), (), outlines, syntax=syntax).record(MR, uid(1, 1, 1, 1))
    data = data_set(2, syntax, undefined=undefined, PatientName="Someone^Else No", StudyTime="130000")

    like = arrived(data, (), outlines, syntax=syntax)
    slowly = arrived(data, (), syntax=syntax)

    assert like._outline is not None
    assert slowly._outline is None
    assert like.record(MR, uid(1, 1, 1, 2)) == slowly.record(MR, uid(1, 1, 1, 2))


def test_an_outline_does_not_fit_what_has_another_head_anywhere() -> None:
    outlines: OutlinesBySyntax = {}
    data = data_set()
    first = arrived(data, (), outlines)
    first.record(MR, uid(1, 1, 1, 1))
    (outline,) = outlines[EXPLICIT_VR_LITTLE_ENDIAN]._known
    heads = [place for place in range(outline.reach) if outline.mask >> (8 * place) & 0xFF]

    for place in heads:
        changed = bytearray(data)
        changed[place] ^= 0x01
        assert arrived(bytes(changed), (), outlines)._outline is None, place
    assert len(heads) > 200


def test_a_data_set_that_is_longer_or_shorter_than_its_outline_is_not_sure() -> None:
    outlines: OutlinesBySyntax = {}
    data = data_set(side=128)
    arrived(data, (), outlines).record(MR, uid(1, 1, 1, 1))

    cut = arrived(data[:-2], (4096,), outlines)
    whole = arrived(data, (4096,), outlines)

    assert whole.is_sure
    assert whole._outline is not None
    assert not cut.is_sure


def test_it_holds_little_of_a_large_object() -> None:
    large = data_set(side=1024)

    arriving = arrived(large, range(0, len(large), 65536))

    assert len(arriving._held) < 4096
    assert arriving.record(MR, uid(1, 1, 1, 1))["Rows"] == 1024
