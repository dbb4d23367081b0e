"""What makes a function a subcommand: groups of shared options become parameters, and its docstring becomes the help.

A function that takes `common: Common` gets all options of that dataclass on its command line, and one ready value of
it in the call. So an option that many commands share is written once, and looks and behaves the same everywhere.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from typer._click.core import Context
    from typer._click.formatting import HelpFormatter

HELP_WIDTH = 110
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH}

_INDENTED = re.compile(r"^[ \t]", re.MULTILINE)


def expanded(function: Callable[..., None]) -> Callable[..., None]:
    """The function as typer shall see it: every dataclass among its parameters replaced by that dataclass's fields."""
    parameters = inspect.signature(function).parameters.values()
    groups = {one.name: one.annotation for one in parameters if hasattr(one.annotation, "__dataclass_fields__")}

    def call(**chosen: Any) -> None:
        values = {
            name: group(**{field.name: chosen.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        function(**values, **chosen)

    own = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in parameters if one.name not in groups]
    shared = [_parameter(field) for group in groups.values() for field in fields(group)]
    call.__signature__ = Signature([*own, *shared])  # type: ignore[attr-defined]  # what inspect.signature answers
    call.__name__, call.__doc__ = function.__name__, function.__doc__
    return call


def application(name: str, function: Callable[..., None]) -> typer.Typer:
    """The typer application of one subcommand that is one function."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    add(app, name, function)
    return app


def group(name: str, about: str, **functions: Callable[..., None]) -> typer.Typer:
    """The typer application of a subcommand with words of its own, such as `nodes list`; `_` in a word becomes `-`."""
    app = typer.Typer(
        name=name,
        help=verbatim(about),
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings=SETTINGS,
    )
    app.callback()(_nothing)
    for word, function in functions.items():
        add(app, word.strip("_").replace("_", "-"), function)
    return app


def add(app: typer.Typer, name: str, function: Callable[..., None]) -> None:
    """Adds a function to an application, under this name."""
    about = verbatim(function.__doc__ or "")
    app.command(name, cls=Sectioned, context_settings=SETTINGS, help=about)(expanded(function))


def verbatim(docstring: str) -> str:
    """The help of a docstring: paragraphs with indented lines (examples, exit codes) keep their lines."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(docstring))
    return "\n\n".join(f"\b\n{one}" if _INDENTED.search(one) else one for one in paragraphs)


class Sectioned(TyperCommand):
    """A command whose help shows the shared options in sections of their own, behind its own options."""

    def collect_usage_pieces(self, ctx: "Context") -> list[str]:
        """The parts of the usage line: what must be given stands as it is, what may be given in brackets."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """Writes one section for each group of options, in the order in which the function has them."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if row := parameter.get_help_record(ctx):
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                title = getattr(parameter, "rich_help_panel", None) or kind
                sections.setdefault(title, []).append(row)
        for title, rows in sorted(sections.items(), key=lambda section: _RANK.get(section[0], 2)):
            with formatter.section(title):
                formatter.write_dl(rows)


_RANK = {"Arguments": 0, "Options": 1}


def _nothing() -> None:
    """Nothing is to be done before a word of a group."""


def _parameter(field: Field[Any]) -> Parameter:
    default = field.default if field.default is not MISSING else Parameter.empty
    if field.default_factory is not MISSING:
        default = field.default_factory()
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=field.type)
