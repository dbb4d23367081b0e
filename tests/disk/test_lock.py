import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcmtools.disk.lock import Lock, holder
from dcmtools.model.errors import DcmtoolsError, Locked

HOLD = """
    import sys, time
    from pathlib import Path
    from dcmtools.disk.lock import Lock
    with Lock(Path(sys.argv[1]), "nightly job", port=11112):
        print("held", flush=True)
        sys.stdin.read()
"""

ASK = """
    import sys
    from pathlib import Path
    from dcmtools.disk.lock import holder
    print(flush=True)
    while True:
        holder(Path(sys.argv[1]))
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds tmp_path/x.lock until its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), tmp_path / "x.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_second_holder_is_told_who_has_it(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with pytest.raises(Locked) as caught, Lock(tmp_path / "x.lock", "mine"):
        pass

    assert caught.value.exit_code == 75
    assert f"process {other.pid} (nightly job)" in caught.value.reason
    note = holder(tmp_path / "x.lock")
    assert note is not None
    assert note["pid"] == other.pid
    assert note["port"] == 11112


def test_lock_of_a_killed_process_is_free(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()

    assert holder(tmp_path / "x.lock") is None
    with Lock(tmp_path / "x.lock", "mine"):
        note = holder(tmp_path / "x.lock")
        assert note is not None
        assert note["pid"] == os.getpid()


def test_lock_can_be_waited_for(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    assert other.stdin
    began = time.monotonic()
    other.stdin.close()

    with Lock(tmp_path / "x.lock", "mine", wait=20):
        assert time.monotonic() - began < 20


def test_released_lock_has_no_holder_and_keeps_its_file(tmp_path: Path) -> None:
    with Lock(tmp_path / "x.lock", "mine"):
        pass

    assert holder(tmp_path / "x.lock") is None
    assert (tmp_path / "x.lock").read_bytes() == b""
    assert (tmp_path / "x.lock").stat().st_mode & 0o777 == 0o600


def test_lock_that_was_never_taken_has_no_holder(tmp_path: Path) -> None:
    assert holder(tmp_path / "x.lock") is None
    assert not (tmp_path / "x.lock").exists()


def test_two_locks_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    with Lock(tmp_path / "x.lock", "first"), pytest.raises(Locked, match="first"):
        Lock(tmp_path / "x.lock", "second").acquire()


def test_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path) -> None:
    with Lock(tmp_path / "x.lock", "first"):
        (tmp_path / "x.lock").unlink()
        with Lock(tmp_path / "x.lock", "second"):
            note = holder(tmp_path / "x.lock")

    assert note is not None
    assert note["purpose"] == "second"


def test_lock_is_not_opened_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "x.lock").symlink_to("target")

    with pytest.raises(DcmtoolsError, match=r"x\.lock"):
        Lock(tmp_path / "x.lock", "mine").acquire()

    assert (tmp_path / "target").read_text() == "precious"


def test_holder_that_asks_all_the_time_keeps_nobody_out(tmp_path: Path) -> None:
    with Lock(tmp_path / "x.lock", "mine"):
        pass
    ask = [sys.executable, "-c", textwrap.dedent(ASK), str(tmp_path / "x.lock")]
    with subprocess.Popen(ask, stdout=subprocess.PIPE) as asker:
        assert asker.stdout
        asker.stdout.readline()
        for _ in range(200):
            with Lock(tmp_path / "x.lock", "mine"):
                pass
        asker.kill()
