"""Each option of the profile has two halves: what it retains is really there, and nothing else is."""

import datetime as dt
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from struct import pack

import pydicom
import pytest
from pydicom.dataset import Dataset

from dcmtools.files.deidentify import table
from dcmtools.files.deidentify.instance import Deidentifier, Outcome, Settings
from dcmtools.files.deidentify.profile import Action, Profile
from dcmtools.files.deidentify.pseudonyms import Key
from dcmtools.files.export import ExportOptions, export, export_zip, files_in
from dcmtools.files.media_layout import MediaLayout
from dcmtools.model.layout import parse_layout
from tests.builders import write_instance
from tests.files.deidentify.markers import KEPT, SYNTAXES, Writer, vr_of, write

KEY = Key(b"k" * 32)
# The command set, file meta and directories are no part of a data set in a file.
TAGS = sorted(tag for tag in table.rows() if tag >> 16 >= 8 and tag not in {0xFFFAFFFA, 0xFFFCFFFC})
# Named by the file itself, which the builder gives a UID that is no marker.
IDENTITY = {0x00080018, 0x0020000D, 0x0020000E}
CREATOR = b"SIEMENS MR HEADER "
OPTIONS = {
    "none": Profile(),
    "UID": Profile(retain_uids=True),
    "DEV": Profile(retain_device_identity=True),
    "INS": Profile(retain_institution_identity=True),
    "PAT": Profile(retain_patient_characteristics=True),
    "FUL": Profile(retain_dates="full"),
    "MOD": Profile(retain_dates="modified"),
    "DES": Profile(clean_descriptors=True),
    "STR": Profile(clean_structured_content=True),
    "GRA": Profile(clean_graphics=True),
    "PRI": Profile(retain_safe_private=True),
}
ALL = Profile(
    retain_uids=True, retain_device_identity=True, retain_institution_identity=True, retain_dates="full",
    retain_patient_characteristics=True, clean_descriptors=True, clean_structured_content=True, clean_graphics=True,
    retain_safe_private=True,
)  # fmt: skip


def deidentified(folder: Path, data: bytes, profile: Profile) -> tuple[bytes, Outcome]:
    target = folder / "target.dcm"
    target.unlink(missing_ok=True)
    outcome = Deidentifier(KEY, Settings(profile)).deidentify(write(folder, data), target)
    return target.read_bytes(), outcome


def nested(writer: Writer, body: bytes, *, undefined: bool = False) -> bytes:
    """A body three sequences deep."""
    for tag in reversed(KEPT):
        body = writer.sequence(tag, writer.item(body, undefined=undefined), undefined=undefined)
    return body


def planted(writer: Writer) -> bytes:
    """A file with a marker in each row of the table, in each place that there is, but those that only a report has."""
    rows = [writer.marked(tag, "top") for tag in TAGS if tag not in IDENTITY]
    deep = b"".join(writer.marked(tag, "deep") for tag in TAGS)
    # What a sequence of VR UN holds is little endian (PS3.5 6.2.2); in a data set that is not, nobody writes one.
    unknown = b"".join(writer.marked(tag, "UN", "UN") for tag in TAGS if writer.encoding != "big")
    bare = b"".join(writer.marked(tag, "bare", bare=True) for tag in TAGS) if writer.encoding == "explicit" else b""
    item = pack("<HHI", 0xFFFE, 0xE000, len(bare)) + bare
    endless = writer.element(0x52009229, "UN", b"")[:-4] + b"\xff" * 4 + item + pack("<HHI", 0xFFFE, 0xE0DD, 0)
    parts = [
        *rows,
        # Sequences that no profile removes, one a place.
        _moved(writer, nested(writer, deep), 0x52009230),
        _moved(writer, nested(writer, unknown, undefined=True), 0x00409096),
        *([endless] if bare else []),
        *_private(writer, 0x0009), *_private(writer, 0x0029), *_private(writer, 0x7FE1), *_graphics(writer),
        writer.marked(0xFFFAFFFA, "signatures"), writer.marked(0xFFFCFFFC, "padding", "OB"),
    ]  # fmt: skip
    writer.markers["preamble 00000000"] = b"zaqpreamblekey"
    return writer.file(*parts, preamble=b"zaqpreamblekey".ljust(128, b"!"), meta=_meta(writer)) + bytes(64)


def _moved(writer: Writer, sequence: bytes, tag: int) -> bytes:
    """A sequence under another tag."""
    return writer.element(tag, "SQ", b"")[:4] + sequence[4:]


def _private(writer: Writer, group: int) -> Iterator[bytes]:
    tag = group << 16
    yield writer.marked(tag | 0x10, "private", "LO")
    for number, vr in enumerate(("LO", "PN", "UT", "UN", "OB", "ST", "UI", "DA", "DT", "SH", "CS"), 1):
        yield writer.marked(tag | 0x1000 | number, "private", vr)
    inner = [writer.marked(0x00100010, "private"), writer.marked(tag | 0x1001, "private", "LO")]
    yield writer.sequence(tag | 0x1020, writer.item(*inner))
    yield writer.sequence(tag | 0x1021, writer.item(*inner[:1], undefined=True), undefined=True)


def _graphics(writer: Writer) -> Iterator[bytes]:
    for tag, vr in (
        (0x50000022, "LO"), (0x50002600, "ST"), (0x501E0010, "SH"), (0x60000022, "LO"), (0x60001500, "LO"),
        (0x60003000, "OW"), (0x60004000, "LT"), (0x601E1500, "LO"),
    ):  # fmt: skip
        yield writer.marked(tag, "graphics", vr)


def _meta(writer: Writer) -> bytes:
    return b"".join(
        Writer.marked(_Plain(writer.markers), tag, "meta", vr)
        for tag, vr in (
            (0x00020016, "AE"), (0x00020017, "AE"), (0x00020018, "AE"), (0x00020026, "UR"), (0x00020027, "UR"),
            (0x00020028, "UR"), (0x00020100, "UI"), (0x00020102, "OB"),
        )
    )  # fmt: skip


def _Plain(markers: dict[str, bytes]) -> Writer:  # noqa: N802 - a writer of file meta information, always explicit
    return Writer("explicit", markers)


def retained(column: str, markers: dict[str, bytes]) -> set[str]:
    """The markers that an option lets stand as they are, by the table alone."""
    times = {tag for tag, row in table.rows().items() if "MOD" in row.options and vr_of(tag) == "TM"}
    rows = {tag for tag, row in table.rows().items() if row.options.get(column) == "K"}
    rows |= times if column == "MOD" else set()
    return {place for place in markers if place.split()[0] in {"top", "deep", "UN", "bare"} and _row(place) in rows}


def _row(place: str) -> int:
    """The row of the table that a marker is of: of those in sequences, the row of the sequence."""
    return int(place.split()[1], 16)


@pytest.mark.parametrize("encoding", SYNTAXES)
@pytest.mark.parametrize("column", OPTIONS)
def test_option_lets_stand_what_it_retains_at_every_place_and_nothing_else(
    column: str, encoding: str, tmp_path: Path
) -> None:
    writer = Writer(encoding)
    data = planted(writer)

    result, _ = deidentified(tmp_path, data, OPTIONS[column])

    left, expected = set(writer.left_in(result)), retained(column, writer.markers)
    assert left - expected == set(), "leaks"
    assert expected - left == set(), "not retained"
    assert bool(expected) == (column in {"UID", "DEV", "INS", "PAT", "FUL", "MOD"})


def test_all_options_together_retain_what_each_does_and_nothing_else(tmp_path: Path) -> None:
    writer = Writer()
    data = planted(writer)

    result, _ = deidentified(tmp_path, data, ALL)

    expected = {
        place
        for column in ("UID", "DEV", "INS", "PAT", "FUL")
        for place in retained(column, writer.markers)
        if "C" not in {table.rows()[_row(place)].options.get(one) for one in ALL.columns}
    }
    assert set(writer.left_in(result)) == expected


KEEPABLE = [tag for tag in TAGS if tag not in IDENTITY]


@pytest.mark.parametrize("encoding", SYNTAXES)
def test_each_row_can_be_kept(encoding: str, tmp_path: Path) -> None:
    writer = Writer(encoding)
    data = planted(writer)

    result, outcome = deidentified(tmp_path, data, Profile(own=dict.fromkeys(TAGS, Action("K"))))

    wanted = {place for place in writer.markers if place.split()[0] in {"top", "deep", "UN", "bare"}}
    assert set(writer.left_in(result)) == wanted
    assert "113100" not in outcome.codes


UNLISTED = (
    (0x00080060, "CS"), (0x00080070, "LO"), (0x00180024, "SH"), (0x00180050, "DS"), (0x00200013, "IS"),
    (0x00180015, "CS"), (0x00281050, "DS"), (0x0018101B, "LO"), (0x00201041, "DS"), (0x00221007, "SQ"),
)  # fmt: skip


@pytest.mark.parametrize("encoding", SYNTAXES)
@pytest.mark.parametrize("is_deep", [False, True])
def test_what_no_row_names_stays_and_goes_when_it_is_to_be_removed(
    is_deep: bool, encoding: str, tmp_path: Path
) -> None:
    writer = Writer(encoding)
    parts = [writer.marked(tag, "own", "" if vr == "SQ" else vr) for tag, vr in UNLISTED]
    data = writer.file(*([nested(writer, b"".join(parts))] if is_deep else parts))
    remove = dict.fromkeys((tag for tag, _ in UNLISTED), Action("X"))

    kept, _ = deidentified(tmp_path, data, Profile())
    removed, outcome = deidentified(tmp_path, data, Profile(own=remove))

    assert set(writer.left_in(kept)) == set(writer.markers)
    assert writer.left_in(removed) == {}
    assert "113100" in outcome.codes


TEXTS = [tag for tag in KEEPABLE if vr_of(tag) in {"LO", "SH", "PN", "LT", "ST", "UT"}]


@pytest.mark.parametrize("encoding", SYNTAXES)
def test_each_text_can_be_replaced_at_every_place(encoding: str, tmp_path: Path) -> None:
    writer = Writer(encoding)
    data = planted(writer)

    result, outcome = deidentified(tmp_path, data, Profile(own=dict.fromkeys(TEXTS, Action("R", value="Q-NEW-1"))))

    places = 4 if encoding == "explicit" else 3 if encoding == "implicit" else 2
    assert writer.left_in(result) == {}
    assert result.count(b"Q-NEW-1") >= places * len(TEXTS) * 0.9  # some stand in sequences that go
    assert result.count(b"Q-NEW-1") <= places * len(TEXTS) + len(TEXTS)
    assert "113100" not in outcome.codes


def test_private_element_that_is_kept_stays_with_its_creator_and_its_neighbours_go(tmp_path: Path) -> None:
    writer = Writer()
    parts = [
        writer.element(0x00290010, "LO", b"ACME"), writer.marked(0x00291001, "kept", "LO"),
        writer.marked(0x00291002, "gone", "LO"), writer.marked(0x00290011, "gone", "LO"),
        writer.marked(0x00291101, "gone", "LO"),
    ]  # fmt: skip

    result, _ = deidentified(tmp_path, writer.file(*parts), Profile(own={0x00291001: Action("K")}))

    assert set(writer.left_in(result)) == {"kept 00291001"}
    assert pydicom.dcmread(tmp_path / "target.dcm")[0x00290010].value == "ACME"


def safe_private(writer: Writer) -> list[bytes]:
    """A block of which a part is safe, and another that says of itself that it is another one."""
    order = writer.order
    values = {
        0x0C: ("IS", b"1000"), 0x0D: ("CS", b"DIRECTIONAL "), 0x0E: ("FD", pack(order + "ddd", 0.1, 0.2, 0.3)),
        0x27: ("FD", pack(order + "6d", *range(6))),
    }  # fmt: skip
    return [
        writer.element(0x00190010, "LO", CREATOR), writer.marked(0x00190011, "creator", "LO"),
        *(writer.element(0x00191000 | at, vr, value) for at, (vr, value) in values.items()),
        writer.marked(0x0019100B, "neighbour", "LO"), writer.marked(0x0019100F, "neighbour", "UT"),
        writer.marked(0x0019110C, "other block", "LO"),
    ]  # fmt: skip


@pytest.mark.parametrize("encoding", SYNTAXES)
@pytest.mark.parametrize("is_deep", [False, True])
def test_safe_private_elements_stay_with_their_creator_and_nothing_else(
    is_deep: bool, encoding: str, tmp_path: Path
) -> None:
    writer = Writer(encoding)
    parts = sorted(safe_private(writer), key=writer.tag_of)

    result, outcome = deidentified(
        tmp_path, writer.file(*([nested(writer, b"".join(parts))] if is_deep else parts)), OPTIONS["PRI"]
    )

    read = pydicom.dcmread(tmp_path / "target.dcm")
    for tag in KEPT if is_deep else ():
        read = read[tag][0]
    block = read.private_block(0x0019, CREATOR.decode().strip())
    assert writer.left_in(result) == {}
    assert (block[0x0C].value, block[0x0D].value) == (1000, "DIRECTIONAL")
    assert (block[0x0E].value, block[0x27].value) == ([0.1, 0.2, 0.3], [0, 1, 2, 3, 4, 5])
    assert {one.tag for one in read if one.tag.group == 0x19} == {
        0x00190010, 0x0019100C, 0x0019100D, 0x0019100E, 0x00191027,
    }  # fmt: skip
    assert "113111" in outcome.codes


@pytest.mark.parametrize(
    ("creator", "at", "vr", "value"),
    [
        ("SIEMENS MR HEADER", 0x0019000C, "IS", b"DOE JOHN"),
        ("SIEMENS MR HEADER", 0x0019000D, "CS", b"Doe, John "),
        ("SIEMENS MR HEADER", 0x0019000D, "CS", b"ZWENTIBOLD"),
        ("SIEMENS MR HEADER", 0x0019000D, "CS", b"LI"),
        ("SIEMENS MR HEADER", 0x0019000E, "FD", b"Zwentibold^Qui"),
        ("GEMS_ACQU_01", 0x0019009E, "LO", b"fse of Zwentibold"),
        ("GEMS_ACQU_01", 0x0019009E, "LO", b"Li"),
        ("GEMS_ACQU_01", 0x0019009E, "LO", b"x" * 80),
        ("GEMS_PARM_01", 0x00430027, "SH", b"ZQ-778899 "),
        ("Philips PET Private Group", 0x70530000, "DS", b"48151623"),
        ("HOLOGIC, Inc.", 0x7E010012, "OB", b"any bytes "),
        ("NQHeader", 0x00990002, "UI", b"1.2.3.4444.1"),
        ("NQHeader", 0x00990005, "LT", b"some text "),
        ("Philips Imaging DD 001", 0x2001005F, "SQ", b""),
    ],
)
@pytest.mark.parametrize("encoding", SYNTAXES)
def test_safe_private_element_goes_when_its_value_is_not_what_the_table_says_or_holds_identity(
    creator: str, at: int, vr: str, value: bytes, encoding: str, tmp_path: Path
) -> None:
    writer = Writer(encoding)
    tag = at & 0xFFFF0000 | 0x1000 | at & 0xFF
    body = writer.item(writer.element(0x00104000, "LT", b"comment ")) if vr == "SQ" else value
    name = writer.element(0x00100010, "PN", b"Zwentibold^Li")
    numbers = writer.element(0x00100020, "LO", b"ZQ-778899"), writer.element(0x00101000, "LO", b"48151623")
    parts = [name, *numbers, writer.element(tag & 0xFFFF0000 | 0x10, "LO", creator.encode())]

    deidentified(tmp_path, writer.file(*parts, writer.element(tag, vr, body)), OPTIONS["PRI"])

    assert tag not in pydicom.dcmread(tmp_path / "target.dcm")


def test_modified_dates_move_by_the_same_days_at_every_place(tmp_path: Path) -> None:
    writer = Writer()
    data = planted(writer)

    _, outcome = deidentified(tmp_path, data, OPTIONS["MOD"])

    before, after = (pydicom.dcmread(tmp_path / name, force=True) for name in ("source.dcm", "target.dcm"))
    dates = [tag for tag in TAGS if "MOD" in table.rows()[tag].options and vr_of(tag) in {"DA", "DT"}]
    moved = Counter(_days(before, after, tag) for tag in dates)
    deep = [one[0x52009230][0][KEPT[1]][0][KEPT[2]][0] for one in (before, after)]
    assert moved == {outcome.days: len(dates)}
    assert Counter(_days(deep[0], deep[1], tag) for tag in dates) == moved


def _days(before: Dataset, after: Dataset, tag: int) -> int:
    old, new = (dt.date.fromisoformat(str(one[tag].value)[:8]) for one in (before, after))
    assert str(before[tag].value)[8:] == str(after[tag].value)[8:]
    return (new - old).days


@pytest.mark.parametrize("encoding", SYNTAXES)
def test_descriptors_keep_their_harmless_words_at_every_place(encoding: str, tmp_path: Path) -> None:
    writer = Writer(encoding)
    tags = [
        tag for tag, row in table.rows().items()
        if row.options.get("DES") == "C" and vr_of(tag) in {"LO", "SH", "ST", "LT", "UT"}
    ]  # fmt: skip
    rows = [writer.element(tag, vr_of(tag), b"brain T2 Zaqxsw") for tag in tags]

    result, _ = deidentified(
        tmp_path, writer.file(*rows, nested(writer, b"".join(rows), undefined=True)), OPTIONS["DES"]
    )

    assert len(tags) > 90
    assert result.count(b"brain T2") == 2 * len(tags)
    assert b"Zaqxsw" not in result


def test_clean_graphics_keeps_shapes_and_regions_and_no_text(tmp_path: Path) -> None:
    writer = Writer()

    def overlay(group: int, kind: bytes) -> list[bytes]:
        tag = group << 16
        return [
            writer.element(tag | 0x10, "US", pack("<H", 4)), writer.element(tag | 0x11, "US", pack("<H", 4)),
            writer.marked(tag | 0x22, "description", "LO"), writer.element(tag | 0x40, "CS", kind),
            writer.marked(tag | 0x1500, "label", "LO"), writer.element(tag | 0x3000, "OW", kind + b"bitmap"),
        ]  # fmt: skip

    line = [
        writer.element(0x00700020, "US", pack("<H", 2)), writer.element(0x00700022, "FL", pack("<4f", 1, 2, 3, 4)),
        writer.element(0x00700023, "CS", b"POLYLINE"),
    ]  # fmt: skip
    text = writer.sequence(0x00700008, writer.item(writer.marked(0x00700006, "text")))
    graphics = writer.sequence(0x00700001, writer.item(text, writer.sequence(0x00700009, writer.item(*line))))
    curve = [
        writer.element(0x50000005, "US", pack("<H", 2)), writer.marked(0x50000022, "curve", "LO"),
        writer.element(0x50003000, "OW", b"curvedata "),
    ]  # fmt: skip

    result, _ = deidentified(
        tmp_path, writer.file(*overlay(0x6000, b"R "), *overlay(0x6002, b"G "), graphics, *curve), OPTIONS["GRA"]
    )

    read = pydicom.dcmread(tmp_path / "target.dcm")
    assert writer.left_in(result) == {}
    assert read[0x60003000].value == b"R bitmap"
    assert not [one.tag for one in read if one.tag.group == 0x6002]
    assert read[0x50003000].value == b"curvedata "
    item = read.GraphicAnnotationSequence[0]
    assert item.GraphicObjectSequence[0].GraphicData == [1, 2, 3, 4]
    basic, _ = deidentified(
        tmp_path, writer.file(*overlay(0x6000, b"R "), *overlay(0x6002, b"G "), graphics, *curve), OPTIONS["none"]
    )
    read = pydicom.dcmread(tmp_path / "target.dcm")
    assert writer.left_in(basic) == {}
    assert not [one.tag for one in read if one.tag.group >> 8 in {0x50, 0x60}]


def test_overlay_of_an_item_is_not_that_of_the_instance(tmp_path: Path) -> None:
    writer = Writer()

    def overlay(kind: bytes) -> list[bytes]:
        return [
            writer.element(0x60000010, "US", pack("<H", 4)), writer.element(0x60000040, "CS", kind),
            writer.element(0x60003000, "OW", kind + b"bitmap"),
        ]  # fmt: skip

    for outer, inner in ((b"R ", b"G "), (b"G ", b"R ")):
        item = writer.sequence(0x52009229, writer.item(*overlay(inner)))

        deidentified(tmp_path, writer.file(item, *overlay(outer)), OPTIONS["GRA"])

        read = pydicom.dcmread(tmp_path / "target.dcm")
        assert (0x60003000 in read) == (outer == b"R ")
        assert (0x60003000 in read[0x52009229].value[0]) == (inner == b"R ")
        assert (0x60000010 in read[0x52009229].value[0]) == (inner == b"R ")


@pytest.mark.parametrize("layout", ["uid", "patient", "date", "{Modality}/{SeriesNumber}.dcm", "zip", "dicomdir"])
@pytest.mark.parametrize("column", OPTIONS)
def test_no_name_in_the_output_tells_of_the_source(column: str, layout: str, tmp_path: Path) -> None:
    source = tmp_path / "in" / "Zwentibold_Quirin" / "ZQ-778899" / "19630417.dcm"
    write_instance(
        source, PatientName="Zwentibold^Quirin", PatientID="ZQ-778899", PatientBirthDate="19630417",
        StudyID="STID-4711", AccessionNumber="ACC-4712", StudyDescription="of Zwentibold",
    )  # fmt: skip
    (source.parent / "Zwentibold.txt").write_text("a letter")
    options = ExportOptions(
        layout=MediaLayout() if layout == "dicomdir" else parse_layout(layout if layout != "zip" else "uid"),
        key=KEY, settings=Settings(OPTIONS[column]), dicomdir=layout == "dicomdir",
    )  # fmt: skip
    out = tmp_path / "out"

    done = list((export_zip if layout == "zip" else export)(files_in([tmp_path / "in"]), out, options))

    states = {one.get("state") for one in done}
    everything = "\n".join(str(path.relative_to(tmp_path)) for path in [out, *out.rglob("*")]).encode()
    if layout == "zip":
        with zipfile.ZipFile(out) as packed:
            everything += "\n".join(packed.namelist()).encode() + b"".join(map(packed.read, packed.namelist()))
    else:
        everything += b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert states == {"deidentified"}
    for word in (b"zwentibold", b"quirin", b"zq-778899", b"19630417", b"stid-4711", b"acc-4712"):
        assert word not in everything.lower()
