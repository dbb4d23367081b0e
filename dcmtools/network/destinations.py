"""The nodes to which C-MOVE may send, as the files have them now."""

from collections.abc import Callable
from pathlib import Path

from dcmtools.disk.registry import load_registry
from dcmtools.model.errors import DcmtoolsError
from dcmtools.model.node import Node


class Destinations:
    """The nodes of the INI files, read again once they are outdated; where they cannot be read they stay as they were.

    ConfigurationError when they cannot be read the first time.
    """

    def __init__(self, nodes_file: Path | None, notice: Callable[[DcmtoolsError], None]) -> None:
        self._nodes_file, self._notice = nodes_file, notice
        self._registry, self._is_outdated = load_registry(nodes_file), False

    def outdate(self) -> None:
        """Has the files read again when a node is asked for next; for a signal handler."""
        self._is_outdated = True

    def by_ae_title(self, title: str) -> Node | None:
        """The node with this AE title."""
        if self._is_outdated:
            self._is_outdated = False
            try:
                self._registry = load_registry(self._nodes_file)
            except DcmtoolsError as problem:
                reason = f"the nodes stay as they were: {problem.reason}"
                self._notice(type(problem)(reason, problem.advice, cause=problem.cause))
        return self._registry.by_ae_title(title)
