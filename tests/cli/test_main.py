"""The door: what is loaded for what, the list of commands, usage errors, completion."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command

from dcmtools import __version__
from dcmtools.cli.main import COMMANDS
from tests.conftest import RunDcmtools

HEAVY = {
    "PIL", "concurrent", "dcm2niix", "dicom2nifti", "isal", "logging", "nibabel", "numpy", "pydantic", "pydicom",
    "pylibjpeg", "pynetdicom", "rich", "tqdm",
}  # fmt: skip
LOADED = """
import atexit, sys
atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr))
from dcmtools.cli.main import main
sys.argv = ["dcmtools", *sys.argv[1:]]
main()
"""
PRESENT = [name for name in COMMANDS if find_spec(f"dcmtools.cli.{COMMANDS[name][0]}")]


def loaded(*args: object, code: int = 0, env: dict[str, str] | None = None) -> set[str]:
    command = [sys.executable, "-c", LOADED, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == code, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def test_help_loads_typer_and_the_list_of_commands_only() -> None:
    modules = loaded("--help")

    typer = subprocess.run(
        [sys.executable, "-c", "import sys, typer, typer.core; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    ours = {name for name in modules - set(typer.stdout.split()) if not name.startswith(("typer.", "encodings"))}
    assert {name for name in ours if name.startswith("dcmtools")} == {"dcmtools", "dcmtools.cli", "dcmtools.cli.main"}
    assert ours <= {"dcmtools", "dcmtools.cli", "dcmtools.cli.main", "atexit", "gc", "__future__"}


@pytest.mark.parametrize("command", PRESENT)
def test_help_of_a_command_loads_nothing_heavy_and_no_library_of_ours(command: str) -> None:
    modules = loaded(command, "--help")

    assert not HEAVY & {name.partition(".")[0] for name in modules}
    rooms = {".".join(name.split(".")[:2]) for name in modules if name.startswith("dcmtools.")}
    assert not rooms & {"dcmtools.network", "dcmtools.files", "dcmtools.images"}


def test_commands_of_the_wire_and_the_index_load_no_heavy_library_while_they_work(
    environment: dict[str, str], phantoms: Path, filled: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    away, report = f"NOBODY@127.0.0.1:{free_port()}", next(phantoms.rglob("*.dcm"))
    calls: list[tuple[list[object], int]] = [
        (["find", "--archive", filled], 0),
        (["find", "--node", away], 69),
        (["echo", away], 69),
        (["store", report, "--to", away], 69),
        (["import", report, "--archive", tmp_path / "archive"], 0),
        (["nodes", "list"], 0),
    ]

    for words, code in calls:
        modules = loaded(*words, code=code, env=environment)
        assert not (HEAVY - {"concurrent", "logging"}) & {name.partition(".")[0] for name in modules}, words


@pytest.mark.parametrize("command", PRESENT)
def test_list_of_commands_says_what_each_says_of_itself(command: str) -> None:
    module, about = COMMANDS[command]

    described = get_command(import_module(f"dcmtools.cli.{module}").app)

    assert described.help is not None
    assert described.help.split("\n\n")[0] == about
    assert described.name == command


def functions() -> Iterator[tuple[str, str]]:
    for name in PRESENT:
        command = get_command(import_module(f"dcmtools.cli.{COMMANDS[name][0]}").app)
        words = getattr(command, "commands", {"": command})
        yield from ((f"{name} {word}".strip(), one.help or "") for word, one in words.items())


@pytest.mark.parametrize(("command", "text"), list(functions()))
def test_help_of_a_command_has_an_example_and_its_exit_codes(command: str, text: str) -> None:
    assert f"dcmtools {command}" in text
    assert "Exit codes:" in text


def test_commands_that_come_later_are_not_there(dcmtools: RunDcmtools) -> None:
    later = ("verify", "transfers", "delete", "prune", "convert-dicom", "doctor", "get", "export", "config")

    assert not set(later) & set(COMMANDS)
    assert dcmtools("verify").returncode == 2


def test_version_is_the_packages(dcmtools: RunDcmtools) -> None:
    assert dcmtools("--version").stdout == f"dcmtools {__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fnd"], "did you mean 'find'"),
        (["find", "--modalty", "MR"], "--modality"),
        (["find", "--limit", "0"], "'--limit'"),
        (["phantom"], "missing argument 'OUT'"),
        (["find", "--date", "someday"], "'someday' is not a date"),
        (["find", "--key", "Modalty=MR"], "did you mean Modality?"),
        (["find", "--since", "-2d", "--date", "today"], "--date does not go together"),
        (["find", "--deadline", "soon"], "'soon' is not a duration"),
    ],
)
def test_wrong_words_end_with_2_and_one_sentence_and_one_record(
    dcmtools: RunDcmtools, words: list[str], said: str
) -> None:
    done = dcmtools(*words)

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert said.casefold() in done.stderr.casefold()
    (record,) = [one for one in map(json.loads, done.stdout.splitlines()) if one["type"] == "error"]
    assert (record["cause"], record["exit_code"]) == ("usage", 2)


def test_wrong_words_write_no_json_where_another_format_was_asked_for(dcmtools: RunDcmtools) -> None:
    for words in (["--format", "paths0", "--limit", "0"], ["--format=xml"]):
        done = dcmtools("find", *words)

        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1


def test_no_words_show_the_help_and_end_with_2(dcmtools: RunDcmtools) -> None:
    done = dcmtools()

    assert (done.returncode, done.stdout) == (2, "")
    assert "convert-nifti" in done.stderr
