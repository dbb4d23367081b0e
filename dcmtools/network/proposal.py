"""What an association is asked for, so that what is to be sent can leave on it (PS3.8 7.1.1.13)."""

from collections.abc import Iterable, Sequence

from dcmtools.disk.part10 import Meta
from dcmtools.disk.values import whole_pydicom
from dcmtools.model.errors import Unavailable
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, TRANSFER_SYNTAXES
from dcmtools.network.association import MAX_CONTEXTS, Association
from dcmtools.network.parcel import Parcel

Pair = tuple[str, str]  # SOP class, transfer syntax

# JPEG 2000 lossless and RLE: for peers that take nothing uncompressed.
LOSSLESS_TARGETS = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5")
LOSSY_TARGETS = (*LOSSLESS_TARGETS, "1.2.840.10008.1.2.4.91")


def pair_of(parcel: Parcel) -> Pair:
    """The SOP class and the transfer syntax of a parcel."""
    return parcel.item.meta.sop_class, parcel.item.meta.syntax


def proposal(pair: Pair, seen: Iterable[Pair], also: Sequence[str]) -> list[Pair]:
    """What a new association proposes: this pair, those seen, and what is uncompressed where there is room for it.

    Implicit little endian is the default of every class (PS3.5 10.1), and a refusal can so tell what would be taken.
    `also` are further transfer syntaxes into which we could transcode.
    """
    uncompressed = (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN)
    wanted = dict.fromkeys([pair, *((pair[0], syntax) for syntax in uncompressed), *seen])
    for syntax in (*uncompressed, *also):
        wanted |= dict.fromkeys((abstract, syntax) for abstract in dict.fromkeys(one for one, _ in wanted))
    return list(wanted)[:MAX_CONTEXTS]


def not_accepted(association: Association, meta: Meta) -> Unavailable:
    """What to say of a context that the peer refused: that, and what it would take."""
    whole_pydicom()
    from pydicom.uid import UID

    name, syntax = UID(meta.sop_class).name, TRANSFER_SYNTAXES.get(meta.syntax, meta.syntax)
    taken = [one.syntax for one in association.contexts.values() if one.abstract == meta.sop_class]
    if not taken:
        return Unavailable(f"{association.where} does not take {name}", "ask its administrator", cause="not-accepted")
    words = " or ".join(TRANSFER_SYNTAXES.get(one, one) for one in dict.fromkeys(taken))
    return Unavailable(
        f"{association.where} does not take {name} as {syntax}, but as {words}",
        "let it be transcoded (--transcode lossless), or ask its administrator",
        cause="not-accepted",
    )
