"""What of compressed frames is searched: all but their samples, however they are cut."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.files.deidentify import frames
from dcmtools.files.deidentify.instance import Deidentifier, Settings
from dcmtools.files.deidentify.profile import Profile
from dcmtools.files.deidentify.pseudonyms import Key
from dcmtools.model.errors import Refused
from tests.files.deidentify.markers import Writer, write

NAME = b"Zwentibold"
SCAN = b"\xff\xda\0\x08\1\1\0\0\x3f\0" + b"\x12\x34\xff\0" * 8 + b"\xff\xd9"
APP0 = b"\xff\xe0\0\x08JFIF\0\0"
TABLE = b"\xff\xdb\0\x06\1\2\3\4"


def comment(text: bytes) -> bytes:
    return b"\xff\xfe" + pack(">H", len(text) + 2) + text


def encapsulated(fragments: Iterable[bytes]) -> bytes:
    items = (pack("<HHI", 0xFFFE, 0xE000, len(one)) + one for one in (b"", *fragments))
    return b"".join(items) + pack("<HHI", 0xFFFE, 0xE0DD, 0)


def searched(data: bytes, *, densely: bool = False) -> list[bytes]:
    parts = frames.beside_samples(lambda at, size: data[at : at + size], 0, len(data))
    return [part for part, is_dense in parts if is_dense == densely]


@pytest.mark.parametrize(
    "head",
    [
        NAME + APP0 + TABLE, APP0 + NAME + TABLE, APP0 + TABLE + NAME, comment(NAME) + TABLE, APP0 + comment(NAME),
        APP0 + SCAN[:-2] + comment(NAME), APP0 + SCAN[:-2] + TABLE + NAME,
    ],
)  # fmt: skip
def test_text_anywhere_in_the_headers_of_a_jpeg_is_searched(head: bytes) -> None:
    found = searched(encapsulated([b"\xff\xd8" + head + SCAN]))

    assert any(NAME in part for part in found)
    assert not any(SCAN[10:42] in part for part in found)
    assert any(SCAN[10:42] in part for part in searched(encapsulated([b"\xff\xd8" + head + SCAN]), densely=True))


@given(cuts=st.sets(st.integers(1, 70), max_size=6), before=st.booleans())
def test_frame_is_searched_as_a_whole_however_it_is_cut(cuts: set[int], before: bool) -> None:
    frame = b"\xff\xd8" + APP0 + comment(b"xx " + NAME) + TABLE + SCAN
    places = [0, *sorted(cuts), len(frame)]
    fragments = [frame[start:stop] for start, stop in pairwise(places)]

    found = searched(encapsulated([*([b"\xff\xd8" + APP0 + SCAN] if before else []), *fragments]))

    assert any(NAME in part for part in found)


def test_text_in_two_fragments_of_no_known_kind_is_searched() -> None:
    assert any(
        NAME in part for part in searched(encapsulated([bytes(64) + NAME[:4], NAME[4:] + bytes(64)]), densely=True)
    )


@pytest.mark.parametrize("cut", [0, 24, 26])
def test_identity_in_a_comment_of_two_fragments_is_refused(cut: int, tmp_path: Path) -> None:
    frame = b"\xff\xd8" + APP0 + comment(b"xx %s " % NAME) + TABLE + SCAN
    writer = Writer()
    pixels = writer.element(0x7FE00010, "OB", b"")[:-4] + b"\xff" * 4 + encapsulated([frame[:cut], frame[cut:]])
    data = writer.file(writer.element(0x00100010, "PN", NAME), pixels=pixels)
    source = write(tmp_path, data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"))

    with pytest.raises(Refused, match="beside the samples"):
        Deidentifier(Key(b"k" * 32), Settings(Profile())).deidentify(source, tmp_path / "out.dcm")


START = b"\xff\x4f\xff\x51\0\4\0\0"


def tile(size: int, body: bytes = b"\x55" * 18) -> bytes:
    return b"\xff\x90\0\x0a\0\0" + size.to_bytes(4, "big") + b"\0\1\xff\x93" + body


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xd8" + APP0 + TABLE + SCAN + NAME,
        b"\xff\xd8" + APP0 + TABLE + SCAN[:-2] + b"\xff\xff\xd9" + NAME,
        b"\xff\xd8" + APP0 + TABLE + SCAN + NAME + b"\xff\xd9",
        START + tile(32) + b"\xff\xd9" + NAME,
        START + tile(0) + b"\xff\xd9" + NAME,
        START + tile(0) + b"\xff\xd9" + NAME + b"\xff\xd9",  # the last end is not the end
        START + tile(9999) + b"\xff\xd9" + NAME,  # a tile-part that says that it is longer
        START + tile(3) + b"\xff\xd9" + NAME,
        START + tile(32) + tile(32) + NAME + b"\xff\xd9",
        START + tile(32) + NAME + tile(32) + b"\xff\xd9",
    ],
)
@pytest.mark.parametrize("cut", [0, -8])
def test_text_behind_the_end_of_a_frame_is_searched_as_a_text(frame: bytes, cut: int) -> None:
    fragments = [frame[:cut], frame[cut:]] if cut else [frame]

    assert any(NAME in part for part in searched(encapsulated(fragments)))


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xd8" + APP0 + TABLE + SCAN[:20] + NAME + SCAN[20:],
        b"\xff\xd8" + APP0 + TABLE + SCAN[:-2] + NAME,
        START + tile(42, b"\x55" * 9 + NAME + b"\x55" * 9) + b"\xff\xd9",
    ],
)
def test_long_text_among_the_samples_of_a_frame_is_refused(frame: bytes, tmp_path: Path) -> None:
    writer = Writer()
    pixels = writer.element(0x7FE00010, "OB", b"")[:-4] + b"\xff" * 4 + encapsulated([frame + b"\0" * (len(frame) % 2)])
    data = writer.file(writer.element(0x00100010, "PN", NAME), pixels=pixels)
    source = write(tmp_path, data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"))

    with pytest.raises(Refused, match="beside the samples"):
        Deidentifier(Key(b"k" * 32), Settings(Profile())).deidentify(source, tmp_path / "out.dcm")
