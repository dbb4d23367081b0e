"""The README runs: its session, samples and examples are tried, its tables and links compared with the house."""

import os
import pty
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.main import get_command

from dcmtools.cli.main import COMMANDS, app
from dcmtools.model import errors
from tests.conftest import RunDcmtools
from tests.peers.processes import end
from tests.waiting import is_listening, wait_until

if TYPE_CHECKING:
    from typer._click.core import Command

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BARE = re.sub(r"(?s)<!--.*?-->", "", README)  # as it is shown
BLOCKS = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", BARE)
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```$", "", BARE))
PROSE = re.sub(r"`[^`\n]+`", "", re.sub(r"(?ms)^```.*?^```$", "", BARE))

# In the README's session; the test has others.
PACS_PORT, OUR_PORT, FOLDER = "4242", "11112", "/data"
# What differs from day to day and from run to run.
VARIES = [
    (r"in \d+\.\d s\b", "in N s"),
    (r"\bok +\d+\.\d+", "ok N"),
    (r'"(seconds|size)": [\d.]+', r'"\1": N'),
    (r"\b2\.25\.\d+", "UID"),
    (r"\b[0-9a-f]{64}\b", "HASH"),
    (r"_[0-9a-f]{8}\b", "_HASH"),
    (r"(?<![^\W_])P\d{14}\b", "ACCESSION"),
    (r"\b20\d{6}(?=\b|_)", "DATE"),
    (r" {2,}", "  "),
]


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


# The session


def steps(block: str) -> Iterator[tuple[str, str]]:
    """The commands of a session, each with what it showed."""
    for step in re.split(r"(?m)^\$ ", block)[1:]:
        lines = step.splitlines(keepends=True)
        more = [line.removeprefix("> ") for line in lines[1:] if line.startswith("> ")]
        yield "".join([lines[0], *more]), "".join(lines[1 + len(more) :])


def normal(text: str) -> str:
    """The text without what differs from run to run."""
    for pattern, word in VARIES:
        text = re.sub(pattern, word, text)
    return text


def on_terminal(command: str, folder: Path, environment: dict[str, str]) -> str:
    """What bash shows of a command on a terminal; the command must succeed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=environment,
        text=True,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        shown = b"".join(iter(partial(_read, ours), b"")).decode().replace("\r\n", "\n")
        assert process.wait(60) == 0, shown
        return shown
    finally:
        end(process)
        os.close(ours)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # EIO: nobody writes there any more
        return b""


@pytest.fixture
def at_home(
    tmp_path: Path, environment: dict[str, str], free_port: Callable[[], int]
) -> Iterator[Callable[[str], str]]:
    """A function that runs a command where the README's own PACS runs, as its block `sh` says, and what it showed."""
    ports = {PACS_PORT: str(free_port()), OUR_PORT: str(free_port())}
    # Noon wherever we are: yesterday stays the same day throughout the test.
    zone = f"NOON{datetime.now(UTC).hour - 12:+d}"
    own = {
        **environment, "DCMTOOLS_PORT": ports[OUR_PORT], "DCMTOOLS_PROGRESS": "never", "COLUMNS": "118",
        "LC_ALL": "C.UTF-8", "TZ": zone,
    }  # fmt: skip

    def run(command: str) -> str:
        for shown, used in ports.items():
            command = command.replace(shown, used)
        text = on_terminal(command, tmp_path, own).replace(str(tmp_path), FOLDER)
        for shown, used in ports.items():
            text = re.sub(rf"\b{used}\b", shown, text)
        return text

    def start(command: str) -> subprocess.Popen[str]:
        line = ["bash", "-c", "exec " + command.replace(PACS_PORT, ports[PACS_PORT])]
        return subprocess.Popen(line, cwd=tmp_path, env=own, text=True, start_new_session=True)

    (setup,) = (block for block in blocks("sh") if "--query-retrieve" in block)
    with ExitStack() as stack:
        for line in setup.splitlines():
            if line.endswith("&"):
                stack.callback(end, start(line.rstrip("& ")))
                wait_until(lambda: is_listening(int(ports[PACS_PORT])), what="the PACS listens")
            else:
                run(line)
        yield run


def test_session_shows_what_the_commands_say(at_home: Callable[[str], str]) -> None:
    shown = [step for block in blocks("console") for step in steps(block)]

    real = [(command, at_home(command)) for command, _ in shown]

    assert [(command, normal(text)) for command, text in real] == [(command, normal(text)) for command, text in shown]


# The samples


def test_sample_nodes_and_configuration_are_read(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    nodes, config = blocks("ini")
    for name, text in (("nodes.ini", nodes), ("config.ini", config)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)

    answer = dcmtools("nodes", "list", "--nodes", "nodes.ini", "--config", "config.ini", "--fields", "node")

    assert (answer.returncode, answer.stderr) == (0, "")
    assert re.findall(r'"node":"(\w+)"', answer.stdout) == re.findall(r"(?m)^\[(\w+)\]", nodes)


# The commands


def test_every_command_is_documented() -> None:
    for name, (_, about) in COMMANDS.items():
        assert re.search(rf"(?m)^### {name}\n\n```text\nUsage: dcmtools {name} .*\n\n  {re.escape(about)}$", README)


def called() -> list[str]:
    """The calls of dcmtools in blocks and spans of code, the examples of the help texts among them."""
    session = [command.replace("\n", " ") for block in blocks("console") for command, _ in steps(block)]
    lines = [line for kind, text in BLOCKS if kind != "console" for line in text.splitlines() if "Usage:" not in line]
    found = dict.fromkeys(call for text in [*session, *lines, *SPANS] for call in _calls(text))
    return [call for call in found if "COMMAND" not in call]


def _calls(text: str) -> Iterator[str]:
    if not re.search(r"(^|[\s|'])dcmtools [a-z]", text):
        return
    # A recipe in a crontab has its pipe inside of quotes.
    quoted = re.search(r"-c '([^']*)'", text)
    lexer = shlex.shlex(quoted[1] if quoted else text, posix=True, punctuation_chars=True)
    lexer.commenters, lexer.whitespace_split = "", True
    call: list[str] | None = None
    for word in [*_words(lexer), "|"]:
        if word == "dcmtools" and call is None:
            call = []
        elif call is not None and set(word) <= set("|&;<>()"):
            yield shlex.join(call)
            call = None
        elif call is not None:
            call.append(word)


def _words(lexer: shlex.shlex) -> Iterator[str]:
    try:
        yield from lexer
    except ValueError:  # an apostrophe: it is prose
        return


@pytest.mark.parametrize("call", called())
def test_call_is_understood(call: str) -> None:
    command: Command = get_command(app)
    words = shlex.split(call)
    while inner := getattr(command, "commands", None):
        verb = " ".join(words[:2])  # such as index check
        name, words = (verb, words[2:]) if verb in inner else (words[0], words[1:])
        command = inner[name]

    command.make_context("dcmtools", words)


def options() -> set[str]:
    """All options of all commands, as they stand in the help texts."""
    return {word for text in blocks("text") for word in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text)}


@pytest.mark.parametrize("span", [span for span in SPANS if re.match(r"--?[a-z]|scripts/", span)])
def test_option_or_script_named_in_a_sentence_exists(span: str) -> None:
    first, *words = span.split()
    named = [word for word in (first, *words) if word.startswith("-")]

    known = (ROOT / first).read_text() if first.startswith("scripts/") else options()

    assert [word for word in named if word not in known] == []


# Tables and links


def test_exit_codes_are_those_of_the_error_tree() -> None:
    tree = {one.exit_code for one in vars(errors).values() if isinstance(one, type) and hasattr(one, "exit_code")}
    table = {int(code) for code in re.findall(r"(?m)^\| (\d+) \|", BARE)}
    (retry,) = re.findall(r"Worth another try, [^:]*: ([^.]*)\.", BARE)

    assert table == tree | {0, 130}
    assert set(map(int, re.findall(r"\d+", retry))) == errors.RETRYABLE
    for text in blocks("text"):
        for codes in re.findall(r"(?m)^  Exit codes:\n((?:      .*\n)+)", text):
            assert {int(code) for code in re.findall(r"(?m)^      (\d+)  ", codes)} <= table


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_links_lead_somewhere() -> None:
    anchors = {f"#{slug(heading)}" for heading in re.findall(r"(?m)^#+ (.+)$", BARE)}
    links = re.findall(r"\]\(([^)\s]+)\)", PROSE)

    assert links
    assert [link for link in links if not (link in anchors if link.startswith("#") else (ROOT / link).exists())] == []
