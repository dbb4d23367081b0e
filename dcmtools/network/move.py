"""Moving: what records of any level name comes from nodes into the archive (C-MOVE to ourselves; PS3.4 C.4.2)."""

from collections.abc import Iterable, Iterator

from dcmtools.disk.index import Index
from dcmtools.model.errors import BadData, DcmtoolsError, Incomplete, Refused, Unavailable
from dcmtools.model.names import is_uid
from dcmtools.model.node import Local, Node
from dcmtools.model.record import UNIQUE_KEY, Record, pick, type_of
from dcmtools.network.arrivals import Arrivals
from dcmtools.network.levels import Levels
from dcmtools.network.move_run import Options, Run
from dcmtools.network.response import Stop, never
from dcmtools.network.study_move import StudyMove, Target

_DEFAULTS = Options()
_UIDS = tuple(UNIQUE_KEY[level] for level in ("study", "series", "instance"))
_NEEDED = {"study": _UIDS[:1], "series": _UIDS[:2], "instance": _UIDS}


def move(
    wanted: Iterable[tuple[Node, Record]],
    index: Index,
    arrivals: Arrivals | None,
    local: Local,
    *,
    options: Options = _DEFAULTS,
    stop: Stop = never,
) -> Iterator[Record]:
    """The instance records of all that is asked for, as they land or are found present, and the events of its series.

    `arrivals` are those of the archive of `index`; only a dry run does without. Series and instances of one study that
    follow each other are moved together. What fails becomes an error record, and the rest goes on; only a disk that
    takes no more ends it all.
    """
    yield from _Mover(Run(index, arrivals, local, options, stop)).move(wanted)


class _Mover:
    """One call of `move`."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def move(self, wanted: Iterable[tuple[Node, Record]]) -> Iterator[Record]:
        """Gathers records into targets, and moves each as soon as nothing more can belong to it."""
        target: Target | None = None
        for node, record in wanted:
            if target and not target.has(node, record):
                yield from self._retrieve(target)
                target = None
            if self.run.must_end:
                return
            if problem := _unusable(record):
                yield problem.record(node=node.name, level=type_of(record), **_uids_of(record))
            elif type_of(record) == "patient":
                yield from self._patient(node, record)
            else:
                target = target or Target(node, str(record["StudyInstanceUID"]), record)
                if type_of(record) == "study":  # nothing can belong to it any more
                    yield from self._retrieve(target)
                    target = None
                else:
                    target.add(record)
        if target:
            yield from self._retrieve(target)

    def _patient(self, node: Node, record: Record) -> Iterator[Record]:
        """The studies of a patient, moved one by one."""
        patient = str(record["PatientID"])
        try:
            with Levels(node, self.run.local, self.run.stop) as levels:
                studies = list(levels.level("study", {"PatientID": patient}))
        except DcmtoolsError as problem:
            yield problem.record(node=node.name, level="patient")
            return
        theirs = [study for study in studies if type_of(study) == "error" or study.get("PatientID") == patient]
        if not theirs and not self.run.must_end:
            yield _no_patient(node).record(node=node.name, level="patient")
        for study in theirs:
            if type_of(study) == "error":
                yield study
            elif unusable := _unusable(study):
                yield unusable.record(node=node.name, level="study")
            else:
                yield from self._retrieve(Target(node, str(study["StudyInstanceUID"]), study))

    def _retrieve(self, target: Target) -> Iterator[Record]:
        """One study's worth; what fails as a whole becomes an error record of it."""
        if self.run.must_end:
            return
        try:
            self.run.begin(target.node, target.study)
            yield from StudyMove(self.run, target).records()
        except DcmtoolsError as problem:
            if _is_of_the_node(problem):
                self.run.rest(target.node, problem)
            level = "study" if target.is_whole else "series"
            yield self.run.heed(problem.record(level=level, node=target.node.name, StudyInstanceUID=target.study))


def _is_of_the_node(problem: DcmtoolsError) -> bool:
    """Whether a failure would be the same for every other study: nobody there, no answer, or not let in."""
    if isinstance(problem, Unavailable):
        return problem.cause != "not-offered"
    return isinstance(problem, Refused) or problem.cause == "no-answer"


def _unusable(record: Record) -> BadData | None:
    """What keeps a record from naming something that can be moved."""
    kind = type_of(record)
    if kind == "patient":
        patient = record.get("PatientID")
        if isinstance(patient, str) and patient and "\\" not in patient:
            return None
        return BadData("a patient record without a PatientID cannot be moved", "move its studies", cause="bad-id")
    if kind not in _NEEDED:
        return BadData(f"a {kind} record cannot be moved", "give studies, series or instances", cause="bad-type")
    for keyword in _NEEDED[kind]:
        if not is_uid(record.get(keyword)):
            reason = f"a {kind} record without a valid {keyword} cannot be moved"
            return BadData(reason, "let dcmtools find make it", cause="bad-uid")
    return None


def _no_patient(node: Node) -> Incomplete:
    """The error of a node without the patient: not which, for an error ends up in a log."""
    return Incomplete(
        f"{node.where} does not have the patient",
        "ask it again with find; the patient may have been deleted or merged there",
        cause="not-found",
    )


def _uids_of(record: Record) -> Record:
    return pick(record, *_UIDS)
