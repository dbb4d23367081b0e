import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import gettempdir

import pytest
from pydicom import dcmread

from dcmtools.disk.index import Index
from dcmtools.model.record import Record
from dcmtools.model.uids import IMPLICIT_VR_LITTLE_ENDIAN
from tests.builders import uid, write_instance, write_series
from tests.conftest import RunDcmtools, StartDcmtools
from tests.network.storing import answering
from tests.peers.processes import StartDcmqrscp, StartOrthanc, StartStorescp
from tests.waiting import wait_until


def records(text: str) -> list[Record]:
    return [json.loads(line) for line in text.splitlines()]


def test_paths_are_sent_and_the_stream_is_framed(
    dcmtools: RunDcmtools, storescp: StartStorescp, tmp_path: Path
) -> None:
    peer = storescp()
    write_series(tmp_path / "in", 3)
    (tmp_path / "in" / "README.txt").write_text("below a folder this is passed over " * 10)

    done = dcmtools("store", "in", "--to", peer.node)

    begin, *sent, end = records(done.stdout)
    assert done.returncode == 0, done.stderr
    assert (begin["event"], end["event"], end["exit_code"]) == ("begin", "end", 0)
    assert [one["state"] for one in sent] == ["sent"] * 3
    assert end["counts"] == {"instance": 3}
    assert len(list(peer.folder.iterdir())) == 3
    assert done.stderr == ""


def test_bad_files_that_are_named_end_with_3_and_the_others_are_sent(
    dcmtools: RunDcmtools, storescp: StartStorescp, tmp_path: Path
) -> None:
    peer = storescp()
    write_series(tmp_path / "in", 2)
    (tmp_path / "notes.txt").write_text("no DICOM " * 30)
    cut = tmp_path / "in" / "cut.dcm"
    cut.write_bytes(write_instance(tmp_path / "x.dcm", 2).read_bytes()[:-9])

    done = dcmtools("store", "in", "notes.txt", "gone.dcm", "--to", peer.node)

    assert done.returncode == 3
    found = [one for one in records(done.stdout) if one["type"] != "event"]
    assert sorted(str(one.get("cause") or one["state"]) for one in found) == [
        "missing", "not-dicom", "sent", "sent", "truncated",
    ]  # fmt: skip
    assert len(list(peer.folder.iterdir())) == 2
    assert "cut.dcm" in done.stderr
    assert "notes.txt" in done.stderr


def test_records_of_every_level_are_sent_from_the_index(
    dcmtools: RunDcmtools, storescp: StartStorescp, tmp_path: Path
) -> None:
    peer = storescp()
    for study in (1, 2):
        write_series(tmp_path / "in", 2, 1, study)
    assert dcmtools("import", "in", "--archive", "archive").returncode == 0
    found = dcmtools("find", "--date", "2024-01-01", "--archive", "archive")

    done = dcmtools("store", "-", "--to", peer.node, "--archive", "archive", stdin=found.stdout)
    everything = dcmtools("store", "--all", "--to", peer.node, "--archive", "archive")
    chosen = dcmtools("store", "--study-uid", uid(1, 2), "--to", peer.node, "--archive", "archive", "--format", "uids")

    assert [done.returncode, everything.returncode, chosen.returncode] == [0, 0, 0]
    sent = [one for one in records(done.stdout) if one["type"] == "instance"]
    assert {one["SOPInstanceUID"] for one in sent} == {uid(1, 1, 1, 1), uid(1, 1, 1, 2)}
    assert sent[0]["PatientID"] == "P1"
    assert len([one for one in records(everything.stdout) if one.get("state") == "sent"]) == 4
    assert sorted(chosen.stdout.split()) == [uid(1, 2, 1, 1), uid(1, 2, 1, 2)]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--to", "NOBODY@127.0.0.1:1", "in"], 69, "cannot reach NOBODY@127.0.0.1:1"),
        (["--to", "UNKNOWN", "in"], 78, "UNKNOWN"),
        (["--to", "X@127.0.0.1:1"], 2, "nothing was chosen"),
        (["--to", "X@127.0.0.1:1", "in", "--modality", "MR"], 2, "selectors do not choose from what is given"),
        (["in"], 2, "--to"),
    ],
)
def test_what_cannot_begin_says_why(
    dcmtools: RunDcmtools, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    write_series(tmp_path / "in", 2)

    done = dcmtools("store", *words)

    assert done.returncode == code
    assert said in done.stderr
    assert records(done.stdout)[-1].get("exit_code") == code


def test_an_ae_title_that_the_node_does_not_know_ends_with_77(
    dcmtools: RunDcmtools, dcmqrscp: StartDcmqrscp, tmp_path: Path
) -> None:
    peer = dcmqrscp()
    write_series(tmp_path / "in", 2)

    done = dcmtools("store", "in", "--to", f"WRONG@127.0.0.1:{peer.port}")

    assert done.returncode == 77
    assert "called AE title 'WRONG' not recognized" in done.stderr


def test_a_dry_run_tells_the_plan_and_sends_nothing(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    write_series(tmp_path / "in", 2)

    done = dcmtools("store", "in", "--to", "X@127.0.0.1:1", "--dry-run")

    assert done.returncode == 0
    assert [one.get("state") for one in records(done.stdout)][1:-1] == ["planned"] * 2


def test_everything_refused_ends_with_the_code_of_the_cause(
    dcmtools: RunDcmtools, storescp: StartStorescp, tmp_path: Path
) -> None:
    peer = storescp()
    write_series(tmp_path / "in", 2, SOPClassUID=uid(3))

    done = dcmtools("store", "in", "--to", peer.node)

    assert done.returncode == 69
    assert "does not take" in done.stderr


def test_sigterm_ends_it_with_143_and_it_has_told_of_all_that_was_sent(
    start_dcmtools: StartDcmtools, storescp: StartStorescp, tmp_path: Path
) -> None:
    peer = storescp()
    write_series(tmp_path / "in", 300, side=2)

    process = start_dcmtools("store", "in", "--to", peer.node)
    wait_until(lambda: len(list(peer.folder.iterdir())) > 5)
    os.kill(process.pid, signal.SIGTERM)
    assert process.stdout
    told = records(process.stdout.read())

    assert process.wait(30) == 143
    sent = [one for one in told if one.get("state") == "sent"]
    assert len(sent) == len(list(peer.folder.iterdir()))
    assert told[-1]["exit_code"] == 143


def test_what_was_sent_from_a_pipe_is_sent_while_the_producer_still_thinks(
    start_dcmtools: StartDcmtools, storescp: StartStorescp, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    peer = storescp()
    one, two = write_series(tmp_path / "in", 2)
    process = start_dcmtools("store", "-", "--to", peer.node, stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout

    process.stdin.write(f"{one}\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["event"] == "begin"
    assert json.loads(process.stdout.readline())["state"] == "sent"
    process.stdin.write(json.dumps({"path": str(two)}) + "\n")
    process.stdin.close()
    process.stdin = None

    assert json.loads(process.stdout.readline())["state"] == "sent"
    assert process.wait(30) == 0


def test_help_loads_neither_pydicom_nor_numpy(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    code = "import sys; sys.argv=['dcmtools','store','--help']\ntry:\n import dcmtools.cli.main as m; m.main()\n"
    code += "except SystemExit: pass\nprint(sorted({'numpy','pydicom','pynetdicom','rich'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.rstrip().endswith("[]")


def test_the_index_is_not_needed_for_paths(dcmtools: RunDcmtools, storescp: StartStorescp, tmp_path: Path) -> None:
    peer = storescp()
    (path,) = write_series(tmp_path / "in", 1)

    assert dcmtools("store", path, "--to", peer.node, "--archive", "nowhere").returncode == 0

    assert not (tmp_path / "nowhere").exists()
    assert not Index(tmp_path / "nowhere" / "index.jsonl").lookup([uid(1, 1, 1, 1)])


@pytest.mark.parametrize("words", [["--limit", "1"], ["--sort", "StudyDate"], ["--level", "series"]])
def test_what_would_be_ignored_beside_paths_sends_nothing(
    dcmtools: RunDcmtools, tmp_path: Path, words: list[str]
) -> None:
    write_series(tmp_path / "in", 2)

    for given in ("in", "-"):
        assert dcmtools("store", given, "--to", "A@127.0.0.1:9", *words).returncode == 2


def test_a_dead_node_is_said_once_and_every_instance_gets_its_record(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    write_series(tmp_path / "in", 40, side=2)

    done = dcmtools("store", "in", "--to", "GONE@127.0.0.1:1", "--jobs", "3")

    failed = [one for one in records(done.stdout) if one.get("state") == "failed"]
    assert done.returncode == 69
    assert len({one["SOPInstanceUID"] for one in failed}) == len(failed) == 40
    assert {one["exit_code"] for one in failed} == {69}
    first, rest, summary = done.stderr.splitlines()
    assert "cannot reach GONE@127.0.0.1:1" in first
    assert "39 more failed in the same way: cannot reach GONE@127.0.0.1:1" in rest
    assert "40 instances (40 failed), 40 failures" in summary


def test_retries_say_how_often_a_busy_node_is_asked_again(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    write_series(tmp_path / "in", 1, side=2)

    with answering(lambda *_: 0xA700) as (acceptor, came):
        done = dcmtools("store", "in", "--to", f"PEER@127.0.0.1:{acceptor.port}", "--retries", "1")

    (failed,) = [one for one in records(done.stdout) if one.get("state") == "failed"]
    assert done.returncode == 75
    assert failed["tries"] == len(came) == 2
    assert "A700 (Failure: Refused: Out of Resources)" in failed["reason"]


def only_implicit(_abstract: str, syntaxes: tuple[str, ...]) -> str:
    return IMPLICIT_VR_LITTLE_ENDIAN if IMPLICIT_VR_LITTLE_ENDIAN in syntaxes else ""


def test_a_syntax_that_the_node_does_not_take_is_transcoded_unless_forbidden(
    dcmtools: RunDcmtools, tmp_path: Path
) -> None:
    paths = write_series(tmp_path / "in", 3)
    before = [path.read_bytes() for path in paths]

    with answering(lambda *_: 0, choose=only_implicit) as (acceptor, came):
        to = ("--to", f"PEER@127.0.0.1:{acceptor.port}")
        done = dcmtools("store", "in", *to)
        never = dcmtools("store", "in", *to, "--transcode", "never")

    sent = [one for one in records(done.stdout) if one.get("state") == "sent"]
    assert [done.returncode, never.returncode] == [0, 69]
    assert [one["sent_as"] for one in sent] == [{"TransferSyntaxUID": IMPLICIT_VR_LITTLE_ENDIAN}] * 3
    assert {one["TransferSyntaxUID"] for one in sent} == {"1.2.840.10008.1.2.1"}
    assert len(came) == 3
    assert "does not take MR Image Storage as Explicit VR Little Endian, but as Implicit" in never.stderr
    for (instance, data), path in zip(came, paths, strict=True):
        arrived = dcmread(BytesIO(data), force=True)
        assert arrived.SOPInstanceUID == instance
        assert arrived.PixelData == dcmread(path).PixelData
    assert [path.read_bytes() for path in paths] == before
    assert not list(Path(gettempdir()).glob(".dcmtools-*.dcm"))


def test_fixtures_leave_with_their_own_values_and_uids(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in", 2)
    before = [path.read_bytes() for path in paths]

    with answering(lambda *_: 0) as (acceptor, came):
        to = ("--to", f"PEER@127.0.0.1:{acceptor.port}")
        done = dcmtools("store", "in", *to, "--set", "PatientID=TEST", "--set", "PatientName=A^B", "--new-uids")
        wrong = dcmtools("store", "in", *to, "--set", "Nothing=1")

    sent = [one for one in records(done.stdout) if one.get("state") == "sent"]
    arrived = [dcmread(BytesIO(data), force=True) for _, data in came]
    assert [done.returncode, wrong.returncode, len(came)] == [0, 2, 2]
    assert {one.PatientID for one in arrived} == {"TEST"}
    assert len({one.StudyInstanceUID for one in arrived} - {uid(1, 1)}) == 1
    assert [one["sent_as"]["SOPInstanceUID"] for one in sent] == [one.SOPInstanceUID for one in arrived]
    assert [one["SOPInstanceUID"] for one in sent] == [uid(1, 1, 1, 1), uid(1, 1, 1, 2)]
    assert [path.read_bytes() for path in paths] == before


def test_what_the_node_has_is_skipped_and_all_of_it_is_committed(
    dcmtools: RunDcmtools, orthanc: StartOrthanc, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = free_port()
    peer = orthanc({"US": port})
    (tmp_path / "config.ini").write_text(f"[local]\nae_title = US\nport = {port}\n")
    write_series(tmp_path / "in", 3)
    words = ("store", "in", "--to", peer.node, "--config", "config.ini", "--skip-present", "--commit")

    first, second = dcmtools(*words), dcmtools(*words)
    both = dcmtools(*words, "--new-uids")

    told = [
        [(one["state"], one["committed"]) for one in records(done.stdout) if "state" in one] for done in (first, second)
    ]
    assert [first.returncode, second.returncode, both.returncode] == [0, 0, 2]
    assert told == [[("sent", True)] * 3, [("skipped", True)] * 3]
    assert peer.instances() == 3


def test_the_second_stack_sends_and_finds_and_echoes_as_the_first_does(
    dcmtools: RunDcmtools, orthanc: StartOrthanc, tmp_path: Path
) -> None:
    peer = orthanc()
    write_series(tmp_path / "in", 2)
    other = ("--stack", "pynetdicom")

    echoed = dcmtools("echo", peer.node, *other)
    sent = dcmtools("store", "in", "--to", peer.node, *other)
    found = [dcmtools("find", "--node", peer.node, *stack) for stack in ((), other)]

    assert [echoed.returncode, sent.returncode, *(one.returncode for one in found)] == [0] * 4
    assert records(echoed.stdout)[0]["stack"] == "pynetdicom"
    assert [one["state"] for one in records(sent.stdout) if "state" in one] == ["sent"] * 2
    assert found[0].stdout == found[1].stdout != ""
    assert [echoed.stderr, sent.stderr, found[1].stderr] == [""] * 3
