"""The reader that checks results: it reads what pydicom reads, and takes nothing that is damaged."""

from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from dcmtools.disk.part10 import encoding_in, meta_of, opened
from dcmtools.disk.values import quiet
from dcmtools.files.deidentify.rereading import DataSet, Unreadable, reread
from tests.files.deidentify.markers import Writer, vr_of

END = b"\xfe\xff\xdd\xe0\0\0\0\0"  # of fragments, which pydicom does not count to their value
ENCODINGS = ["explicit", "implicit", "big"]


def told(data_set: DataSet) -> list[object]:
    return [
        (tag, value.removesuffix(END) if items is None else [told(item) for item in items])
        for tag, _, value, items in data_set
    ]


def told_by_pydicom(data_set: Dataset) -> list[object]:
    found: list[object] = []
    for key, element in list(data_set._dict.items()):
        if element.VR == "SQ" or (element.VR in {None, "UN"} and vr_of(int(key)) == "SQ"):
            found.append((int(key), [told_by_pydicom(item) for item in data_set[key].value]))
        else:
            found.append((int(key), element.value or b""))
    return found


def sample(writer: Writer, *, undefined: bool) -> bytes:
    inner = writer.sequence(
        0x0040A730, writer.item(writer.element(0x0040A160, "UT", b"deep"), undefined=undefined), writer.item(),
        undefined=undefined,
    )  # fmt: skip
    return b"".join(
        [
            writer.element(0x00080018, "UI", b"1.2.3"),
            writer.element(0x00081030, "LO", b""),
            writer.sequence(0x00081140, undefined=undefined),
            writer.element(0x00091001, "OB", b"\xfe\xff\x0d\xe0\0\0\0\0"),
            writer.sequence(0x00400275, writer.item(inner, undefined=undefined), undefined=undefined),
        ]
    )


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_all_elements_at_any_depth_are_read(encoding: str, undefined: bool) -> None:
    data = sample(Writer(encoding), undefined=undefined)

    assert told(reread(data, explicit=encoding != "implicit", big=encoding == "big")) == [
        (0x00080018, b"1.2.3\0"),
        (0x00081030, b""),
        (0x00081140, []),
        (0x00091001, b"\xfe\xff\x0d\xe0\0\0\0\0"),
        (0x00400275, [[(0x0040A730, [[(0x0040A160, b"deep")], []])]]),
    ]


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_data_set_that_is_cut_short_within_an_element_is_not_read(encoding: str, undefined: bool) -> None:
    data = sample(Writer(encoding), undefined=undefined)
    how = {"explicit": encoding != "implicit", "big": encoding == "big"}
    whole = {sum(map(len, parts)) for parts in prefixes(Writer(encoding), undefined=undefined)}

    for size in set(range(1, len(data))) - whole:
        with pytest.raises(Unreadable):
            reread(data[:size], **how)


def prefixes(writer: Writer, *, undefined: bool) -> list[list[bytes]]:
    parts = [
        writer.element(0x00080018, "UI", b"1.2.3"),
        writer.element(0x00081030, "LO", b""),
        writer.sequence(0x00081140, undefined=undefined),
        writer.element(0x00091001, "OB", b"\xfe\xff\x0d\xe0\0\0\0\0"),
    ]
    return [parts[:count] for count in range(1, len(parts) + 1)]


def test_sequence_that_is_written_as_unknown_is_implicit_inside() -> None:
    writer = Writer()
    inner = Writer("implicit").element(0x00100020, "LO", b"ZQ-1")

    found = reread(writer.element(0x00081140, "UN", Writer("implicit").item(inner)), explicit=True)

    assert told(found) == [(0x00081140, [[(0x00100020, b"ZQ-1")]])]


def test_sequences_that_are_nested_without_end_are_not_read() -> None:
    writer, data = Writer(), b""
    for _ in range(200):
        data = writer.sequence(0x0040A730, writer.item(data, undefined=True), undefined=True)

    with pytest.raises(Unreadable, match="nested"):
        reread(data, explicit=True)


@given(data=st.binary(max_size=80), explicit=st.booleans(), big=st.booleans())
def test_any_bytes_are_read_or_are_none(data: bytes, explicit: bool, big: bool) -> None:
    with suppress(Unreadable):
        reread(data, explicit=explicit, big=big)


def test_real_files_are_read_as_pydicom_reads_them(data: Path) -> None:
    count = 0
    for source in sorted(path for path in (data / "vendors").rglob("*") if path.is_file()):
        with opened(source) as (file, _):
            meta = meta_of(file)
            encoding = encoding_in(file, meta)
            raw = bytes(file.read(meta.offset, file.size))
        with quiet():
            theirs = told_by_pydicom(read_dataset(BytesIO(raw), not encoding.explicit, not encoding.big))

        assert told(reread(raw, explicit=encoding.explicit, big=encoding.big)) == theirs, source
        count += 1
    assert count > 200
