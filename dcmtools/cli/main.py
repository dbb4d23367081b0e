"""The door: which subcommands there are, and what becomes of an error that none of them expected.

Nothing is imported here that `dcmtools --help` does not need; a subcommand's module is loaded when it is called.
"""

import gc
import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from dcmtools import __version__

if TYPE_CHECKING:
    from typer._click.core import Command, Context
    from typer._click.formatting import HelpFormatter
    from typer._click.shell_completion import CompletionItem

    from dcmtools.model.errors import DcmtoolsError

# Name, module, and the first line of its docstring, so that the list of commands loads none of them.
COMMANDS: dict[str, tuple[str, str]] = {
    "nodes": ("nodes", "Show and change the list of nodes."),
    "echo": ("echo", "Ask nodes whether they are there (C-ECHO)."),
    "index": ("index", "Add DICOM files to the index where they lie."),
    "index check": ("index_check", "Hold the index against its lines, its view and the files that it tells of."),
    "index compact": ("index_compact", "Write the index anew without what says nothing any more."),
    "index export": (
        "index_export",
        "Write all instances of the index to a Parquet file, for DuckDB, Spark or pandas.",
    ),
    "index merge": ("index_merge", "Take what other indexes know into the index, without reading the files again."),
    "index stats": (
        "index_stats",
        "Tell how much the index holds: patients, studies, series, instances, bytes, dates.",
    ),
    "import": ("import_", "Bring DICOM files into the archive and its index."),
    "find": ("find", "Find patients, studies, series or instances in the index or on nodes."),
    "move": ("move", "Retrieve studies, series or instances from a node (C-MOVE)."),
    "store": ("store", "Send instances to a node (C-STORE)."),
    "listen": ("listen", "Receive what nodes send, and answer what they ask."),
    "convert-nifti": ("convert_nifti", "Convert series to NIfTI, with the geometry checked."),
    "sort-by-physician": ("sort_by_physician", "Sort volumes and instances into folders by referring physician."),
    "preview": ("preview", "Make a picture of each series, volume or file."),
    "phantom": ("phantom", "Make valid DICOM files without patients, for demos and tests."),
}

_USAGE, _INTERRUPTED = 2, 130


class Commands(MutableMapping[str, "Command"]):
    """The subcommands by name; each is loaded when it is asked for."""

    def __init__(self) -> None:
        self._loaded: dict[str, Command] = {}

    def __getitem__(self, name: str) -> "Command":
        if name not in self._loaded:
            self._loaded[name] = get_command(import_module(f"dcmtools.cli.{COMMANDS[name][0]}").app)
        return self._loaded[name]

    def __setitem__(self, name: str, command: "Command") -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class LazyGroup(TyperGroup):
    """The group of all subcommands, which tells of them without loading them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Commands()

    def resolve_command(self, ctx: "Context", args: list[str]) -> "tuple[str | None, Command | None, list[str]]":
        """The command that the arguments begin with; a verb such as `index check` has two words."""
        if " ".join(args[:2]) in COMMANDS:
            args = [" ".join(args[:2]), *args[2:]]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """Writes the list of subcommands."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])

    def shell_complete(self, ctx: "Context", incomplete: str) -> "list[CompletionItem]":
        """The subcommands that go on like the word, or the options."""
        from typer._click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=row[1])
            for name, row in COMMANDS.items()
            if name.startswith(incomplete) and " " not in name
        ]
        return found if incomplete[:1] != "-" else super(TyperGroup, self).shell_complete(ctx, incomplete)


app = typer.Typer(
    name="dcmtools",
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"dcmtools {__version__}")  # noqa: T201  # what was asked for
        raise typer.Exit


@app.callback()
def dcmtools(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """DICOM from PACS to NIfTI in shell pipelines: every command reads and writes one JSON record a line.

    \b
    dcmtools find --node PACS --date yesterday --modality MR | dcmtools move - |
        dcmtools convert-nifti - --out nifti | dcmtools sort-by-physician - --out share
    """  # noqa: D301  # \b keeps the lines


def main() -> NoReturn:
    """Runs the command line and ends the process with its exit code."""
    _occupy_standard_descriptors()
    # Records hold no cycles: looking for some costs 4 ms while modules are loaded, and 13 ms of 120 at the very end.
    gc.set_threshold(50_000, 20, 20)
    code = _run()
    gc.freeze()
    sys.exit(code)


def _occupy_standard_descriptors() -> None:
    """Puts /dev/null where stdin, stdout or stderr was closed: the next file that is opened would be taken for it."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _run() -> int:
    try:
        result = app(prog_name="dcmtools", standalone_mode=False)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except typer.Abort:
        return _INTERRUPTED
    except typer.TyperException as problem:
        return _usage(problem)
    except Exception as problem:  # noqa: BLE001  # the one error boundary
        return _failed(problem)
    return result if isinstance(result, int) else 0


def _usage(problem: typer.TyperException) -> int:
    """Says what is wrong with the words of the call; without any words, what they could be."""
    context = getattr(problem, "ctx", None)
    path = context.command_path if context else _called()
    if context and type(problem).__name__ == "NoArgsIsHelpError":
        print(context.get_help(), file=sys.stderr)  # noqa: T201  # what was asked for, without words
        return _USAGE
    from dcmtools.model.errors import UsageError

    reason = problem.format_message().rstrip(".")
    return _tell(path, UsageError(reason[:1].lower() + reason[1:], f"see {path} --help"))


def _failed(problem: Exception) -> int:
    """Says what went wrong before, or beside, the frame of a command."""
    from dcmtools.cli.talk import defect
    from dcmtools.model.errors import DcmtoolsError, from_os

    if "--debug" in sys.argv or os.environ.get("DCMTOOLS_DEBUG"):
        import traceback

        traceback.print_exception(problem)
    if isinstance(problem, OSError):
        problem = from_os(problem, "running dcmtools", problem.filename or "")
    return _tell(_called(), problem if isinstance(problem, DcmtoolsError) else defect(problem))


def _called() -> str:
    """The command as it was typed, as far as it is one."""
    words = next((words for count in (2, 1) if (words := " ".join(sys.argv[1 : 1 + count])) in COMMANDS), "")
    return f"dcmtools {words}".rstrip()


def _tell(path: str, problem: "DcmtoolsError") -> int:
    """One sentence on stderr, and the error record for whoever reads our output as JSON; the exit code."""
    from dcmtools.cli.talk import printable, sentence
    from dcmtools.model.record import encode

    record = problem.record()
    with suppress(OSError):
        print(printable(f"{path}: {sentence(record)}"), file=sys.stderr)  # noqa: T201  # the last word
    other_format = (
        any(word.startswith(("--format", "--output")) for word in sys.argv) or "DCMTOOLS_FORMAT" in os.environ
    )
    with suppress(OSError):
        if not other_format and not os.isatty(1):
            os.write(1, encode(record))
    return problem.exit_code
