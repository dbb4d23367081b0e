"""A real cluster of two workers on this machine."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcmtools.disk.cluster import cluster
from dcmtools.model.errors import Unavailable, UsageError
from tests.builders import write_series
from tests.cli.conftest import records
from tests.conftest import RunDcmtools
from tests.waiting import wait_until

pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("cluster")
    log = folder / "log"
    quiet = {**os.environ, "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__STATUS": "0"}
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-nanny", "--no-dashboard", "--nthreads", "1"]
    with log.open("wb") as out:
        running = [subprocess.Popen([*scheduler, "--no-dashboard"], stdout=out, stderr=out, cwd=folder, env=quiet)]
        try:
            wait_until(lambda: re.search(r"Scheduler at: +(tcp:\S+)", log.read_text()), 60, "a scheduler")
            found = re.search(r"Scheduler at: +(tcp:\S+)", log.read_text())
            assert found
            running += [
                subprocess.Popen([*worker, found[1]], stdout=out, stderr=out, cwd=folder, env=quiet) for _ in range(2)
            ]
            wait_until(lambda: len(re.findall("Registered to", log.read_text())) >= 2, 60, "two workers")
            yield found[1]
        finally:
            for process in running:
                process.kill()
                process.wait()


def test_headers_are_read_on_the_workers_and_come_in_order(dcmtools: RunDcmtools, tmp_path: Path, address: str) -> None:
    write_series(tmp_path / "data", 600)
    (tmp_path / "data" / "notes.txt").write_text("no DICOM")

    done = dcmtools("index", "data", "--index", "far.jsonl", "--cluster", address)
    here = dcmtools("index", "data", "--index", "near.jsonl")

    assert done.returncode == 3
    assert records(done.stdout) == records(here.stdout)
    assert (tmp_path / "far.jsonl").read_bytes() == (tmp_path / "near.jsonl").read_bytes()
    assert "Traceback" not in done.stderr
    assert len(records(done.stdout, "instance")) == 600


def test_address_that_nobody_has_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcmtools.disk.cluster._PATIENCE", 0.2)

    with pytest.raises(Unavailable, match="no scheduler answers"), cluster("tcp://127.0.0.1:9"):
        pass
    with pytest.raises(UsageError, match="is no address"), cluster("localhost"):
        pass
