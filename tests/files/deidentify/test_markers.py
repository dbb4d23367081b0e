"""Nothing is left of what is planted: in every row of Table E.1-1, at every depth and in every encoding."""

from collections.abc import Iterator
from pathlib import Path
from struct import pack

import pydicom
import pytest

from dcmtools.files.deidentify import table
from dcmtools.files.deidentify.instance import Deidentifier, Outcome, Settings
from dcmtools.files.deidentify.profile import Profile
from dcmtools.files.deidentify.pseudonyms import Key
from tests.files.deidentify.markers import KEPT, SYNTAXES, Writer, write

KEY = Key(b"k" * 32)
# The command set, file meta and directories are no part of a data set in a file.
TAGS = sorted(tag for tag in table.rows() if tag >> 16 >= 8 and tag not in {0xFFFAFFFA, 0xFFFCFFFC})
# Named by the file itself, which the builder gives a UID that is no marker.
IDENTITY = {0x00080018, 0x0020000D, 0x0020000E}


def deidentified(folder: Path, data: bytes, profile: Profile | None = None) -> tuple[bytes, Outcome]:
    target = folder / "target.dcm"
    target.unlink(missing_ok=True)
    outcome = Deidentifier(KEY, Settings(profile or Profile())).deidentify(write(folder, data), target)
    return target.read_bytes(), outcome


def nested(writer: Writer, parts: Iterator[bytes] | list[bytes], *, undefined: bool) -> bytes:
    """The parts, three sequences deep."""
    body = b"".join(parts)
    for tag in reversed(KEPT):
        body = writer.sequence(tag, writer.item(body, undefined=undefined), undefined=undefined)
    return body


def rows_in(writer: Writer, place: str, vr: str = "") -> list[bytes]:
    return [writer.marked(tag, place, vr) for tag in TAGS if not (place == "top" and tag in IDENTITY)]


@pytest.mark.parametrize("encoding", SYNTAXES)
def test_nothing_is_left_of_any_row_at_the_top_level(encoding: str, tmp_path: Path) -> None:
    writer = Writer(encoding)

    result, _ = deidentified(tmp_path, writer.file(*rows_in(writer, "top")))

    assert len(writer.markers) > 580
    assert writer.left_in(result) == {}


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("encoding", SYNTAXES)
def test_nothing_is_left_of_any_row_three_sequences_deep(encoding: str, undefined: bool, tmp_path: Path) -> None:
    writer = Writer(encoding)

    result, _ = deidentified(tmp_path, writer.file(nested(writer, rows_in(writer, "deep"), undefined=undefined)))

    assert writer.left_in(result) == {}


@pytest.mark.parametrize("is_deep", [False, True])
def test_nothing_is_left_of_any_row_that_is_written_with_an_unknown_vr(is_deep: bool, tmp_path: Path) -> None:
    writer = Writer()
    rows = rows_in(writer, "top", "UN")

    result, _ = deidentified(tmp_path, writer.file(*([nested(writer, rows, undefined=True)] if is_deep else rows)))

    assert writer.left_in(result) == {}


def test_nothing_is_left_within_a_sequence_that_is_written_with_an_unknown_vr(tmp_path: Path) -> None:
    writer = Writer()
    inner = b"".join(writer.marked(tag, "in UN", bare=True) for tag in TAGS)
    item = pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
    un = writer.element(KEPT[0], "UN", item)
    endless = writer.element(KEPT[0], "UN", b"")[:-4] + b"\xff" * 4 + item + pack("<HHI", 0xFFFE, 0xE0DD, 0)

    for part in (un, endless):
        result, _ = deidentified(tmp_path, writer.file(part))

        assert writer.left_in(result) == {}


@pytest.mark.parametrize("encoding", SYNTAXES)
def test_nothing_is_left_of_private_elements(encoding: str, tmp_path: Path) -> None:
    writer = Writer(encoding)

    def private(group: int) -> list[bytes]:
        tag = group << 16
        return [
            writer.marked(tag | 0x10, f"creator {group}", "LO"),
            *(
                writer.marked(tag | 0x1000 | number, f"private {group} {vr}", vr)
                for number, vr in enumerate(("LO", "PN", "UT", "UN", "OB", "ST", "UI"), 1)
            ),
            writer.sequence(
                tag | 0x1020,
                writer.item(
                    writer.marked(0x00100010, f"in private {group}"),
                    writer.marked(tag | 0x1001, f"in private {group}", "LO"),
                ),
            ),
            writer.sequence(
                tag | 0x1021,
                writer.item(writer.marked(0x00100020, f"in endless {group}"), undefined=True),
                undefined=True,
            ),
        ]

    parts = [
        *private(0x0009),
        *private(0x0029),
        *private(0x7FE1),
        nested(writer, [b"".join(private(0x0021))], undefined=False),
    ]

    result, _ = deidentified(tmp_path, writer.file(*parts))

    assert writer.left_in(result) == {}


def test_nothing_is_left_of_overlays_curves_signatures_and_padding(tmp_path: Path) -> None:
    writer = Writer()
    parts = [
        writer.marked(tag, "graphics", vr)
        for tag, vr in (
            (0x50000022, "LO"), (0x50002600, "ST"), (0x50003000, "OW"), (0x501E0010, "SH"),
            (0x60000022, "LO"), (0x60001500, "LO"), (0x60003000, "OW"), (0x60004000, "LT"), (0x601E1500, "LO"),
        )
    ]  # fmt: skip
    parts += [writer.marked(0xFFFAFFFA, "signatures"), writer.marked(0xFFFCFFFC, "padding", "OB")]

    result, _ = deidentified(tmp_path, writer.file(*parts))

    assert len(writer.markers) == 11
    assert writer.left_in(result) == {}


def test_nothing_is_left_of_the_preamble_and_the_file_meta_information(tmp_path: Path) -> None:
    writer = Writer()
    meta = b"".join(
        writer.marked(tag, "meta", vr)
        for tag, vr in (
            (0x00020016, "AE"), (0x00020017, "AE"), (0x00020018, "AE"), (0x00020026, "UR"), (0x00020027, "UR"),
            (0x00020028, "UR"), (0x00020100, "UI"), (0x00020102, "OB"),
        )
    )  # fmt: skip
    writer.markers["preamble"] = b"zaqpreamblekey"

    result, _ = deidentified(tmp_path, writer.file(preamble=b"zaqpreamblekey".ljust(128, b"!"), meta=meta))

    assert writer.left_in(result) == {}
    assert result[:128] == bytes(128)
    assert set(pydicom.filereader.read_file_meta_info(tmp_path / "target.dcm").keys()) == {
        0x00020000, 0x00020001, 0x00020002, 0x00020003, 0x00020010, 0x00020012, 0x00020013,
    }  # fmt: skip


def test_zeros_behind_the_data_set_go_and_other_bytes_are_refused(tmp_path: Path) -> None:
    from dcmtools.model.errors import BadData

    padded = Writer().file() + bytes(512)

    result, _ = deidentified(tmp_path, padded)

    assert len(result) < len(padded)
    with pytest.raises(BadData):
        deidentified(tmp_path, Writer().file() + b"JOHN DOE 1970")


def test_report_keeps_its_structure_and_nothing_of_its_words(tmp_path: Path) -> None:
    writer = Writer()

    def content(place: str) -> list[bytes]:
        name = writer.sequence(
            0x0040A043, writer.item(writer.marked(0x00080100, place), writer.marked(0x00080104, place))
        )
        kinds = (
            (b"TEXT", 0x0040A160),
            (b"PNAME", 0x0040A123),
            (b"UIDREF", 0x0040A124),
            (b"DATE", 0x0040A121),
            (b"TIME", 0x0040A122),
            (b"DATETIME", 0x0040A120),
        )
        return [
            writer.item(
                writer.element(0x0040A010, "CS", b"CONTAINS"),
                writer.element(0x0040A040, "CS", kind),
                name,
                writer.marked(tag, place),
            )
            for kind, tag in kinds
        ]

    deep = writer.sequence(0x0040A730, *content("deeper"))
    parts = writer.sequence(
        0x0040A730, *content("report"), writer.item(writer.element(0x0040A040, "CS", b"CONTAINER"), deep)
    )

    result, _ = deidentified(tmp_path, writer.file(parts))

    assert writer.left_in(result) == {}
    read = pydicom.dcmread(tmp_path / "target.dcm")
    assert [item.ValueType for item in read.ContentSequence] == [
        "TEXT",
        "PNAME",
        "UIDREF",
        "DATE",
        "TIME",
        "DATETIME",
        "CONTAINER",
    ]
    assert read.ContentSequence[6].ContentSequence[0].TextValue == "REMOVED"
