"""What is found out about a file before it is sent."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.disk.header import read_meta
from dcmtools.model.errors import BadData
from dcmtools.model.uids import IMPLICIT_VR_LITTLE_ENDIAN
from dcmtools.network.parcel import Item, Parcel, _ends_with_pixels
from tests.builders import write_instance


def parcel(path: Path) -> Parcel:
    return Parcel(Item(0, {}, path, read_meta(path)))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", IMPLICIT_VR_LITTLE_ENDIAN])
@pytest.mark.parametrize("lost", [1, 2, 9, 31, 38])
def test_a_file_that_was_cut_short_is_told_from_a_whole_one(tmp_path: Path, syntax: str, lost: int) -> None:
    path = write_instance(tmp_path / "a.dcm", syntax=syntax)
    parcel(path).close()

    path.write_bytes(path.read_bytes()[:-lost])

    with pytest.raises(BadData) as caught:
        parcel(path)
    assert caught.value.cause == "truncated"


@given(data=st.binary(max_size=300), cut=st.integers(1, 40))
def test_pixels_must_end_where_the_data_set_ends(data: bytes, cut: int) -> None:
    pixels = b"\xe0\x7f\x10\0OW\0\0" + (40).to_bytes(4, "little") + bytes(40)

    assert _ends_with_pixels(data + pixels, len(data) + 52)
    assert not _ends_with_pixels(bytes(len(data)) + pixels[:-cut], len(data) + 52 - cut)


def test_pixels_of_an_icon_within_are_not_taken_for_those_of_the_image() -> None:
    icon = b"\xe0\x7f\x10\0OW\0\0" + (8).to_bytes(4, "little") + bytes(8)
    image = b"\xe0\x7f\x10\0OW\0\0" + (20).to_bytes(4, "little") + bytes(20)

    assert _ends_with_pixels(icon + image, 52)
    assert not _ends_with_pixels(icon + image[:-2], 50)
