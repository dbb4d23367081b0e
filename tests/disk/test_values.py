import math
import struct
import subprocess
import sys
import textwrap
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.charset import convert_encodings
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from dcmtools.disk.values import Decoder, decoder_for
from dcmtools.model.keys import BY_KEYWORD, KEYS, Key

TEXTS = [key for key in KEYS if key.vr not in {"DS", "IS", "US"}]
NUMBERS = [key for key in KEYS if key.vr in {"DS", "IS"}]
CHARSETS = [
    b"",
    b"ISO_IR 100",
    b"ISO_IR 192",
    b"ISO_IR 144",
    b"ISO_IR 13",
    b"GB18030",
    b"ISO 2022 IR 6\\ISO 2022 IR 87",
]


def value(keyword: str, raw: bytes, vr: bytes = b"", charset: bytes = b"", *, big: bool = False) -> Any:
    return Decoder(charset, big=big).value(BY_KEYWORD[keyword], (vr, raw))


def by_pydicom(key: Key, raw: bytes, charset: bytes = b"") -> Any:
    names = charset.decode().split("\\")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        element = RawDataElement(
            BaseTag(key.tag), key.vr, len(raw), raw, 0, is_implicit_VR=False, is_little_endian=True
        )
        return convert_raw_data_element(element, encoding=convert_encodings(names)).value


def plain(found: Any, key: Key) -> Any:
    """pydicom's value as a record writes it: None for nothing, an array where there may be many."""
    values = (
        [one if isinstance(one, int | float) else str(one) for one in found]
        if isinstance(found, MultiValue)
        else [found]
    )
    texts = [one if isinstance(one, int | float) else "" if one is None else str(one) for one in values]
    if texts in ([""], []):
        return None
    return texts if key.many else texts[0] if len(texts) == 1 else "\\".join(map(str, texts))


@pytest.mark.parametrize(
    ("raw", "charset", "text"),
    [
        ("Müller^Jörg".encode("latin-1"), b"ISO_IR 100", "Müller^Jörg"),
        ("Müller^Jörg".encode("latin-1"), b"", "Müller^Jörg"),
        ("Müller^Jörg".encode(), b"ISO_IR 192", "Müller^Jörg"),
        ("Люкceмбypг".encode("iso8859_5"), b"ISO_IR 144", "Люкceмбypг"),
        ("Διονυσιος".encode("iso8859_7"), b"ISO_IR 126", "Διονυσιος"),
        ("قباني^لنزار".encode("iso8859_6"), b"ISO_IR 127", "قباني^لنزار"),
        ("שרון^דבורה".encode("iso8859_8"), b"ISO_IR 138", "שרון^דבורה"),
        ("王^小东".encode("gb18030"), b"GB18030", "王^小东"),
        ("王^小东".encode("gbk"), b"GBK", "王^小东"),
        (b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3", b"ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        (
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            b"\\ISO 2022 IR 87",
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ),
        (b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7", b"\\ISO 2022 IR 149", "Hong^Gildong=洪^吉洞"),
        (b"Plain^Name", b"\\ISO 2022 IR 87", "Plain^Name"),
        (b"M\xfcller", b"ISO IR 100", "Müller"),
        (b"M\xfcller", b"NONSENSE", "Müller"),
        (b"M\xfcller", b"NON\0SENSE", "Müller"),
        (b"M\xfcller", b"rot13", "Müller"),
        (b"M\xfcller", b"hex", "Müller"),
        (b"M\xfcller", b"ISO_IR 192", "M\ufffdller"),
        (b"Doe^John^^^=== ", b"", "Doe^John^^^"),
    ],
)
def test_names_are_read_in_their_character_set(raw: bytes, charset: bytes, text: str) -> None:
    assert value("PatientName", raw, b"PN", charset) == text


@pytest.mark.parametrize(
    ("keyword", "vr", "raw", "expected"),
    [
        ("PatientID", b"LO", b"12 ", "12"),
        ("PatientID", b"LO", b"", None),
        ("PatientID", b"LO", b"  ", None),
        ("PatientID", b"LO", b"A\\B", "A\\B"),
        ("PatientID", b"UN", b"12\0", "12"),
        ("PatientID", b"SQ", b"12", None),
        ("StudyInstanceUID", b"UI", b"1.2.3\0", "1.2.3"),
        ("StudyDate", b"DA", b"2024.01.15", "2024.01.15"),
        ("ImageType", b"CS", b"ORIGINAL\\PRIMARY ", ["ORIGINAL", "PRIMARY"]),
        ("ImageType", b"CS", b"ORIGINAL", ["ORIGINAL"]),
        ("ImageType", b"CS", b"", None),
        ("SeriesNumber", b"IS", b"007 ", 7),
        ("SeriesNumber", b"IS", b"1.0", 1),
        ("SeriesNumber", b"IS", b"1.5", 1.5),
        ("SeriesNumber", b"IS", b"many", "many"),
        ("SeriesNumber", b"IS", b"99999999999999999999", "99999999999999999999"),
        ("SeriesNumber", b"US", b"\7\0", 7),
        ("EchoTime", b"DS", b" 1.5e1", 15.0),
        ("EchoTime", b"DS", b"NaN ", "NaN"),
        ("EchoTime", b"DS", b"inf", "inf"),
        ("EchoTime", b"DS", b"10\\20", "10\\20"),
        ("PixelSpacing", b"DS", b"0.5\\0.25", [0.5, 0.25]),
        ("PixelSpacing", b"DS", b"0.5\\wide", ["0.5", "wide"]),
        ("PixelSpacing", b"DS", b"0.5", [0.5]),
        ("Rows", b"US", b"\0\2", 512),
        ("Rows", b"US", b"\0", None),
        ("Rows", b"UL", b"\0\2\0\0", 512),
        ("EchoTime", b"FD", struct.pack("<d", 2.5), 2.5),
        ("EchoTime", b"FD", struct.pack("<d", math.nan), "nan"),
    ],
)
def test_value_is_what_records_hold(keyword: str, vr: bytes, raw: bytes, expected: Any) -> None:
    found = value(keyword, raw, vr)

    assert found == expected
    assert type(found) is type(expected)


def test_big_endian_numbers_are_read_as_such() -> None:
    assert value("Rows", b"\2\0", b"US", big=True) == 512


@given(st.sampled_from(TEXTS), st.binary(max_size=40), st.sampled_from(CHARSETS))
def test_text_equals_pydicoms(key: Key, raw: bytes, charset: bytes) -> None:
    ours = Decoder(charset).value(key, (key.vr.encode(), raw))
    theirs = plain(by_pydicom(key, raw, charset), key)

    assert ours == theirs


@given(st.sampled_from(NUMBERS), st.text("0123456789.eE+- \\", max_size=20))
def test_numbers_equal_pydicoms(key: Key, text: str) -> None:
    ours = Decoder().value(key, (key.vr.encode(), text.encode()))
    try:
        theirs = plain(by_pydicom(key, text.encode()), key)
    except (OverflowError, ValueError):
        return

    if isinstance(ours, float) or (isinstance(ours, int) and isinstance(theirs, int | float)):
        assert ours == theirs
    if isinstance(theirs, float | int) and math.isfinite(theirs) and abs(theirs) < 2**53:
        assert ours == theirs


def test_remembered_lists_are_not_shared() -> None:
    decoder, found = decoder_for(b""), {0x00080008: (b"CS", b"A\\B")}
    decoder.record(found)["ImageType"].append("C")

    assert decoder.record(found)["ImageType"] == ["A", "B"]


def test_memory_of_values_is_bounded() -> None:
    decoder = Decoder()
    for number in range(5000):
        decoder.record({0x00080018: (b"UI", str(number).encode())})

    assert sum(map(len, decoder._memory.values())) <= 1024


def test_common_character_sets_need_no_pydicom() -> None:
    code = (
        "import sys; from dcmtools.disk.values import Decoder; from dcmtools.model.keys import BY_KEYWORD\n"
        "for charset in (b'', b'ISO_IR 100', b'ISO_IR 192', b'GB18030', b'ISO 2022 IR 6\\\\ISO 2022 IR 87'):\n"
        "    Decoder(charset).value(BY_KEYWORD['PatientName'], (b'PN', b'Doe^J'))\n"
        "assert not {'pydicom', 'numpy'} & set(sys.modules)\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_that_begin_with_different_parts_of_pydicom_both_get_it() -> None:
    code = textwrap.dedent("""
        import threading, time
        from dcmtools.disk.values import encodings
        failures = []

        def whole():
            try:
                from pydicom import dcmread
            except ImportError as problem:
                failures.append(problem)

        def part():
            try:
                encodings(b"ISO_IR 100\\\\nonsense")
            except ImportError as problem:
                failures.append(problem)

        threads = [threading.Thread(target=whole), *(threading.Thread(target=part) for _ in range(4))]
        for thread in threads:
            thread.start()
            time.sleep(0.02)
        for thread in threads:
            thread.join()
        assert not failures, failures
    """)

    subprocess.run([sys.executable, "-c", code], check=True)
