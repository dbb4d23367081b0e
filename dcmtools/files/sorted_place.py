"""What is to be done for one file at its place in the tree, told by looking."""

import os
import stat
from dataclasses import dataclass
from typing import Literal

from dcmtools.files import placing
from dcmtools.files.held_study import Item
from dcmtools.files.placing import How
from dcmtools.files.sorted_ledger import Placed

# Place a new file, leave it, leave it and note it in the ledger, replace our own older one.
Action = Literal["new", "present", "adopt", "update"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One file to place: whence the ledger has it, and where its bytes are now."""

    origin: str
    actual: str
    how: How
    item: Item
    before: Placed | None = None  # when the bytes are at its earlier place in the tree


def look(piece: Piece, path: str, known: Placed | None, *, moving: bool) -> Action | None:
    """What is to be done at a path of which the ledger knows this; None when another file is there, which stays."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return "new"
    if not os.path.lexists(piece.actual):
        return "new"  # and fails there: a file that is missing has nothing to do with what is in its place
    if stat.S_ISLNK(there.st_mode):
        return _look_at_link(piece, path, known, moving=moving)
    return _look_at_file(piece, path, there, known, moving=moving)


def same_bytes(source: str, target: str) -> bool:
    """Whether both are there and have the same bytes."""
    try:
        return placing.is_same(source, target)
    except FileNotFoundError:
        return False


def _look_at_link(piece: Piece, path: str, known: Placed | None, *, moving: bool) -> Action | None:
    leads = os.readlink(path)
    if moving and leads == piece.origin:
        return "update"  # or it would lead nowhere afterwards
    if leads == piece.origin or same_bytes(piece.actual, path):
        return "present" if known else "adopt"
    return "update" if known and known.source == leads and not os.path.lexists(leads) else None


def _look_at_file(
    piece: Piece, path: str, there: os.stat_result, known: Placed | None, *, moving: bool
) -> Action | None:
    if known is None:
        return "adopt" if same_bytes(piece.actual, path) else None
    ours = known.source == piece.origin
    unchanged = ours and (piece.before is not None or known.is_from(os.stat(piece.actual)))
    # Before a source is removed, each byte is compared.
    if unchanged and known.is_at(there) and not moving:
        return "present"
    orphaned = not ours and not os.path.lexists(known.source)
    if same_bytes(piece.actual, path):
        return "adopt" if orphaned or (ours and not unchanged) else "present"
    return "update" if known.is_at(there) and (ours or orphaned) else None
