"""What TAB completes, asked as the shells ask."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Complete = Callable[[str], list[str]]
NODES = """
[PACS]
ae_title = ARCHIVE
host = 127.0.0.1
port = 104
description = the archive

[PLUTO]
ae_title = PLUTO
host = 127.0.0.1
port = 104
"""


@pytest.fixture
def nodes(environment: dict[str, str]) -> Path:
    path = Path(environment["XDG_CONFIG_HOME"]) / "dcmtools" / "nodes.ini"
    path.parent.mkdir(parents=True)
    path.write_text(NODES)
    return path


@pytest.fixture
def complete(environment: dict[str, str], nodes: Path) -> Complete:
    """What bash would offer behind this line."""

    def go(line: str) -> list[str]:
        words = line.split(" ")
        asked = {"_DCMTOOLS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        done = subprocess.run(
            [sys.executable, "-m", "dcmtools"], env={**environment, **asked}, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return done.stdout.split()

    return go


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("dcmtools con", ["convert-nifti"]),
        ("dcmtools --ver", ["--version"]),
        ("dcmtools find --node P", ["PACS", "PLUTO"]),
        ("dcmtools find --node PACS,PL", ["PACS,PLUTO"]),
        ("dcmtools store --to PA", ["PACS"]),
        ("dcmtools echo PL", ["PLUTO"]),
        ("dcmtools find --format t", ["table", "tsv", "tree"]),
        ("dcmtools find --key PatientN", ["PatientName="]),
        ("dcmtools find --node Q", []),
    ],
)
def test_commands_options_nodes_and_keys_are_completed(complete: Complete, line: str, offered: list[str]) -> None:
    assert complete(line) == offered


def test_list_of_commands_is_offered_in_the_order_of_the_help(complete: Complete) -> None:
    from dcmtools.cli.main import COMMANDS

    assert complete("dcmtools ") == [name for name in COMMANDS if " " not in name]


def test_broken_nodes_file_is_no_reason_to_talk_into_the_command_line(complete: Complete, nodes: Path) -> None:
    nodes.write_text("[PACS\nnonsense")

    assert complete("dcmtools find --node P") == []


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_a_node_with_the_script_that_we_ship(environment: dict[str, str], nodes: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "etc" / "completion" / "dcmtools.bash"
    ask = f"""
source {script}
COMP_WORDS=(dcmtools find --node PL); COMP_CWORD=3
_dcmtools_completion dcmtools
echo "${{COMPREPLY[@]}}"
"""
    if not shutil.which("dcmtools", path=environment["PATH"]):
        pytest.skip("needs dcmtools to be installed beside this Python")

    done = subprocess.run(["bash", "-c", ask], env=environment, capture_output=True, text=True, check=True, cwd=os.sep)

    assert done.stdout.split() == ["PLUTO"]
