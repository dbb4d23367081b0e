"""The house keeps its own rules: layers, pinned versions, scripts, samples, and nothing of whoever built it."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dcmtools

ROOT = Path(__file__).resolve().parent.parent
MADE = {
    ".git",
    ".venv",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
    ".import_linter_cache",
    "__pycache__",
}
SCRIPTS = sorted(path for path in [*(ROOT / "scripts").rglob("*"), ROOT / ".ci" / "run"] if path.is_file())
SHELL_SCRIPTS = [path for path in SCRIPTS if path.read_bytes().startswith(b"#!/usr/bin/env bash")]
# A folder of somebody's machine, or where packages come from; neither is written in this very pattern.
FOREIGN = re.compile(r"(?<![\w./~-])/(?:work|root|home|Users)/\w|(?:pypi|files\.pythonhosted)\.org")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def files() -> Iterator[Path]:
    """The files of the clone: not what tools have left in it, nor what demo and build have made."""
    for folder, names, here in os.walk(ROOT):
        names[:] = [
            name for name in names if name not in MADE and Path(folder, name) not in (ROOT / "demo", ROOT / "dist")
        ]
        yield from (Path(folder, name) for name in here)


def pins() -> dict[str, list[str]]:
    """Requirement -> hashes, as constraints.txt has them."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip().startswith("--hash="):
            found[list(found)[-1]].append(line.strip(" \\"))
        elif line and not line.startswith("#"):
            found[line.strip(" \\")] = []
    return found


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import dcmtools; print(*sorted(set(sys.modules) - before))"

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=ROOT)

    assert answer.stdout.split() == ["dcmtools"]


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("model/record.py", "import dcmtools.disk.atomic"),
        ("disk/atomic.py", "from dcmtools import network"),
        ("files/__init__.py", "import dcmtools.images"),
        ("images/__init__.py", "import dcmtools.cli"),
        ("model/record.py", "import pydicom"),
        ("disk/atomic.py", "import typer"),
        ("network/__init__.py", "import numpy"),
        ("cli/__init__.py", "import click"),
    ],
)
def test_layer_check_sees_an_import_that_points_up(tmp_path: Path, place: str, line: str) -> None:
    shutil.copytree(ROOT / "dcmtools", tmp_path / "dcmtools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "dcmtools" / place).open("a") as module:
        module.write(f"\n{line}\n")

    lint = Path(sys.executable).parent / "lint-imports"
    answer = subprocess.run([lint, "--no-cache"], capture_output=True, check=False, text=True, cwd=tmp_path)

    assert answer.returncode == 1, answer.stdout
    assert "1 broken" in answer.stdout


def test_every_pin_has_hashes_and_no_address() -> None:
    assert [pin for pin, hashes in pins().items() if not hashes or "==" not in pin] == []
    assert "://" not in (ROOT / "constraints.txt").read_text()


def test_every_dependency_and_tool_is_pinned() -> None:
    pinned = {pin.partition("==")[0] for pin in pins()}
    asked = [
        *project()["project"]["dependencies"],
        *project()["dependency-groups"]["dev"],
        *project()["build-system"]["requires"],
    ]

    assert {re.split(r"[<>=]", name)[0] for name in asked} - pinned == set()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_can_be_run_and_says_what_it_does(script: Path) -> None:
    first, second = script.read_text().splitlines()[:2]

    assert os.access(script, os.X_OK)
    assert first.startswith("#!/usr/bin/env ")
    assert second.startswith(("# ", '"""'))


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_script_has_no_syntax_error_and_stops_at_unset_names(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)

    assert re.search(r"^set -e?uo pipefail$", script.read_text(), re.MULTILINE)


def test_changelog_has_the_version() -> None:
    assert f"## {dcmtools.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_no_file_mentions_a_folder_outside_the_clone() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if FOREIGN.search(line) or str(ROOT) in line
    ]

    assert found == []


@pytest.mark.parametrize("name", ["config.ini", "nodes.ini"])
def test_sample_has_each_key_once_also_when_all_are_switched_on(name: str) -> None:
    text = re.sub(r"(?m)^#(?=\w+ = )", "", (ROOT / "etc" / name).read_text())

    sample = configparser.ConfigParser(interpolation=None)
    sample.read_string(text)

    assert all(sample[section] for section in sample.sections())
    assert not [value for section in sample.sections() for value in sample[section].values() if "#" in value]


def test_sample_units_retry_what_is_worth_it() -> None:
    for unit in (ROOT / "etc" / "systemd").glob("*.service"):
        assert "RestartForceExitStatus=69 74 75 76\n" in unit.read_text()
