"""What the tests of commands share: a few phantoms, an archive that has them, and reading of records."""

import datetime as dt
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dcmtools.disk.archive import Archive
from dcmtools.files.import_ import import_paths
from dcmtools.images.phantom import make

Record = dict[str, Any]
DAY = dt.date(2024, 1, 31)


def records(text: str, *kinds: str) -> list[Record]:
    """The records in the text; of these types only, where some are named."""
    found = [json.loads(line) for line in text.splitlines()]
    return [one for one in found if not kinds or one.get("type", "instance") in kinds]


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the studies of three people: an MR series and a report each, 75 instances; nobody writes to it."""
    folder = tmp_path_factory.mktemp("phantoms")
    list(make(folder, patients=3, date=DAY, kinds=("mr", "sr"), stop=lambda: False))
    return folder


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """An archive that has the phantoms; nobody writes to it."""
    folder = tmp_path_factory.mktemp("filled")
    list(import_paths([phantoms], Archive(folder)))
    return folder


@pytest.fixture
def archive(tmp_path: Path, filled: Path) -> Path:
    """A copy of that archive for one test."""
    return Path(shutil.copytree(filled, tmp_path / "archive"))
