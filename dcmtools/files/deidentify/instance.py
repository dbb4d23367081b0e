"""One instance from source to a checked file without identity."""

import os
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Literal

from dcmtools.disk.atomic import TEMPORARY_PREFIX
from dcmtools.disk.dataset import Encoding, Walk
from dcmtools.disk.inflated import Read
from dcmtools.disk.part10 import OpenFile, encode_meta, encoding_in, meta_of, opened, source_of, uid_in
from dcmtools.disk.runs import Runs
from dcmtools.disk.values import Element, decoder_for
from dcmtools.files.deidentify import frames, pixels, regions
from dcmtools.files.deidentify.check import check_data_set, check_meta, kept_elements, read_again
from dcmtools.files.deidentify.identity import Identity, identity_of
from dcmtools.files.deidentify.profile import Profile
from dcmtools.files.deidentify.pseudonyms import Key
from dcmtools.files.deidentify.repeats import Memory
from dcmtools.files.deidentify.rereading import DataSet
from dcmtools.files.deidentify.spliced import Piece, Spliced, Stretch
from dcmtools.files.deidentify.splicer import BULK, Rules, Splicer, Subject
from dcmtools.files.deidentify.writing import Original, write
from dcmtools.model.errors import BadData, Refused
from dcmtools.model.keys import BY_TAG
from dcmtools.model.names import is_uid
from dcmtools.model.record import Record
from dcmtools.model.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLEMENTATION_VERSION,
    IMPLICIT_VR_LITTLE_ENDIAN,
    MEDIA_STORAGE_DIRECTORY,
    storage_class,
)

BurnedIn = Literal["refuse", "quarantine", "allow"]

_CHARSET, _SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES = 0x00080005, 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
_PATIENT_ID, _ISSUER = 0x00100020, 0x00100021
_LAST = 0x00280302
_WANTED = frozenset(
    {
        _CHARSET, _SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES, _PATIENT_ID, _ISSUER, pixels.IMAGE_TYPE, pixels.MODALITY,
        pixels.CONVERSION, pixels.BURNED_IN, 0x00080070, 0x00081090,
        0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011, 0x00280100,
    }
)  # fmt: skip
# In the names of the character sets that have full-width letters, or others that are written in two widths.
_OF_MANY_BYTES = (b"GB", b"IR 13", b"IR 58", b"IR 87", b"IR 149", b"IR 159")
_USUAL = Encoding(explicit=True)
_RUNS = Runs(_WANTED)
# Among more bytes than these a text of four is found by chance.
_BY_CHANCE = 4096
_SMALL = 1 << 20  # a file that is read at once
_UNDEFINED = 0xFFFFFFFF
_NUMBERS = frozenset({0x00280002, 0x00280006, 0x00280010, 0x00280011, 0x00280100})
_NATIVE = frozenset(
    {
        IMPLICIT_VR_LITTLE_ENDIAN,
        EXPLICIT_VR_LITTLE_ENDIAN,
        DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
        EXPLICIT_VR_BIG_ENDIAN,
    }
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How to de-identify: the profile, and what becomes of pixels that may show identity and of texts that do."""

    profile: Profile
    burned_in: BurnedIn = "refuse"
    on_residue: Literal["clean", "refuse"] = "clean"
    allow_private_sop: bool = False
    blanking: tuple[regions.Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one instance: its index keys as they are. Only `old` tells of the source, for the crosswalk."""

    record: Record
    old: dict[str, str] = field(repr=False)
    days: int
    actions: dict[str, int]
    cleaned: tuple[str, ...]
    spoiled: tuple[str, ...]
    codes: tuple[str, ...]


@dataclass(slots=True)
class _Source:
    """An instance as it is read: its file, and the data set in it."""

    file: OpenFile
    read: Read
    start: int
    end: int
    encoding: Encoding
    syntax: str
    found: dict[int, Element]
    sop_class: str


class Deidentifier:
    """De-identifies instances with one key and one profile; what it learnt of a kind of file serves the next."""

    def __init__(self, key: Key, settings: Settings) -> None:
        self._key, self._settings = key, settings
        self._rules: dict[tuple[str, Encoding, bool, bool, bool], Rules] = {}
        self._memory = Memory()
        # Of the instance before: who it is, the pseudonym, by what dates move; and in what series, with which identity.
        self._patient = ("", ""), "", 0
        self._before: tuple[tuple[Subject, str] | None, Identity | None] = None, None

    def deidentify(self, source: str | os.PathLike[str], target: Path | None, *, blindly: bool = False) -> Outcome:
        """Writes the de-identified instance to `target`, a temporary name of the caller's, which is not fsynced.

        Without a target all is done, but nothing is left. `blindly` leaves pixels as they are, whatever they show: such
        a result must not go out before somebody has looked at it.

        Raises:
            BadData: the source is no instance, or is damaged.
            Refused: its pixels may show identity, or the result did not pass the check; nothing is left at `target`.
        """
        with ExitStack() as stack:
            file, _ = stack.enter_context(opened(source, follow=True))
            instance = _read(file, stack)
            self._check_kind(instance)
            rule = None if blindly else self._rule_for(instance)
            if rule and target is None:  # only then can it be told whether the regions can be blanked
                target = Path(stack.enter_context(TemporaryDirectory(prefix=TEMPORARY_PREFIX))) / "result"
            if rule and target and _is_encapsulated(instance.syntax):
                native = target.with_name(f"{target.name}-native")
                regions.decoded(os.fspath(source), native)
                stack.callback(native.unlink, missing_ok=True)
                file, _ = stack.enter_context(opened(native))
                instance = _read(file, stack)
            subject, known = self._subject(instance)
            allowed = blindly or self._settings.burned_in == "allow"
            flags = "CLEANED" if rule else "NO" if blindly else self._flags(instance, allowed=allowed)
            done, identity = self._spliced(instance, subject, flags)
            if done.has_overlay_in_pixels and flags == "YES":
                flags = "NO"
                done, identity = self._spliced(instance, subject, flags)
            record = _record(self._checked(instance, done), instance)
            outcome = self._outcome(record, subject, known, done, flags)
            meta = encode_meta(instance.sop_class, str(record["SOPInstanceUID"]), instance.syntax)
            if done.has_overlay_in_pixels and not allowed:
                raise Refused("an overlay lies in its pixel data", "see --burned-in allow", cause="burned-in")
            self._check(instance, meta, done, identity)
            if target is None:
                return outcome
            blank = (_raster(instance), rule.regions) if rule else None
            try:
                write(target, meta, done.pieces, _original(instance), blank)
            except BaseException:
                target.unlink(missing_ok=True)
                raise
        return outcome

    def _check_kind(self, instance: _Source) -> None:
        if not storage_class(instance.sop_class) and not self._settings.allow_private_sop:
            reason = "its SOP Class is not one of the standard's storage classes, so that nobody knows what it holds"
            raise Refused(reason, "see --allow-private-sop", cause="private-sop-class")

    def _rule_for(self, instance: _Source) -> regions.Rule | None:
        """The rule by which regions of its pixels are to be blanked."""
        if not self._settings.blanking:
            return None
        told = {key: _told(instance, tag) for key, tag in regions.KEYS.items()}
        rule = next((rule for rule in self._settings.blanking if rule.matches(told)), None)
        if rule and not _is_encapsulated(instance.syntax):
            regions.check_can_be_blanked(_raster(instance))
        return rule

    def _flags(self, instance: _Source, *, allowed: bool) -> str:
        """YES when the pixels show no identity as far as is known, NO when the user allowed what may show it."""
        if not (why := pixels.risk(instance.found, instance.sop_class)):
            return "YES"
        if not allowed:
            raise Refused(why, "look at it, then use --burned-in allow or --clean-pixel-data", cause="burned-in")
        return "NO"

    def _subject(self, instance: _Source) -> tuple[Subject, dict[str, str]]:
        charset = instance.found.get(_CHARSET, (b"", b""))[1]
        issuer, patient = _text(instance, _ISSUER), _text(instance, _PATIENT_ID)
        known = {
            "PatientID": patient,
            "StudyInstanceUID": _text(instance, _STUDY),
            "SeriesInstanceUID": _text(instance, _SERIES),
            "SOPInstanceUID": _text(instance, _SOP_INSTANCE),
        }
        if not patient:  # then a study is the most that surely is of one patient
            issuer, patient = "study", known["StudyInstanceUID"]
        if self._patient[0] != (issuer, patient):
            self._patient = (issuer, patient), self._key.patient(issuer, patient), self._key.shift(issuer, patient)
        _, pseudonym, days = self._patient
        return Subject(pseudonym, days, instance.sop_class, charset), known

    def _spliced(self, instance: _Source, subject: Subject, flags: str) -> tuple[Spliced, Identity]:
        """The result, and the identity that must not be in it; kept texts that have some of it are cleaned."""
        if (found := self._as_the_one_before(instance, subject, flags)) is not None:
            return found
        done = self._once(instance, subject, flags)
        identity = _identity_in(done)
        if not self._needs_another_look(instance, done, identity):
            return done, identity
        for numbers in (False, True):
            before = done
            done = self._once(instance, subject, flags, identity, done.uids, numbers=numbers)
            done.values |= before.values
            if done.cleaned and self._settings.on_residue == "refuse":
                raise Refused(
                    f"a kept text holds identity: {done.cleaned[0]}", "see --on-residue clean", cause="residue"
                )
            if not self._is_left(instance, done, identity):
                self._before = (subject, _text(instance, _SERIES)), identity
                return done, identity
        raise Refused("identity of the source is left in the result", "see --report", cause="residue")

    def _as_the_one_before(self, instance: _Source, subject: Subject, flags: str) -> tuple[Spliced, Identity] | None:
        """The result in one go, with the identity of the instance before it, where it turns out to have the same.

        Then it is what two goes give: the first would have found this identity, and no text has a UID for which the
        second one searches, too.
        """
        of, identity = self._before
        if identity is None or of != (subject, _text(instance, _SERIES)) or not self._always_looks(instance, identity):
            return None
        done = self._once(instance, subject, flags, identity)
        if _identity_in(done) != identity or not done.mentioned.isdisjoint(done.uids):
            return None
        if done.cleaned and self._settings.on_residue == "refuse":
            return None
        return None if self._is_left(instance, done, identity) else (done, identity)

    def _is_left(self, instance: _Source, done: Spliced, identity: Identity) -> bool:
        """Whether any of the identity is in what is written of the data set, less what the user wants kept."""
        data = _without_pixels(done.pieces)
        if not identity.is_in(_without(data, done.own), done.uids):
            return False
        charset = instance.found.get(_CHARSET, (b"", b""))[1]
        data_set, big = read_again(data, instance.encoding), instance.encoding.big
        kept = kept_elements(data_set, self._settings.profile, identity.kept, charset, big=big)
        return identity.is_in(_without(data, [*done.own, *kept]), done.uids)

    def _needs_another_look(self, instance: _Source, done: Spliced, identity: Identity) -> bool:
        return self._always_looks(instance, identity) or identity.is_in(
            _without(_without_pixels(done.pieces), done.own), done.uids, lenient=True
        )

    def _always_looks(self, instance: _Source, identity: Identity) -> bool:
        """Whether texts are searched in any case."""
        profile = self._settings.profile
        if profile.clean_descriptors or profile.clean_structured_content or profile.clean_graphics:
            return True
        if any(name in instance.found.get(_CHARSET, (b"", b""))[1] for name in _OF_MANY_BYTES):
            return True  # full-width letters are only seen in decoded values
        return profile.retain_patient_characteristics or identity.asks_for_decoded_values

    def _once(
        self,
        instance: _Source,
        subject: Subject,
        flags: str,
        identity: Identity | None = None,
        uids: AbstractSet[bytes] = frozenset(),
        *,
        numbers: bool = False,
    ) -> Spliced:
        encoding, searching = instance.encoding._replace(deflated=False), identity is not None
        cleaned = flags == "CLEANED"
        key = (instance.sop_class, encoding, searching, cleaned, numbers)
        if key not in self._rules:
            profile, sop_class = replace(self._settings.profile, searches_numbers=numbers), instance.sop_class
            self._rules[key] = Rules(profile, sop_class, encoding, searching=searching, cleaned=cleaned)
        repeats = self._memory.of((key, subject, identity, _text(instance, _SERIES)))
        splicer = Splicer(self._rules[key], self._key, subject, identity, uids, flags, repeats)
        return splicer.through(instance.read, instance.start, instance.end)

    def _outcome(self, record: Record, subject: Subject, known: dict[str, str], done: Spliced, flags: str) -> Outcome:
        profile = self._settings.profile
        return Outcome(
            record=record,
            old=known,
            days=subject.days if profile.retain_dates == "modified" else 0,
            actions=dict(done.counts),
            cleaned=tuple(dict.fromkeys(done.cleaned)),
            spoiled=tuple(dict.fromkeys(done.spoiled)),
            codes=profile.codes_of(flags),
        )

    def _checked(self, instance: _Source, done: Spliced) -> DataSet:
        """The result as another reader reads it, held against the table."""
        data_set = read_again(_without_pixels(done.pieces), instance.encoding)
        check_data_set(data_set, self._settings.profile, done.uids)
        return data_set

    def _check(self, instance: _Source, meta: bytes, done: Spliced, identity: Identity) -> None:
        """The search of what has not been searched yet."""
        check_meta(meta)
        own = [IMPLEMENTATION_VERSION.encode()]
        if self._settings.profile.retain_uids:
            own.append(uid_in(instance.found[_SOP_INSTANCE][1]).encode())
        if identity.is_in(_without(meta, own), done.uids):
            raise Refused("identity of the source is left in the result", "see --report", cause="residue")
        for stretch in done.pieces:
            if isinstance(stretch, Stretch):
                for part, dense in _beside_samples(instance, stretch):
                    if identity.is_in(part, done.uids, dense=dense):
                        raise Refused(
                            "identity of the source stands beside the samples in its pixel data", cause="residue"
                        )


def _identity_in(done: Spliced) -> Identity:
    return identity_of(frozenset(done.values), frozenset(text for _, text in done.kept))


def _read(file: OpenFile, stack: ExitStack) -> _Source:
    meta = meta_of(file)
    if meta.sop_class == MEDIA_STORAGE_DIRECTORY:
        raise BadData("it is a DICOMDIR, which lists files and is no instance", cause="dicomdir")
    encoding = encoding_in(file, meta)
    read, start, end = source_of(file, meta, encoding)
    if encoding.deflated:  # it is read more than once
        read = _held(bytes(read(0, end))) if end <= BULK else _spooled(read, end, stack)
    elif file.size <= _SMALL:
        read = _held(bytes(file.read(0, file.size) if len(file.first) < file.size else file.first))
    walk = Walk(start, end, encoding, _WANTED, last=_LAST, runs=_RUNS if encoding == _USUAL else None)
    found = walk.through(read)
    sop_class = uid_in(found.get(_SOP_CLASS, (b"", b""))[1])
    for tag, name in (
        (_SOP_CLASS, "SOPClassUID"),
        (_SOP_INSTANCE, "SOPInstanceUID"),
        (_STUDY, "StudyInstanceUID"),
        (_SERIES, "SeriesInstanceUID"),
    ):
        if not is_uid(uid_in(found.get(tag, (b"", b""))[1])):
            raise BadData(f"its {name} is missing or no UID", cause="bad-uid")
    return _Source(file, read, start, end, encoding, meta.syntax, found, sop_class)


def _spooled(read: Read, size: int, stack: ExitStack) -> Read:
    """A source in a file without a name: what is inflated may be far larger than its file."""
    file = stack.enter_context(TemporaryFile())  # noqa: SIM115 - the stack closes it
    for position in range(0, size, BULK):
        file.write(read(position, min(BULK, size - position)))
    file.flush()
    return lambda position, length: os.pread(file.fileno(), length, position)


def _record(data_set: DataSet, instance: _Source) -> Record:
    """The index keys of a result."""
    found = {tag: (vr, value) for tag, vr, value, _ in data_set if tag in BY_TAG}
    charset = found.get(_CHARSET, (b"", b""))[1]
    told = decoder_for(charset, big=instance.encoding.big).record(found)
    return {"type": "instance", **told, "TransferSyntaxUID": instance.syntax}


def _held(data: bytes) -> Read:
    return lambda position, size: data[position : position + size]


def _text(instance: _Source, tag: int) -> str:
    charset = instance.found.get(_CHARSET, (b"", b""))[1]
    raw = instance.found.get(tag, (b"", b""))[1]
    return decoder_for(charset, big=instance.encoding.big)._text(raw).strip("\0 ")  # noqa: SLF001


def _without_pixels(pieces: list[Piece]) -> bytes:
    return b"".join(piece for piece in pieces if isinstance(piece, bytes))


def _without(data: bytes, own: list[bytes]) -> bytes:
    """The bytes less what the engine says of itself: a patient may be called Basic."""
    for one in own:
        data = data.replace(one, b"")
    return data


def _beside_samples(instance: _Source, stretch: Stretch) -> Iterator[tuple[bytes, bool]]:
    """The bytes of what is copied that are no samples."""
    read, position, stop = instance.read, stretch.position, stretch.position + stretch.size
    head = bytes(read(position, 12))
    size = 12 if instance.encoding.explicit else 8
    order: Literal["big", "little"] = "big" if instance.encoding.big else "little"
    length = int.from_bytes(head[size - 4 : size], order)
    if not stretch.pixels:
        yield from frames.excess(read, position, stop)
    elif length == _UNDEFINED:
        yield from frames.beside_samples(read, position + size, stop)
    else:
        tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)
        told = pixels.native_size(instance.found, instance.encoding, tag)
        if told > length:  # then nothing tells which of the bytes are samples
            told = 0
        for part, _ in frames.excess(read, position + size + told, stop):
            yield part, len(part) > _BY_CHANCE


def _is_encapsulated(syntax: str) -> bool:
    return syntax not in _NATIVE


def _told(instance: _Source, tag: int) -> str:
    raw = instance.found.get(tag, (b"", b""))[1]
    if tag in _NUMBERS:
        return str(int.from_bytes(raw, "big" if instance.encoding.big else "little"))
    return _text(instance, tag)


def _raster(instance: _Source) -> regions.Raster:
    frames = _text(instance, 0x00280008)
    rows, columns, samples, bits, planar = (
        int(_told(instance, tag) or 0) for tag in (0x00280010, 0x00280011, 0x00280002, 0x00280100, 0x00280006)
    )
    count = int(frames) if frames.isdecimal() else 1
    return regions.Raster(rows, columns, samples, bits, count, bool(planar), _text(instance, 0x00280004))


def _original(instance: _Source) -> Original:
    encoding = instance.encoding
    return Original(instance.read, 12 if encoding.explicit else 8, deflated=encoding.deflated)
