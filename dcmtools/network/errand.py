"""What `Sender` keeps of a parcel from its first try to its record."""

from dataclasses import dataclass

from dcmtools.model.errors import DcmtoolsError
from dcmtools.model.record import Record
from dcmtools.network.parcel import Parcel, named


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one try ended: a state, or the problem that came up and whether it may pass by itself.

    `lost` is how much it counts towards giving the node up.
    """

    state: str
    status: str = ""
    reason: str = ""
    problem: DcmtoolsError | None = None
    transient: bool = False
    lost: int = 0


NOT_SENT = Outcome("failed")


@dataclass(slots=True)
class Errand:
    """A parcel that is to be brought to the node: since when, how often it left, how its last try ended, and when."""

    parcel: Parcel
    begun: float
    tries: int = 0
    outcome: Outcome = NOT_SENT
    association: str = ""
    ended: float = 0.0

    def record(self, node: str) -> Record:
        """The item's record with what became of it at a node of this name."""
        parcel, outcome = self.parcel, self.outcome
        record = {**named(parcel.asked), "state": outcome.state, "node": node}
        if different := parcel.sent_as:
            record["sent_as"] = different
        if self.association:
            record["association"] = self.association
        record |= {"tries": self.tries, "ms": round((self.ended - self.begun) * 1000, 1)}
        if outcome.status:
            record["status"] = outcome.status
        if outcome.reason:
            record["reason"] = outcome.reason
        if problem := outcome.problem:
            record |= {"cause": problem.cause, "reason": problem.reason, "exit_code": problem.exit_code}
            record |= {"advice": problem.advice} if problem.advice else {}
        return record
