"""Which presentation contexts a listener accepts, and in which transfer syntax (PS3.4 B.3, C.6; PS3.8 9.3.3.2)."""

from collections.abc import Iterable, Sequence

from dcmtools.model.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    PATIENT_ROOT_FIND,
    PATIENT_ROOT_GET,
    PATIENT_ROOT_MOVE,
    STORAGE_COMMITMENT,
    STUDY_ROOT_FIND,
    STUDY_ROOT_GET,
    STUDY_ROOT_MOVE,
    TRANSFER_SYNTAXES,
    VERIFICATION,
    storage_class,
)
from dcmtools.network.acceptor import Choose
from dcmtools.network.command import C_FIND_RQ, C_GET_RQ, C_MOVE_RQ, N_EVENT_REPORT_RQ

_STANDARD = "1.2.840.10008."
_UNCOMPRESSED = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
# The SOP classes that come with a service (PS3.4 C.6.1.3, C.6.2.3, J.3.4).
_CLASSES = {
    C_FIND_RQ: frozenset({PATIENT_ROOT_FIND, STUDY_ROOT_FIND}),
    C_MOVE_RQ: frozenset({PATIENT_ROOT_MOVE, STUDY_ROOT_MOVE}),
    C_GET_RQ: frozenset({PATIENT_ROOT_GET, STUDY_ROOT_GET}),
    N_EVENT_REPORT_RQ: frozenset({STORAGE_COMMITMENT}),
}


def stores(abstract: str) -> bool:
    """Whether objects of an abstract syntax can be stored: a storage SOP class, or a private one."""
    return storage_class(abstract) or not abstract.startswith(_STANDARD)


def chooser(services: Iterable[int], compression: Sequence[str] = (), *, private: bool = False) -> Choose:
    """What an acceptor asks for each context: verification, storage, and the classes of the services that are handled.

    Of private SOP classes nobody knows whether they are storage: they are taken for it only when told so.
    """
    handled = frozenset[str]().union(*(_CLASSES.get(service, frozenset()) for service in services))

    def choose(abstract: str, proposed: tuple[str, ...]) -> str | None:
        if abstract in handled:
            return _preferred([one for one in proposed if one in _UNCOMPRESSED], ())
        if abstract == VERIFICATION or (stores(abstract) if private else storage_class(abstract)):
            return _preferred([one for one in proposed if one in TRANSFER_SYNTAXES], compression)
        return None

    return choose


def _preferred(proposed: list[str], order: Sequence[str]) -> str:
    """One of the transfer syntaxes proposed that we know, "" for none: as `order` says, else as the peer does.

    Of the uncompressed ones explicit comes before implicit, for it keeps the value representations.
    """
    for syntax in order:
        if syntax in proposed:
            return syntax
    if set(proposed).issuperset(_UNCOMPRESSED):
        return EXPLICIT_VR_LITTLE_ENDIAN
    return proposed[0] if proposed else ""
