"""Blanks regions of pixels by rules for devices (PS3.15 E.3.1): where a scanner writes who it was, nothing is left.

A file of rules is a JSON array; the first rule whose keys all match counts, its regions are [x, y, width, height]:

    [{"Modality": "US", "Manufacturer": "ACME*", "Rows": 600, "Columns": 800, "regions": [[0, 0, 800, 60]]}]
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from dcmtools.disk.inflated import Read
from dcmtools.files.deidentify import frames
from dcmtools.model.errors import ConfigurationError, Refused

# The keys of a rule, and their tags.
KEYS = {
    "Modality": 0x00080060,
    "Manufacturer": 0x00080070,
    "ManufacturerModelName": 0x00081090,
    "SOPClassUID": 0x00080016,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
}


class Region(NamedTuple):
    """A rectangle of pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Rule:
    """The regions for the images of a device."""

    wanted: tuple[tuple[str, str], ...]
    regions: tuple[Region, ...]

    def matches(self, told: Mapping[str, str]) -> bool:
        """Whether an image that says this of itself is of that device."""
        return all(fnmatchcase(told.get(key, "").casefold(), value.casefold()) for key, value in self.wanted)


@dataclass(frozen=True, slots=True)
class Raster:
    """How native pixels lie in a frame (PS3.3 C.7.6.3)."""

    rows: int
    columns: int
    samples: int
    bits: int
    frames: int
    planar: bool
    photometric: str

    @property
    def frame_size(self) -> int:
        """The bytes of a frame."""
        return self.rows * self.columns * self.samples * (self.bits // 8)

    def meets(self, region: Region) -> bool:
        """Whether a region has pixels of it."""
        return region.x < self.columns and region.y < self.rows


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The rules in a file; ConfigurationError where it has none that can be used."""
    import msgspec

    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
        return tuple(map(_rule, found))
    except OSError as problem:
        raise ConfigurationError(f"cannot read {path}: {problem.strerror}", "check the path") from None
    except (msgspec.DecodeError, ValueError, TypeError, KeyError) as problem:
        raise ConfigurationError(f"{path}: {problem}", "see the conformance statement for its form") from None


def _rule(row: dict[str, Any]) -> Rule:
    regions = tuple(Region(*map(int, region)) for region in row["regions"])
    if not regions or any(min(region) < 0 or not region.width * region.height for region in regions):
        raise ValueError("a region is [x, y, width, height], none of them below zero")
    if unknown := row.keys() - KEYS.keys() - {"regions"}:
        raise ValueError(f"{unknown.pop()} is not a key of a rule; they are {', '.join(KEYS)}")
    return Rule(tuple((key, str(value)) for key, value in row.items() if key != "regions"), regions)


def check_can_be_blanked(raster: Raster) -> None:
    """Raises Refused for pixels whose rectangles are no rectangles of bytes."""
    if raster.bits % 8 or not raster.frame_size or raster.photometric == "YBR_FULL_422":
        raise Refused("its pixels lie so that regions of them cannot be blanked", "decode it first", cause="burned-in")


def blanked(read: Read, position: int, stop: int, raster: Raster, regions: tuple[Region, ...]) -> Iterator[bytes]:
    """The bytes from `position` to `stop`, native frames, with zeros in the regions; a frame at a time.

    Refused for pixels that are not as they are described, and for a region that lies beside them: the rule is not for
    this image, and what it would say of it is not true.
    """
    rest = position + raster.frames * raster.frame_size
    if rest > stop:
        raise Refused("its pixel data are shorter than it says", cause="burned-in")
    if not all(map(raster.meets, regions)):
        reason = f"a region of its rule lies beside its {raster.columns} x {raster.rows} pixels"
        raise Refused(reason, "name Rows and Columns in the rule", cause="burned-in")
    for start in range(position, rest, raster.frame_size):
        data = bytearray(read(start, raster.frame_size))
        for region in regions:
            _blank(data, raster, region)
        yield bytes(data)
    yield bytes(stop - rest)


def _blank(data: bytearray, raster: Raster, region: Region) -> None:
    planes = raster.samples if raster.planar else 1
    pixel = raster.bits // 8 * (1 if raster.planar else raster.samples)
    left, right = min(region.x, raster.columns), min(region.x + region.width, raster.columns)
    for plane in range(planes):
        for row in range(region.y, min(region.y + region.height, raster.rows)):
            at = (plane * raster.rows * raster.columns + row * raster.columns + left) * pixel
            data[at : at + (right - left) * pixel] = bytes((right - left) * pixel)


def decoded(source: str, target: Path) -> None:
    """Writes an instance with compressed pixels anew, with native ones; Refused where no decoder is for them."""
    from pydicom import dcmread

    from dcmtools.disk.values import quiet

    try:
        with quiet():
            data_set = dcmread(source)
            # Without a name pydicom asks gdcm first where that is installed, which ends the process at damaged JPEG.
            decoder = "pydicom" if data_set.file_meta.TransferSyntaxUID == frames.RLE else "pylibjpeg"
            data_set.decompress(generate_instance_uid=False, decoding_plugin=decoder)
            data_set.save_as(target, enforce_file_format=True)
    except Exception as problem:
        target.unlink(missing_ok=True)
        reason = f"its pixels cannot be decoded to be cleaned ({type(problem).__name__})"
        raise Refused(reason, cause="burned-in") from problem
