"""Runs of elements as they were met before: the files of a series differ in a few lengths only, and repeat the rest.

Where a run begins with the same tag, VR and length as one that is known, all heads of the run are compared at once, and
its elements need not be read one after the other. That is eight comparisons instead of 147 steps in a Philips fMRI
file. A run that does not go on as before is cut where it differs, so that it ends at what varies.
"""

from collections.abc import Container
from struct import Struct
from typing import NamedTuple

from dcmtools.disk.inflated import Buffer

# The bounds of what is remembered, whatever files say.
_MAX_RUNS = 512
_MAX_ELEMENTS = 256
# Values are passed over to reach the next head, so that a run must not be longer than the windows are.
_MAX_BYTES = 8 * 1024

# An element: its tag, its VR, the bytes of its head, and the length of its value.
Head = tuple[int, bytes, bytes, int]


class Run(NamedTuple):
    """A row of elements; offsets are counted from its begin."""

    first: int
    last: int
    size: int
    heads: Struct
    expected: tuple[bytes, ...]
    wanted: tuple[tuple[int, bytes, int, int], ...]
    elements: tuple[Head, ...]


class Runs:
    """The runs that are known, by the head of their first element, which has a length of 16 bits."""

    def __init__(self, wanted: Container[int]) -> None:
        self.known: dict[bytes, Run] = {}
        self._wanted = wanted

    def learn(self, elements: list[Head]) -> None:
        """Remembers elements that stood one behind the other, in ascending order."""
        kept, size = 0, 0
        for _, _, head, length in elements[:_MAX_ELEMENTS]:
            size += len(head) + length
            if size > _MAX_BYTES:
                break
            kept += 1
        if kept:
            self._keep(tuple(elements[:kept]))

    def cut(self, run: Run, data: Buffer, position: int) -> None:
        """Makes a run end where these data differ from it; they begin with its first head."""
        found = run.heads.unpack_from(data, position)
        self._keep(run.elements[: next(n for n, head in enumerate(run.expected) if head != found[n])])

    def _keep(self, elements: tuple[Head, ...]) -> None:
        if len(self.known) >= _MAX_RUNS:
            self.known.clear()
        form, wanted, at = ["<"], [], 0
        for tag, vr, head, length in elements:
            form.append(f"{len(head)}s{length}x")
            start = at + len(head)
            at = start + length
            if tag in self._wanted:
                wanted.append((tag, vr, start, at))
        heads = tuple(head for _, _, head, _ in elements)
        first, last = elements[0][0], elements[-1][0]
        self.known[heads[0]] = Run(first, last, at, Struct("".join(form)), heads, tuple(wanted), elements)
