"""The folder in which a series is converted."""

import os
from pathlib import Path

import pytest

from dcmtools.images.staging import own_folder, staged, sweep


def files_in(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    return [folder / name for name in names]


def test_a_series_alone_in_its_folder_is_converted_where_it_lies(tmp_path: Path) -> None:
    paths = files_in(tmp_path / "series", "a", "b")

    with staged(tmp_path, paths) as here:
        assert here.inputs == tmp_path / "series"


def test_a_series_among_others_is_offered_by_links(tmp_path: Path) -> None:
    paths = files_in(tmp_path / "series", "a", "b", "c")[:2]

    with staged(tmp_path, paths) as here:
        offered = sorted(here.inputs.iterdir())

        assert [one.read_text() for one in offered] == ["a", "b"]
        assert all(one.is_symlink() for one in offered)
    assert not here.folder.exists()
    assert paths[0].exists()


def test_where_links_are_not_to_be_had_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: object) -> None:
        raise PermissionError

    paths = files_in(tmp_path / "series", "a", "b")[:1]
    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(os, "link", refuse)

    with staged(tmp_path, paths) as here:
        (offered,) = here.inputs.iterdir()

        assert not offered.is_symlink()
        assert offered.read_text() == "a"


def test_files_of_two_folders_have_no_folder_of_their_own(tmp_path: Path) -> None:
    assert own_folder([*files_in(tmp_path / "1", "a"), *files_in(tmp_path / "2", "b")]) is None


def test_a_file_that_arrives_meanwhile_is_noticed(tmp_path: Path) -> None:
    paths = files_in(tmp_path / "series", "a")

    with staged(tmp_path, paths) as here:
        assert here.is_intact()
        files_in(tmp_path / "series", "b")
        assert not here.is_intact()


def test_what_a_killed_run_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    others = [".dcmtools-9-f", ".dcmtools-incoming", ".dcmtools-listen.lock", ".dcmtools-lock", "kept"]
    with staged(tmp_path, []) as here:
        files_in(tmp_path / here.folder.name.replace(str(os.getpid()), "123") / "out", "s.nii")
    files_in(tmp_path, ".dcmtools-nifti-9-f", *others)

    assert sweep(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == others
