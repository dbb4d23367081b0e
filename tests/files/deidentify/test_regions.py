"""Pixels that may show identity: overlays in their high bits, and regions that are to be blanked."""

from pathlib import Path
from struct import pack

import pydicom
import pytest

from dcmtools.files.deidentify.instance import Deidentifier, Settings
from dcmtools.files.deidentify.profile import Profile
from dcmtools.files.deidentify.pseudonyms import Key
from dcmtools.files.deidentify.regions import Region, Rule
from dcmtools.model.errors import Refused
from tests.builders import write_instance
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


def blank(folder: Path, *regions: tuple[int, int, int, int], **keys: object) -> Path:
    """The result for an image of 16 x 16 pixels that says it has identity burned in, under a rule for it."""
    source = write_instance(folder / "in.dcm", side=16, BurnedInAnnotation="YES", **keys)
    rule = Rule((("Modality", "MR"),), tuple(Region(*region) for region in regions))
    target = folder / "out.dcm"
    Deidentifier(KEY, Settings(Profile(), blanking=(rule,))).deidentify(source, target)
    return target


def test_region_is_blanked_in_every_frame(tmp_path: Path) -> None:
    read = pydicom.dcmread(blank(tmp_path, (8, 4, 100, 100), NumberOfFrames=2, PixelData=b"\1" * 1024))

    assert not read.pixel_array[:, 4:, 8:].any()
    assert (read.pixel_array != 0).sum() == 2 * (256 - 12 * 8)
    assert read.BurnedInAnnotation == "NO"


@pytest.mark.parametrize("beside", [(16, 0, 4, 4), (0, 16, 4, 4), (5000, 5000, 10, 10)])
def test_rule_whose_region_lies_beside_the_image_is_not_for_it(
    beside: tuple[int, int, int, int], tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="beside its 16 x 16 pixels"):
        blank(tmp_path, (0, 0, 4, 4), beside)

    assert not (tmp_path / "out.dcm").exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"PixelData": None}, "has no pixels"),
        ({"NumberOfFrames": 3}, "shorter than it says"),
        ({"PixelData": bytes(100)}, "shorter than it says"),
    ],
)
def test_rule_for_pixels_that_are_not_there_is_refused(keys: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=words):
        blank(tmp_path, (0, 0, 4, 4), **keys)

    assert not (tmp_path / "out.dcm").exists()
