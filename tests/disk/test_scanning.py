import os
import signal
from functools import partial
from pathlib import Path

import pytest

from dcmtools.disk import scanning
from dcmtools.disk.header import read_header
from dcmtools.disk.parallel import in_processes
from dcmtools.disk.scanning import headers_of, scan
from dcmtools.model.record import Record
from tests.builders import write_instance


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return [str(write_instance(tmp_path / f"{number:02}.dcm", number)) for number in range(1, 13)]


def test_records_stand_beside_their_chunk(files: list[str]) -> None:
    chunks = [(files[at : at + 4], at) for at in (0, 4, 8)]

    assert list(scan(chunks)) == [(at, headers_of(some)) for some, at in chunks]
    assert list(scan(chunks, partial(in_processes, 2))) == list(scan(chunks))


def test_only_the_file_that_kills_its_reader_has_no_record(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def deadly(path: str, *, follow: bool) -> Record:
        if path == files[6]:
            os.kill(os.getpid(), signal.SIGKILL)
        return read_header(path, follow=follow)

    monkeypatch.setattr(scanning, "read_header", deadly)
    records = [one for _, some in scan([(files[:4], 0), (files[4:], 1)], partial(in_processes, 2)) for one in some]

    lost = records.pop(6)
    assert (lost["type"], lost["cause"], lost["path"]) == ("error", "unreadable", files[6])
    assert [record["path"] for record in records] == [path for path in files if path != files[6]]
