"""Responses to what we ask on an association (PS3.7 7.5): the right one, or an error that names the peer."""

import time
from collections.abc import Callable

from dcmtools.model.errors import ProtocolError
from dcmtools.network.association import Association, Message, Released
from dcmtools.network.command import Command
from dcmtools.network.upper_layer import Closed, TimedOut

Stop = Callable[[], bool]

# Seconds between two looks at whether to stop.
_LOOK = 0.2


def never() -> bool:
    """Whether to stop: no."""
    return False


def response(association: Association, request: Command, stop: Stop = never) -> Message | None:
    """The next response to a request, or None when we are to stop before it comes.

    ProtocolError when the peer hangs up, stays silent for longer than the DIMSE timeout, or says something else.
    """
    try:
        if not _awaited(association, stop):
            return None
        message = association.receive()
    except Released:
        association.answer_release()
        raise Closed(f"{association.where} released the association instead of answering", "try again") from None
    except (Closed, TimedOut) as problem:
        raise type(problem)(f"{association.where}: {problem.reason}", problem.advice) from None
    answered = message.command.get("MessageIDBeingRespondedTo")
    if message.field != request["CommandField"] | 0x8000 or answered != request["MessageID"]:
        raise ProtocolError(f"{association.where} answered something else than what it was asked", "see its log")
    return message


def _awaited(association: Association, stop: Stop) -> bool:
    """Whether the peer has begun to answer; False when we are to stop before."""
    seconds = association.timeouts.dimse
    deadline = time.monotonic() + seconds
    while not association.wait(min(_LOOK, seconds)):
        if stop():
            return False
        if time.monotonic() > deadline:
            raise TimedOut(f"no answer in {seconds:g} s", "see whether it hangs, or raise its dimse_timeout")
    return True
