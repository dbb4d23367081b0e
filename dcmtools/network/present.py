"""Which instances a node has already, as it says itself: asked once for each series (PS3.4 C.4.1)."""

from functools import lru_cache

from dcmtools.disk.header import read_header
from dcmtools.model.errors import BadData
from dcmtools.model.node import Local, Node
from dcmtools.model.record import type_of
from dcmtools.network.levels import Levels
from dcmtools.network.parcel import Item
from dcmtools.network.response import Stop, never

_SERIES_IN_MIND = 64
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID")


class Present:
    """Tells of one instance after the other whether the node has it; for one thread.

    Raises what a query raises: Unavailable when the node does not answer queries.
    """

    def __init__(self, node: Node, local: Local, stop: Stop = never) -> None:
        self.node, self._local, self._stop = node, local, stop
        self._of_series = lru_cache(_SERIES_IN_MIND)(self._ask)

    def __call__(self, item: Item) -> bool:
        """Whether the node lists the instance in its series."""
        record = item.record
        if not all(record.get(key) for key in _UIDS):
            try:
                record = read_header(item.path, follow=True)
            except BadData:  # for the node to judge
                return False
        return item.meta.sop_instance in self._of_series(*(str(record[key]) for key in _UIDS))

    def _ask(self, study: str, series: str) -> frozenset[str]:
        keys = dict(zip(_UIDS, (study, series), strict=True))
        with Levels(self.node, self._local, self._stop) as levels:
            answers = list(levels.level("instance", keys))
        return frozenset(str(one.get("SOPInstanceUID")) for one in answers if type_of(one) != "error")
