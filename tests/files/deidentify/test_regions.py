"""Pixels that may show identity: overlays in their high bits, and regions that are to be blanked."""

from pathlib import Path
from struct import pack

import pytest

from dcmtools.files.deidentify.instance import Deidentifier, Settings
from dcmtools.files.deidentify.profile import Profile
from dcmtools.files.deidentify.pseudonyms import Key
from dcmtools.model.errors import Refused
from tests.files.deidentify.markers import Writer, write

KEY = Key(b"k" * 32)


@pytest.mark.parametrize("clean_graphics", [False, True])
def test_overlay_in_the_high_bits_of_pixels_is_refused_whatever_becomes_of_graphics(
    clean_graphics: bool, tmp_path: Path
) -> None:
    writer = Writer()
    parts = [
        writer.element(0x60000040, "CS", b"R"), writer.element(0x60000100, "US", pack("<H", 16)),
        writer.element(0x60000102, "US", pack("<H", 12)),
    ]  # fmt: skip

    with pytest.raises(Refused, match="overlay"):
        Deidentifier(KEY, Settings(Profile(clean_graphics=clean_graphics))).deidentify(
            write(tmp_path, writer.file(*parts)), tmp_path / "target.dcm"
        )

    assert not (tmp_path / "target.dcm").exists()
