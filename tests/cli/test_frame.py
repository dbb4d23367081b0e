"""The frame as a process: a small command of our own inside it, joined to real pipes, signals, locks and disks."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until

# A command as others are: what its work yields is told by the test. `effects` and others go to frame.run.
COMMAND = """
import sys, time
from pathlib import Path
from dcmtools.cli.frame import run
from dcmtools.cli.options import Common
from dcmtools.cli.subcommand import application
from dcmtools.model.errors import *
from dcmtools.model.record import event

def instance(number, **keys):
    return {"type": "instance", "SOPInstanceUID": f"1.{number}", "state": "received", **keys}

def work(frame):
WORK

def stage(common: Common) -> None:
    run("stage", common, work, SETTINGS)

from dcmtools.cli import main
main.app = application("stage", stage)
main.main()
"""

# It works until it is told to stop, and then finishes what it has in hand.
ENDLESS = """
n = 0
while not frame.stop():
    n += 1
    yield instance(n)
    frame.stop.wait(0.01)
Path("done").write_text("released")
"""

Start = Callable[..., Any]  # a Popen whose streams are there
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Starts a command with this work; its stdin, stdout and stderr are pipes unless told otherwise."""
    started: list[subprocess.Popen[bytes]] = []

    def go(work: str, *words: str, settings: str = "", env: dict[str, str] | None = None, **streams: Any) -> Any:
        body = "\n".join(f"    {line}" for line in work.strip("\n").split("\n"))
        code = COMMAND.replace("WORK", body).replace("SETTINGS", settings)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        command = [sys.executable, "-c", code, *words]
        started.append(subprocess.Popen(command, env={**environment, **(env or {})}, cwd=tmp_path, **pipes))
        return started[-1]

    yield go
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def run(start: Start) -> Run:
    """Runs a command with this work to its end."""

    def go(work: str, *words: str, stdin: str = "", **more: Any) -> "subprocess.CompletedProcess[str]":
        process = start(work, *words, **more)
        out, said = process.communicate(stdin.encode(), timeout=60)
        return subprocess.CompletedProcess(words, process.returncode, (out or b"").decode(), (said or b"").decode())

    return go


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_records_are_framed_by_begin_and_end_with_counts(run: Run) -> None:
    done = run("yield instance(1); yield instance(2); yield event('series-complete')")

    begin, *rest, end = records(done.stdout)
    assert (begin["event"], begin["command"]) == ("begin", "stage")
    assert [one["type"] for one in rest] == ["instance", "instance", "event"]
    assert (end["event"], end["exit_code"], end["counts"]) == ("end", 0, {"instance": 2})
    assert (done.returncode, done.stderr) == (0, "")


def test_pure_reader_prints_plain_records_unless_it_is_to_frame_them(run: Run) -> None:
    plain = run("yield instance(1)", settings="effects=False")
    framed = run("yield instance(1)", settings="effects=False, events=True")

    assert [one["type"] for one in records(plain.stdout)] == ["instance"]
    assert [one["type"] for one in records(framed.stdout)] == ["event", "instance", "event"]


@pytest.mark.parametrize(
    ("work", "code"),
    [
        ("yield instance(1)", 0),
        ("return iter(())", 0),
        ("raise UsageError('x')", 2),
        ("yield Incomplete('x').record()", 3),
        ("yield instance(1); yield BadData('x').record()", 3),
        ("yield BadData('x').record()", 65),
        ("raise NoInput('x')", 66),
        ("raise Unavailable('x')", 69),
        ("yield instance(1); raise Unavailable('x')", 3),
        ("raise CannotCreate('x')", 73),
        ("yield instance(1); raise DiskFull('x')", 74),
        ("yield DiskFull('x').record(); yield instance(1)", 74),
        ("raise OSError(28, 'No space left on device', '/data')", 74),
        ("raise FileNotFoundError(2, 'No such file', '/data')", 66),
        ("raise Locked('x')", 75),
        ("raise ProtocolError('x')", 76),
        ("raise Refused('x')", 77),
        ("frame.settings.registry.get('NOWHERE'); yield", 78),
        ("yield event('incomplete', reason='1 of 2')", 3),
        ("yield instance(1, state='failed', exit_code=76)", 76),
        ("1 / 0; yield", 1),
        ("yield instance(1); 1 / 0", 1),
    ],
)
def test_exit_codes(run: Run, work: str, code: int) -> None:
    done = run(work)

    assert done.returncode == code
    assert records(done.stdout)[-1]["exit_code"] == code
    failures = done.stderr.splitlines()
    assert bool(failures) == bool(code)
    assert all(line.startswith("dcmtools stage: ") for line in failures)


def test_command_that_cannot_start_writes_one_error_record(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.ini").write_text("[local]\nprot = 104\n")

    done = run("yield instance(1)", "--config", "config.ini")

    assert done.returncode == 78
    assert [one["type"] for one in records(done.stdout)] == ["error"]
    assert f"{tmp_path}/config.ini:2" in done.stderr or "config.ini:2" in done.stderr


def test_defect_is_one_sentence_and_its_traceback_is_shown_on_demand(run: Run) -> None:
    quiet = run("raise KeyError('Doe^John'); yield")
    loud = run("raise KeyError('Doe^John'); yield", "--debug")
    by_environment = run("raise KeyError('Doe^John'); yield", env={"DCMTOOLS_DEBUG": "1"})

    assert "a defect of dcmtools: KeyError" in quiet.stderr
    assert "Doe" not in quiet.stderr + quiet.stdout
    assert len(quiet.stderr.splitlines()) == 1
    for one in (loud, by_environment):
        assert "Traceback" in one.stderr
        assert one.returncode == 1


def test_warnings_and_logs_of_libraries_are_not_said(run: Run) -> None:
    work = """
import logging, warnings
warnings.warn('Doe^John')
logging.getLogger('pydicom').error('Doe^John')
yield instance(1)
"""

    assert run(work).stderr == ""


def test_what_a_library_prints_does_not_get_into_the_records(run: Run) -> None:
    done = run("import os; print('hello', flush=True); os.system('echo child'); yield instance(1)", "-q")

    assert [one["type"] for one in records(done.stdout)] == ["event", "instance", "event"]
    assert done.stderr == "hello\nchild\n"


def test_new_leaves_out_what_was_here_and_counts_it_all_the_same(run: Run) -> None:
    done = run("yield instance(1, state='present'); yield instance(2)", "--new")

    assert [one["SOPInstanceUID"] for one in records(done.stdout) if one["type"] == "instance"] == ["1.2"]
    assert records(done.stdout)[-1]["counts"] == {"instance": 2}


def test_nothing_found_is_0_unless_told_otherwise(run: Run) -> None:
    assert run("return iter(())", settings="effects=False").returncode == 0
    assert run("return iter(())", settings="effects=False, fail_if_empty=True").returncode == 3
    assert run("yield instance(1)", settings="effects=False, fail_if_empty=True").returncode == 0


# Input


def test_failure_upstream_passes_through_and_makes_3_and_is_not_said_twice(run: Run) -> None:
    error = '{"type":"error","cause":"truncated","reason":"x","exit_code":65}\n'

    done = run("yield from frame.records()", stdin=error + '{"type":"instance"}\n')

    assert done.returncode == 3
    assert [one["type"] for one in records(done.stdout)] == ["event", "error", "instance", "event"]
    assert "dcmtools stage: x" not in done.stderr


def test_own_failure_keeps_its_code_behind_a_stream_that_was_well(run: Run) -> None:
    stdin = '{"type":"event","event":"begin"}\n{"type":"event","event":"end","exit_code":0}\n'

    assert run("yield from frame.records(); raise Unavailable('x')", stdin=stdin).returncode == 69
    assert run("yield from frame.records()", stdin=stdin).returncode == 0


def test_line_that_is_no_record_is_our_failure(run: Run) -> None:
    done = run("yield from frame.records()", stdin="{torn\n")

    assert done.returncode == 65
    assert "line 1 on stdin is not a record" in done.stderr


# Output


def test_reader_that_goes_ends_a_command_with_effects_with_75_once_its_object_is_done(
    start: Start, tmp_path: Path
) -> None:
    process = start(ENDLESS)
    process.stdout.readline()
    process.stdout.close()

    assert process.wait(30) == 75
    assert b"nobody reads our output any more" in process.stderr.read()
    assert (tmp_path / "done").exists()


def test_reader_that_goes_ends_a_pure_reader_quietly_with_0(start: Start) -> None:
    process = start("while True: yield instance(1)", settings="effects=False")
    process.stdout.readline()
    process.stdout.close()

    assert process.wait(30) == 0
    assert process.stderr.read() == b""


def test_reader_that_goes_is_noticed_while_there_is_nothing_to_write(start: Start) -> None:
    process = start("yield instance(1); frame.stop.wait(60)")
    process.stdout.close()

    assert process.wait(30) == 75


def test_reader_that_sleeps_holds_nothing_up_and_gets_everything(start: Start, tmp_path: Path) -> None:
    work = "for n in range(5000): yield instance(n, text='x' * 1000)\nPath('done').write_text('')"

    process = start(work)
    wait_until((tmp_path / "done").exists)  # all work was done, and nobody has read a byte of it
    assert process.poll() is None
    out, said = process.communicate(timeout=60)

    assert (process.returncode, said) == (0, b"")
    assert len(records(out.decode())) == 5002


def test_records_come_one_by_one(start: Start) -> None:
    process = start("yield instance(1)\nyield from frame.records()", "--fields", "type", settings="events=False")

    assert process.stdout.readline() == b'{"type":"instance"}\n'
    process.stdin.write(b'{"type":"volume"}\n')
    process.stdin.flush()
    assert process.stdout.readline() == b'{"type":"volume"}\n'
    process.stdin.close()
    assert process.wait(30) == 0


def test_stdout_on_a_full_disk_is_74(start: Start) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start("for n in range(100): yield instance(n)", stdout=full)

        assert process.wait(30) == 74
    assert b"No space left on device" in process.stderr.read()


def test_closed_stdout_is_no_reason_to_fail(start: Start) -> None:
    process = start("yield instance(1)", preexec_fn=lambda: os.close(1))

    assert process.wait(30) == 0
    assert process.stderr.read() == b""


def test_output_file_appears_whole_and_replaces_the_old_one(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("old")
    process = start(
        "yield instance(1)\nyield from frame.records()", "--output", "out.csv", "--format", "csv", "--fields=type"
    )

    wait_until(lambda: len(list(tmp_path.glob(".dcmtools-*"))) == 1)
    assert out.read_text() == "old"
    stdout, _ = process.communicate(b"")

    assert (process.returncode, stdout) == (0, b"")
    assert out.read_text() == "type\ninstance\n"
    assert out.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".dcmtools-*"))


@pytest.mark.parametrize(
    ("work", "kept"), [("raise Unavailable('x')", False), ("yield BadData('x').record(); yield instance(1)", True)]
)
def test_output_file_of_a_run_that_failed_does_not_replace_the_old_one(
    run: Run, tmp_path: Path, work: str, kept: bool
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old")

    run(work, "--output", "out.jsonl")

    assert (out.read_text() != "old") is kept
    assert not list(tmp_path.glob(".dcmtools-*"))


def test_output_file_in_a_folder_that_is_not_there_is_73(run: Run) -> None:
    done = run("yield instance(1)", "--output", "nowhere/out.jsonl")

    assert (done.returncode, done.stdout) == (73, "")
    assert "its folder is not there" in done.stderr


def test_name_that_is_not_utf8_in_a_reason_is_written_as_escape(run: Run) -> None:
    work = r"yield NoInput('/data/caf\udce9.dcm is not there', path='/data/caf\udce9.dcm').record()"

    done = run(work)
    as_json = run(work, "--log-format", "json")

    assert done.returncode == as_json.returncode == 66
    assert r"/data/caf\udce9.dcm is not there" in done.stderr
    assert records(done.stdout)[1]["reason"] == r"/data/caf\udce9.dcm is not there"
    assert all(records(as_json.stderr))


# Signals and time


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_finishes_the_object_in_hand(start: Start, tmp_path: Path, number: int, code: int) -> None:
    process = start(ENDLESS)
    process.stdout.readline()

    process.send_signal(number)
    out, said = process.communicate(timeout=30)

    assert process.returncode == code
    assert (tmp_path / "done").exists()
    assert records(out.decode())[-1]["exit_code"] == code
    assert b"run it again: it resumes" in said


def test_signal_ends_a_wait_for_input(start: Start) -> None:
    process = start("yield instance(0)\nyield from frame.records()")
    process.stdout.readline()

    process.send_signal(signal.SIGTERM)

    assert process.wait(30) == 143


def test_second_signal_ends_at_once(start: Start, tmp_path: Path) -> None:
    process = start(
        "yield instance(1)\nwhile not frame.stop(): time.sleep(0.01)\nPath('first').touch()\ntime.sleep(60)"
    )
    for _ in range(2):
        process.stdout.readline()

    process.send_signal(signal.SIGINT)
    wait_until((tmp_path / "first").exists)
    process.send_signal(signal.SIGTERM)

    assert process.wait(10) == 143


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGTERM, 0, b""), (signal.SIGINT, 130, b"stopped by")])
def test_command_that_drains_ends_with_0_and_in_silence_on_sigterm_alone(
    start: Start, number: int, code: int, said: bytes
) -> None:
    process = start(ENDLESS, settings="drains=True")
    process.stdout.readline()

    process.send_signal(number)
    _, talk = process.communicate(timeout=30)

    assert process.returncode == code
    assert (said in talk, bool(talk)) == (True, bool(said))


def test_what_was_refused_does_not_change_the_end_of_a_command_that_drains(start: Start) -> None:
    refused = "yield {'type': 'error', 'cause': 'truncated', 'reason': 'x', 'exit_code': 65}\n"
    process = start(refused + ENDLESS, settings="drains=True")
    process.stdout.readline()
    process.stdout.readline()

    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)

    assert process.returncode == 0


def test_deadline_ends_with_75_also_while_waiting_for_input(start: Start) -> None:
    process = start("yield from frame.records()", "--deadline", "0.2s")

    assert process.wait(30) == 75
    assert b"the deadline passed" in process.stderr.read()
    assert [one.get("cause") or one["event"] for one in records(process.stdout.read().decode())] == [
        "begin",
        "deadline",
        "end",
    ]


def test_deadline_passes_for_a_reader_that_never_reads(start: Start) -> None:
    process = start("for n in range(5000): yield instance(n, text='x' * 1000)", "--deadline", "1s")

    assert process.wait(30) == 75


def test_lock_is_held_by_one_run_and_free_after_kill_9(start: Start, run: Run) -> None:
    first = start("yield instance(1)\nyield from frame.records()", "--lock", "night/ly")
    first.stdout.readline()

    second = run("yield instance(1)", "--lock", "night/ly")
    other = run("yield instance(1)", "--lock", "other")
    first.kill()
    first.wait()
    third = run("yield instance(1)", "--lock", "night/ly")

    assert (second.returncode, other.returncode, third.returncode) == (75, 0, 0)
    assert f"process {first.pid}" in second.stderr
    assert records(second.stdout)[0]["cause"] == "locked"


# Terminals and settings


def on_terminal(start: Start, work: str, *words: str, settings: str = "", stderr_too: bool = True) -> str:
    """What a terminal shows of a command."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = start(work, *words, settings=settings, stdout=theirs, stderr=theirs if stderr_too else None)
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:  # how Linux tells that nobody has the other end any more
            break
        if not block:
            break
        shown += block
    assert process.wait(30) == 0
    os.close(ours)
    return shown.decode()


def test_terminal_gets_a_table_and_a_summary(start: Start) -> None:
    shown = on_terminal(start, "yield instance(1, PatientID='P1\\x1b[31m')", "--progress", "never")

    head, row, *rest = shown.splitlines()
    assert head.split()[:2] == ["state", "PatientID"]
    assert row.split()[:2] == ["received", "P1\\x1b[31m"]
    assert rest[-1].startswith("dcmtools stage: 1 instance (1 received) in ")


def test_terminal_gets_no_summary_when_it_is_to_be_quiet(start: Start) -> None:
    assert len(on_terminal(start, "yield instance(1)", "--quiet").splitlines()) == 2


def test_listing_of_many_is_left_out_on_a_terminal(start: Start) -> None:
    shown = on_terminal(start, "yield instance(1)", "--progress=never", settings="listing=False")
    asked = on_terminal(start, "yield instance(1)", "--progress=never", "--format=uids", settings="listing=False")

    assert len(shown.splitlines()) == 1
    assert asked.splitlines()[0] == "1.1"


def test_table_shows_rows_before_the_end(start: Start) -> None:
    ours, theirs = pty.openpty()
    process = start("yield instance(1)\nyield from frame.records()", "-q", stdout=theirs)

    shown = b""
    while b"1.1" not in shown and b"received" not in shown:
        shown += os.read(ours, 4096)

    process.stdin.close()
    assert process.wait(30) == 0
    for descriptor in (ours, theirs):
        os.close(descriptor)


def test_terminal_shows_progress_and_takes_it_away(start: Start) -> None:
    shown = on_terminal(start, "for n in range(3): yield instance(n)", settings="listing=False")

    assert "stage" in shown
    assert "[00:0" in shown  # the seconds that the bar shows
    assert shown.rstrip().splitlines()[-1].startswith("dcmtools stage: 3 instances")


def test_progress_without_a_terminal_is_shown_on_demand_only(run: Run) -> None:
    work = "for n in range(3): yield instance(n)"

    assert run(work).stderr == ""
    assert "[00:0" in run(work, "--progress", "always").stderr
    assert run(work, "--progress", "always", "-q").stderr == ""


def test_option_comes_before_environment_and_that_before_configuration(run: Run, environment: dict[str, str]) -> None:
    folder = Path(environment["XDG_CONFIG_HOME"]) / "dcmtools"
    folder.mkdir(parents=True)
    (folder / "config.ini").write_text("[defaults]\nformat = csv\njobs = 7\n")
    work = "yield {'jobs': frame.jobs}"

    configured = run(work, "--fields=jobs")
    by_environment = run(work, "--fields=jobs", env={"DCMTOOLS_FORMAT": "tsv", "DCMTOOLS_JOBS": "5"})
    by_option = run(
        work, "--fields=jobs", "--jobs=3", "--format=jsonl", env={"DCMTOOLS_JOBS": "5"}, settings="events=False"
    )

    assert configured.stdout == "jobs\n7\n"
    assert by_environment.stdout == "jobs\n5\n"
    assert by_option.stdout == '{"jobs":3}\n'


def test_archive_and_index_are_where_options_environment_and_defaults_say(
    run: Run, tmp_path: Path, environment: dict[str, str]
) -> None:
    work = "yield {'type': 'x', 'archive': str(frame.archive), 'index': str(frame.index_file)}"

    def places(*words: str, **env: str) -> list[str]:
        (record,) = records(run(work, *words, env=env, settings="events=False").stdout)
        return [record["archive"].replace(str(tmp_path), ""), record["index"].replace(str(tmp_path), "")]

    home = environment["HOME"].replace(str(tmp_path), "")
    default = f"{home}/.local/share/dcmtools/archive"
    assert places() == [default, f"{default}/index.jsonl"]
    assert places("--archive", "a") == ["/a", "/a/index.jsonl"]
    assert places(DCMTOOLS_ARCHIVE="b") == ["/b", "/b/index.jsonl"]
    assert places("--index", "x.jsonl", "--archive=a", DCMTOOLS_ARCHIVE="b") == ["/a", "/x.jsonl"]


@pytest.mark.parametrize(("effects", "resumes"), [(True, True), (False, False)])
def test_only_what_changes_something_is_said_to_resume(run: Run, *, effects: bool, resumes: bool) -> None:
    done = run(ENDLESS, "--deadline", "0.2s", settings=f"effects={effects}")

    assert done.returncode == 75
    assert "run it again" in done.stderr
    assert ("resumes" in done.stderr) is resumes
