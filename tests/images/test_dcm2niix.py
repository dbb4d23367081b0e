"""The engine dcm2niix."""

from pathlib import Path

import pytest

from dcmtools.images.dcm2niix import Dcm2niix
from dcmtools.images.engine import Limits, Run
from dcmtools.images.staging import staged
from dcmtools.model.errors import ConfigurationError
from tests.images.series_files import write_slices


def program(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return path


def run(tmp_path: Path, paths: list[Path], binary: Path | None = None) -> Run:
    with staged(tmp_path, paths) as here:
        return Dcm2niix.found(binary).run(here, {}, Limits())


def test_the_installed_one_is_found_without_starting_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)

    engine = Dcm2niix.found()

    assert engine.binary.is_file()
    assert engine.version >= "1.0.2023"


@pytest.mark.parametrize("said", ["v1.0.20220720", "no version at all", ""])
def test_one_from_before_2023_is_refused_with_78(tmp_path: Path, said: str) -> None:
    with pytest.raises(ConfigurationError, match="too old") as problem:
        Dcm2niix.found(program(tmp_path / "dcm2niix", f"echo '{said}'"))

    assert problem.value.exit_code == 78


def test_a_binary_that_is_not_there_ends_with_78(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="check the path"):
        Dcm2niix.found(tmp_path / "nothing")


def test_a_series_becomes_a_volume_with_its_header(tmp_path: Path) -> None:
    paths = [Path(record["path"]) for record in write_slices(tmp_path)]

    result = run(tmp_path, paths)

    (output,) = result.outputs
    assert not result.cause
    assert output.suffix == ""
    assert output.header["Modality"] == "MR"


def test_echoes_are_told_apart_by_their_suffix(tmp_path: Path) -> None:
    one = {"SeriesInstanceUID": "1.2.3", "SeriesNumber": 1}
    records = [
        record
        for echo in (1, 2)
        for record in write_slices(tmp_path, 1, 1, echo, EchoTime=10 * echo, EchoNumbers=echo, **one)
    ]

    result = run(tmp_path, [Path(record["path"]) for record in records])

    assert sorted(output.suffix for output in result.outputs) == ["_e1", "_e2"]


@pytest.mark.parametrize(
    ("said", "code", "cause"),
    [
        ("Warning: File not large enough to store image data: /data/x.dcm", 1, "truncated"),
        ("Unsupported transfer syntax '1.2'", 2, "unsupported-transfer-syntax"),
        ("CharLS failed to read image.", 1, "undecodable"),
        ("Error: Unable to find any DICOM images in /data", 2, "no-image"),
        ("something new", 1, "engine-failed"),
        ("", 0, "engine-failed"),
    ],
)
def test_what_it_says_becomes_a_code_and_no_path_is_quoted(tmp_path: Path, said: str, code: int, cause: str) -> None:
    binary = program(
        tmp_path / "dcm2niix",
        f'[ "$1" = --version ] && {{ echo v1.0.20250101; exit; }}\necho "{said}"; exit {code}',
    )

    result = run(tmp_path, [], binary)

    assert (result.outputs, result.cause) == ((), cause)
    assert "/data" not in result.reason + "".join(result.warnings)


def test_a_sidecar_that_is_no_json_costs_only_its_fields(tmp_path: Path) -> None:
    binary = program(
        tmp_path / "dcm2niix",
        '[ "$1" = --version ] && { echo v1.0.20250101; exit; }\nprintf x >out/s.nii; printf "{nan" >out/s.json',
    )

    (output,) = run(tmp_path, [], binary).outputs

    assert output.header == {}
