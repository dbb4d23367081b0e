"""Phantoms: the same bytes everywhere, valid to other programs, and volumes that lie where they were asked to."""

import datetime as dt
import hashlib
import itertools
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from dcmtools.disk.header import read_header
from dcmtools.images.phantom import KINDS, make
from dcmtools.images.phantom_people import PEOPLE, PHYSICIANS, Study
from dcmtools.images.phantom_pixels import geometry
from dcmtools.images.phantom_series import GEOMETRIES, REPETITION_TIME, VOLUMES
from dcmtools.model.errors import CannotCreate, UsageError
from dcmtools.model.record import Record
from tests.peers.processes import RunTool

DCM2NIIX = Path(sys.executable).parent / "dcm2niix"
DAY = dt.date(2024, 1, 15)
# Of all files of one patient, in the order in which they are made. It changes with REVISION, and with nothing else.
DIGEST = "eafe7c141ac9cb48b071695c74e49d57e9eb60d948f567ed352b0cd190ac09e0"
# What PS3.3 wants in each object beside UIDs: Type 1, that has a value, and Type 2, that may be empty.
NEEDED = "Modality InstanceNumber StudyInstanceUID SeriesInstanceUID SOPClassUID SOPInstanceUID"
PRESENT = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID"
    " AccessionNumber SeriesNumber Manufacturer"
)
PIXELS = "SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation"
PLANE = f"{PIXELS} PixelSpacing ImageOrientationPatient ImagePositionPatient FrameOfReferenceUID ImageType PixelData"
MODULES = {
    "mr": (f"{PLANE} ScanningSequence SequenceVariant", "ScanOptions MRAcquisitionType EchoTime EchoTrainLength"),
    "fmri": (f"{PLANE} ScanningSequence SequenceVariant RepetitionTime", "ScanOptions MRAcquisitionType EchoTime"),
    "ct": (f"{PLANE} RescaleIntercept RescaleSlope", "KVP AcquisitionNumber SliceThickness PositionReferenceIndicator"),
    "us": (f"{PIXELS} PlanarConfiguration NumberOfFrames FrameTime FrameIncrementPointer ImageType", ""),
    "sr": (
        "ValueType ConceptNameCodeSequence ContinuityOfContent CompletionFlag VerificationFlag ContentDate ContentTime",
        "ReferencedPerformedProcedureStepSequence PerformedProcedureCodeSequence",
    ),
}


def never() -> bool:
    return False


def made(out: Path, kinds: Sequence[str] = KINDS, **options: Any) -> list[Record]:
    return list(make(out, kinds=kinds, stop=never, **{"patients": 1, "date": DAY, **options}))


def contents(records: list[Record]) -> list[bytes]:
    return [Path(record["path"]).read_bytes() for record in records]


def read(record: Record) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return dcmread(record["path"])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """The records of one patient's study."""
    return made(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def everybody(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """The reports of so many patients that each person and each physician comes up, and one comes twice."""
    return made(tmp_path_factory.mktemp("everybody"), ["sr"], patients=9)


def of(records: list[Record], kind: str) -> list[Record]:
    number = KINDS.index(kind) + 1
    return [record for record in records if record["SeriesNumber"] == number]


def test_same_options_give_the_same_bytes_on_every_machine(one: list[Record]) -> None:
    digest = hashlib.sha256(b"".join(contents(one))).hexdigest()

    assert digest == DIGEST


def test_other_seed_or_day_shares_no_instance(tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [{}, {"seed": 1}, {"date": DAY + dt.timedelta(1)}, {"seed": 10**17}]

    uids = [made(tmp_path, ["sr"], studies=2, **each)[at]["SOPInstanceUID"] for each in options for at in (0, 1)]

    assert len(set(uids)) == 8
    assert all(len(uid) <= 64 for uid in uids)


def test_patient_is_the_same_on_another_day(tmp_path: Path) -> None:
    (first,), (second,) = made(tmp_path, ["sr"]), made(tmp_path, ["sr"], date=DAY + dt.timedelta(400))

    assert (first["PatientID"], first["PatientName"]) == (second["PatientID"], second["PatientName"])
    assert (first["PatientAge"], second["PatientAge"]) == ("065Y", "066Y")


def test_fewer_patients_studies_and_kinds_are_a_part_of_more(tmp_path: Path) -> None:
    few = made(tmp_path / "few", ["us"], patients=2)
    many = made(tmp_path / "many", ["us", "sr"], patients=3, studies=2)

    assert set(contents(few)) < set(contents(many))


def test_record_is_what_the_header_scan_reads(one: list[Record], everybody: list[Record]) -> None:
    for record in one + everybody:
        assert record == {**read_header(record["path"]), "state": "made"}


def test_files_lie_under_their_uids_and_are_private(one: list[Record]) -> None:
    for record in one:
        path = Path(record["path"])
        uids = [record[key] for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]

        assert list(path.parts[-3:]) == [*uids[:2], f"{uids[2]}.dcm"]
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_second_run_writes_nothing_and_says_present(tmp_path: Path) -> None:
    first = made(tmp_path)

    second = made(tmp_path)

    assert {record["state"] for record in second} == {"present"}
    assert [{**record, "state": "made"} for record in second] == first  # size and mtime_ns are among its keys


def test_dry_run_tells_what_would_be_made_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"

    planned = made(out, dry_run=True)

    assert not out.exists()
    assert {record["state"] for record in planned} == {"planned"}
    assert [record["path"] for record in planned] == [record["path"] for record in made(out)]


def test_what_is_there_already_stays_and_becomes_an_error(tmp_path: Path) -> None:
    (report,) = made(tmp_path, ["sr"])
    Path(report["path"]).write_bytes(b"mine")

    records = made(tmp_path, ["us", "sr"])

    assert [record.get("state") for record in records] == ["made", "failed"]
    assert (records[1]["type"], records[1]["cause"], records[1]["exit_code"]) == ("error", "conflict", 73)
    assert Path(report["path"]).read_bytes() == b"mine"


def test_folder_that_cannot_be_made_ends_with_73(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(CannotCreate):
        made(tmp_path / "file" / "out")


def test_it_stops_between_files(tmp_path: Path) -> None:
    asked = itertools.count()

    records = list(make(tmp_path, date=DAY, stop=lambda: next(asked) >= 5))

    assert len(records) == 5
    assert len(list(tmp_path.rglob("*"))) == 5 + 2  # a study's and a series' folder, no temporary


@pytest.mark.parametrize(
    "options",
    [
        {"patients": 0},
        {"patients": 1000},
        {"studies": 0},
        {"studies": 100},
        {"seed": -1},
        {"seed": 10**18},
        {"kinds": ["pet"]},
    ],
)
def test_number_or_kind_without_room_is_a_usage_error(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        made(tmp_path, **options)


def test_importing_it_loads_neither_numpy_nor_pydicom() -> None:
    code = "import sys, dcmtools.images.phantom; print(sorted({'numpy', 'pydicom'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "[]\n"


def test_demo_is_small(one: list[Record]) -> None:
    assert sum(record["size"] for record in one) < 40e6 / 3


# Names


def test_names_of_all_scripts_read_back(everybody: list[Record]) -> None:
    names = [str(read(record).PatientName) for record in everybody]

    assert names[:-1] == [person.name for person in PEOPLE]
    assert names[-1] == "Müller^Jürgen^2"
    assert [record["PatientName"] for record in everybody] == names


def test_three_patients_have_an_umlaut_japanese_and_an_apostrophe() -> None:
    names = "".join(person.name for person in PEOPLE[:3])

    assert all(character in names for character in "ü山や'")


def test_physicians_are_spelt_in_many_ways_empty_and_absent(everybody: list[Record]) -> None:
    found = [read(record).get("ReferringPhysicianName") for record in everybody]

    assert [name if name is None else str(name) for name in found] == list(PHYSICIANS)
    assert everybody[2]["ReferringPhysicianName"] is None
    assert "ReferringPhysicianName" not in everybody[8]


@given(st.integers(0, 998), st.integers(0, 98), st.integers(0, 10**18 - 1), st.dates(dt.date(1900, 1, 1)))
def test_identifiers_fit_their_value_representations(patient: int, number: int, seed: int, day: dt.date) -> None:
    study = Study(seed, day, patient, number)

    assert len(study.accession) <= 16
    assert len(study.patient_id) <= 64
    assert len(study.age) == 4
    assert study.start < 20 * 3600


# Validity


def test_mandatory_attributes_are_there(one: list[Record]) -> None:
    for kind, (with_value, maybe_empty) in MODULES.items():
        data_set = read(of(one, kind)[0])

        for keyword in f"{NEEDED} {with_value}".split():
            assert data_set[keyword].value not in (None, "", []), (kind, keyword)
        for keyword in f"{PRESENT} {maybe_empty}".split():
            assert keyword in data_set, (kind, keyword)


def test_dcmtk_and_gdcm_read_all(one: list[Record], everybody: list[Record], tool: RunTool) -> None:
    paths = [of(one, kind)[0]["path"] for kind in KINDS] + [record["path"] for record in everybody]

    dump = tool("dcmdump", "--quiet", *paths)
    info = [tool("gdcminfo", path) for path in paths]

    assert (dump.returncode, dump.stderr) == (0, "")
    assert [answer.returncode for answer in info] == [0] * len(paths)


def test_dcmtk_reads_the_report(one: list[Record], tool: RunTool) -> None:
    answer = tool("dsrdump", "+Pl", of(one, "sr")[0]["path"])

    assert (answer.returncode, answer.stderr) == (0, "")
    assert "A marker lies on the left side" in answer.stdout


def test_ultrasound_is_a_clip_in_colour(one: list[Record]) -> None:
    clip = read(*of(one, "us")).pixel_array

    assert clip.shape == (12, 120, 160, 3)
    assert not np.array_equal(clip[0], clip[6])
    assert np.any(clip[0, :, :, 0] != clip[0, :, :, 1])


# Geometry


@pytest.fixture(scope="module")
def converted(one: list[Record], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What dcm2niix makes of each volume, one file a series; nibabel read it."""
    images = {}
    for kind in GEOMETRIES:
        out = tmp_path_factory.mktemp(kind)
        source = Path(of(one, kind)[0]["path"]).parent
        command: list[str | Path] = [DCM2NIIX, "-g", "i", "-z", "n", "-f", "volume", "-o", out, source]
        subprocess.run(command, check=True, capture_output=True)
        assert [path.name for path in out.glob("*.nii")] == ["volume.nii"]
        images[kind] = nibabel.load(out / "volume.nii")
    return images


def corners(affine: Any, shape: Sequence[int]) -> set[tuple[float, ...]]:
    ends = itertools.product(*((0, count - 1) for count in shape[:3]))
    return {tuple(np.asarray(affine)[:3] @ (*end, 1)) for end in ends}


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_volume_lies_where_it_was_asked_to(converted: dict[str, Any], kind: str) -> None:
    image, wanted = converted[kind], GEOMETRIES[kind]
    shape = (wanted.columns, wanted.rows, wanted.slices)

    assert image.shape[:3] == shape
    for corner in corners(wanted.affine(), shape):
        assert min(np.abs(np.subtract(corner, other)).max() for other in corners(image.affine, shape)) <= 0.01


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_each_voxel_lies_where_its_pixel_was(one: list[Record], converted: dict[str, Any], kind: str) -> None:
    image, where = converted[kind], GEOMETRIES[kind]
    stored = np.stack([read(record).pixel_array for record in of(one, kind)[: where.slices]]).astype(int)
    intercept = -1024 if kind == "ct" else 0

    to_voxel = np.linalg.inv(image.affine) @ np.vstack([where.affine(), (0, 0, 0, 1)])
    index = np.stack(np.meshgrid(*map(np.arange, where.shape), indexing="ij"), axis=-1)[..., ::-1]  # column, row, slice
    at = np.rint(index @ to_voxel[:3, :3].T + to_voxel[:3, 3]).astype(int)

    volume = np.asanyarray(image.dataobj)
    first = volume[..., 0] if volume.ndim == 4 else volume
    assert np.array_equal(first[at[..., 0], at[..., 1], at[..., 2]], stored + intercept)


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_marker_is_on_the_left(converted: dict[str, Any], kind: str) -> None:
    image = converted[kind]
    volume = np.asanyarray(image.dataobj).reshape(*image.shape[:3], -1)[..., 0]

    brightest = np.argwhere(volume > 0.96 * volume.max())
    outermost = brightest[np.abs(brightest @ image.affine[0, :3] + image.affine[0, 3]).argmax()]

    assert image.affine[0] @ (*outermost, 1) < -60


def test_time_series_is_one_volume_of_four_dimensions(converted: dict[str, Any]) -> None:
    image = converted["fmri"]

    assert image.shape[3] == VOLUMES
    assert image.header.get_zooms()[3] == pytest.approx(REPETITION_TIME)


def test_brain_answers_in_the_second_half(converted: dict[str, Any]) -> None:
    data = np.asanyarray(converted["fmri"].dataobj).astype(float)

    answer = data[..., 5:].mean(axis=3) - data[..., :5].mean(axis=3)
    place = converted["fmri"].affine @ (*np.unravel_index(answer.argmax(), answer.shape), 1)

    assert answer.max() > 30
    assert place[0] > 10  # to the right
    assert place[1] < -20  # at the back


def test_ct_is_in_hounsfield_units(converted: dict[str, Any]) -> None:
    data = np.asanyarray(converted["ct"].dataobj)

    assert -1024 <= data.min() < -950
    assert np.mean((data > -880) & (data < -820)) > 0.05  # lung
    assert np.mean((data > 550) & (data < 730)) > 0.01  # bone


@given(
    st.tuples(*[st.integers(-30, 30)] * 4).filter(any),
    st.tuples(*[st.floats(0.1, 20)] * 3),
    st.tuples(*[st.floats(-300, 300)] * 3),
)
def test_any_geometry_is_right_angled_and_centred(
    turn: tuple[int, int, int, int], between: tuple[float, float, float], centre: tuple[float, float, float]
) -> None:
    where = geometry((5, 6, 7), between, turn, centre)

    axes = np.array([where.row, where.column, where.normal])

    assert np.allclose(axes @ axes.T, np.eye(3))
    assert np.linalg.det(axes) == pytest.approx(1)
    assert np.allclose(where.position(2, 2.5, 3), centre, atol=1e-3)
    x, y, z = where.grid(3)
    assert np.allclose((x[4, 1], y[4, 1], z[4, 1]), where.position(4, 1, 3))
