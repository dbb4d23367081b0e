"""Waiting for what will happen, instead of sleeping and hoping."""

import time
from collections.abc import Callable
from pathlib import Path

LISTEN = "0A"  # the kernel's word in /proc/net/tcp


def wait_until(predicate: Callable[[], object], timeout: float = 20.0, what: str = "") -> None:
    """Returns as soon as the predicate is true; AssertionError when that takes longer than `timeout` seconds."""
    end = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s: {what or predicate}")
        time.sleep(0.02)


def is_listening(port: int) -> bool:
    """Whether some program listens on the TCP port; asked of the kernel, as a connection would disturb it."""
    return any(_listens(Path("/proc/net") / family, port) for family in ("tcp", "tcp6"))


def _listens(table: Path, port: int) -> bool:
    rows = [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []
    return any(row[3] == LISTEN and int(row[1].rpartition(":")[2], 16) == port for row in rows)
