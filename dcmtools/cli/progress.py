"""A bar on stderr while a command works: on a terminal only, and redrawn at most ten times a second."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from dcmtools.cli.talk import on_terminal

if TYPE_CHECKING:
    from tqdm import tqdm  # type: ignore[import-untyped]  # it comes without types

_SECONDS = 0.1


class Progress:
    """How far a command is. Nothing is loaded or drawn where nobody looks."""

    def __init__(self, command: str, when: Literal["auto", "always", "never"], *, quiet: bool) -> None:
        self._wanted = not quiet and (when == "always" or (when == "auto" and on_terminal()))
        self._command = command
        self._bar: tqdm | None = None

    def step(self, count: int = 1) -> None:
        """Tells that so many more items are done."""
        if self._wanted and (bar := self._drawn()) is not None:
            bar.update(count)

    def around(self, write: Callable[[str], None]) -> Callable[[str], None]:
        """The same way of writing a line, with the bar taken off the screen meanwhile."""

        def write_above(line: str) -> None:
            if self._bar is None:
                write(line)
                return
            with self._bar.external_write_mode(file=sys.stderr):
                write(line)

        return write_above

    def close(self) -> None:
        """Takes the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _drawn(self) -> "tqdm | None":
        if self._wanted and self._bar is None:
            from tqdm import tqdm

            tqdm.monitor_interval = 0  # its thread would only redraw a bar that stands still
            self._bar = tqdm(desc=self._command, unit="", mininterval=_SECONDS, file=sys.stderr, leave=False)
        return self._bar
