"""The file of conversions."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.images.conversions import NAME, Conversions, files_of
from dcmtools.model.record import Record

ONE, OTHER = ("1.1", "1.1.1"), ("1.1", "1.1.2")


def conversion(state: str = "converted", name: str = "a", **keys: Any) -> Record:
    file = {"path": f"{name}.nii.gz", "sha256": "f00", "size": 3, "mtime_ns": "1700000000123456789"}
    volume = {"state": state, "files": {"image": file}}
    how = {"digest": "d", "engine": "dcm2niix", "engine_version": "1", "options": {"template": "t"}}
    return {"state": state, **how, "volumes": [volume], **keys}


def test_a_later_run_knows_what_was_done(tmp_path: Path) -> None:
    Conversions(tmp_path / NAME).add(ONE, conversion())

    last = Conversions(tmp_path / NAME).last(ONE)

    assert last is not None
    assert last.is_of("d", "dcm2niix", "1", {"template": "t"})
    (file,) = last.files()
    assert (file.path, file.sha256, file.size, file.mtime_ns) == ("a.nii.gz", "f00", 3, 1700000000123456789)
    assert files_of(last.volumes[0])["image"] == file


def test_the_last_line_of_a_series_wins(tmp_path: Path) -> None:
    conversions = Conversions(tmp_path / NAME)
    for name in ("a", "b"):
        conversions.add(ONE, conversion(name=name))

    for known in (conversions, Conversions(tmp_path / NAME)):
        last = known.last(ONE)
        assert last is not None
        assert [one.path for one in last.files()] == ["b.nii.gz"]


def test_a_failure_leaves_what_stood_before(tmp_path: Path) -> None:
    conversions = Conversions(tmp_path / NAME)
    conversions.add(ONE, conversion())
    conversions.add(ONE, {"state": "failed", "digest": "d2"})

    for known in (conversions, Conversions(tmp_path / NAME)):
        last = known.last(ONE)
        assert last is not None
        assert last.state == "converted"


def test_a_file_has_the_series_as_owner_that_wrote_it_last(tmp_path: Path) -> None:
    conversions = Conversions(tmp_path / NAME)
    conversions.add(ONE, conversion(name="a"))
    conversions.add(OTHER, conversion(name="b"))

    for known in (conversions, Conversions(tmp_path / NAME)):
        assert known.owner("a.nii.gz") == ONE
        assert known.owner("b.nii.gz") == OTHER
        assert known.owner("c.nii.gz") is None


def test_a_folder_without_the_file_knows_nothing(tmp_path: Path) -> None:
    assert Conversions(tmp_path / "none" / NAME).last(ONE) is None


@given(cut=st.integers(0, 1000), junk=st.binary(max_size=40))
def test_a_torn_line_costs_only_itself(tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes) -> None:
    file = tmp_path_factory.mktemp("torn") / NAME
    Conversions(file).add(ONE, conversion())
    whole = file.stat().st_size
    Conversions(file).add(OTHER, conversion(name="b"))
    lines = file.read_bytes()
    file.write_bytes(lines[: max(whole, len(lines) - 1 - cut)] + junk.replace(b"\n", b"") * (cut % 2))

    Conversions(file).add(("2", "2"), conversion(name="c"))

    known = Conversions(file)
    assert known.owner("a.nii.gz") == ONE
    assert known.owner("c.nii.gz") == ("2", "2")
    last = known.last(ONE)
    assert last is not None
    assert last.digest == "d"
