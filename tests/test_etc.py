"""What etc/ offers works with the commands as they are."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import RunDcmtools

ROOT = Path(__file__).resolve().parent.parent
ETC = ROOT / "etc"


@pytest.mark.parametrize(
    ("shell", "name"), [("bash", "dcmtools.bash"), ("zsh", "_dcmtools"), ("fish", "dcmtools.fish")]
)
def test_completion_file_is_what_the_command_gives(shell: str, name: str, environment: dict[str, str]) -> None:
    answer = subprocess.run(
        ["dcmtools"],
        env={**environment, "_DCMTOOLS_COMPLETE": f"source_{shell}"},
        capture_output=True,
        check=True,
        text=True,
    )

    assert answer.stdout.strip() in (ETC / "completion" / name).read_text(), "run scripts/completion"


def test_bash_completes_commands_and_node_names(environment: dict[str, str]) -> None:
    registry = Path(environment["XDG_CONFIG_HOME"]) / "dcmtools" / "nodes.ini"
    registry.parent.mkdir(parents=True)
    registry.write_text((ETC / "nodes.ini").read_text())
    registry.chmod(0o600)

    assert completed(environment, "dcmtools", "convert-n") == ["convert-nifti"]
    assert completed(environment, "dcmtools", "echo", "PA") == ["PACS"]


def completed(environment: dict[str, str], *words: str) -> list[str]:
    """What bash offers for the last word after a TAB."""
    ask = """
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _dcmtools_completion dcmtools
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    answer = subprocess.run(
        ["bash", "-c", ask, "bash", ETC / "completion" / "dcmtools.bash", *words],
        env=environment,
        capture_output=True,
        check=True,
        text=True,
    )
    return answer.stdout.split()


@pytest.mark.parametrize("switched_on", [False, True])
def test_sample_nodes_are_read(dcmtools: RunDcmtools, tmp_path: Path, switched_on: bool) -> None:
    text = (ETC / "nodes.ini").read_text()
    sample = tmp_path / "nodes.ini"
    sample.write_text(re.sub(r"(?m)^#(?=\w+ = )", "", text) if switched_on else text)
    sample.chmod(0o600)

    answer = dcmtools("nodes", "list", "--nodes", sample, "--format", "jsonl")

    assert (answer.returncode, answer.stderr) == (0, "")
    assert '"PACS"' in answer.stdout


@pytest.mark.parametrize("switched_on", [False, True])
def test_sample_configuration_is_read(dcmtools: RunDcmtools, tmp_path: Path, switched_on: bool) -> None:
    text = (ETC / "config.ini").read_text()
    sample = tmp_path / "config.ini"
    sample.write_text(re.sub(r"(?m)^#(?=\w+ = )", "", text) if switched_on else text)
    sample.chmod(0o600)

    answer = dcmtools("nodes", "list", "--config", sample, "--format", "jsonl")

    assert (answer.returncode, answer.stderr) == (0, "")
