"""Engines run in processes of their own, within limits."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcmtools.images.engine import Limits, make_engine, memory_limit, run_child
from dcmtools.images.staging import Staged, staged
from dcmtools.model.errors import BadData, ConfigurationError, DcmtoolsError, DiskFull, TryLater
from tests.waiting import wait_until


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Staged]:
    with staged(tmp_path, []) as folder:
        yield folder


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_what_a_child_says_and_how_it_ends_is_told(here: Staged) -> None:
    end = run_child(python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"), here, Limits())

    assert end.code == 7
    assert set(end.text.split()) == {"out", "err"}


@pytest.mark.parametrize(
    ("code", "kind", "cause"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", BadData, "engine-crashed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", TryLater, "time-limit"),
        ("import os, signal; signal.signal(25, signal.SIG_DFL); os.kill(os.getpid(), 25)", DiskFull, "disk-full"),
    ],
)
def test_a_child_that_is_killed_has_a_cause(here: Staged, code: str, kind: type[DcmtoolsError], cause: str) -> None:
    with pytest.raises(kind) as problem:
        run_child(python(code), here, Limits())

    assert problem.value.cause == cause


def test_a_child_that_takes_too_long_is_ended_with_its_children(here: Staged) -> None:
    mark = here.folder / "pid"

    with pytest.raises(TryLater) as problem:
        run_child(["sh", "-c", f"sleep 100 & echo $! >'{mark}'; wait"], here, Limits(seconds=2))

    assert problem.value.cause == "time-limit"
    wait_until(lambda: _is_dead(mark.read_text().strip()))


def _is_dead(pid: str) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().split()[2] == "Z"


def test_a_child_cannot_take_more_memory_than_it_may(here: Staged) -> None:
    code = "import time; time.sleep(0.2); b = bytearray(1 << 30)"

    end = run_child(python(code), here, Limits(memory=400 << 20))

    assert "MemoryError" in end.text


def test_a_child_sees_nothing_of_the_users_settings(here: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")

    end = run_child(python("import os; print(os.environ.get('SECRET'), os.environ['HOME'])"), here, Limits())

    assert end.text.split() == ["None", str(here.folder)]


def test_memory_grows_with_the_pixels_up_to_what_the_machine_has() -> None:
    assert memory_limit(0, Limits()) == 4 << 30
    assert memory_limit(1 << 50, Limits()) < 1 << 50
    assert memory_limit(1 << 40, Limits(memory=5)) == 5


def test_an_engine_that_does_not_exist_ends_with_78() -> None:
    with pytest.raises(ConfigurationError, match="there is no engine 'spm'"):
        make_engine("spm")
