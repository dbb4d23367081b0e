"""A series on its way to an engine."""

import os
from pathlib import Path

import pytest

from dcmtools.images.series import Series, completed, digest_of, is_image, pixel_bytes
from dcmtools.model.errors import NoInput
from dcmtools.model.record import NOTHING_THERE
from tests.builders import make_record
from tests.images.series_files import write_report, write_slices

CT, SR, SEG, PRIVATE = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.88.11",
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.3.4",
)


@pytest.mark.parametrize(
    ("sop_class", "modality", "rows", "expected"),
    [
        (CT, "CT", 512, True),
        (CT, "SR", 512, True),
        (CT, "CT", 0, False),
        (SR, "SR", None, False),
        (SEG, "SEG", 512, False),
        (PRIVATE, "MR", 512, True),
        (PRIVATE, "PR", 512, False),
        (None, "KO", None, False),
    ],
)
def test_an_image_is_known_by_its_class_its_modality_or_its_rows(
    sop_class: str | None, modality: str, rows: int | None, expected: bool
) -> None:
    assert is_image({"SOPClassUID": sop_class, "Modality": modality, "Rows": rows}) is expected


def test_reports_are_counted_and_not_staged(tmp_path: Path) -> None:
    series = Series()

    for record in [*write_slices(tmp_path, count=2), *write_report(tmp_path, 1, 1, 1, 9)]:
        series.take(record)

    assert len(series.inputs()) == 2
    assert series.no_images == 1


def test_the_source_is_the_first_value_that_is_not_empty() -> None:
    series = Series()

    for record in (make_record(instance=1, AccessionNumber=None), make_record(instance=2, AccessionNumber="A7")):
        series.take(record)

    assert series.described()["AccessionNumber"] == "A7"


def test_the_digest_does_not_depend_on_order_and_changes_with_a_file(tmp_path: Path) -> None:
    records = write_slices(tmp_path, count=3)
    one, other = Series(), Series()
    for record in records:
        one.take(record)
    for record in reversed(records):
        other.take(record)
    before = digest_of(one.inputs())

    assert digest_of(other.inputs()) == before
    os.utime(records[0]["path"], ns=(1, 1))
    assert digest_of(one.inputs()) != before


@pytest.mark.parametrize("state", sorted(NOTHING_THERE))
def test_what_is_not_there_is_not_taken(state: str) -> None:
    series = Series()

    assert not series.take({**make_record(), "state": state})
    assert not series.instances


def test_of_a_conflict_the_first_file_is_taken(tmp_path: Path) -> None:
    (first,), (other,) = write_slices(tmp_path / "1", count=1), write_slices(tmp_path / "2", count=1)
    series = Series()

    series.take(completed({**other, "state": "conflict", "duplicate_of": first["path"]}))
    series.take({**other, "SOPInstanceUID": "1.2.3", "state": "conflict", "duplicate_of": first["path"]})

    assert [one.path for one in series.inputs()] == [Path(first["path"])] * 2


def test_a_whole_record_is_not_read_again_and_a_thin_one_is(tmp_path: Path) -> None:
    (record,) = write_slices(tmp_path, count=1)
    thin = {key: value for key, value in record.items() if key != "ImageOrientationPatient"}

    assert completed(record) is record
    assert completed(thin) == record
    assert completed({**record, "ImageOrientationPatient": None})["ImageOrientationPatient"] is None


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    (record,) = write_slices(tmp_path, count=1)
    series = Series()
    series.take(record)
    Path(record["path"]).unlink()

    with pytest.raises(NoInput, match=r"\.dcm"):
        series.inputs()


def test_instances_without_a_path_are_missing_input() -> None:
    series = Series()
    series.take({key: value for key, value in make_record().items() if key != "path"})

    with pytest.raises(NoInput, match="1 instances came without a path"):
        series.inputs()


def test_pixels_are_estimated_from_the_headers(tmp_path: Path) -> None:
    series = Series()
    for record in write_slices(tmp_path, count=2):
        series.take(record)

    assert pixel_bytes(series.inputs()) == 2 * 24 * 24 * 2


def test_a_copy_does_not_change_when_further_instances_come() -> None:
    series = Series()
    series.take(make_record(instance=1))
    copy = series.as_it_is()

    series.take(make_record(instance=2))

    assert len(copy.instances) == 1
