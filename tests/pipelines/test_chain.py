"""The main job, end to end: what it makes, that it can be run again, and what becomes of it when something dies."""

import subprocess
import time
from pathlib import Path

import pytest

from dcmtools.disk.index import Index
from tests.pipelines.conftest import STAGES, Site, events, kill, of_type, one_pacs, read, states, torn
from tests.waiting import wait_until


def instances(folder: Path) -> set[str]:
    return {path.stem for path in folder.rglob("*.dcm") if ".dcmtools-" not in str(path)}


def test_the_nightly_job_makes_the_physicians_tree_and_its_second_run_does_nothing(site: Site) -> None:
    wanted = instances(site.folder / "phantoms")

    code, first = site.nightly()

    assert code == 0, (site.folder / "stderr.txt").read_text()
    assert instances(site.archive) == wanted
    assert states(first["move"], "instance") == {"received"}
    assert len(events(first["move"], "study-complete")) == 3
    assert not events(first["move"], "incomplete")
    volumes = of_type(first["convert-nifti"], "volume")
    assert {volume["state"] for volume in volumes} == {"converted"}
    assert len(volumes) == 9  # of each patient MR, fMRI and CT; the clip has no geometry, the report no pixels
    placed = of_type(first["sort-by-physician"], "file")
    assert {Path(one["path"]).stat().st_ino for one in placed} <= _inodes(site.folder / "nifti")
    assert not torn(site.folder)

    before = _modified(site.folder / "share") | _modified(site.archive)
    code, second = site.nightly()

    assert code == 0, (site.folder / "stderr.txt").read_text()
    assert states(second["move"], "instance") == {"present"}
    assert {one["SOPInstanceUID"] for one in of_type(second["move"], "instance")} == wanted
    assert states(second["convert-nifti"], "volume") == {"unchanged"}
    assert states(second["sort-by-physician"], "file") == {"present"}
    assert before == _modified(site.folder / "share") | _modified(site.archive)


def _inodes(folder: Path) -> set[int]:
    return {path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def _modified(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix in {".dcm", ".gz", ".json"})
    return {path: path.stat().st_mtime_ns for path in files}


@one_pacs
@pytest.mark.parametrize("victim", STAGES)
def test_a_stage_that_is_killed_is_noticed_behind_it_and_the_next_night_mends_it(site: Site, victim: str) -> None:
    processes = site.pipeline()
    number = STAGES.index(victim)
    wait_until(lambda: _has_begun(site, victim) or processes[number].poll() is not None, 60, what=f"{victim} at work")

    kill(processes[number])
    codes = [process.wait(120) for process in processes]

    if victim in {"move", "convert-nifti"} and codes[number] == -9:
        assert codes[-1] >= 3, codes  # begin without end
    assert not torn(site.folder)

    code, _ = site.nightly()

    assert code == 0, (site.folder / "stderr.txt").read_text()
    assert instances(site.archive) == instances(site.folder / "phantoms")
    assert Index(site.archive / "index.jsonl", site.archive).lookup(instances(site.archive)).keys() == instances(
        site.archive
    )
    assert len({path.name for path in (site.folder / "share").rglob("*.nii.gz")}) == 4
    assert not torn(site.folder)
    assert not list((site.folder / "nifti").glob(".dcmtools-[0-9a-f]*"))


def _has_begun(site: Site, stage: str) -> bool:
    """Whether a stage has some of its work done, and most of it before it."""
    match stage:
        case "find":
            return True
        case "move":
            return len(instances(site.archive)) > 20
        case "convert-nifti":
            return any((site.folder / "nifti").rglob("*.nii.gz"))
        case _:
            return (site.folder / "share").exists()


@one_pacs
def test_a_pacs_does_not_notice_a_consumer_that_sleeps(site: Site) -> None:
    find = site.start("find", subprocess.DEVNULL, subprocess.PIPE)
    move = site.start("move", find.stdout, subprocess.PIPE)
    wanted = instances(site.folder / "phantoms")

    # Nobody reads a byte of what move says, which is far more than a pipe holds; and yet everything arrives.
    wait_until(lambda: instances(site.archive) == wanted, 90, what="all instances while nobody reads")
    wait_until(lambda: _associations(site) == [], 30, what="the PACS to be let go")
    assert move.poll() is None
    time.sleep(1)
    assert move.stdout is not None
    said = move.stdout.read()

    assert move.wait(60) == 0
    assert len(said) > 1 << 16
    assert said.count(b'"state":"received"') == len(wanted)


def _associations(site: Site) -> list[str]:
    """The TCP connections to the PACS's port, or to ours, that are established."""
    ports = {f"{site.pacs.port:04X}", f"{site.port:04X}"}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "01" and {row[1].split(":")[1], row[2].split(":")[1]} & ports]


@one_pacs
def test_a_consumer_that_dies_ends_move_with_75_and_nothing_that_was_acknowledged_is_lost(site: Site) -> None:
    find = site.start("find", subprocess.DEVNULL, subprocess.PIPE)
    move = site.start("move", find.stdout, subprocess.PIPE)
    assert move.stdout is not None
    first = move.stdout.readline()
    move.stdout.close()

    assert b'"begin"' in first
    assert move.wait(90) == 75
    here = instances(site.archive)
    assert Index(site.archive / "index.jsonl", site.archive).lookup(here).keys() == here
    assert not torn(site.archive)

    code, again = site.nightly(last="move")

    assert code == 0, (site.folder / "stderr.txt").read_text()
    assert {one["SOPInstanceUID"] for one in of_type(again["move"], "instance") if one["state"] == "present"} == here
    assert instances(site.archive) == instances(site.folder / "phantoms")


@one_pacs
def test_a_pacs_that_dies_in_the_middle_leaves_an_incomplete_study_and_the_next_night_completes_it(site: Site) -> None:
    # The rest of the studies is not tried for long: what cannot be reached is said, and the next run gets it.
    find = site.dcmtools("find", "--node", "PACS", "--date", "yesterday")
    move = site.start("move", subprocess.PIPE, subprocess.PIPE)
    assert move.stdin is not None
    move.stdin.write(find.stdout.encode())
    move.stdin.close()
    wait_until(lambda: len(instances(site.archive)) > 20, 60, what="the first instances")

    site.pacs.process.kill()
    assert move.stdout is not None
    (site.folder / "said.jsonl").write_bytes(move.stdout.read())
    code = move.wait(60)

    said = read(site.folder / "said.jsonl")
    assert code == 3
    assert events(said, "incomplete")
    assert any(one["exit_code"] in {69, 76} for one in of_type(said, "error"))
    assert not torn(site.archive)


@one_pacs
def test_two_nights_at_once_are_one_too_many(site: Site) -> None:
    find = site.dcmtools("find", "--node", "PACS", "--date", "yesterday")
    first = site.start("move", subprocess.PIPE, subprocess.PIPE)
    assert first.stdin is not None
    first.stdin.write(find.stdout.encode())
    first.stdin.flush()
    lock = site.archive / ".dcmtools-listen.lock"
    wait_until(lock.exists, 30, what="the first one at work")

    second = site.dcmtools("move", "-", stdin=find.stdout, env={"DCMTOOLS_ARCHIVE": str(site.archive)})

    assert second.returncode == 75, second.stderr
    assert "is being filled by process" in second.stderr
