"""What became of everything: counted record by record, it gives the exit code and the summary (DESIGN §6)."""

from collections import Counter

from dcmtools.model.errors import DcmtoolsError, IOFailure
from dcmtools.model.record import Record, type_of

PARTLY = 3
_IO, _DEFECT = IOFailure.exit_code, DcmtoolsError.exit_code
# A suspect volume is there, and an instance in conflict is kept, but somebody has to look at them: not all went right.
FAILED = frozenset({"failed", "refused", "suspect", "conflict"})
# Nothing had to be done for these; --new leaves them out.
UNCHANGED = frozenset({"present", "unchanged", "skipped"})
_PLURALS = {"patient": "patients", "study": "studies", "series": "series"}


class Tally:
    """Counts of what succeeded and failed, and the exit code that follows."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.upstream_failed = False
        self._codes: list[int] = []  # those that outrank others, and the last one

    @property
    def items(self) -> int:
        """How many data records there were."""
        return self.counts.total()

    @property
    def failed(self) -> bool:
        """Whether anything went wrong here."""
        return bool(self._codes)

    def add(self, record: Record) -> None:
        """Counts a data record of ours."""
        state = str(record.get("state") or "")
        self.counts[type_of(record), state] += 1
        if state in FAILED:
            self.fail(record)

    def fail(self, record: Record) -> None:
        """Notes a failure by its record."""
        code = record.get("exit_code")
        code = code if isinstance(code, int) and code else PARTLY
        self._codes = [*({_IO, _DEFECT} & set(self._codes)), code]

    def exit_code(self) -> int:
        """74 wins, then a defect; else 3 when anything succeeded; else the code of the last cause."""
        if not self._codes:
            return PARTLY if self.upstream_failed else 0
        for code in (_IO, _DEFECT):
            if code in self._codes:
                return code
        return PARTLY if self._succeeded() else self._codes[-1]

    def by_type(self) -> dict[str, int]:
        """How many data records of each type there were."""
        totals: Counter[str] = Counter()
        for (kind, _), count in self.counts.items():
            totals[kind] += count
        return dict(totals)

    def in_words(self, failures: int) -> str:
        """For example: 12 instances (10 received, 2 present), 1 failure."""
        parts = [self._of_type(kind, total) for kind, total in self.by_type().items()]
        if failures:
            parts.append(f"{failures:,} failure{'s' if failures > 1 else ''}")
        return ", ".join(parts) or "nothing to do"

    def _of_type(self, kind: str, total: int) -> str:
        states = {state: count for (of, state), count in self.counts.items() if of == kind and state}
        told = ", ".join(f"{count:,} {state}" for state, count in states.items())
        word = kind if total == 1 else _PLURALS.get(kind, f"{kind}s")
        return f"{total:,} {word} ({told})" if told else f"{total:,} {word}"

    def _succeeded(self) -> bool:
        return any(count and state not in FAILED for (_, state), count in self.counts.items())
