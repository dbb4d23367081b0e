"""C-ECHO: whether a node answers, how fast, and who it says it is (PS3.4 Annex A, PS3.7 9.1.5)."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from dcmtools.model.errors import DcmtoolsError, TryLater
from dcmtools.model.node import Local, Node
from dcmtools.model.record import Record
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from dcmtools.network import command, status
from dcmtools.network.association import Association
from dcmtools.network.requestor import request
from dcmtools.network.response import Stop, never, response

SYNTAXES = (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN)
_AT_ONCE = 32


def echo_all(
    nodes: Sequence[Node], local: Local, *, repeat: int = 1, stop: Stop = never, stack: str = "own"
) -> Iterator[Record]:
    """One record a node, all asked at once, in the order in which they answer; a failure is an error record.

    `stack` is whose upper layer speaks: "own" or "pynetdicom".
    """
    ask = echo_one
    if stack != "own":
        from dcmtools.network import second_stack

        ask = second_stack.echo_one
    with ThreadPoolExecutor(min(len(nodes), _AT_ONCE) or 1) as pool:
        waiting = {pool.submit(ask, node, local, repeat=repeat, stop=stop): node for node in nodes}
        for done in as_completed(waiting):
            try:
                yield done.result()
            except DcmtoolsError as problem:
                yield problem.record(**{**node_keys(waiting[done]), "type": "error", "ok": False})


def echo_one(node: Node, local: Local, *, repeat: int = 1, stop: Stop = never) -> Record:
    """The record of `repeat` echoes on one association; times in ms.

    `connect_ms` is the time until the association stood, `ms` the round trip of an echo; of several the median, with
    `ms_min` and `ms_max` beside it.
    """
    begun = time.perf_counter()
    with request(node, local, [(VERIFICATION, SYNTAXES)]) as association:
        opened = time.perf_counter()
        took = timed(lambda: verify(association, stop), repeat, stop)
    theirs = association.theirs
    peer = {
        "implementation_class": theirs.implementation_class,
        "implementation_version": theirs.implementation_version,
        "max_pdu": theirs.max_pdu,
    }
    times = {**took, "connect_ms": round((opened - begun) * 1000, 2)}
    return {"type": "node", **node_keys(node), "ok": True, "state": "ok", **times, "peer": peer}


def verify(association: Association, stop: Stop = never) -> None:
    """One C-ECHO on an open association; the error that its status means when that is no success."""
    context = association.require(VERIFICATION, "verification (C-ECHO)")
    rq: command.Command = {
        "AffectedSOPClassUID": VERIFICATION,
        "CommandField": command.C_ECHO_RQ,
        "MessageID": association.next_message_id(),
    }
    association.send(context, rq)
    answer = response(association, rq, stop)
    if answer is None:
        raise TryLater("stopped before the answer came", "ask again")
    if answer.command.get("Status") != status.SUCCESS:
        raise status.failure(answer.command, "C-ECHO", association.where)


def timed(verify: Callable[[], None], repeat: int, stop: Stop) -> Record:
    """How long the echoes took, in ms: at least one, and of several the median, the shortest and the longest."""
    times: list[float] = []
    while not times or (len(times) < repeat and not stop()):
        begun = time.perf_counter()
        verify()
        times.append(round((time.perf_counter() - begun) * 1000, 3))
    many = {"echoes": len(times), "ms_min": min(times), "ms_max": max(times)} if repeat > 1 else {}
    return {"ms": round(sorted(times)[len(times) // 2], 2), **many}


def node_keys(node: Node) -> Record:
    """What the records of an echo say of the node."""
    return {"node": node.name, "ae_title": node.ae_title, "host": node.host, "port": node.port}
