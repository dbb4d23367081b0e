"""Compression."""

import gzip
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.images.gzip_ import compress


@given(data=st.binary(max_size=3000), times=st.integers(1, 600))
def test_what_was_compressed_comes_back_and_has_its_hash(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, times: int
) -> None:
    folder = tmp_path_factory.mktemp("gzip")
    (folder / "plain").write_bytes(data * times)

    sha256 = compress(folder / "plain", folder / "packed")

    packed = (folder / "packed").read_bytes()
    assert gzip.decompress(packed) == data * times
    assert hashlib.sha256(packed).hexdigest() == sha256


def test_equal_input_gives_equal_bytes_whenever_and_whatever_it_is_called(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).write_bytes(b"same")

    assert compress(tmp_path / "one", tmp_path / "1") == compress(tmp_path / "other", tmp_path / "2")
    header = (tmp_path / "1").read_bytes()[:10]
    assert header[3] == 0  # no name (RFC 1952 2.3)
    assert header[4:8] == bytes(4)  # no time
