"""--dry-run of every command that has it: the tree of files is the same before and after."""

import json
import re
import shlex
import stat
from pathlib import Path

import pytest
from typer._click.core import Command
from typer.core import TyperGroup
from typer.main import get_command

from dcmtools.cli.main import app
from tests.cli.conftest import records
from tests.conftest import RunDcmtools, StartDcmtools

# What each does without --dry-run is told by its state; `volumes.jsonl` has the volumes of the archive's studies.
CALLS = {
    "index": "index scans --index new.jsonl",
    "index compact": "index compact --archive archive",
    "index merge": "index merge archive --index new.jsonl",
    "index export": "index export --archive archive --parquet new.parquet",
    "import": "import scans --archive new",
    "import --move": "import scans --archive new --move",
    "import --reference": "import scans --archive new --reference",
    "store": "store scans --to PEER",
    "move": "move --from PEER --all --archive new",
    "convert-nifti": "convert-nifti --out new --archive archive",
    "sort-by-physician": "sort-by-physician --out new --archive archive",
    "sort-by-physician --move": "sort-by-physician - --out new --move",
    "preview": "preview --out new --archive archive",
    "phantom": "phantom new",
    "nodes add": "nodes add PACS PACS@127.0.0.1:104 --nodes new.ini",
    "nodes edit": "nodes edit OLD --port 105 --nodes nodes.ini",
    "nodes remove": "nodes remove OLD --nodes nodes.ini",
    "nodes copy": "nodes copy OLD NEW --nodes nodes.ini",
}
# These change nothing anyhow, or refuse the option.
WITHOUT = {"find", "index check", "index stats", "echo", "listen", "nodes list", "nodes show", "nodes check"}


def commands(command: Command, name: str = "") -> set[str]:
    """The names of all commands that know --dry-run."""
    if isinstance(command, TyperGroup):
        return set().union(*(commands(command.commands[word], f"{name} {word}".strip()) for word in command.commands))
    return {name} if any("--dry-run" in parameter.opts for parameter in command.params) else set()


def tree(folder: Path) -> dict[str, tuple[object, ...]]:
    """All names below a folder with what a write would change; the view of an index is made by whoever reads it."""
    found: dict[str, tuple[object, ...]] = {}
    for path in folder.rglob("*"):
        there = path.lstat()
        if path.name.startswith("index.sqlite"):
            continue
        if (path / "index.jsonl").exists():  # with the view its folder changes, too
            found[str(path.relative_to(folder))] = (there.st_mode, there.st_ino)
            continue
        content = path.read_bytes() if stat.S_ISREG(there.st_mode) else b""
        found[str(path.relative_to(folder))] = (there.st_mode, there.st_ino, there.st_mtime_ns, there.st_nlink, content)
    return found


def test_no_command_with_dry_run_is_forgotten() -> None:
    tried = {re.sub(" -.*", "", name) for name in CALLS}

    assert commands(get_command(app)) - WITHOUT == tried


@pytest.mark.parametrize("name", CALLS)
def test_dry_run_changes_no_file(
    name: str,
    dcmtools: RunDcmtools,
    start_dcmtools: StartDcmtools,
    archive: Path,
    phantoms: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assert archive == tmp_path / "archive"
    (tmp_path / "scans").symlink_to(phantoms)
    (tmp_path / "nodes.ini").write_text("[OLD]\nae_title = OLD\nhost = 127.0.0.1\nport = 104\n")
    volume = tmp_path / "volume.nii"
    volume.write_bytes(b"voxels")
    stdin = json.dumps({"type": "volume", "path": str(volume), "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3"})
    elsewhere = tmp_path_factory.mktemp("peer")
    words = CALLS[name]
    if "PEER" in words:
        words = words.replace("PEER", peer(start_dcmtools, archive, elsewhere))
    before, sources = tree(tmp_path), tree(phantoms)

    done = dcmtools(*shlex.split(words), "--dry-run", stdin=f"{stdin}\n", env={"PYTHONDONTWRITEBYTECODE": "1"})

    assert done.returncode == 0, done.stderr
    assert [one for one in records(done.stdout) if one["type"] not in {"event", "error"}], "it told of nothing"
    assert tree(tmp_path) == before
    assert tree(phantoms) == sources


def peer(start: StartDcmtools, archive: Path, folder: Path) -> str:
    """A node that has the archive's studies, and keeps its words elsewhere."""
    with (folder / "talk").open("wb") as talk:
        node = start("listen", "--query-retrieve", "--port", 0, "--archive", archive, stderr=talk)
    assert node.stdout is not None
    told = json.loads(node.stdout.readline())
    assert told["event"] == "listening"
    return f"{told['ae_title']}@127.0.0.1:{told['port']}"
