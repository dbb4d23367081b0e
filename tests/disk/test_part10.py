from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, MRImageStorage

from dcmtools.disk.part10 import data_set_hash, encode_meta, same_data_set
from dcmtools.model.errors import BadData
from tests.builders import encode_element, uid

DATA_SET = encode_element(0x00100020, "LO", b"P1")


def file_with(path: Path, data_set: bytes, syntax: str = ExplicitVRLittleEndian, sender: str = "") -> Path:
    path.write_bytes(encode_meta(MRImageStorage, uid(1), syntax, sender) + data_set)
    return path


def test_same_data_set_is_the_same_whatever_the_meta_information_says(tmp_path: Path) -> None:
    one, other = file_with(tmp_path / "a", DATA_SET), file_with(tmp_path / "b", DATA_SET, sender="ELSEWHERE")

    assert same_data_set(one, other)
    assert data_set_hash(one) == data_set_hash(other)


@pytest.mark.parametrize("other", [DATA_SET[:-1] + b"2", DATA_SET + DATA_SET, b""])
def test_other_bytes_are_another_data_set(tmp_path: Path, other: bytes) -> None:
    one, two = file_with(tmp_path / "a", DATA_SET), file_with(tmp_path / "b", other)

    assert not same_data_set(one, two)
    assert data_set_hash(one) != data_set_hash(two)


def test_same_bytes_in_another_syntax_mean_something_else(tmp_path: Path) -> None:
    assert not same_data_set(file_with(tmp_path / "a", DATA_SET), file_with(tmp_path / "b", DATA_SET, JPEGBaseline8Bit))


def test_difference_behind_the_first_megabyte_is_seen(tmp_path: Path) -> None:
    large = encode_element(0x7FE00010, "OW", bytes(3 << 20))

    assert not same_data_set(file_with(tmp_path / "a", large), file_with(tmp_path / "b", large[:-1] + b"\1"))


def test_error_names_the_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(file_with(tmp_path / "a", DATA_SET))

    with pytest.raises(BadData) as caught:
        same_data_set(tmp_path / "a", tmp_path / "link")

    assert caught.value.where["path"] == str(tmp_path / "link")
    assert caught.value.reason.count(str(tmp_path)) == 1


def test_file_of_another_kind_has_a_hash_too(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")

    assert len(data_set_hash(tmp_path / "text")) == 64
