"""A data set that is walked while it arrives, so that its file need not be read again (DESIGN §5.1)."""

from dcmtools.disk.dataset import UNKNOWN, Walk, encoding_of
from dcmtools.disk.outline import REACH, Outline, Outlines
from dcmtools.disk.values import Element, decoder_for
from dcmtools.model.errors import BadData
from dcmtools.model.keys import BY_TAG
from dcmtools.model.names import is_uid
from dcmtools.model.record import Record

_IDENTITY = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_CHARSET = 0x00080005
_GROUP_TWO = b"\2\0"

OutlinesBySyntax = dict[str, Outlines]


class Arriving:
    """One data set on its way. It keeps no more of it than the value of an attribute in which a fragment ends.

    What is wrong with it is told at the end, by `record`: until then every fragment is taken, for whoever writes them
    to a file keeps what may be the only copy. `outlines` are what earlier objects looked like, by transfer syntax.
    """

    def __init__(self, syntax: str, outlines: OutlinesBySyntax) -> None:
        self.size = 0
        self._syntax, self._encoding = syntax, encoding_of(syntax)
        self._outlines = outlines.get(syntax) or outlines.setdefault(syntax, Outlines(self._encoding))
        self._outline: Outline | None = None
        self._walk = Walk(0, UNKNOWN, self._encoding, BY_TAG, deep=True)
        self._first = self._held = bytearray()
        self._values: dict[int, Element] = {}
        self._problem: BadData | None = None

    def take(self, fragment: memoryview, *, last: bool = False) -> None:
        """Takes in the next fragment, which may be overwritten afterwards."""
        begins = not self.size
        self.size += len(fragment)
        if begins:
            self._begin(fragment, last=last)
        if self._outline or self._problem or self._encoding.deflated:
            return
        try:
            self._go_on(fragment)
        except BadData as problem:
            self._problem = problem

    @property
    def is_sure(self) -> bool:
        """Whether `record` can tell now that all has come; else its file must be walked."""
        return not self._encoding.deflated and (self._outline is None or self._outline.size == self.size)

    def record(self, sop_class: str, sop_instance: str) -> Record:
        """The index keys of a data set that has come.

        BadData when it does not end with an element (cause truncated, bad-length, too-deep), has no usable UIDs
        (bad-uid), or is another instance than the command said (mismatch; PS3.4 B.2.3).
        """
        found = self._values if self._outline else self._walked()
        decoder = decoder_for(found.get(_CHARSET, (b"", b""))[1], big=self._encoding.big)
        record: Record = {"type": "instance", **decoder.record(found), "TransferSyntaxUID": self._syntax}
        for keyword in _IDENTITY:
            if not is_uid(uid := record.get(keyword)):
                raise BadData(f"its {keyword} is {'missing' if not uid else 'no UID'}", cause="bad-uid")
        if (record.get("SOPClassUID"), record["SOPInstanceUID"]) != (sop_class, sop_instance):
            raise BadData("the data set is not the instance that the command named", cause="mismatch")
        return record

    def _begin(self, fragment: memoryview, *, last: bool) -> None:
        if fragment[:2] == _GROUP_TWO:  # it would read as more meta information ever after (PS3.10 7.1)
            self._problem = BadData("the data set begins with elements that belong before it", cause="bad-length")
        elif outline := self._outlines.fitting(fragment, self.size if last else None):
            self._outline, self._values = outline, outline.found(fragment)
        else:
            self._first = bytearray(fragment[:REACH])

    def _walked(self) -> dict[int, Element]:
        if self._problem:
            raise self._problem
        walk = self._walk
        walk.ends_at(self.size)
        walk.feed(self._held, self.size - len(self._held))
        if not walk.done:
            raise BadData("the data set ends within an element", cause="truncated")
        self._outlines.learn(bytes(self._first), self.size, BY_TAG)
        return walk.found

    def _go_on(self, fragment: memoryview) -> None:
        """Walks as far as this fragment goes; what is left of it is held until enough of the next has come."""
        walk, held = self._walk, self._held
        if not held:
            base = self.size - len(fragment)
            if walk.position >= self.size:  # in the middle of a long value
                return
            walk.feed(fragment, base)
            self._held = bytearray(fragment[max(0, walk.position - base) :])
            return
        held += fragment
        if len(held) >= walk.needed:
            base = self.size - len(held)
            walk.feed(held, base)
            del held[: walk.position - base]
