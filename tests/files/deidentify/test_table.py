"""The table is the standard's: counted, held against a second source row by row, and understood."""

from collections import Counter

from pydicom._private_dict import private_dictionaries
from pydicom.datadict import dictionary_description, dictionary_VR

from dcmtools.files.deidentify import table


def test_table_has_the_codes_of_the_edition() -> None:
    codes = Counter(row.basic for row in (*table.rows().values(), *table.patterns().values()))

    assert len(table.rows()) == 617
    assert list(table.patterns()) == ["(50xx,xxxx)", "(60xx,3000)", "(60xx,4000)", "(odd,xxxx)"]
    assert codes == {
        "X": 384, "D": 92, "U": 54, "Z": 42, "X/D": 22, "X/Z": 11, "X/Z/D": 8, "Z/D": 6, "X/Z/U*": 2,
    }  # fmt: skip


def test_options_have_the_codes_of_the_edition() -> None:
    found = Counter(
        f"{column} {code}"
        for row in (*table.rows().values(), *table.patterns().values())
        for column, code in row.options.items()
    )

    assert found == {
        "FUL K": 165, "MOD C": 165, "DES C": 125, "UID K": 59, "DEV K": 46, "DEV C": 11, "PAT K": 9, "PAT C": 4,
        "INS K": 10, "GRA C": 4, "STR C": 3, "PRI C": 1,
    }  # fmt: skip


def test_each_row_is_that_of_another_source() -> None:
    from dicomanonymizer.dicom_anonymization_databases import dicomfields_2024b as other  # type: ignore[import-untyped]

    lists = {
        "D": other.D_TAGS, "Z": other.Z_TAGS, "X": other.X_TAGS, "U": other.U_TAGS, "Z/D": other.Z_D_TAGS,
        "X/Z": other.X_Z_TAGS, "X/D": other.X_D_TAGS, "X/Z/D": other.X_Z_D_TAGS, "X/Z/U*": other.X_Z_U_STAR_TAGS,
    }  # fmt: skip
    theirs = {tag[0] << 16 | tag[1]: code for code, tags in lists.items() for tag in tags if len(tag) == 2}

    ours = {tag: row.basic for tag, row in table.rows().items()}

    assert {tag: (ours.get(tag), code) for tag, code in theirs.items() if ours.get(tag) != code} == {}
    assert ours.keys() - theirs.keys() == set()


def test_each_row_is_an_attribute_of_the_dictionary() -> None:
    names = {tag: dictionary_description(tag) for tag in table.rows()}

    assert all(dictionary_VR(tag) for tag in table.rows())
    different = {
        tag: (row.name, names[tag]) for tag, row in table.rows().items() if _plain(row.name) != _plain(names[tag])
    }
    assert different == {}


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def test_naming_uids_are_uids_that_the_table_does_not_replace() -> None:
    assert all(dictionary_VR(tag) == "UI" for tag in table.naming_uids())
    assert table.naming_uids().isdisjoint(table.rows())


def test_conditional_codes_go_by_the_iod() -> None:
    pet, mr = "1.2.840.10008.5.1.4.1.1.128", "1.2.840.10008.5.1.4.1.1.4"

    assert table.resolved("X/D", 0x00080021, 0, pet) == "D"  # Series Date is Type 1 in PET alone
    assert table.resolved("X/D", 0x00080021, 0, mr) == "X"
    assert table.resolved("X/Z/U*", 0x00081140, 0, mr) == "X"


def test_conditional_codes_keep_the_element_where_the_sop_class_is_not_known() -> None:
    assert table.resolved("X/D", 0x00080021, 0, "1.2.3") == "D"
    assert table.resolved("X/Z", 0x00080022, 0x00081115, "1.2.840.10008.5.1.4.1.1.4") == "Z"
    assert table.resolved("X", 0x00081030, 0, "1.2.3") == "X"


def test_safe_private_elements_are_those_of_another_source() -> None:
    import gdcm  # type: ignore[import-untyped]

    gdcm.Trace.ErrorOff()
    cleaner = gdcm.Cleaner()  # which refuses to remove what is in its own copy of the table
    ours = {(group, element, creator) for group, element, creator, _, _ in table.safe_private_rows()}
    blocks = {(group, creator) for group, _, creator in ours}

    theirs = {
        (group, element, creator)
        for group, creator in blocks
        for element in range(256)
        if not cleaner.Remove(gdcm.PrivateTag(group, element, creator))
    }

    assert len(ours) == 479
    assert ours == theirs


def test_safe_private_elements_have_the_vrs_of_a_dictionary() -> None:
    differing = {}
    for group, element, creator, _, vr in table.safe_private_rows():
        entry = private_dictionaries.get(creator, {}).get(f"{group:04X}xx{element:02X}")
        if entry and entry[0] != vr:
            differing[group, element, creator] = vr, entry[0]

    # A color in 32 bits, and a text of another length.
    assert differing == {
        (0x2001, 0x55, "Philips Imaging DD 001"): ("UL", "CS"),
        (0x7E01, 0x02, "HOLOGIC, Inc."): ("SH", "LO"),
    }


def test_nothing_but_numbers_codes_and_short_texts_is_called_safe() -> None:
    assert {vr for creator in table.safe_private().values() for vr in creator.values()} == {
        "AT", "CS", "DS", "FD", "FL", "IS", "LO", "SH", "SL", "SS", "UL", "US",
    }  # fmt: skip
