"""Shared options: written once, the same everywhere, and ready as one value."""

from dataclasses import dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command

from dcmtools.cli.main import COMMANDS
from dcmtools.cli.options import COMMON, SELECTORS, Common, Selectors
from dcmtools.cli.subcommand import application, verbatim

SHARED = {COMMON: Common, SELECTORS: Selectors}


@dataclass(frozen=True, slots=True, kw_only=True)
class Taste:
    """A group of options."""

    sweet: Annotated[bool, typer.Option("--sweet", rich_help_panel="Taste")] = False
    spoons: Annotated[int, typer.Option("--spoons", rich_help_panel="Taste")] = 1


def parameters(command: str) -> dict[str, Any]:
    """The parameters of a command, or of the first word of one that has words."""
    found: Any = get_command(import_module(f"dcmtools.cli.{COMMANDS[command][0]}").app)
    found = next(iter(found.commands.values())) if hasattr(found, "commands") else found
    return {one.name: one for one in found.params}


def test_group_of_options_comes_as_one_value() -> None:
    got: list[object] = []

    def tea(taste: Taste, cups: Annotated[int, typer.Option("--cups")] = 1) -> None:
        got.extend([taste, cups])

    application("tea", tea)(["--sweet", "--spoons", "3", "--cups", "2"], standalone_mode=False)

    assert got == [Taste(sweet=True, spoons=3), 2]


def test_help_shows_own_options_first_and_each_group_in_a_section(capsys: pytest.CaptureFixture[str]) -> None:
    def tea(taste: Taste, cups: Annotated[int, typer.Option("--cups")] = 1) -> None:
        """Make tea."""

    application("tea", tea)(["--help"], standalone_mode=False)

    said = capsys.readouterr().out
    assert said.index("Options:") < said.index("--cups") < said.index("Taste:") < said.index("--spoons")


def test_indented_lines_of_a_docstring_are_kept_as_they_are() -> None:
    text = verbatim("""Makes tea
    for you.

    Example:
        tea --sweet
    """)

    assert text == "Makes tea\nfor you.\n\n\b\nExample:\n    tea --sweet"


@pytest.mark.parametrize("command", [name for name in COMMANDS if find_spec(f"dcmtools.cli.{COMMANDS[name][0]}")])
def test_shared_options_are_the_same_in_every_command(command: str) -> None:
    mine, index = parameters(command), parameters("find")

    assert {field.name for field in fields(Common)} <= set(mine)
    for name in {field.name for group in SHARED.values() for field in fields(group)} & set(mine):
        if mine[name].rich_help_panel in SHARED:
            same = ("opts", "help", "default", "envvar", "metavar", "multiple")
            assert [getattr(mine[name], one) for one in same] == [getattr(index[name], one) for one in same]


def test_every_common_option_is_also_in_the_environment() -> None:
    for field in fields(Common):
        option = parameters("find")[field.name]
        assert option.envvar == f"DCMTOOLS_{field.name.upper()}"
        assert f"--{field.name.replace('_', '-')}" in option.opts
