"""The geometry audit."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.images.audit import (
    Findings,
    Volume,
    audit_gradients,
    audit_series,
    audit_time,
    by_weight,
    diagnosis,
    open_volume,
)
from dcmtools.images.planes import Layout, Planes, Slice, planes_of

Array = np.ndarray[Any, np.dtype[Any]]
ROWS, COLUMNS, SPACING, GAP = 6, 5, (2.0, 1.5), 3.0
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def slices(
    count: int = 4, *, axes: Sequence[Sequence[float]] = AXIAL, step: Sequence[float] | None = None, repeats: int = 1
) -> list[Slice]:
    """Slices a step apart, which is GAP along the normal unless told otherwise."""
    move = GAP * np.cross(axes[0], axes[1]) if step is None else np.array(step)
    places = [np.array((10.0, -20.0, 30.0)) + number * move for number in range(count)] * repeats
    return [Slice(tuple(place), (*axes[0], *axes[1]), SPACING, ROWS, COLUMNS) for place in places]


def layout(of: Sequence[Slice]) -> Layout:
    return Layout(planes_of(of), frames=len(of))


def affine_of(of: Sequence[Slice]) -> Array:
    """The affine of a volume of these slices, as an engine should write it."""
    first, last = np.array(of[0].position), np.array(of[-1].position)
    normal = np.cross(of[0].orientation[:3], of[0].orientation[3:])
    affine = np.eye(4)
    affine[:3, 0] = np.array(of[0].orientation[:3]) * SPACING[1]
    affine[:3, 1] = np.array(of[0].orientation[3:]) * SPACING[0]
    affine[:3, 2] = normal * np.linalg.norm(last - first) / (len(of) - 1)
    affine[:3, 3] = first
    return np.asarray(LPS_TO_RAS @ affine)


def volume(folder: Path, affine: Array, shape: Sequence[int] = (COLUMNS, ROWS, 4), **header: Any) -> Volume:
    """A NIfTI file with this affine, opened."""
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape, order="F")
    return saved(folder, voxels, affine, **header)


def new_image(voxels: Array, affine: Array) -> Any:
    return nibabel.Nifti1Image(voxels, affine)  # type: ignore[no-untyped-call]


def saved(folder: Path, voxels: Array, affine: Array, *, tr: float = 0, form: Array | None = None) -> Volume:
    image = new_image(voxels, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = tr
    if form is not None:
        image.set_qform(form, code=1)
    nibabel.save(image, folder / "v.nii")
    return open_volume(folder / "v.nii")


def flags(found: list[Findings]) -> list[list[str]]:
    return [one.flags for one in found]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path


# What is right passes

angles = st.floats(-3, 3)


@given(
    turns=st.tuples(angles, angles, angles),
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.booleans()] * 3),
    repeats=st.integers(1, 3),
)
def test_a_right_volume_passes_however_it_is_turned_flipped_and_stored(
    tmp_path_factory: pytest.TempPathFactory,
    turns: tuple[float, float, float],
    order: list[int],
    flips: tuple[bool, bool, bool],
    repeats: int,
) -> None:
    rotation = _rotation(turns)
    made = slices(axes=(tuple(rotation[:, 0]), tuple(rotation[:, 1])), repeats=1)
    shape = np.array([COLUMNS, ROWS, 4])
    affine = affine_of(made)
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
            affine[:3, axis] *= -1
    affine[:3, :3] = affine[:3, order]

    stored = volume(tmp_path_factory.mktemp("v"), affine, (*shape[order], *([repeats] if repeats > 1 else [])))
    (found,) = audit_series([stored], layout(made * repeats))

    assert found.flags == []
    assert found.figures["inside"] == 4 * repeats
    assert found.figures["max_error_mm"] < 0.01


def _rotation(turns: tuple[float, float, float]) -> Array:
    made = np.eye(3)
    for axis, angle in enumerate(turns):
        one, other = [side for side in range(3) if side != axis]
        turn = np.eye(3)
        turn[one, one] = turn[other, other] = np.cos(angle)
        turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
        made = made @ turn
    return made


def test_echoes_share_their_places(here: Path) -> None:
    made = slices()
    volumes = [volume(here, affine_of(made)) for _ in range(2)]

    assert flags(audit_series(volumes, layout(made * 2))) == [[], []]


def test_a_scout_in_three_orientations_is_three_volumes(here: Path) -> None:
    stacks = [slices(axes=axes) for axes in (AXIAL, ((0, 1, 0), (0, 0, -1)), ((1, 0, 0), (0, 0, -1)))]
    volumes = [volume(here, affine_of(stack)) for stack in stacks]

    assert flags(audit_series(volumes, layout([one for stack in stacks for one in stack]))) == [[], [], []]


def test_pictures_without_a_place_pass_by_their_number(here: Path) -> None:
    assert flags(audit_series([volume(here, np.eye(4))], Layout(planes_of([]), frames=4))) == [[]]


# What is wrong does not


@pytest.mark.parametrize("axis", range(3))
def test_a_volume_that_is_off_by_a_fifth_of_a_millimetre_is_flagged(here: Path, axis: int) -> None:
    made = slices()
    affine = affine_of(made)
    affine[axis, 3] += 0.2

    assert flags(audit_series([volume(here, affine)], layout(made))) == [["wrong-position"]]


@pytest.mark.parametrize("mirrored", list(product([False, True], repeat=3))[1:])
def test_a_mirrored_volume_is_flagged_unless_it_lies_in_the_same_place(
    here: Path, mirrored: tuple[bool, bool, bool]
) -> None:
    made = slices()
    affine = affine_of(made)
    for axis, mirror in enumerate(mirrored):
        if mirror:
            affine[:3, axis] *= -1

    assert flags(audit_series([volume(here, affine)], layout(made))) == [["wrong-position"]]


@pytest.mark.parametrize(
    ("step", "tilt"), [((0, 0.1, 3), False), ((0, 0.5, 3), True), ((0, -0.5, 3), True), ((0.5, 0, -3), True)]
)
def test_a_tilted_gantry_is_flagged_whichever_way(here: Path, step: tuple[float, ...], tilt: bool) -> None:
    made = slices(step=step)

    assert diagnosis(planes_of(made)) == ("gantry-tilt" if tilt else "wrong-position")
    assert flags(audit_series([volume(here, affine_of(made))], layout(made))) != [[]]


def test_a_missing_slice_is_flagged(here: Path) -> None:
    whole = slices(5)
    made = [*whole[:2], *whole[3:]]

    assert flags(audit_series([volume(here, affine_of(made))], layout(made))) == [["missing-slices"]]


def test_uneven_slices_are_flagged(here: Path) -> None:
    made = [*slices(3), *slices(1, step=(0, 0, 0))]
    made[-1] = Slice((10.0, -20.0, 30 + 3 * GAP - 1.2), made[-1].orientation, SPACING, ROWS, COLUMNS)

    assert flags(audit_series([volume(here, affine_of(made))], layout(made))) == [["uneven-slices"]]


def test_two_orientations_in_one_volume_are_flagged(here: Path) -> None:
    made = [*slices(2), *slices(2, axes=((0, 1, 0), (0, 0, -1)))]

    assert flags(audit_series([volume(here, affine_of(slices(4)))], layout(made))) == [["mixed-orientation"]]


def test_a_time_series_that_lacks_a_slice_is_flagged(here: Path) -> None:
    made = slices(repeats=3)[:-1]

    assert flags(audit_series([volume(here, affine_of(slices()), (COLUMNS, ROWS, 4, 3))], layout(made))) == [
        ["missing-slices"]
    ]


def test_a_volume_that_holds_each_slice_once_too_seldom_is_flagged(here: Path) -> None:
    assert flags(audit_series([volume(here, affine_of(slices()))], layout(slices(repeats=2)))) == [["wrong-count"]]


def test_an_empty_volume_in_a_time_series_is_flagged(here: Path) -> None:
    voxels = np.arange(COLUMNS * ROWS * 4 * 3, dtype=np.int16).reshape((COLUMNS, ROWS, 4, 3))
    voxels[..., 1] = -1024

    found = audit_series([saved(here, voxels, affine_of(slices()))], layout(slices(repeats=3)))

    assert flags(found) == [["empty-volume"]]


def test_a_resampled_volume_is_no_better_than_its_origin(here: Path) -> None:
    made = slices(step=(0, 1, 3))
    volumes = [volume(here, affine_of(made)), volume(here, np.eye(4), (COLUMNS, 9, 7))]

    assert flags(audit_series(volumes, layout(made), [False, True])) == [["gantry-tilt"], ["gantry-tilt"]]


def test_an_affine_that_is_no_number_is_flagged(here: Path) -> None:
    volume(here, affine_of(slices()))
    with (here / "v.nii").open("r+b") as file:
        file.seek(280)  # srow_x
        file.write(np.float32(np.nan).tobytes())

    assert "bad-affine" in flags(audit_series([open_volume(here / "v.nii")], layout(slices())))[0]


def test_forms_that_disagree_are_flagged(here: Path) -> None:
    affine = affine_of(slices())
    other = affine.copy()
    other[:3, :3] = _rotation((0.1, 0, 0)) @ affine[:3, :3]

    assert flags(audit_series([volume(here, affine, form=other)], layout(slices()))) == [["two-affines"]]


def test_a_file_that_is_cut_short_is_flagged(here: Path) -> None:
    volume(here, np.eye(4))
    (here / "v.nii").write_bytes((here / "v.nii").read_bytes()[:-10])

    assert "short-file" in open_volume(here / "v.nii").flags


# Mosaics


def mosaic_layout(sums: Sequence[float], mosaics: int = 1) -> Layout:
    return Layout(planes_of(slices()), mosaics=mosaics, tiles=4, tile_sums=tuple(sums))


def test_the_tiles_of_a_mosaic_must_be_in_the_order_of_their_places(here: Path) -> None:
    stored = volume(here, affine_of(slices()))
    sums = np.asarray(stored.voxels).sum(axis=(0, 1))

    assert flags(audit_series([stored], mosaic_layout(sums))) == [[]]
    assert flags(audit_series([stored], mosaic_layout(sums[::-1]))) == [["wrong-order"]]


def test_a_mosaic_that_nobody_can_check_is_flagged(here: Path) -> None:
    unknown = Layout(planes_of([]), mosaics=1)

    assert flags(audit_series([volume(here, np.eye(4))], unknown)) == [["mosaic-unverified"]]


def test_a_mosaic_that_was_lost_is_flagged(here: Path) -> None:
    sums = np.asarray(volume(here, affine_of(slices())).voxels).sum(axis=(0, 1))

    assert flags(audit_series([volume(here, affine_of(slices()))], mosaic_layout(sums, 2))) == [["wrong-count"]]


# Time and gradients


@pytest.mark.parametrize(
    ("source", "tr", "flagged"),
    [
        ({"Modality": "MR", "RepetitionTime": 2000}, 2, False),
        ({"Modality": "MR", "RepetitionTime": 2000}, 0, True),
        ({"Modality": "MR", "RepetitionTime": 0}, 0, False),
        ({"Modality": "MR"}, 0, False),
        ({"Modality": "CT", "RepetitionTime": 2000}, 0, False),
    ],
)
def test_a_time_series_has_the_time_step_that_its_headers_have(
    here: Path, source: dict[str, Any], tr: float, flagged: bool
) -> None:
    series = volume(here, np.eye(4), (COLUMNS, ROWS, 4, 2), tr=tr)

    assert audit_time(series, source) == (["no-time-step"] if flagged else [])
    assert series.time_step == (tr or None)


def test_units_are_made_millimetres_and_seconds(here: Path) -> None:
    image = new_image(np.ones((2, 2, 2, 2), np.int16), np.eye(4))
    image.header.set_zooms((0.001, 0.002, 0.003, 1500))
    image.header.set_xyzt_units("meter", "msec")
    nibabel.save(image, here / "v.nii")

    opened = open_volume(here / "v.nii")

    np.testing.assert_allclose(opened.zooms, (1, 2, 3), rtol=1e-6)
    assert opened.time_step == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("bval", "bvec", "flagged"),
    [
        ("0 1000\n", "0 1\n0 0\n0 0\n", False),
        ("0\n", "0 1\n0 0\n0 0\n", True),
        ("0 1000\n", "0 1\n0 0\n", True),
        ("0 1000\n", "0 1\n0 0\n0\n", True),
    ],
)
def test_gradient_tables_have_one_entry_a_volume(here: Path, bval: str, bvec: str, flagged: bool) -> None:
    (here / "bval").write_text(bval)
    (here / "bvec").write_text(bvec)
    tables = {kind: here / kind for kind in ("bval", "bvec")}

    found = audit_gradients(volume(here, np.eye(4), (COLUMNS, ROWS, 4, 2)), tables)

    assert found == (["wrong-gradients"] if flagged else [])


def test_the_most_telling_flag_comes_first() -> None:
    assert by_weight(["engine-failed", "two-affines", "gantry-tilt", "two-affines"]) == [
        "gantry-tilt",
        "two-affines",
        "engine-failed",
    ]


def test_planes_know_their_number() -> None:
    assert len(Planes(np.zeros((3, 3)), np.zeros((3, 3)), np.zeros((3, 3)))) == 3
