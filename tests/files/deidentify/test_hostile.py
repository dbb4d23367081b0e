"""Identity in places of which nobody thinks: it is cleaned, or the file is refused, and never let through."""

import re
from pathlib import Path
from struct import pack

import pydicom
import pytest

from dcmtools.files.deidentify.instance import Deidentifier, Settings
from dcmtools.files.deidentify.profile import Dates, Profile
from dcmtools.files.deidentify.pseudonyms import Key
from dcmtools.model.errors import BadData, DcmtoolsError, Refused
from tests.files.deidentify.markers import Writer, write

KEY, BASIC = Key(b"k" * 32), Profile()
NAME, PATIENT = b"Zwentibold^Quirin", b"ZQ-778899"


def run(
    folder: Path, *parts: bytes, writer: Writer | None = None, profile: Profile | None = None, **more: object
) -> bytes:
    writer = writer or Writer()
    identity = [writer.element(0x00100010, "PN", NAME), writer.element(0x00100020, "LO", PATIENT)]
    given = {writer.tag_of(part) for part in parts}
    data = writer.file(*(part for part in identity if writer.tag_of(part) not in given), *parts, **more)  # type: ignore[arg-type]
    return deidentified(folder, data, profile or BASIC)


def deidentified(folder: Path, data: bytes, profile: Profile = BASIC) -> bytes:
    target = folder / "target.dcm"
    target.unlink(missing_ok=True)
    try:
        Deidentifier(KEY, Settings(profile)).deidentify(write(folder, data), target)
    except DcmtoolsError:
        assert not target.exists()
        raise
    return target.read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        b"Scanner of Zwentibold", b"ZWENTIBOLD", b"quirin_zwentibold_t1", b"Zwentibold^Quirin", b"id:ZQ-778899;",
        b"zwentibold.quirin@example.org", "Zwentibold".encode("utf-16-le"), b"1.2.3.4444.1.2.3",
    ],
)  # fmt: skip
@pytest.mark.parametrize("tag", [0x00080070, 0x00081090, 0x00180024])
def test_identity_in_a_text_that_stays_is_cleaned(tag: int, text: bytes, tmp_path: Path) -> None:
    result = run(tmp_path, Writer().element(tag, "LO", text), Writer().element(0x00180015, "CS", b"HEAD"))

    assert text.lower() not in result.lower()
    assert pydicom.dcmread(tmp_path / "target.dcm").BodyPartExamined == "HEAD"


@pytest.mark.parametrize("name", [b"M\xfcller^Hans", "Müller^Hans".encode()])
@pytest.mark.parametrize(
    "text", ["MÜLLER", "müller", "M&#252;ller", r"M\u00fcller", "M%C3%BCller", "Mu\u0308ller", "Müller"]
)
def test_identity_that_is_no_ascii_is_found_in_other_spellings(name: bytes, text: str, tmp_path: Path) -> None:
    writer = Writer()
    charset = b"ISO_IR 100" if b"\xfc" in name else b"ISO_IR 192"

    result = run(
        tmp_path, writer.element(0x00080005, "CS", charset), writer.element(0x00100010, "PN", name),
        writer.element(0x00080070, "LO", text.encode()),
    )  # fmt: skip

    assert text.encode() not in result


@pytest.mark.parametrize("encoding", ["explicit", "implicit", "big"])
def test_short_name_and_short_identifier_count_as_whole_values_only(encoding: str, tmp_path: Path) -> None:
    writer = Writer(encoding)
    parts = [
        writer.element(0x00100010, "PN", b"Li^Bo"), writer.element(0x00100020, "LO", b"12"),
        writer.element(0x00080070, "LO", b"Li"), writer.element(0x00081090, "LO", b"12"),
        writer.element(0x00180024, "SH", b"Lively 12"), writer.element(0x00180080, "DS", b"12"),
    ]  # fmt: skip

    run(tmp_path, *parts, writer=writer)

    read = pydicom.dcmread(tmp_path / "target.dcm")
    assert (read.Manufacturer, read.ManufacturerModelName) == ("REMOVED", "REMOVED")
    assert (read.SequenceName, read.RepetitionTime) == ("Lively 12", 12)


@pytest.mark.parametrize("vr", ["OB", "OW", "UN", "UL", "FD"])
def test_identity_in_a_value_that_is_no_text_is_refused(vr: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="left in the result"):
        run(tmp_path, Writer().element(0x00281201, vr, NAME + b"       "))


def test_identity_behind_the_samples_of_native_pixels_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    shape = [
        writer.element(tag, "US", pack("<H", n))
        for tag, n in ((0x00280002, 1), (0x00280010, 4), (0x00280011, 4), (0x00280100, 16))
    ]

    assert run(tmp_path, *shape, pixels=writer.element(0x7FE00010, "OW", bytes(32)))
    with pytest.raises(Refused, match="beside the samples"):
        run(tmp_path, *shape, pixels=writer.element(0x7FE00010, "OW", bytes(32) + NAME))


JPEG = b"\xff\xd8%s\xff\xda\0\x08\1\1\0\0\x3f\0" + b"\x12\x34\xff\0" * 8 + b"\xff\xd9%s"
JP2K = b"\xff\x4f\xff\x51\0\4\0\0%s\xff\x90\0\x0a\0\0\0\0\0\x20\0\1\xff\x93" + b"\x55" * 18 + b"\xff\xd9%s"


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (JPEG % (b"\xff\xfe\0\x14" + b"%s", b""), "comment"),
        (JPEG % (b"\xff\xe1\0\x14" + b"%s", b""), "application segment"),
        (JPEG % (b"", b"%s"), "behind the end"),
        (JP2K % (b"\xff\x64\0\x14" + b"%s", b""), "JPEG 2000 comment"),
        (JP2K % (b"", b"%s"), "JPEG 2000 behind the end"),
        (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x1axml %s", "JP2 box"),
        (bytes(64) + b"%s", "RLE"),
    ],
)  # fmt: skip
def test_identity_beside_the_samples_of_a_frame_is_refused(frame: bytes, words: str, tmp_path: Path) -> None:
    def file(text: bytes) -> bytes:
        writer = Writer()
        body = frame.replace(b"%s", text.ljust(18))
        body += b"\0" * (len(body) % 2)
        items = pack("<HHI", 0xFFFE, 0xE000, 0) + pack("<HHI", 0xFFFE, 0xE000, len(body)) + body
        head = writer.element(0x7FE00010, "OB", b"")[:-4] + b"\xff" * 4
        pixels = head + items + pack("<HHI", 0xFFFE, 0xE0DD, 0)
        parts = (writer.element(0x00100010, "PN", NAME), writer.element(0x00100020, "LO", PATIENT))
        return writer.file(*parts, pixels=pixels).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")

    assert deidentified(tmp_path, file(b"harmless"))
    with pytest.raises(Refused, match="beside the samples"):
        deidentified(tmp_path, file(NAME))


def test_identity_in_the_offset_table_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    items = pack("<HHI", 0xFFFE, 0xE000, 18) + NAME + b" " + pack("<HHI", 0xFFFE, 0xE000, 64) + bytes(64)
    pixels = writer.element(0x7FE00010, "OB", b"")[:-4] + b"\xff" * 4 + items + pack("<HHI", 0xFFFE, 0xE0DD, 0)

    with pytest.raises(Refused, match="beside the samples"):
        run(tmp_path, pixels=pixels)


def test_overlay_in_the_high_bits_of_pixels_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    parts = [writer.element(0x60000100, "US", pack("<H", 16)), writer.element(0x60000102, "US", pack("<H", 12))]

    with pytest.raises(Refused, match="overlay"):
        run(tmp_path, *parts)


def test_second_element_with_the_same_tag_goes_as_the_first(tmp_path: Path) -> None:
    writer = Writer()
    twice = writer.element(0x00100010, "PN", b"Other^Qwertz") + writer.element(0x00100010, "PN", NAME)

    result = run(tmp_path, twice)

    assert b"Qwertz" not in result
    assert b"Zwentibold" not in result


def test_name_in_a_sequence_of_another_character_set_goes_and_is_searched_for(tmp_path: Path) -> None:
    writer = Writer()
    name = "Ямада^Таро"
    item = writer.item(
        writer.element(0x00080005, "CS", b"ISO_IR 144"), writer.element(0x00100010, "PN", name.encode("iso8859_5"))
    )
    kept = writer.element(0x00080070, "LO", "Ямада".encode())

    result = run(tmp_path, writer.sequence(0x52009229, item), kept)

    assert "Ямада".encode() not in result
    assert name.encode("iso8859_5") not in result


def test_identity_within_a_removed_sequence_is_searched_for_too(tmp_path: Path) -> None:
    writer = Writer()
    removed = writer.sequence(0x00101002, writer.item(writer.element(0x00100020, "LO", b"OLDID-5544332")))

    result = run(tmp_path, removed, writer.element(0x00080070, "LO", b"was OLDID-5544332"))

    assert b"5544332" not in result


def test_text_vr_that_is_not_the_dictionarys_does_not_hide_a_name(tmp_path: Path) -> None:
    writer = Writer()
    parts = [writer.element(0x00100010, "LO", NAME), writer.element(0x00281050, "PN", b"Hidden^Qwertz")]
    parts += [writer.element(0x52009229, "UT", b"Sequence Qwertz"), writer.element(0x00181020, "DA", b"19770707")]

    result = run(tmp_path, *parts)

    for word in (b"Zwentibold", b"Qwertz", b"19770707"):
        assert word not in result


def test_patient_who_is_called_as_the_profile_is_not_refused(tmp_path: Path) -> None:
    writer = Writer()

    result = run(
        tmp_path, writer.element(0x00100010, "PN", b"Basic^Profile"), writer.element(0x00080070, "LO", b"Basic")
    )

    assert result.count(b"Basic") == 1  # in the meaning of the code


def test_element_nobody_knows_goes(tmp_path: Path) -> None:
    assert b"Qwertz" not in run(tmp_path, Writer().element(0x00189ABC, "LO", b"Qwertz"))


def test_sequences_without_end_are_refused(tmp_path: Path) -> None:
    writer = Writer()
    deep = writer.element(0x00104321, "LO", b"x")
    for _ in range(80):
        deep = writer.sequence(0x52009229, writer.item(deep))

    with pytest.raises(BadData, match="nested"):
        deidentified(tmp_path, writer.file(deep))


def test_private_sop_class_and_directory_are_refused(tmp_path: Path) -> None:
    writer = Writer()

    with pytest.raises(Refused, match="SOP Class"):
        deidentified(tmp_path, writer.file(writer.element(0x00080016, "UI", b"1.2.3.4")))


def test_deflated_data_set_stays_deflated_and_loses_its_identity(tmp_path: Path) -> None:
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    from tests.builders import write_instance

    source = write_instance(tmp_path / "in.dcm", syntax=DeflatedExplicitVRLittleEndian, PatientName="Zwentibold^Quirin")

    deidentified(tmp_path, source.read_bytes())

    read = pydicom.dcmread(tmp_path / "target.dcm")
    assert read.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    assert "Zwentibold" not in str(read)
    assert read.PixelData == pydicom.dcmread(source).PixelData


def test_large_values_and_pixels_are_copied_as_they_are(tmp_path: Path) -> None:
    writer = Writer()
    pixels = bytes(range(256)) * 12_000
    parts = [
        writer.element(0x00091010, "OB", b"Qwertz" * 300_000),
        writer.element(0x00420011, "OB", b"Qwertz" * 300_000),
    ]
    parts.append(writer.element(0x56000020, "OF", pixels))

    result = run(tmp_path, *parts, pixels=writer.element(0x7FE00010, "OW", pixels))

    assert b"Qwertz" not in result
    assert result.count(pixels) == 2


@pytest.mark.parametrize(
    ("charset", "codec", "name", "text"),
    [
        ("ISO_IR 109", "iso8859_3", "Ĉapeĥo^Ĝojŝ", "Ĉapeĥo"),
        ("ISO_IR 110", "iso8859_4", "Kļaviņš^Jānis", "Kļaviņš"),
        ("ISO_IR 127", "iso8859_6", "قباني^لنزار", "قباني"),
        ("ISO_IR 126", "iso8859_7", "Διονυσιος^Παππας", "ΔΙΟΝΥΣΙΟΣ"),
        ("ISO_IR 138", "iso8859_8", "שרוןכהן^דבורה", "שרוןכהן"),
        ("ISO_IR 148", "iso8859_9", "Şahinoğlu^Çağrı", "Şahinoğlu"),
        ("ISO_IR 166", "tis_620", "นามสกุล^ชื่อ", "นามสกุล"),
        (r"\ISO 2022 IR 87", "iso2022_jp", "Yamada^Tarou=山田^太郎", "山田太郎"),
        (r"\ISO 2022 IR 149", "euc_kr", "Hong^Gildong=洪^吉洞", "洪吉洞"),
        ("GB18030", "gb18030", "Wang^XiaoDong=王^小东", "王小东"),
        ("ISO_IR 100", "latin_1", "Özü^Bé", "Özü"),
        ("ISO_IR 100", "latin_1", "Weißkopf^Heiner", "coil Weißkopf"),
        ("ISO_IR 192", "utf-8", "Großmann^Heiner", "Großmann"),
        ("ISO_IR 192", "utf-8", "Διονυσιος^Παππας", "Διονυσιος"),
        ("ISO_IR 192", "utf-8", "İstanbullu^Ipek", "İSTANBULLU"),
        ("ISO_IR 192", "latin_1", "Müllerstr^A", "Müllerstr"),
    ],
)
def test_name_in_any_character_set_is_cleaned_from_texts_in_the_same(
    charset: str, codec: str, name: str, text: str, tmp_path: Path
) -> None:
    writer = Writer()
    raw, written = text.encode(codec), name.encode(codec)
    if codec == "euc_kr":  # which is written behind an escape sequence, again after each delimiter (PS3.5 I.2)
        raw, written = b"\x1b$)C" + raw, re.sub(rb"([=^])(?=[\x80-\xff])", b"\\1\x1b$)C", written)

    result = run(
        tmp_path, writer.element(0x00080005, "CS", charset.encode()), writer.element(0x00100010, "PN", written),
        writer.element(0x00080070, "LO", raw),
    )  # fmt: skip

    assert raw not in result
    assert pydicom.dcmread(tmp_path / "target.dcm").Manufacturer == "REMOVED"


@pytest.mark.parametrize(
    ("tag", "vr", "value"),
    [
        (0x00080070, "LO", rb"coil\LIU"),
        (0x00080070, "LO", b"  LIU   "),
        (0x00080008, "CS", rb"ORIGINAL\PRIMARY\LIU"),
        (0x00180022, "CS", rb"4711\SAT"),
        (0x00180024, "SH", b"^Liu"),
        (0x00081090, "DS", b"4711"),
        (0x00081090, "IS", b"4711"),
        (0x00081090, "AS", b"4711"),
        (0x00081090, "UN", b"Liu "),
        (0x00081090, "OB", b"Liu "),
    ],
)
@pytest.mark.parametrize("nested", ["top", "sequence", "UN"])
def test_short_identity_is_cleaned_wherever_it_is_a_whole_value(
    tag: int, vr: str, value: bytes, nested: str, tmp_path: Path
) -> None:
    writer = Writer()
    name, patient = writer.element(0x00100010, "PN", b"Liu^Bo"), writer.element(0x00100020, "LO", b"4711")
    kept = writer.element(tag, vr, value, bare=nested == "UN")
    if nested != "top":
        item = pack("<HHI", 0xFFFE, 0xE000, len(kept)) + kept
        kept = writer.element(0x52009229, "UN" if nested == "UN" else "SQ", item)

    result = run(tmp_path, name, patient, kept)

    assert value not in result


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Quirstedt-Vollbrink^Anna", "coil Quirstedt"),
        ("Quirstedt-Vollbrink^Anna", "Vollbrink"),
        ("O'Zwerbolk^Anna", "Zwerbolk"),
        ("d’Zwerbolk^Anna", "Zwerbolk"),
        ("van.Zwerbolk^Anna", "Zwerbolk"),
        ("Zwerbolk(Anneke)", "Anneke"),
        ("Zwerbolk|Anneke", "Zwerbolk"),
        ("Zwerbolk:Anneke", "Anneke 2"),
        ("Zwerbolk2^Anneke", "of Zwerbolk"),
        ("Zwerbolk&Partner", "Zwerbolk"),
        ("Ray^Mo", "Mo^Ray"),
        ("Ray^Mo", "by Mo Ray"),
        ("Ray^Mo^^Dr", "Mo_Ray"),
        ("Ray-Mo", "Ray"),
    ],
)
def test_each_part_of_a_compound_name_is_searched_for(name: str, text: str, tmp_path: Path) -> None:
    writer = Writer()

    result = run(
        tmp_path, writer.element(0x00080005, "CS", b"ISO_IR 192"), writer.element(0x00100010, "PN", name.encode()),
        writer.element(0x00080070, "LO", text.encode()),
    )  # fmt: skip

    assert text.encode() not in result


@pytest.mark.parametrize(
    "text",
    ["No.48151623", "Pat.48151623", "4815162301", "1.2.48151623.5", "1.2.3.48151623", "48151623.1.2"],
)
def test_identifier_of_digits_is_cleaned_beside_dots_and_before_digits(text: str, tmp_path: Path) -> None:
    writer = Writer()

    result = run(
        tmp_path, writer.element(0x00100020, "LO", b"48151623"), writer.element(0x00080070, "LO", text.encode())
    )

    assert b"48151623" not in result


@pytest.mark.parametrize("text", ["2.25.481516", "1.2.840.10008.48151.1", "0.48151", r"1\.48151", "481516", "48151.5"])
def test_identifier_of_digits_is_not_found_in_another_number(text: str, tmp_path: Path) -> None:
    writer = Writer()

    result = run(tmp_path, writer.element(0x00100020, "LO", b"48151"), writer.element(0x00080070, "LO", text.encode()))

    assert text.encode() in result


@pytest.mark.parametrize(
    "text",
    [
        "19630417", "19630417120000", "19630417120000.123456", "19630417120000.123456+0100", "1963041712", "1963-04-17",
        "17.04.1963", "born19630417", "17041963", "04171963", "1963/04/17", "17/04/1963", "17-04-1963", "17.04.63",
        "17/04/63", "17-04-63", "04/17/1963", "04/17/63", "63-04-17", "17.4.1963", "4/17/1963", "1963-4-17",
        "17 04 1963", "17 Apr 1963", "17-APR-1963", "17APR63", "April 17, 1963", "Apr 17 1963", "17. April 1963",
        "17th April 1963", "17 avril 1963", "1963APR17", "dob:17041963;", "T1_17041963_ax",
    ],
)  # fmt: skip
def test_birth_date_is_cleaned_in_any_form_of_date_and_time(text: str, tmp_path: Path) -> None:
    writer = Writer()

    result = run(
        tmp_path, writer.element(0x00100030, "DA", b"19630417"), writer.element(0x00080070, "LO", text.encode())
    )

    assert text.encode() not in result


@pytest.mark.parametrize(
    "text",
    ["1.2.17.4.1963.5", "170419635", "17.4.63", "1704.1963", "1.17.04.63", "0.17041963", "1963 b 17 04", "17:04:63"],
)
def test_number_that_is_no_birth_date_stays(text: str, tmp_path: Path) -> None:
    writer = Writer()

    result = run(
        tmp_path, writer.element(0x00100030, "DA", b"19630417"), writer.element(0x00080070, "LO", text.encode())
    )

    assert text.encode() in result


@pytest.mark.parametrize(
    ("patient", "text"),
    [
        ("MRN 00123 77", "MRN0012377"), ("MRN0012377", "MRN 00123 77"), ("MRN0012377", "mrn-0012377 t1"),
        ("ZQ-778899", "ZQ778899"), ("ZQ778899", "ZQ_778899"), ("ZQ-778899", "ZQ 778 899"), ("00123-77", "0012377"),
        ("0012377", "00123-77"), ("0012377", "001 2377"), ("123 456 789", "123456789"), ("481516/23", "No 481516-23"),
        ("A/12345", "A.12345"),
    ],
)  # fmt: skip
def test_identifier_is_cleaned_with_other_signs_between_its_parts(patient: str, text: str, tmp_path: Path) -> None:
    writer = Writer()

    result = run(
        tmp_path, writer.element(0x00100020, "LO", patient.encode()), writer.element(0x00080070, "LO", text.encode())
    )

    assert text.encode() not in result


@pytest.mark.parametrize("text", ["1 2 3 4 5", r"12\345", "12.345", "12 3456", "1234 5.6", "912 345"])
def test_numbers_that_only_together_have_the_digits_of_an_identifier_stay(text: str, tmp_path: Path) -> None:
    writer = Writer()

    result = run(tmp_path, writer.element(0x00100020, "LO", b"12345"), writer.element(0x00080070, "LO", text.encode()))

    assert text.encode() in result


@pytest.mark.parametrize(
    ("charset", "codec", "name", "text"),
    [
        ("ISO_IR 192", "utf-8", "Zwentibold^Quirin", "Ｚｗｅｎｔｉｂｏｌｄ"),
        ("ISO_IR 192", "utf-8", "Zwentibold^Quirin", "of ＺＷＥＮＴＩＢＯＬＤ"),
        ("ISO_IR 192", "utf-8", "Ｚｗｅｎｔｉｂｏｌｄ^Ｑ", "Zwentibold"),
        ("", "utf-8", "Zwentibold^Quirin", "Ｚｗｅｎｔｉｂｏｌｄ"),
        ("GB18030", "gb18030", "Zwentibold^Quirin", "Ｚｗｅｎｔｉｂｏｌｄ"),
        ("ISO_IR 13", "shift_jis", "ﾔﾏﾀﾞﾀﾛｳ", "ヤマダタロウ"),
        ("ISO_IR 192", "utf-8", "ヤマダタロウ", "ﾔﾏﾀﾞﾀﾛｳ"),
        ("ISO_IR 192", "utf-8", "Fitzﬁeld^Q", "Fitzfield"),
        ("ISO_IR 192", "utf-8", "Müllenhoff^Jörg", "MUELLENHOFF"),
        ("ISO_IR 192", "utf-8", "Müllenhoff^Jörg", "Mullenhoff"),
        ("ISO_IR 100", "latin_1", "Ångström^Bjørk", "Aangstroem"),
        ("ISO_IR 192", "utf-8", "Wałęsowicz^Ł", "Walesowicz"),
    ],
)
def test_name_is_cleaned_in_letters_of_other_width_and_in_plain_ones(
    charset: str, codec: str, name: str, text: str, tmp_path: Path
) -> None:
    writer = Writer()
    raw = text.encode(codec)

    result = run(
        tmp_path, writer.element(0x00080005, "CS", charset.encode()),
        writer.element(0x00100010, "PN", name.encode(codec)), writer.element(0x00080070, "LO", raw),
    )  # fmt: skip

    assert raw not in result


def test_full_width_digits_are_digits(tmp_path: Path) -> None:
    writer = Writer()
    parts = [
        writer.element(0x00100030, "DA", b"19630417"), writer.element(0x00100020, "LO", b"48151623"),
        writer.element(0x00080070, "LO", "１９６３０４１７".encode()),
        writer.element(0x00081090, "LO", "４８１５１６２３".encode()),
    ]  # fmt: skip

    run(tmp_path, *parts)

    read = pydicom.dcmread(tmp_path / "target.dcm")
    assert (read.Manufacturer, read.ManufacturerModelName) == ("REMOVED", "REMOVED")


@pytest.mark.parametrize("encoding", ["explicit", "implicit", "big"])
def test_number_is_found_where_the_bytes_beside_it_look_like_digits(encoding: str, tmp_path: Path) -> None:
    writer = Writer(encoding)
    name = b"48151 " + b"x" * 47  # the length of 53 bytes is the digit 5, big endian
    parts = [
        writer.element(0x00100020, "LO", b"48151"), writer.element(0x00080070, "LO", name),
        # The group of what follows is the digit 2, little endian.
        writer.element(0x00281055, "LO", b"N48151"), writer.element(0x0032000A, "CS", b"STARTED "),
    ]  # fmt: skip

    result = run(tmp_path, *parts, writer=writer)

    assert b"48151" not in result


def test_birth_date_on_the_first_of_january_is_searched_for_but_the_dummy_is_not(tmp_path: Path) -> None:
    writer = Writer()

    def with_birth_date(date: bytes) -> bytes:
        text = writer.element(0x00080070, "LO", b"born " + date)
        return run(tmp_path, writer.element(0x00100030, "DA", date), text)

    assert b"19630101" not in with_birth_date(b"19630101")
    assert b"born 19000101" in with_birth_date(b"19000101")


SHAPE = {0x00280002: 1, 0x00280010: 4, 0x00280011: 4, 0x00280100: 16}


@pytest.mark.parametrize("missing", list(SHAPE))
@pytest.mark.parametrize("text", [NAME + b" ", b"Zwentibold"])
def test_identity_in_pixels_whose_size_nothing_tells_is_refused(missing: int, text: bytes, tmp_path: Path) -> None:
    writer = Writer()
    shape = [writer.element(tag, "US", pack("<H", n)) for tag, n in SHAPE.items() if tag != missing]

    assert run(tmp_path, *shape, pixels=writer.element(0x7FE00010, "OW", bytes(32)))
    with pytest.raises(Refused, match="beside the samples"):
        run(tmp_path, *shape, pixels=writer.element(0x7FE00010, "OW", bytes(32) + text))


def test_identity_in_pixels_of_fewer_frames_than_told_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    shape = [writer.element(tag, "US", pack("<H", n)) for tag, n in SHAPE.items()]
    frames = writer.element(0x00280008, "IS", b"9")

    assert run(tmp_path, *shape, frames, pixels=writer.element(0x7FE00010, "OW", bytes(32)))
    with pytest.raises(Refused, match="beside the samples"):
        run(tmp_path, *shape, frames, pixels=writer.element(0x7FE00010, "OW", bytes(32) + NAME))


@pytest.mark.parametrize(("tag", "vr", "bytes_each"), [(0x7FE00008, "OF", 4), (0x7FE00009, "OD", 8)])
@pytest.mark.parametrize("others", [b"", Writer().element(0x7FE00010, "OW", bytes(32))])
def test_identity_beside_floating_point_samples_is_refused(
    tag: int, vr: str, bytes_each: int, others: bytes, tmp_path: Path
) -> None:
    writer = Writer()
    shape = [writer.element(one, "US", pack("<H", n)) for one, n in SHAPE.items()]
    samples = bytes(16 * bytes_each)

    assert run(tmp_path, *shape, pixels=writer.element(tag, vr, samples) + others)
    for value in (samples + b"Zwentibold  ", b"Zwentibold^Quirin   "):
        with pytest.raises(Refused, match="beside the samples"):
            run(tmp_path, *shape, pixels=writer.element(tag, vr, value) + others)


def test_name_of_four_letters_behind_the_samples_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    shape = [writer.element(tag, "US", pack("<H", n)) for tag, n in SHAPE.items()]
    name = writer.element(0x00100010, "PN", b"Bolk^Quirin")

    with pytest.raises(Refused, match="beside the samples"):
        run(tmp_path, name, *shape, pixels=writer.element(0x7FE00010, "OW", bytes(32) + b"Bolk"))


SECONDARY_CAPTURE = b"1.2.840.10008.5.1.4.1.1.7"


@pytest.mark.parametrize(
    "part",
    [
        Writer().element(0x00080016, "UI", SECONDARY_CAPTURE),
        Writer().element(0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1.12.3"),
        Writer().element(0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1.77.2"),
        Writer().element(0x00280301, "CS", b"YES"),
        Writer().element(0x00280301, "CS", b"Y"),
        Writer().element(0x60000102, "US", pack("<H", 12)),
    ],
)
def test_pixels_that_may_show_identity_are_refused_and_when_allowed_never_called_clean(
    part: bytes, tmp_path: Path
) -> None:
    source = write(tmp_path, Writer().file(Writer().element(0x00100010, "PN", NAME), part))
    target = tmp_path / "target.dcm"

    with pytest.raises(Refused):
        Deidentifier(KEY, Settings(Profile())).deidentify(source, target)
    outcome = Deidentifier(KEY, Settings(Profile(), burned_in="allow")).deidentify(source, target)

    read = pydicom.dcmread(target)
    assert read.PatientIdentityRemoved == "NO"
    assert "DeidentificationMethodCodeSequence" not in read
    assert outcome.codes == ()


def test_secondary_capture_that_says_that_nothing_is_burned_in_passes(tmp_path: Path) -> None:
    writer = Writer()

    assert run(tmp_path, writer.element(0x00080016, "UI", SECONDARY_CAPTURE), writer.element(0x00280301, "CS", b"NO"))


@pytest.mark.parametrize("encoding", ["explicit", "implicit", "big"])
def test_name_that_the_patient_shares_with_a_retained_institution_is_still_searched_for(
    encoding: str, tmp_path: Path
) -> None:
    writer = Writer(encoding)
    parts = [
        writer.element(0x00100010, "PN", b"Flobbertyx^Maria"), writer.element(0x00080080, "LO", b"Flobbertyx Kliniek"),
        writer.element(0x00181250, "SH", b"of Flobbertyx"), writer.element(0x00080070, "LO", b"ACME"),
    ]  # fmt: skip
    target = tmp_path / "target.dcm"

    settings = Settings(Profile(retain_institution_identity=True))
    outcome = Deidentifier(KEY, settings).deidentify(write(tmp_path, writer.file(*parts)), target)

    read = pydicom.dcmread(target)
    assert outcome.cleaned == ("(0018,1250)",)
    assert (read.InstitutionName, read.ReceiveCoilName) == ("Flobbertyx Kliniek", "REMOVED")
    hidden = write(tmp_path, writer.file(*parts, writer.element(0x00281201, "OW", b"Flobbertyx")))
    with pytest.raises(Refused, match="left in the result"):
        Deidentifier(KEY, settings).deidentify(hidden, target)


@pytest.mark.parametrize("encoding", ["explicit", "implicit", "big"])
@pytest.mark.parametrize("dates", ["full", "modified"])
def test_newborn_keeps_the_dates_that_the_user_wants(encoding: str, dates: Dates, tmp_path: Path) -> None:
    writer = Writer(encoding)
    parts = [
        writer.element(0x00100030, "DA", b"20110923"), writer.element(0x00080020, "DA", b"20110923"),
        writer.element(0x0008002A, "DT", b"20110923101112"), writer.element(0x00080070, "LO", b"born 20110923"),
    ]  # fmt: skip

    run(tmp_path, *parts, writer=writer, profile=Profile(retain_dates=dates))

    read = pydicom.dcmread(tmp_path / "target.dcm")
    assert read.Manufacturer == "REMOVED"
    assert not read.PatientBirthDate
    assert (read.StudyDate, read.AcquisitionDateTime[:8]) == ("20110923",) * 2 or dates == "modified"
    hidden = writer.element(0x00281201, "OW", b" 20110923 ")
    with pytest.raises(Refused, match="left in the result"):
        run(tmp_path, *parts, hidden, writer=writer, profile=Profile(retain_dates=dates))


@pytest.mark.parametrize("encoding", ["explicit", "implicit", "big"])
def test_number_that_is_an_identifier_of_five_digits_is_cleaned(encoding: str, tmp_path: Path) -> None:
    writer = Writer(encoding)
    parts = [
        writer.element(0x00100020, "LO", b"10000"), writer.element(0x00180080, "DS", b"10000"),
        writer.element(0x00180081, "DS", b"100001"), writer.element(0x00200013, "IS", b"7"),
    ]  # fmt: skip

    run(tmp_path, *parts, writer=writer)

    read = pydicom.dcmread(tmp_path / "target.dcm")
    assert (read.RepetitionTime, read.EchoTime, read.InstanceNumber) == (None, 100001, 7)


def test_patient_who_is_called_as_the_program_is_not_refused(tmp_path: Path) -> None:
    writer = Writer()

    result = run(
        tmp_path, writer.element(0x00100010, "PN", b"Dcmtools^A"), writer.element(0x00080070, "LO", b"Dcmtools")
    )

    assert pydicom.dcmread(tmp_path / "target.dcm").Manufacturer == "REMOVED"
    assert b"Dcmtools" not in result


def test_retained_uid_may_have_the_number_of_the_patient_in_it(tmp_path: Path) -> None:
    writer = Writer()
    uid = b"1.2.3.48151623.5"
    parts = [writer.element(0x00100020, "LO", b"48151623"), writer.element(0x0020000D, "UI", uid)]
    parts += [writer.element(0x00080018, "UI", uid + b".1"), writer.element(0x00080070, "LO", uid)]

    run(tmp_path, *parts, profile=Profile(retain_uids=True))

    read = pydicom.dcmread(tmp_path / "target.dcm")
    assert (read.StudyInstanceUID, read.Manufacturer) == (uid.decode(), "REMOVED")


@pytest.mark.parametrize("tag", [0x0040A121, 0x0040A120])
def test_birth_date_in_the_content_of_a_report_is_no_date_to_retain(tag: int, tmp_path: Path) -> None:
    writer = Writer()
    date = writer.element(tag, "DA" if tag == 0x0040A121 else "DT", b"19630417")
    content = writer.sequence(0x0040A730, writer.item(date))
    profile = Profile(retain_dates="full", clean_structured_content=True)

    with pytest.raises(Refused, match="left in the result"):
        run(tmp_path, writer.element(0x00100030, "DA", b"19630417"), content, profile=profile)


@pytest.mark.parametrize("name", [b"Smith^John^^Mr", b"MR^John", b"Ms^Anna", b"CT^Bo"])
def test_modality_stays_though_somebody_is_called_so(name: bytes, tmp_path: Path) -> None:
    writer = Writer()

    run(tmp_path, writer.element(0x00100010, "PN", name), writer.element(0x00080060, "CS", b"MR"))

    assert pydicom.dcmread(tmp_path / "target.dcm").Modality == "MR"


def test_of_several_codes_only_that_goes_which_is_identity(tmp_path: Path) -> None:
    writer = Writer()

    run(tmp_path, writer.element(0x00080008, "CS", b"ORIGINAL\\PRIMARY\\ZWENTIBOLD\\M "))

    assert pydicom.dcmread(tmp_path / "target.dcm").ImageType == ["ORIGINAL", "PRIMARY", "ANON", "M"]


def test_file_that_may_show_identity_has_no_empty_sequence_of_codes(tmp_path: Path) -> None:
    source = write(tmp_path, Writer().file(Writer().element(0x00280301, "CS", b"YES ")))
    target = tmp_path / "target.dcm"

    Deidentifier(KEY, Settings(BASIC, burned_in="allow")).deidentify(source, target)

    assert "DeidentificationMethodCodeSequence" not in pydicom.dcmread(target)


@pytest.mark.parametrize(
    "text",
    [
        "Z w e n t i b o l d", "Z.W.E.N.T.I.B.O.L.D", "z_w_e_n_t_i_b_o_l_d", "coil Zwenti-bold", "Zwenti\\bold",
        "Zwen tibold", "Zwenti\r\nbold", "Zwenti-\r\nbold", "Zwen\u200btibold", "Zwen\u00adtibold", "Zwen\u2060tibold",
        "\ufeffZwentibold", "scan 778899", "778899", "1.2.778899.1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("vr", ["LO", "ST", "UT"])
def test_identity_is_cleaned_with_signs_within_a_word_and_less_its_letters(vr: str, text: str, tmp_path: Path) -> None:
    writer = Writer()
    parts = [writer.element(0x00080005, "CS", b"ISO_IR 192"), writer.element(0x00080070, vr, text.encode())]

    result = run(tmp_path, *parts)

    assert text.encode() not in result
    assert pydicom.dcmread(tmp_path / "target.dcm").Manufacturer == "REMOVED"


@pytest.mark.parametrize("text", ["smart in", "ste ad", "s tead", "20110923", "image 012345"])
def test_words_and_numbers_that_only_look_like_identity_stay(text: str, tmp_path: Path) -> None:
    writer = Writer()
    parts = [writer.element(0x00100010, "PN", b"Martin^Stead"), writer.element(0x00100020, "LO", b"S-20110923")]
    parts += [writer.element(0x00080070, "LO", text.encode())]

    result = run(tmp_path, *parts)

    assert text.encode() in result


def test_delimiters_are_made_anew(tmp_path: Path) -> None:
    writer = Writer()
    inner = writer.element(0x00080070, "LO", b"ACME")
    endless = pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner + pack("<HH", 0xFFFE, 0xE00D) + b"Bolk"
    head = writer.element(0x52009229, "SQ", b"")[:-4] + b"\xff" * 4
    parts = [head + writer.item(inner) + endless + pack("<HH", 0xFFFE, 0xE0DD) + b"Krtz"]

    result = run(tmp_path, *parts)

    assert b"Bolk" not in result
    assert b"Krtz" not in result
    assert len(pydicom.dcmread(tmp_path / "target.dcm")[0x52009229].value) == 2


def test_earlier_method_that_names_the_patient_goes_and_others_stay(tmp_path: Path) -> None:
    writer = Writer()

    run(tmp_path, writer.element(0x00120063, "LO", b"by CTP\\file of Zwentibold"))

    methods = pydicom.dcmread(tmp_path / "target.dcm").DeidentificationMethod
    assert methods[0] == "by CTP"
    assert len(methods) == 2


@pytest.mark.parametrize("encoding", ["explicit", "implicit", "big"])
@pytest.mark.parametrize(
    ("tag", "vr", "value", "profile"),
    [
        (0x00080031, "TM", b"Qwertz", Profile(retain_dates="full")),
        (0x00080031, "TM", b"Li", Profile(retain_dates="modified")),
        (0x00080021, "DA", b"Qwertz", Profile(retain_dates="full")),
        (0x0008002A, "DT", b"20240117 Qwertz", Profile(retain_dates="full")),
        (0x00200052, "UI", b"Qwertz Doc", Profile(retain_uids=True)),
        (0x0008010C, "UI", b"Qwertz Doc", BASIC),
    ],
)
def test_what_is_no_date_time_or_uid_does_not_stay_as_one(
    tag: int, vr: str, value: bytes, profile: Profile, encoding: str, tmp_path: Path
) -> None:
    writer = Writer(encoding)
    name = writer.element(0x00100010, "PN", b"Li^Bo")

    result = run(tmp_path, name, writer.element(tag, vr, value), writer=writer, profile=profile)

    assert value.split()[-1] not in result
    assert tag in pydicom.dcmread(tmp_path / "target.dcm")


@pytest.mark.parametrize("charset", [b"", b"\\ISO 2022 IR 100"])
def test_name_with_escape_sequences_in_it_is_cleaned(charset: bytes, tmp_path: Path) -> None:
    writer = Writer()
    parts = [writer.element(0x00080005, "CS", charset), writer.element(0x00080070, "LO", b"of Zwen\x1b(Btibold")]

    assert b"tibold" not in run(tmp_path, *parts)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Yamada^Taro=山田^太郎", "担当 山田様"),
        ("Yamada==ヤマダ^タロウ", "ヤマダ3"),
        ("Hong=洪吉洞", "洪吉洞님"),
        ("Hong==홍^길동", "길동 2"),
    ],
)
def test_name_of_two_ideographs_or_syllables_is_cleaned_within_a_text(name: str, text: str, tmp_path: Path) -> None:
    writer = Writer()
    parts = [
        writer.element(0x00080005, "CS", b"ISO_IR 192"), writer.element(0x00100010, "PN", name.encode()),
        writer.element(0x00080070, "LO", text.encode()),
    ]  # fmt: skip

    assert text.encode() not in run(tmp_path, *parts)


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("encoding", ["explicit", "implicit", "big"])
def test_name_that_only_a_private_sequence_holds_is_searched_for(
    encoding: str, undefined: bool, tmp_path: Path
) -> None:
    writer = Writer(encoding)
    item = writer.item(writer.element(0x00100010, "PN", b"Kwapiszewski^Jan"), undefined=undefined)
    parts = [
        writer.element(0x00080070, "LO", b"for Kwapiszewski"), writer.element(0x00090010, "LO", b"ACME"),
        writer.sequence(0x00091001, item, undefined=undefined),
    ]  # fmt: skip

    result = run(tmp_path, *parts, writer=writer)

    # Without a VR nobody can tell that a private element of a defined length is a sequence.
    assert (b"Kwapiszewski" in result) == (encoding == "implicit" and not undefined)


def test_private_sequence_that_is_damaged_goes_and_the_rest_stays(tmp_path: Path) -> None:
    writer = Writer()
    broken = writer.element(0x00091001, "SQ", b"\xfe\xff\x00\xe0\x99\x00\x00\x00no item")
    parts = [writer.element(0x00090010, "LO", b"ACME"), broken, writer.element(0x00180050, "DS", b"1.5 ")]

    assert b"no item" not in run(tmp_path, *parts)
    assert pydicom.dcmread(tmp_path / "target.dcm").SliceThickness == 1.5
