"""C-ECHO: whether a node answers, how fast, and who it says it is (PS3.4 Annex A, PS3.7 9.1.5)."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from dcmtools.model.errors import DcmtoolsError
from dcmtools.model.node import Local, Node
from dcmtools.model.record import Record
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from dcmtools.network import command, status
from dcmtools.network.association import Association
from dcmtools.network.requestor import request

_SYNTAXES = (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN)
_AT_ONCE = 32

Echo = Callable[[Node, Local], Record]


def echo_all(nodes: Sequence[Node], local: Local, echo: Echo | None = None) -> Iterator[Record]:
    """One record a node, all asked at once, in the order in which they answer; a failure is an error record."""
    with ThreadPoolExecutor(min(len(nodes), _AT_ONCE) or 1) as pool:
        waiting = {pool.submit(echo or echo_one, node, local): node for node in nodes}
        for done in as_completed(waiting):
            node = waiting[done]
            try:
                yield done.result()
            except DcmtoolsError as problem:
                yield problem.record(**{**_node_keys(node), "type": "error", "ok": False})


def echo_one(node: Node, local: Local) -> Record:
    """The record of one echo; times in ms: `connect_ms` until the association stood, `ms` for the echo's round trip."""
    begun = time.perf_counter()
    with request(node, local, [(VERIFICATION, _SYNTAXES)]) as association:
        opened = time.perf_counter()
        verify(association)
        answered = time.perf_counter()
    theirs = association.theirs
    peer = {
        "implementation_class": theirs.implementation_class,
        "implementation_version": theirs.implementation_version,
        "max_pdu": theirs.max_pdu,
    }
    times = {"ms": round((answered - opened) * 1000, 2), "connect_ms": round((opened - begun) * 1000, 2)}
    return {"type": "node", **_node_keys(node), "ok": True, "state": "ok", **times, "peer": peer}


def verify(association: Association) -> None:
    """One C-ECHO on an open association; the error that its status means when that is no success."""
    context = association.require(VERIFICATION, "verification (C-ECHO)")
    message_id = association.next_message_id()
    association.send(
        context,
        {"AffectedSOPClassUID": VERIFICATION, "CommandField": command.C_ECHO_RQ, "MessageID": message_id},
    )
    answer = association.receive().command
    if answer.get("Status") != status.SUCCESS:
        raise status.failure(answer, "C-ECHO", association.where)


def _node_keys(node: Node) -> Record:
    return {"node": node.name, "ae_title": node.ae_title, "host": node.host, "port": node.port}
