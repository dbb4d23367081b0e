"""Where the slices of a series lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcmtools.disk.header import read_header
from dcmtools.images.planes import layout_of
from tests.builders import make_record
from tests.images.series_files import make_mosaic, make_slices, write, write_slices


def test_a_slice_spans_from_its_first_voxel_to_the_far_end_of_its_diagonal() -> None:
    record = make_record(ImagePositionPatient=[1.0, 2.0, 3.0], PixelSpacing=[2.0, 0.5], Rows=11, Columns=21)

    planes = layout_of([record]).planes

    np.testing.assert_allclose(planes.first, [[1, 2, 3]])
    np.testing.assert_allclose(planes.last, [[1 + 20 * 0.5, 2 + 10 * 2, 3]])
    np.testing.assert_allclose(planes.normal, [[0, 0, 1]])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1"}, False),
        ({"SOPClassUID": "1.2.3.4"}, False),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "VFRAME"]}, False),
        ({"ImagePositionPatient": [1.0, 2.0, 3.0]}, False),
    ],
)
def test_slices_of_ct_mr_and_pet_should_have_a_place(keys: dict[str, Any], expected: bool) -> None:
    assert layout_of([make_record(**{"ImagePositionPatient": None, **keys})]).placeless is expected


@pytest.mark.parametrize(
    "keys",
    [
        {"ImagePositionPatient": None},
        {"ImagePositionPatient": [1.0, 2.0]},
        {"PixelSpacing": None},
        {"ImageOrientationPatient": ["left", 0, 0, 0, 1, 0]},
    ],
)
def test_a_slice_without_a_usable_place_is_counted_all_the_same(keys: dict[str, Any]) -> None:
    layout = layout_of([make_record(instance=1), make_record(instance=2, **keys)])

    assert layout.frames == 2
    assert len(layout.planes) == 1
    assert not layout.complete


@pytest.mark.parametrize(
    ("folder", "frames"),
    [("philips_enhanced/fmri/001", 32), ("hyperfine/anatomical/001", 8), ("siemens_multiframe/anatomical/001", 8)],
)
def test_the_frames_of_an_enhanced_image_have_their_places(data: Path, folder: str, frames: int) -> None:
    layout = layout_of([read_header(path) for path in (data / "vendors" / folder).iterdir()])

    assert layout.frames == len(layout.planes) == frames


@pytest.mark.parametrize("direction", [1, -1])
def test_the_tiles_of_a_mosaic_lie_where_its_private_header_says(tmp_path: Path, direction: int) -> None:
    mosaics = write(tmp_path, [make_mosaic(1, tiles=7, normal=(0, 0, direction))])

    layout = layout_of(mosaics)

    assert (layout.mosaics, layout.tiles, layout.frames) == (1, 7, 0)
    np.testing.assert_allclose(layout.planes.first[:, 2], 10 + 3 * direction * np.arange(7))
    assert list(layout.tile_sums) == sorted(layout.tile_sums)


def test_a_mosaic_without_its_private_header_has_no_tiles(tmp_path: Path) -> None:
    (stripped,) = make_slices(count=1, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])

    layout = layout_of(write(tmp_path, [stripped]))

    assert (layout.mosaics, layout.tiles, len(layout.planes)) == (1, 0, 0)


def test_a_time_series_has_each_place_several_times(tmp_path: Path) -> None:
    layout = layout_of(write_slices(tmp_path, count=4, repeats=3))

    assert layout.frames == len(layout.planes) == 12
    assert len(np.unique(layout.planes.first, axis=0)) == 4
