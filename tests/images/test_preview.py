"""Pictures: of the right slice, in the right shades and proportions, the right way round, whatever lies beside them."""

import contextlib
import datetime as dt
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from dcmtools.disk.header import read_header
from dcmtools.disk.tree import files_below
from dcmtools.images import preview_child
from dcmtools.images.phantom import KINDS, make
from dcmtools.images.preview import preview
from dcmtools.images.preview_choice import middle
from dcmtools.model.errors import BadData, CannotCreate, UsageError
from dcmtools.model.names import is_uid
from dcmtools.model.record import Record, event
from tests.peers.processes import RunTool
from tests.waiting import wait_until

Change = Callable[[Dataset], None]


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """The records of a phantom's study."""
    out = tmp_path_factory.mktemp("study")
    return list(make(out, patients=1, date=dt.date(2024, 1, 15), stop=never))


def of(study: list[Record], kind: str) -> list[Record]:
    return [record for record in study if record["SeriesNumber"] == KINDS.index(kind) + 1]


def drawn(records: Iterable[Record], out: Path, **options: Any) -> list[Record]:
    return list(preview(records, out, stop=never, **options))


def pixels(record: Record) -> NDArray[Any]:
    assert record["state"] == "drawn", record
    with Image.open(record["path"]) as image:
        return np.asarray(image).astype(int)


def inner(picture: NDArray[Any]) -> NDArray[Any]:
    """The picture without the margins in which letters stand."""
    margin = picture.shape[1] // 5
    return picture[:, margin:-margin]


def written(data_set: Dataset, path: Path) -> Record:
    path.parent.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data_set.save_as(path)
    return read_header(path)


@pytest.fixture
def changed(study: list[Record], tmp_path: Path) -> Callable[..., Record]:
    """A function that writes the middle CT slice with some attributes changed, and returns its record."""
    number = itertools.count()

    def change(**attributes: Any) -> Record:
        data_set = dcmread(of(study, "ct")[40]["path"])
        for keyword, value in attributes.items():
            if value is None:
                delattr(data_set, keyword)
            else:
                tag = tag_for_keyword(keyword) or 0
                data_set.add_new(tag, dictionary_VR(tag).replace("US or SS", "US").replace("OB or OW", "OW"), value)
        data_set.SeriesInstanceUID = f"1.2.3.{next(number)}"
        return written(data_set, tmp_path / "changed" / f"{data_set.SeriesInstanceUID}.dcm")

    return change


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., NDArray[Any]]:
    """A function that draws one record and returns the pixels."""

    def draw(record: Record, **options: Any) -> NDArray[Any]:
        (drawn_of,) = drawn([record], tmp_path / "pictures", **options)
        return pixels(drawn_of)

    return draw


def encapsulated(data_set: Dataset, path: Path) -> Record:
    data_set.compress(RLELossless, generate_instance_uid=False)
    return written(data_set, path)


# What is drawn


def test_each_series_has_one_picture_and_the_report_none(study: list[Record], tmp_path: Path) -> None:
    records = drawn(study, tmp_path)

    assert Counter(record["state"] for record in records) == {"drawn": 4, "skipped": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(Path(r["path"]).name for r in records[:4])
    assert (records[4]["reason"], records[4]["Modality"]) == ("it is no image", "SR")


def test_record_names_picture_source_and_series(study: list[Record], tmp_path: Path) -> None:
    (record,) = drawn(of(study, "mr"), tmp_path)

    source = next(one for one in study if one["SOPInstanceUID"] == record["SOPInstanceUID"])
    assert record["type"] == "file"
    assert (record["source"], record["instances"]) == (source["path"], 24)
    assert Path(record["path"]).stat().st_size == record["size"]
    for key in (
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "PatientID",
        "ReferringPhysicianName",
        "StudyDate",
        "Modality",
    ):
        assert record[key] == source[key]


def test_picture_is_private_and_its_name_tells_no_patient(study: list[Record], tmp_path: Path) -> None:
    (record,) = drawn(of(study, "mr"), tmp_path / "new" / "folder")

    path = Path(record["path"])
    assert path.name == f"{record['SeriesInstanceUID']}.png"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize("kind", ["mr", "ct"])
def test_slice_in_the_middle_is_shown_in_whatever_order_they_come(
    study: list[Record], tmp_path: Path, kind: str
) -> None:
    records = of(study, kind)
    shuffled = random.Random(1).sample(records, len(records))

    (record,) = drawn(shuffled, tmp_path)

    assert record["SOPInstanceUID"] == records[len(records) // 2]["SOPInstanceUID"]


def test_time_series_shows_its_first_volume(study: list[Record], tmp_path: Path) -> None:
    records = of(study, "fmri")

    (record,) = drawn(reversed(records), tmp_path)

    assert record["SOPInstanceUID"] == records[6]["SOPInstanceUID"]


def test_clip_shows_its_frame_in_the_middle_in_colour(study: list[Record], tmp_path: Path) -> None:
    (source,) = of(study, "us")

    (record,) = drawn([source], tmp_path, size=160)

    assert Path(record["path"]).name == f"{source['SOPInstanceUID']}.png"
    assert record["frame"] == 7
    assert np.array_equal(pixels(record), dcmread(source["path"]).pixel_array[6])


@given(st.permutations(range(7)), st.tuples(*[st.floats(-100, 100)] * 3))
def test_middle_is_that_along_the_normal(order: list[int], start: tuple[float, float, float]) -> None:
    records = [
        {
            "SOPInstanceUID": str(order.index(place)),
            "InstanceNumber": order.index(place),
            "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],  # sagittal: the normal is -x
            "ImagePositionPatient": [start[0] + 2.5 * place, start[1], start[2]],
        }
        for place in order
    ]

    assert middle(records)["ImagePositionPatient"][0] == pytest.approx(start[0] + 7.5)


def test_middle_of_several_orientations_is_that_of_the_largest_stack() -> None:
    axial, sagittal = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]
    records = [
        {
            "SOPInstanceUID": f"{place}{len(stack)}",
            "ImageOrientationPatient": stack,
            "ImagePositionPatient": [place, 0, place],
        }
        for place, stack in [(0, axial), (1, axial), (0, [*sagittal]), (1, sagittal), (2, sagittal)]
    ]

    assert middle(records) == records[3]


def test_middle_of_images_that_lie_nowhere_goes_by_their_numbers() -> None:
    records: list[Record] = [{"InstanceNumber": number, "ImagePositionPatient": None} for number in (9, 10, 2)]

    assert middle(records)["InstanceNumber"] == 9


# The second time


def test_second_run_draws_nothing_and_says_present(study: list[Record], tmp_path: Path) -> None:
    first = drawn(study, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    second = drawn(study, tmp_path)

    assert [record["state"] for record in second] == ["present"] * 4 + ["skipped"]
    assert [{**record, "state": "drawn"} for record in second[:4]] == first[:4]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_it_is_drawn_again_when_anything_changes(study: list[Record], tmp_path: Path) -> None:
    records = of(study, "mr")
    copy = Path(shutil.copytree(Path(records[0]["path"]).parent, tmp_path / "copy"))
    records = [{**record, "path": str(copy / Path(record["path"]).name)} for record in records]
    out = tmp_path / "out"
    (record,) = drawn(records, out)

    changes: list[Callable[[], None]] = [
        lambda: os.utime(record["source"], ns=(1, 1)),
        lambda: Path(record["path"]).unlink(),
    ]
    for change in changes:
        assert drawn(records, out)[0]["state"] == "present"
        change()
        assert drawn(records, out)[0]["state"] == "drawn"
    assert drawn(records, out, size=100)[0]["state"] == "drawn"
    assert drawn(records[:-1], out, size=100)[0]["state"] == "drawn"  # a slice less


def test_dry_run_draws_nothing(study: list[Record], tmp_path: Path) -> None:
    out = tmp_path / "out"

    records = drawn(study, out, dry_run=True)

    assert [record["state"] for record in records] == ["planned"] * 4 + ["skipped"]
    assert not out.exists()


# Shades


def test_window_of_the_file_gives_what_dcmtk_shows(
    changed: Callable[..., Record], picture: Any, tool: RunTool, tmp_path: Path
) -> None:
    for attributes in (
        {},
        {"WindowCenter": 600, "WindowWidth": 1},
        {"WindowCenter": [-500, 40], "WindowWidth": [1500, 400]},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"RescaleSlope": 2, "RescaleIntercept": -2000},
    ):
        record = changed(**attributes)
        answer = tool("dcm2pnm", "+Wi", "1", "--write-8-bit-pnm", record["path"], "theirs.pnm")
        assert answer.returncode == 0, answer.stderr
        with Image.open(tmp_path / "theirs.pnm") as image:
            theirs = np.asarray(image).astype(int)

        ours = picture(record, size=64)

        assert np.abs(inner(ours) - inner(theirs)).max() <= 1, attributes


def test_monochrome1_is_the_other_way_round(changed: Callable[..., Record], picture: Any) -> None:
    usual, other = (picture(changed(PhotometricInterpretation=f"MONOCHROME{kind}"), size=64) for kind in (2, 1))

    assert np.array_equal(inner(usual), 255 - inner(other))


def test_without_a_window_the_percentiles_decide_and_padding_does_not_count(
    changed: Callable[..., Record], picture: Any
) -> None:
    stored = np.full((64, 64), 4000, "<u2")
    stored[20:44, 10:54] = 1000 + np.arange(44)
    attributes = {"WindowCenter": None, "WindowWidth": None, "PixelData": stored.tobytes()}

    plain, padded = (picture(changed(**attributes, **more), size=64) for more in ({}, {"PixelPaddingValue": 4000}))

    assert np.ptp(plain[30, 20:40]) <= 4  # all of it is dark beside the padding
    assert np.ptp(padded[30, 20:40]) > 100


@pytest.mark.parametrize("window", [(40, 0), (40, -400), (100000, 10)])
def test_window_in_which_nothing_shows_is_not_used(
    changed: Callable[..., Record], picture: Any, window: tuple[int, int]
) -> None:
    seen = picture(changed(WindowCenter=window[0], WindowWidth=window[1]))

    assert np.ptp(inner(seen)) == 255


def test_voi_lut_is_used(changed: Callable[..., Record], picture: Any) -> None:
    item = Dataset()
    item.add_new(0x00283002, "US", [4096, 0, 16])  # LUTDescriptor
    item.add_new(0x00283006, "OW", np.linspace(65535, 0, 4096).astype("<u2").tobytes())  # LUTData: the other way round
    shared = {"RescaleIntercept": 0, "WindowCenter": 2048, "WindowWidth": 4096}

    plain, by_table = (picture(changed(**shared, **more)) for more in ({}, {"VOILUTSequence": [item]}))

    assert np.corrcoef(inner(plain).ravel(), inner(by_table).ravel())[0, 1] < -0.99


def test_palette_gives_colours(changed: Callable[..., Record], picture: Any) -> None:
    stored = np.repeat(np.arange(64, dtype=np.uint8)[:, None], 64, axis=1)
    palette: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR", "PixelData": stored.tobytes()}
    palette |= {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "ImageOrientationPatient": None}
    for at, colour in enumerate(("Red", "Green", "Blue")):
        table = np.zeros(64, "<u2")
        table[at * 20 : at * 20 + 20] = 0xFFFF
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [64, 0, 16]
        palette[f"{colour}PaletteColorLookupTableData"] = table.tobytes()

    seen = picture(changed(**palette), size=64)

    assert [seen[row, 32].tolist() for row in (10, 30, 50, 62)] == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]


# Shape


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ({"PixelSpacing": [3, 1.5]}, (128, 256)),
        ({"PixelSpacing": [1, 4]}, (256, 64)),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [2, 1]}, (128, 256)),
        ({"PixelSpacing": None, "PixelAspectRatio": [1, 2]}, (256, 128)),
        ({"PixelSpacing": [0, 1]}, (256, 256)),
        ({"PixelSpacing": [1e9, 1]}, (256, 256)),
        ({"PixelSpacing": None}, (256, 256)),
    ],
)
def test_pixels_that_are_not_square_are_made_so(
    changed: Callable[..., Record], picture: Any, attributes: dict[str, Any], size: tuple[int, int]
) -> None:
    seen = picture(changed(**attributes))

    assert seen.shape[::-1] == size


@pytest.mark.parametrize(("size", "longer"), [(None, 256), (64, 64), (2000, 2000)])
def test_longer_side_is_as_asked_for(study: list[Record], picture: Any, size: int | None, longer: int) -> None:
    seen = picture(of(study, "us")[0], size=size)

    assert seen.shape == (longer * 3 // 4, longer, 3)


@pytest.mark.parametrize("size", [-1, 0, 15, 10**6])
def test_size_that_no_picture_has_is_a_usage_error(tmp_path: Path, size: int) -> None:
    with pytest.raises(UsageError):
        drawn([], tmp_path, size=size)


@pytest.mark.parametrize(
    "orientation", [[1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [0, 0, 1, 0, 1, 0], None]
)
def test_letters_stand_beside_images_that_lie_somewhere(
    changed: Callable[..., Record], picture: Any, orientation: list[int] | None
) -> None:
    empty = {"PixelData": bytes(2 * 64 * 64), "PixelRepresentation": 0}

    seen = picture(changed(ImageOrientationPatient=orientation, **empty)) > 200

    assert bool(seen[:, :40].any()) == bool(seen[:, -40:].any()) == (orientation is not None)
    assert not seen[:, 60:-60].any()


# What is compressed or broken


def test_compressed_image_looks_as_it_did_before(study: list[Record], tmp_path: Path) -> None:
    source = of(study, "us")[0]
    record = encapsulated(dcmread(source["path"]), tmp_path / "rle" / "x.dcm")

    before, after = (pixels(*drawn([one], tmp_path / out)) for one, out in ((source, "a"), (record, "b")))

    assert record["TransferSyntaxUID"] == RLELossless
    assert np.array_equal(before, after)


def test_broken_file_becomes_an_error_and_the_others_are_drawn(study: list[Record], tmp_path: Path) -> None:
    broken = dcmread(of(study, "us")[0]["path"])
    broken.SeriesInstanceUID = "1.2.3"
    record = encapsulated(broken, tmp_path / "rle" / "x.dcm")
    data = Path(record["path"]).read_bytes()
    Path(record["path"]).write_bytes(data[:3000] + bytes(len(data) - 3000))

    records = drawn(
        [record, {**of(study, "ct")[40], "path": str(tmp_path / "gone")}, *of(study, "mr")], tmp_path / "out"
    )

    states = [(one["type"], one["state"], one.get("exit_code")) for one in records]
    assert states == [("error", "failed", 65), ("error", "failed", 66), ("file", "drawn", None)]
    assert records[0]["SOPInstanceUID"] == record["SOPInstanceUID"]


def test_lie_about_the_size_takes_no_more_than_the_limit(study: list[Record], tmp_path: Path) -> None:
    data_set = dcmread(of(study, "us")[0]["path"])
    data_set.compress(RLELossless, generate_instance_uid=False)
    data_set.Rows = data_set.Columns = 65535
    record = written(data_set, tmp_path / "huge" / "x.dcm")

    (told,) = drawn([record], tmp_path / "out")

    assert (told["type"], told["state"]) == ("error", "failed")


def test_native_file_that_is_shorter_than_it_says_is_an_error(changed: Callable[..., Record], tmp_path: Path) -> None:
    record = changed(PixelData=b"\0\0")

    (told,) = drawn([record], tmp_path / "out")

    assert (told["cause"], told["exit_code"]) == ("undecodable", 65)


@pytest.fixture
def child_at_a_pipe(tmp_path: Path) -> Iterator[tuple[list[BaseException], Callable[[], int]]]:
    """A picture whose child waits for ever to open its file: what became of it, and the child's process id."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    ends: list[BaseException] = []

    def draw() -> None:
        try:
            preview_child.draw_apart(pipe, 0, RLELossless, None, "")
        except BadData as problem:
            ends.append(problem)

    thread = threading.Thread(target=draw)
    thread.start()
    yield ends, lambda: next(iter(children_with(os.fspath(pipe))), 0)
    thread.join(20)
    assert not thread.is_alive()


def children_with(argument: str) -> Iterator[int]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if argument.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                yield int(process.name)


def test_decoder_that_crashes_is_an_error_of_its_picture_only(child_at_a_pipe: Any) -> None:
    ends, child = child_at_a_pipe
    wait_until(child, what="a child")

    os.kill(child(), signal.SIGSEGV)

    wait_until(lambda: ends, what="an error")
    assert (ends[0].cause, "SIGSEGV" in ends[0].reason) == ("decoder-crashed", True)


def test_child_has_limits(child_at_a_pipe: Any) -> None:
    _, child = child_at_a_pipe
    wait_until(lambda: child() and "4294967296" in limits(child()), what="a limit")

    told = limits(child())
    os.kill(child(), signal.SIGSEGV)

    assert [line.split()[-3] for line in told.splitlines() if line.startswith(("Max address", "Max cpu"))] == [
        "60",
        "4294967296",
    ]


def limits(process: int) -> str:
    return Path(f"/proc/{process}/limits").read_text()


# Streams


def test_series_is_drawn_as_soon_as_it_is_complete(study: list[Record], tmp_path: Path) -> None:
    mr, ct = of(study, "mr"), of(study, "ct")
    complete = event("series-complete", **{key: mr[0][key] for key in ("StudyInstanceUID", "SeriesInstanceUID")})
    taken: list[Record] = []

    def stream() -> Iterator[Record]:
        for record in (*ct[:3], *mr, complete, *ct[3:]):
            taken.append(record)
            yield record

    records = preview(stream(), tmp_path, stop=never)

    assert next(records)["SeriesInstanceUID"] == mr[0]["SeriesInstanceUID"]
    assert taken[-1] == complete
    assert next(records) == complete
    assert [record["SeriesInstanceUID"] for record in records] == [ct[0]["SeriesInstanceUID"]]


def test_study_complete_draws_all_of_the_study(study: list[Record], tmp_path: Path) -> None:
    complete = event("study-complete", StudyInstanceUID=study[0]["StudyInstanceUID"])

    records = drawn([*of(study, "mr"), *of(study, "us"), complete], tmp_path)

    assert [record.get("state") for record in records] == ["drawn", "drawn", None]


def test_other_records_pass_through(tmp_path: Path) -> None:
    others: list[Record] = [
        {"type": "error", "cause": "x", "exit_code": 65},
        {"type": "event", "event": "incomplete", "SeriesInstanceUID": "1.2"},
        {"type": "volume", "state": "failed", "path": "gone.nii.gz"},
        {"type": "instance", "state": "planned", "path": "not/yet.dcm"},
        {"type": "file", "state": "linked", "path": "other.json"},
        {"type": "of tomorrow", "key": 1},
    ]

    assert drawn(others, tmp_path) == others


def test_it_stops_between_pictures(study: list[Record], tmp_path: Path) -> None:
    records = preview(study, tmp_path, stop=lambda: any(tmp_path.iterdir()))

    assert [record["state"] for record in records] == ["drawn"]


def test_record_without_its_keys_is_read_again(study: list[Record], tmp_path: Path) -> None:
    bare: Record = {"path": of(study, "us")[0]["path"]}

    (record,) = drawn([bare], tmp_path)

    assert (record["state"], record["SeriesInstanceUID"]) == ("drawn", of(study, "us")[0]["SeriesInstanceUID"])


def test_instance_without_a_path_is_an_error(tmp_path: Path) -> None:
    (record,) = drawn([{"SOPInstanceUID": "1.2", "Rows": 1}], tmp_path)

    assert (record["type"], record["exit_code"], record["SOPInstanceUID"]) == ("error", 66, "1.2")


def test_uid_that_is_a_path_stays_in_the_folder(study: list[Record], tmp_path: Path) -> None:
    records = [{**record, "SeriesInstanceUID": "../../escaped/" + 300 * "x"} for record in of(study, "ct")[:1]]

    (record,) = drawn(records, tmp_path / "a" / "b")

    assert Path(record["path"]).parent == tmp_path / "a" / "b"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_folder_that_cannot_be_made_ends_with_73(study: list[Record], tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(CannotCreate):
        drawn(of(study, "us"), tmp_path / "file" / "out")


def test_picture_that_we_did_not_draw_stays(study: list[Record], tmp_path: Path) -> None:
    (first,) = drawn(of(study, "us"), tmp_path)
    Path(first["path"]).unlink()
    Image.new("L", (5, 5)).save(first["path"])  # somebody's own
    before = Path(first["path"]).read_bytes()

    (record,) = drawn(of(study, "us"), tmp_path)

    assert (record["type"], record["state"]) == ("error", "failed")
    assert (record["cause"], record["exit_code"]) == ("conflict", 73)
    assert (record["path"], record["source"]) == (first["path"], first["source"])
    assert Path(first["path"]).read_bytes() == before


@pytest.mark.parametrize("state", ["linked", "copied", "moved", "updated", "present"])
def test_placed_instance_is_drawn_as_the_instance_that_it_is(study: list[Record], tmp_path: Path, state: str) -> None:
    (us,) = of(study, "us")
    placed = {"type": "file", "state": state, "path": us["path"], "SOPInstanceUID": us["SOPInstanceUID"]}

    (record,) = drawn([placed], tmp_path)

    assert (record["state"], record["SeriesInstanceUID"]) == ("drawn", us["SeriesInstanceUID"])


def test_picture_is_not_drawn_of_a_picture(study: list[Record], tmp_path: Path) -> None:
    pictures = drawn(of(study, "us"), tmp_path)

    assert drawn([{**pictures[0], "state": "present"}], tmp_path) == [{**pictures[0], "state": "present"}]


def test_reason_of_a_volume_that_is_gone_does_not_name_its_path(tmp_path: Path) -> None:
    gone = {"type": "volume", "path": str(tmp_path / "DOE_John.nii.gz"), "SeriesInstanceUID": "1.2"}

    (record,) = drawn([gone], tmp_path / "out")

    assert (record["path"], record["exit_code"]) == (gone["path"], 66)
    assert "DOE" not in record["reason"]


def test_importing_it_loads_no_heavy_library() -> None:
    code = (
        "import sys, dcmtools.images.preview; print(sorted({'numpy', 'PIL', 'nibabel', 'pydicom'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "[]\n"


# NIfTI


def records_for(*folders: Path) -> Iterator[Record]:
    """The records of the files below: volumes of NIfTI files, instances of DICOM files, or why not."""
    for found in files_below(folders):
        assert isinstance(found, Path)
        if found.name.endswith((".nii", ".nii.gz")):
            yield {"type": "volume", "path": str(found)}
            continue
        try:
            yield read_header(found)
        except BadData as problem:
            yield problem.record()


def volume(path: Path, codes: str = "RAS", data: Any = None, steps: tuple[float, ...] = (2, 2, 2)) -> Path:
    """A volume with bright marks at the left, in front and above, whose axes point as `codes` say."""
    from nibabel import orientations

    if data is None:
        data = np.zeros((40, 50, 30), np.int16)
        data[4:36, 5:45, 3:27] = 50 + np.arange(32)[:, None, None]
        data[4:8, 10:40, 5:25] = data[10:30, 40:45, 5:25] = data[10:30, 10:40, 24:27] = 100
    affine = np.diag([*steps[:3], 1.0])
    affine[:3, 3] = -np.array(data.shape[:3]) * steps[:3] / 2
    turn: Any = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes))  # type: ignore[no-untyped-call]
    turned = orientations.apply_orientation(data, turn)  # type: ignore[no-untyped-call]
    affine = affine @ orientations.inv_ornt_aff(turn, data.shape[:3])  # type: ignore[no-untyped-call]
    nibabel.save(nibabel.Nifti1Image(turned, affine), path)  # type: ignore[no-untyped-call]
    return path


def planes(path: Path, out: Path, **options: Any) -> NDArray[Any]:
    (record,) = drawn([{"type": "volume", "state": "converted", "path": str(path)}], out, **options)
    return pixels(record)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "LAS", "PSR", "SAL", "IRP"])
def test_planes_look_the_same_however_the_axes_lie(tmp_path: Path, codes: str) -> None:
    expected = planes(volume(tmp_path / "ras.nii"), tmp_path / "out")

    seen = planes(volume(tmp_path / f"{codes}.nii.gz", codes), tmp_path / "out")

    assert np.array_equal(seen, expected)


def test_planes_are_sagittal_coronal_and_axial_with_the_left_at_the_left(tmp_path: Path) -> None:
    seen = planes(volume(tmp_path / "x.nii"), tmp_path / "out", size=50 + 40 + 40 + 8)

    sagittal, coronal, axial = seen[:, :50], seen[:, 54:94], seen[:, 98:138]
    assert sagittal[31, 40:45].min() > 240  # in front, at the right of the picture
    assert sagittal[13:16, 25].min() > 240  # above
    assert coronal[31, 4:8].min() > 240  # left
    assert coronal[13:16, 20].min() > 240  # above
    assert axial[37, 4:8].min() > 240  # left
    assert axial[5:10, 20].min() > 240  # in front, above in the picture
    assert axial[37, 10] < axial[37, 20] < axial[37, 30] < 240


def test_planes_have_the_right_proportions(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(20, 20, 10)).astype(np.float32)

    seen = planes(volume(tmp_path / "x.nii", data=data, steps=(1, 2, 6)), tmp_path / "out", size=400 + 8)

    assert seen.shape == (60 * 5, 408)  # 40, 20 and 20 mm beside each other, 60 mm high


def test_first_of_many_volumes_is_shown(tmp_path: Path) -> None:
    first = np.random.default_rng(0).integers(0, 100, (20, 20, 10)).astype(np.int16)
    many = np.stack([first, first[::-1] * 7], axis=-1)

    seen = planes(volume(tmp_path / "4d.nii.gz", data=many), tmp_path / "out")

    assert np.array_equal(seen, planes(volume(tmp_path / "3d.nii.gz", data=first), tmp_path / "out"))


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((5, 6), np.int16),
        np.zeros((5, 6, 1), np.uint8),
        np.full((5, 6, 7), np.nan),
        np.ones((5, 6, 7), np.complex64),
        np.zeros((5, 6, 7), [("R", "u1"), ("G", "u1"), ("B", "u1")]),
        np.zeros((3, 3, 3, 1, 2), np.float64),
    ],
    ids=["2D", "one slice", "no number", "complex", "colour", "5D"],
)
def test_odd_volumes_are_drawn(tmp_path: Path, data: NDArray[Any]) -> None:
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "x.nii")  # type: ignore[no-untyped-call]

    assert planes(tmp_path / "x.nii", tmp_path / "out").size


def test_volume_without_a_place_is_drawn_as_it_lies(tmp_path: Path) -> None:
    image: Any = nibabel.Nifti1Image(np.zeros((5, 6, 7), np.int16), None)  # type: ignore[no-untyped-call]
    image.header.set_sform(np.diag([1, 0, 0, 1]), 1)
    image.to_filename(tmp_path / "x.nii")

    assert planes(tmp_path / "x.nii", tmp_path / "out").size


def test_broken_volume_becomes_an_error_and_the_others_are_drawn(tmp_path: Path) -> None:
    good = volume(tmp_path / "good.nii.gz")
    (tmp_path / "cut.nii.gz").write_bytes(good.read_bytes()[:400])
    (tmp_path / "text.nii").write_text("not a volume")
    (tmp_path / "empty.nii").touch()

    records = drawn(records_for(tmp_path), tmp_path / "out")

    told = {Path(one.get("source") or one["path"]).name: (one["state"], one.get("cause")) for one in records}
    assert told == {
        "cut.nii.gz": ("failed", "unreadable"),
        "empty.nii": ("failed", "unreadable"),
        "good.nii.gz": ("drawn", None),
        "text.nii": ("failed", "unreadable"),
    }


def test_two_volumes_of_one_name_have_two_pictures(tmp_path: Path) -> None:
    for folder in ("sub-1", "sub-2"):
        (tmp_path / folder).mkdir()
        volume(tmp_path / folder / "anat.nii.gz")

    records = drawn(records_for(tmp_path / "sub-1", tmp_path / "sub-2"), tmp_path / "out")

    assert len({record["path"] for record in records}) == 2
    assert all(Path(record["path"]).name.startswith("anat_") for record in records)


def test_volume_is_drawn_again_only_after_a_change(tmp_path: Path) -> None:
    path = volume(tmp_path / "x.nii.gz")
    record: Record = {"type": "volume", "path": str(path)}

    states = [drawn([record], tmp_path / "out")[0]["state"] for _ in range(2)]
    os.utime(path, ns=(1, 1))
    states += [drawn([record], tmp_path / "out")[0]["state"]]

    assert states == ["drawn", "present", "drawn"]


# Real data


def test_vendors_series_are_all_drawn(data: Path, tmp_path: Path) -> None:
    records = drawn(records_for(data / "vendors"), tmp_path)

    assert Counter(record["state"] for record in records) == {"drawn": 48}
    assert all(is_uid(Path(record["path"]).stem) for record in records)


def test_odd_files_are_drawn_or_say_why_not(data: Path, tmp_path: Path) -> None:
    records = drawn(records_for(data / "odd"), tmp_path)

    told = Counter(str(record.get("cause") or record["state"]) for record in records)
    assert told == {"drawn": 25, "bad-uid": 5, "not-dicom": 4, "truncated": 1, "undecodable": 2, "unknown-syntax": 2}
