"""The last step: finished files get their names, and nothing of anybody else's is touched."""

import os
from pathlib import Path, PurePosixPath

import pytest

from dcmtools.images.conversions import NAME, Conversions
from dcmtools.images.placement import EXTENSIONS, Finished, Placed, Placement, sha256_of
from dcmtools.images.series import Key

OURS = ("conversions.", ".dcmtools-")
ONE, OTHER = ("1.1", "1.1.1"), ("1.1", "1.1.2")


class Folder:
    """An output folder with what is known of it."""

    def __init__(self, out: Path) -> None:
        self.out = out
        out.mkdir(exist_ok=True)

    def put(self, key: Key = ONE, name: str = "P/v", *, overwrite: bool = False, **texts: str) -> Placed:
        """Places a volume whose files have these texts, and notes that as a conversion does."""
        conversions = Conversions(self.out / NAME)
        placement = Placement(self.out, conversions, overwrite_edited=overwrite)
        texts = {"image": "voxels", "sidecar": "{}", **texts}
        files = {kind: self.out / f".dcmtools-{kind}" for kind in texts}
        for kind, path in files.items():
            path.write_text(texts[kind])
        hashes = {kind: sha256_of(path) for kind, path in files.items()}
        (placed,) = placement.place(key, [Finished(PurePosixPath(name), files, hashes, {})])
        lines = {kind: one.line() for kind, one in placed.files.items()}
        conversions.add(key, {"state": "converted", "volumes": [{"state": "converted", "files": lines}]})
        return placed

    def texts(self) -> dict[str, str]:
        """What lies in it, but for our own files."""
        found = (path for path in self.out.rglob("*") if path.is_file() and not path.name.startswith(OURS))
        return {str(path.relative_to(self.out)): path.read_text() for path in found}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "nifti")


def edit(path: Path, text: str) -> None:
    """Changes a file as a person does."""
    path.write_text(text)
    os.utime(path)


def test_all_files_of_a_volume_have_its_name(folder: Folder) -> None:
    folder.put(bval="0", bvec="1")

    assert folder.texts() == {"P/v.nii.gz": "voxels", "P/v.json": "{}", "P/v.bval": "0", "P/v.bvec": "1"}


def test_the_image_gets_its_name_last() -> None:
    assert list(EXTENSIONS)[-1] == "image"


def test_files_are_for_their_owner_only(folder: Folder) -> None:
    folder.put()

    assert (folder.out / "P/v.nii.gz").stat().st_mode & 0o777 == 0o600
    assert (folder.out / "P").stat().st_mode & 0o777 == 0o700


def test_a_series_replaces_its_own_files_and_takes_away_what_is_no_more(folder: Folder) -> None:
    folder.put(bval="0")
    folder.put(image="better")

    assert folder.texts() == {"P/v.nii.gz": "better", "P/v.json": "{}"}


def test_a_new_name_leaves_no_empty_folder_behind(folder: Folder) -> None:
    folder.put(name="old/deep/v")
    folder.put(name="new/v")

    assert set(folder.texts()) == {"new/v.nii.gz", "new/v.json"}
    assert not (folder.out / "old").exists()


def test_another_series_never_gets_the_same_name(folder: Folder) -> None:
    folder.put(ONE)
    folder.put(OTHER)

    assert set(folder.texts()) == {"P/v.nii.gz", "P/v.json", "P/v~2.nii.gz", "P/v~2.json"}


def test_a_file_that_somebody_put_there_stays(folder: Folder) -> None:
    (folder.out / "P").mkdir()
    (folder.out / "P/v.json").write_text("mine")

    placed = folder.put()

    assert folder.texts()["P/v.json"] == "mine"
    assert placed.files["image"].path == "P/v~2.nii.gz"


def test_a_link_that_somebody_put_there_is_not_followed(folder: Folder, tmp_path: Path) -> None:
    (folder.out / "P").mkdir()
    (folder.out / "P/v.nii.gz").symlink_to(tmp_path / "elsewhere")

    folder.put()

    assert not (tmp_path / "elsewhere").exists()
    assert "P/v~2.nii.gz" in folder.texts()


def test_what_a_killed_run_placed_without_noting_it_is_taken_over(folder: Folder) -> None:
    folder.put()
    (folder.out / NAME).unlink()

    folder.put()

    assert set(folder.texts()) == {"P/v.nii.gz", "P/v.json"}


def test_a_sidecar_that_a_person_edited_is_kept_and_named(folder: Folder) -> None:
    folder.put()
    edit(folder.out / "P/v.json", "by hand")

    for _ in range(2):
        placed = folder.put(image="better", sidecar="{1}")

        assert placed.edited == ["P/v.json"]
        assert folder.texts() == {"P/v.nii.gz": "better", "P/v.json": "by hand"}


def test_an_edited_image_keeps_its_sidecar_and_the_new_one_goes_beside(folder: Folder) -> None:
    folder.put()
    edit(folder.out / "P/v.nii.gz", "defaced")

    placed = folder.put(image="better")

    assert placed.edited == ["P/v.nii.gz"]
    assert folder.texts() == {
        "P/v.nii.gz": "defaced",
        "P/v.json": "{}",
        "P/v~2.nii.gz": "better",
        "P/v~2.json": "{}",
    }


def test_edited_files_are_replaced_when_that_is_asked_for(folder: Folder) -> None:
    folder.put()
    edit(folder.out / "P/v.json", "by hand")

    folder.put(sidecar="{1}", overwrite=True)

    assert folder.texts()["P/v.json"] == "{1}"


def test_a_touched_file_is_not_an_edited_one(folder: Folder) -> None:
    folder.put()
    os.utime(folder.out / "P/v.json", ns=(1, 1))

    assert not folder.put().edited
