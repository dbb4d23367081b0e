"""Rewrites an encoded data set as a profile says: untouched bytes are copied, only what changes is made anew (PS3.5 7).

The data set is walked once, in windows. What stays is never looked into; pixel data are never read, only their place is
noted. So the result is in the transfer syntax of the source, and memory stays constant in the size of the pixels.
"""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from struct import Struct
from struct import error as StructError  # noqa: N812 - it is an exception's name everywhere else
from typing import NamedTuple

from dcmtools.disk.dataset import LONG_VRS, MAX_DEPTH, MAX_PADDING, SHORT_VRS, Encoding
from dcmtools.disk.inflated import Read
from dcmtools.disk.values import decoder_for
from dcmtools.files.deidentify import table
from dcmtools.files.deidentify.content import CONTENT, action, concept_of
from dcmtools.files.deidentify.dummies import cleaned, dummy, has_form, shifted
from dcmtools.files.deidentify.identity import MODALITIES, Identity, kind_of, uids_in
from dcmtools.files.deidentify.profile import (
    ACCESSION,
    CODES,
    METHOD,
    PATIENT_ID,
    PATIENT_NAME,
    STATEMENT,
    STUDY_ID,
    TEXT,
    WRITTEN,
    Action,
    Mood,
    Profile,
    vr_of,
)
from dcmtools.files.deidentify.pseudonyms import Key
from dcmtools.files.deidentify.repeats import Memory, Repeats, Trail
from dcmtools.files.deidentify.spliced import Piece, Spliced, Stretch
from dcmtools.model.errors import BadData

WINDOW = 128 << 10
# A kept value above this is copied from file to file; a sequence must fit into memory, and none comes near the limit.
BULK = 1 << 20
MAX_WINDOW = 256 << 20

PIXEL_DATA = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_CHARSET = 0x00080005
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_NEVER = 1 << 40
_PATIENT = frozenset({PATIENT_NAME, PATIENT_ID})
_METHOD, _METHOD_CODES, _TEMPORAL = STATEMENT[1:]
_BURNED_IN, _MODALITY = 0x00280301, 0x00080060
_OVERLAY_TYPE = 0x0040
# Letters of elements that are never remembered: pixels, what the engine writes itself, a character set, and what
# depends on elements before it.
_ALWAYS_ANEW = "BTEPG"
# Heads of elements: 8 bytes with a length of 16 bits, 12 with one of 32, and 8 with one of 32 where no VR is written.
_SHORT, _LONG, _BARE = 8, 12, 0


class Odd(BadData):
    """Something that the standard does not foresee: what it means cannot be told, so nothing is made of it."""

    cause = "bad-length"


class Rule(NamedTuple):
    """What becomes of the elements that begin with the same tag and VR, at one place."""

    letter: str
    tag: int
    head: int
    vr: str  # as it is meant; "" where nobody knows
    written: bytes  # as it stands in the file; b"" where none does
    kind: str  # of identity that its value is
    mood: Mood
    value: str


@dataclass(slots=True)
class Place:
    """The rules for the items of one sequence, or for the top level; they are made when they are first needed."""

    parent: int
    explicit: bool
    mood: Mood
    number: int
    rules: dict[bytes, Rule] = field(default_factory=dict)
    varying: set[bytes] = field(default_factory=set)  # what had another value in another file of the same kind


@dataclass(frozen=True, slots=True)
class Subject:
    """Of whom and of what kind the instance is."""

    patient: str  # pseudonym
    days: int  # by which dates move
    sop_class: str
    charset: bytes = b""


@dataclass(slots=True)
class Rules:
    """The rules of one profile for one SOP Class and encoding, kept from file to file."""

    profile: Profile
    sop_class: str
    encoding: Encoding
    searching: bool = False
    cleaned: bool = False  # the pixels
    statements: dict[tuple[bytes, bytes, str], tuple[bytes, list[bytes]]] = field(default_factory=dict)  # the last one
    _places: dict[tuple[int, bool, Mood, int], Place] = field(default_factory=dict)

    def place(self, parent: int, mood: Mood = "keep", depth: int = 0, *, explicit: bool) -> Place:
        """The place within a sequence, so many sequences deep; 0 is the top level."""
        key = (parent, explicit, mood, depth)
        if key not in self._places:
            self._places[key] = Place(parent, explicit, mood, len(self._places))
        return self._places[key]

    def rule(self, tag: int, written: bytes, place: Place) -> Rule:
        """What becomes of elements with this tag and written VR."""
        known = vr_of(tag)
        vr = known if written in {b"", b"UN"} else written.decode()
        head = (_SHORT if written in SHORT_VRS else _LONG) if place.explicit else _BARE
        action = self.profile.action(tag, vr, place.parent, self.sop_class, place.mood)
        kind = kind_of(tag, vr) or kind_of(tag, known)
        letter = self._letter(tag, vr, action, place, kind)
        return Rule(letter, tag, head, vr, written, kind, action.mood, action.value)

    def _letter(self, tag: int, vr: str, action: Action, place: Place, kind: str) -> str:  # noqa: PLR0911 - as above
        if place.parent == 0 and (tag in STATEMENT or (tag == _BURNED_IN and self.cleaned)):
            return "T"
        if place.parent == 0 and tag in PIXEL_DATA:
            return "B"
        if tag == _CHARSET:
            return "E"
        if action.letter == "X" and not kind and vr != "SQ":
            return "-"
        if action.letter != "K":
            return action.letter
        if vr in {"DA", "DT", "TM", "UI"}:
            return "L"
        return "H" if kind or (self.searching and vr in WRITTEN) else "K"


class _More(Exception):
    """The window ends within a top-level element."""


class Splicer:
    """One data set on its way through the rules. Kept texts are searched for `identity`, where the rules say so.

    `repeats` are those of a context: rules, key, subject and identity are the same whenever they are given.
    """

    def __init__(
        self,
        rules: Rules,
        key: Key,
        subject: Subject,
        identity: Identity | None = None,
        uids: AbstractSet[bytes] = frozenset(),
        flags: str = "YES",
        repeats: Repeats | None = None,
    ) -> None:
        self._rules, self._key, self._subject, self._flags = rules, key, subject, flags
        self._repeats = repeats or Repeats(Memory())
        self._identity, self._uids = identity or Identity(), uids
        order = ">" if rules.encoding.big else "<"
        self._pack_short, self._pack_long, self._pack_bare = (
            Struct(order + form) for form in ("HH2sH", "HH2sHI", "HHI")
        )
        self._u16, self._u32 = Struct(order + "H").unpack_from, Struct(order + "I").unpack_from
        self._bare = self._pack_bare.unpack_from
        self._decoder = self._usual_decoder = decoder_for(subject.charset, big=rules.encoding.big)
        self._depth = 0
        self._due: list[tuple[int, Callable[[], bytes]]] = [(_METHOD_CODES, self._statement)]
        self._due += [(_BURNED_IN, self._nothing_burned_in)] if rules.cleaned else []
        self._due += [(_TEMPORAL, self._temporal)]
        self._methods, self._codes = b"", b""
        self._overlays: dict[int, str] = {}
        self.done = Spliced()

    def through(self, read: Read, start: int, end: int) -> Spliced:
        """The pieces for the data set between two positions of a source.

        BadData when it does not end with an element; Odd when it is not made as the standard says.
        """
        out = self.done.pieces
        top = self._rules.place(0, explicit=self._rules.encoding.explicit)
        base, asked = start, WINDOW
        while base < end:
            self._data = bytes(read(base, min(asked, end - base)))
            if len(self._data) < min(asked, end - base):
                raise BadData("the data set is shorter than its file was", cause="truncated")
            before = len(out)
            at = self._elements(0, end - base, out, top)
            if base + at >= end or self._is_padding(read, base + at, end):
                break
            if at or len(out) > before:
                base, asked = base + at, WINDOW
            elif (after := self._large(read, base, end, out, top)) is not None:
                base, asked = after, WINDOW
            elif asked >= end - base:
                raise BadData("the data set ends within an element", cause="truncated")
            elif asked >= MAX_WINDOW:
                raise BadData(f"an element is longer than {MAX_WINDOW >> 20} MiB", cause="bad-length")
            else:
                asked *= 4
        self._settle(_NEVER, out)
        self.done.join()
        return self.done

    def _elements(self, pos: int, end: int, out: list[Piece], place: Place) -> int:  # noqa: C901, PLR0912, PLR0915 - the hot loop
        """Appends what becomes of the elements up to `end` or to the item's delimiter; where it stopped.

        At the top level it also stops before pixel data, and before what the window does not hold to its end.
        """
        data, rules, is_top = self._data, place.rules, place.parent == 0
        width = 6 if place.explicit else 4
        u16, u32, size = self._u16, self._u32, len(data)
        due = self._due[0][0] if is_top and self._due else _NEVER
        blocks: dict[int, str] = {}
        varying, known = place.varying, self._repeats.at(place.number)
        remembers = self._has_usual_charset
        trail: Trail | None = None
        run = pos
        while pos < end:
            if size - pos < 12 and (size < end or end - pos < 8):
                if is_top:
                    break
                if end - pos < 8:
                    raise self._overrun(place.parent, is_top=False)
                raise _More
            same = known.get(data[pos : pos + 8]) if remembers else None
            if same and (stop := pos + len(same.raw)) <= min(size, end):
                if not data.startswith(same.raw, pos):
                    varying.add(same.differs(data, pos))
                    del known[data[pos : pos + 8]]
                elif same.met.mentioned.isdisjoint(self._uids) and (same.last <= due or same.first > due):
                    self._end(trail, run, pos, out, place)
                    trail = None
                    if same.first > due:
                        due = self._settle(same.first, out)
                    if same.last <= due:
                        out += same.pieces
                        self.done.meet(same.met)
                        self._repeats.tries += 1
                        run = pos = stop
                        continue
                    run = pos
            key = data[pos : pos + width]
            rule = rules.get(key)
            if rule is None:
                rule = self._new_rule(key, pos, place)
                if rule is None:
                    break
            letter, tag, head, *_ = rule
            if head == _SHORT:
                length, start = u16(data, pos + 6)[0], pos + 8
            elif head == _LONG:
                length, start = u32(data, pos + 8)[0], pos + 12
            else:
                length, start = u32(data, pos + 4)[0], pos + 8
            stop = start + length
            if tag > due and letter != "T":
                self._end(trail, run, pos, out, place)
                trail, run = None, pos
                due = self._settle(tag, out)
            if letter == "B":
                break
            if length == _UNDEFINED:
                pass
            elif stop > end:
                raise self._overrun(tag, is_top=is_top)
            elif stop > size:
                if is_top:
                    break
                raise _More
            if letter in _ALWAYS_ANEW or key in varying:
                if trail:
                    self._end(trail, run, pos, out, place)
                    trail, run = None, pos
            elif trail:
                trail.add(pos, key, tag)
            elif remembers and self._repeats.tries > 0:
                if run < pos:
                    out.append(data[run:pos])
                    run = pos
                trail = Trail(pos, len(out), self.done, [(pos, key)], tag, tag)
                self.done = Spliced()
            if length != _UNDEFINED and letter in "K-":
                if letter == "K":
                    pos = stop
                    continue
                if run < pos:
                    out.append(data[run:pos])
                self.done.counts["X"] += 1
                run = pos = stop
                continue
            met = self.done
            try:
                new, stop = self._treated(rule, pos, start, length, end, place, blocks)
            except _More:
                if is_top:
                    self._depth, self.done = 0, met
                    break
                raise
            if new is not None:
                met.counts["X" if letter == "-" else letter] += 1
                if run < pos:
                    out.append(data[run:pos])
                if new:
                    out.append(new)
                run = stop
            pos = stop
            if letter == "E":
                remembers = self._has_usual_charset
        self._end(trail, run, pos, out, place)
        return pos

    @property
    def _has_usual_charset(self) -> bool:
        return self._decoder is self._usual_decoder

    def _end(self, trail: Trail | None, run: int, pos: int, out: list[Piece], place: Place) -> None:
        """Appends what stays of the elements so far; where they are on a trail, what became of them is remembered."""
        if run < pos:
            out.append(self._data[run:pos])
        if trail:
            met, self.done = self.done, trail.before
            self.done.meet(met)
            if met.mentioned.isdisjoint(self._uids):
                self._repeats.keep(place.number, trail.known(self._data, pos, out, met))

    def _new_rule(self, key: bytes, pos: int, place: Place) -> Rule | None:
        """The rule for an element that is new at this place; None at an item's end, or where zeros begin."""
        group, element = self._u16(key, 0)[0], self._u16(key, 2)[0]
        tag = group << 16 | element
        if tag == _ITEM_END or (tag == 0 and place.parent == 0 and not any(self._data[pos : pos + 8])):
            return None
        written = key[4:6] if place.explicit else b""
        if group == 0xFFFE or (place.explicit and written not in SHORT_VRS and written not in LONG_VRS):
            raise Odd(f"({group:04X},{element:04X}) has no value representation that is known")
        rule = self._rules.rule(tag, written, place)
        place.rules[key] = rule
        return rule

    # One element

    def _treated(
        self, rule: Rule, pos: int, start: int, length: int, end: int, place: Place, blocks: dict[int, str]
    ) -> tuple[bytes | None, int]:
        """The bytes that take the place of an element, None where it stays; and the position behind it."""
        if rule.vr == "SQ" and rule.tag >> 16 & 1 and length != _UNDEFINED:
            return self._private_sequence(rule, pos, start, length, end, place)
        if rule.vr == "SQ" or (length == _UNDEFINED and rule.written not in {b"OB", b"OW"}):
            return self._sequence(rule, pos, start, length, end, place)
        if length == _UNDEFINED:  # an image in a sequence, such as an icon
            return (None if rule.letter == "K" else self._made(rule, b"")), self._after_fragments(start, end)
        raw = self._data[start : start + length]
        if rule.letter == "P":
            return self._private(rule, raw, blocks), start + length
        if rule.kind:
            self._note(rule, raw)
        if rule.letter == "G":
            return self._graphic(rule, pos, place, blocks), start + length
        return self._value(rule, raw), start + length

    def _value(self, rule: Rule, raw: bytes) -> bytes | None:  # noqa: C901, PLR0911, PLR0912 - one line a letter
        """The new element for a rule's letter; None where the old one stays."""
        match rule.letter:
            case "X" | "-":
                return b""
            case "Z":
                return self._made(rule, b"") if raw else None
            case "D":
                return self._made(rule, dummy(rule.vr)) if raw.strip(b"\0 ") else None
            case "U":
                return self._made(rule, self._uid(raw))
            case "N":
                return (
                    self._made(rule, self._pseudonym(rule.tag, raw))
                    if raw.strip(b"\0 ") or rule.tag in _PATIENT
                    else None
                )
            case "S":
                return self._moved(rule, raw)
            case "L":
                return None if has_form(rule.vr, raw) else self._spoiled(rule, raw)
            case "W":
                text = self._text(raw)
                return self._searched(rule, self._encoded(cleaned(text, self._identity.words)), was=raw)
            case "R":
                return self._made(rule, self._encoded(rule.value))
            case "E":
                self._decoder = decoder_for(raw, big=self._rules.encoding.big)
            case "H":
                return self._searched(rule, raw, was=raw)
            case "T" if rule.tag == _METHOD:
                self._methods = raw.strip(b"\0 ")
                return b""
            case "T":
                return b""
        return None

    def _note(self, rule: Rule, raw: bytes) -> None:
        """Remembers identity for the search in the result; what the user wants kept is not searched for."""
        if rule.kind == "overlay":
            self.done.has_overlay_in_pixels |= any(raw)
        elif text := self._text(raw).strip("\0 "):
            (self.done.kept if rule.letter in "KHL" else self.done.values).add((rule.kind, text))

    def _uid(self, raw: bytes) -> bytes:
        texts = raw.decode("latin_1").strip("\0 ").split("\\")
        new = []
        for text in texts:
            mapped = self._key.uid(text.strip("\0 "))
            if mapped != text:
                self.done.uids.add(text.strip("\0 ").encode("latin_1"))
            new.append(mapped)
        return "\\".join(new).encode("ascii", "replace")

    def _pseudonym(self, tag: int, raw: bytes) -> bytes:
        if tag in _PATIENT:
            return self._subject.patient.encode()
        kind = {ACCESSION: "ACCESSION", STUDY_ID: "STUDY"}[tag]
        return self._key.code(kind, self._text(raw).strip("\0 ")).encode()

    def _moved(self, rule: Rule, raw: bytes) -> bytes | None:
        if not raw.strip(b"\0 "):
            return None
        moved = shifted(rule.vr, raw, self._subject.days)
        if moved is None:  # no date that could be moved: as without the option
            self.done.spoiled.append(_shown(rule.tag))
            return self._made(rule, dummy(rule.vr) if rule.vr in {"DA", "DT", "OB"} else b"")
        return self._made(rule, moved)

    def _spoiled(self, rule: Rule, raw: bytes) -> bytes:
        """What takes the place of a date, a time or a UID that is to stay, and is none: it could be any text."""
        self.done.spoiled.append(_shown(rule.tag))
        return self._made(rule, self._uid(raw) if rule.vr == "UI" else dummy(rule.vr))

    def _searched(self, rule: Rule, raw: bytes, *, was: bytes) -> bytes | None:
        """A text as it may stand: without its value when that holds identity of the patient."""
        if self._rules.searching and raw and self._holds_identity(rule, raw):
            self.done.cleaned.append(_shown(rule.tag))
            return self._made(rule, dummy(rule.vr) if rule.vr in TEXT else self._without_identity(rule, raw))
        return None if raw == was else self._made(rule, raw)

    def _holds_identity(self, rule: Rule, raw: bytes) -> bool:
        """Whether a value is or holds identity; a modality is none, though patients are called Mr and Ms."""
        is_modality = rule.tag == _MODALITY and raw.strip(b"\0 ") in MODALITIES
        return not is_modality and self._has_identity(raw)

    def _without_identity(self, rule: Rule, raw: bytes) -> bytes:
        """A value of codes less those that are identity: those of images go by their places (Image Type)."""
        codes = raw.strip(b"\0 ").split(b"\\")
        if rule.vr != "CS" or len(codes) == 1:
            return b""
        return b"\\".join(dummy("CS") if self._has_identity(one) else one for one in codes)

    def _has_identity(self, raw: bytes) -> bool:
        """Whether a value is or holds identity; the UIDs in it are noted, for they may be another file's identity."""
        self.done.mentioned |= uids_in(raw)
        return self._identity.is_in_value(raw, self._text(raw), self._uids)

    def _private(self, rule: Rule, raw: bytes, blocks: dict[int, str]) -> bytes | None:
        """What becomes of an element of a group of which something stays: safe ones and their creators do."""
        group, element = rule.tag >> 16, rule.tag & 0xFFFF
        safe = table.safe_private() if self._rules.profile.retain_safe_private else {}
        if 0x10 <= element <= 0xFF:
            creator = raw.decode("latin_1").strip("\0 ")
            blocks[element] = creator
            own = any(tag >> 16 == group and tag >> 8 & 0xFF == element for tag in self._rules.profile.own)
            return None if own or any(place[0] == group for place in safe.get(creator, ())) else b""
        vr = safe.get(blocks.get(element >> 8, ""), {}).get((group, element & 0xFF), "")
        if not has_form(vr, raw):
            return b""
        if self._is_identity(raw, vr):
            self.done.cleaned.append(_shown(rule.tag))
            return b""
        return None

    def _is_identity(self, raw: bytes, vr: str) -> bool:
        """Whether a text, or a number where those are looked at, is or holds identity."""
        is_looked_at = self._rules.searching and (vr in WRITTEN or self._rules.profile.searches_numbers)
        return is_looked_at and self._has_identity(raw)

    def _graphic(self, rule: Rule, pos: int, place: Place, blocks: dict[int, str]) -> bytes | None:
        """What becomes of a part of a curve or an overlay under Clean Graphics: no text, overlays of regions only."""
        if rule.tag >> 24 == 0x60 and self._overlay_type(pos, place, blocks) != "R":
            return b""
        return b"" if rule.vr in WRITTEN - {"CS"} or rule.vr in {"DA", "TM", "UN", ""} else None

    def _overlay_type(self, pos: int, place: Place, blocks: dict[int, str]) -> str:
        """The Overlay Type in the group of the element at a position, where it can be seen from there."""
        data, group = self._data, self._u16(self._data, pos)[0]
        # Of the top level it is known beyond a window, of an item within it.
        overlays = blocks if place.parent else self._overlays
        if (known := overlays.get(group)) is not None:
            return known
        found, start = "", pos
        while True:
            if pos + 12 > len(data):
                if start > 0:
                    raise _More  # what follows may tell
                break
            tag, at, length, _ = self._head_at(pos, place)
            if tag >> 16 != group or tag & 0xFFFF > _OVERLAY_TYPE or length == _UNDEFINED:
                break
            if tag & 0xFFFF == _OVERLAY_TYPE:
                found = data[at : at + length].decode("latin_1").strip("\0 ")
            pos = at + length
        return overlays.setdefault(group, found)

    # Sequences

    def _sequence(
        self, rule: Rule, pos: int, start: int, length: int, end: int, place: Place
    ) -> tuple[bytes | None, int]:
        """As `_treated`, of a sequence: its items are walked even when it goes, for the identity that they hold."""
        if self._depth >= MAX_DEPTH:
            raise BadData(f"sequences are nested more than {MAX_DEPTH} deep", cause="too-deep")
        self._depth += 1
        inner = self._rules.place(
            rule.tag,
            rule.mood if rule.letter in "QT" else "keep",
            self._depth,
            explicit=place.explicit and rule.written == b"SQ",
        )
        items, stop = self._items(
            start, end if length == _UNDEFINED else start + length, inner, delimited=length == _UNDEFINED
        )
        self._depth -= 1
        if rule.letter == "T":
            self._codes = self._data[start : stop - 8 * (length == _UNDEFINED)] if items is None else items
            return b"", stop
        if rule.letter not in "QK":
            return (self._made(rule, b"") if rule.letter == "Z" else b""), stop
        if items is None:
            return None, stop
        if length != _UNDEFINED:
            return self._made(rule, items), stop
        return self._data[pos:start] + items + self._pack_bare.pack(0xFFFE, 0xE0DD, 0), stop

    def _private_sequence(
        self, rule: Rule, pos: int, start: int, length: int, end: int, place: Place
    ) -> tuple[bytes | None, int]:
        """As `_sequence`; it goes as a whole, whatever it is made like, and is walked for the identity in it."""
        depth, decoder = self._depth, self._decoder
        try:
            return self._sequence(rule, pos, start, length, end, place)
        except BadData:
            self._depth, self._decoder = depth, decoder
            return (self._made(rule, b"") if rule.letter in "QK" else b""), start + length

    def _items(  # noqa: C901 - an item can end in two ways
        self, pos: int, end: int, place: Place, *, delimited: bool
    ) -> tuple[bytes | None, int]:
        """The items as they become, None when nothing changed in them; and the position behind the sequence."""
        data, decoder, changed = self._data, self._decoder, False
        out: list[bytes] = []
        while pos < end:
            group, element, length = self._head(pos, end)
            tag = group << 16 | element
            if tag == _SEQUENCE_END and delimited:
                # A delimiter has no length (PS3.5 7.5): another would be copied as it is.
                return (b"".join(out) if changed or length else None), pos + 8
            if tag != _ITEM:
                raise Odd(f"({group:04X},{element:04X}) stands where an item must be")
            start = pos + 8
            if length != _UNDEFINED and start + length > end:
                raise self._overrun(tag, is_top=False)
            parts: list[bytes] = []
            odd = 0
            before = self.done.counts.total()
            limit = end if length == _UNDEFINED else start + length
            inner, goes = self._content(start, limit, place)
            stop = self._elements(start, limit, parts, inner)  # type: ignore[arg-type]
            if length == _UNDEFINED:
                *delimiter, odd = self._head(stop, end)
                if delimiter != [0xFFFE, 0xE00D]:
                    raise Odd("an item without a length has no end")
                stop += 8
            elif stop != start + length:
                raise Odd("an item ends before its length does")
            self._decoder = decoder
            if goes:
                changed = True
                self.done.counts["X"] += 1
            elif self.done.counts.total() == before and not odd:
                out.append(data[pos:stop])
            else:
                changed = True
                body = b"".join(parts)
                told = _UNDEFINED if length == _UNDEFINED else len(body)
                out += [self._pack_bare.pack(0xFFFE, 0xE000, told), body]
                if length == _UNDEFINED:
                    out.append(self._pack_bare.pack(0xFFFE, 0xE00D, 0))
            pos = stop
        if delimited:
            raise Odd("a sequence without a length has no end")
        return (b"".join(out) if changed else None), pos

    def _content(self, start: int, end: int, place: Place) -> tuple[Place, bool]:
        """The place for the elements of an item, which for content items goes by the concept; and if the item goes."""
        profile = self._rules.profile
        if place.parent not in CONTENT or place.mood != "clean" or not profile.clean_structured_content:
            return place, False
        try:
            concept = concept_of(lambda pos: self._head_at(pos, place), self._data, start, end)
        except StructError:
            return place, False  # the window ends here, which is met again
        letter = action(concept, profile.columns)
        moods: dict[str, Mood] = {"K": "told", "D": "veiled"}
        mood = moods.get(letter, "clean")
        return self._rules.place(place.parent, mood, self._depth, explicit=place.explicit), letter == "X"

    def _head_at(self, pos: int, place: Place) -> tuple[int, int, int, bytes]:
        """The tag of an element, where its value begins, how long it is, and its VR as it is written."""
        data = self._data
        tag = self._u16(data, pos)[0] << 16 | self._u16(data, pos + 2)[0]
        vr = bytes(data[pos + 4 : pos + 6]) if place.explicit and tag >> 16 != 0xFFFE else b""
        if not vr:
            return tag, pos + 8, self._u32(data, pos + 4)[0], vr
        if vr in LONG_VRS:
            return tag, pos + 12, self._u32(data, pos + 8)[0], vr
        return tag, pos + 8, self._u16(data, pos + 6)[0], vr

    def _head(self, pos: int, end: int) -> tuple[int, int, int]:
        if pos + 8 > end:
            raise Odd("a sequence ends within an item")
        try:
            return self._bare(self._data, pos)
        except StructError:
            raise _More from None

    def _after_fragments(self, pos: int, end: int) -> int:
        while True:
            group, element, length = self._head(pos, end)
            pos += 8
            if (group, element) == (0xFFFE, 0xE0DD):
                return pos
            if (group, element) != (0xFFFE, 0xE000) or pos + length > end:
                raise Odd("encapsulated pixel data in a sequence are damaged")
            pos += length

    # The top level

    def _large(self, read: Read, base: int, end: int, out: list[Piece], top: Place) -> int | None:
        """Notes the place of pixel data, or of a long value that stays or goes as a whole; the position behind it."""
        data = self._data
        key = data[: 6 if top.explicit else 4]
        rule = top.rules.get(key) or self._new_rule(key, 0, top)
        if rule is None:
            return None
        if rule.head == _SHORT:
            return None
        head = rule.head or 8
        length: int = self._u32(data, head - 4)[0]
        if rule.letter == "B":
            self._settle(rule.tag, out)
            stop = base + head + length if length != _UNDEFINED else fragments_end(read, base + head, end, self._bare)
            if stop > end:
                raise self._overrun(rule.tag, is_top=True)
            out.append(Stretch(base, stop - base, pixels=True))
            return stop
        if rule.vr == "SQ" or length == _UNDEFINED or length < BULK or rule.letter not in "KXDZ-":
            return None
        stop = base + head + length
        self.done.counts["X" if rule.letter == "-" else rule.letter] += rule.letter != "K"
        if rule.letter == "K":
            out.append(Stretch(base, stop - base, pixels=False))
        elif rule.letter not in "X-":
            out.append(self._made(rule, dummy(rule.vr) if rule.letter == "D" else b""))
        return stop

    def _is_padding(self, read: Read, position: int, end: int) -> bool:
        """Whether nothing but zeros follows: some media pad files to blocks. Other bytes would be copied by nobody."""
        if any(read(position, min(8, end - position))):
            if end - position < 8:
                raise Odd("something that is no element follows the data set")
            return False
        if end - position > MAX_PADDING or any(read(position, end - position)):
            raise Odd("something that is no element follows the data set")
        return True

    def _settle(self, tag: int, out: list[Piece]) -> int:
        """Appends what is to stand before a tag; the tag behind which something is due next."""
        while self._due and self._due[0][0] < tag:
            out.append(self._due.pop(0)[1]())
        return self._due[0][0] if self._due else _NEVER

    def _statement(self) -> bytes:
        """Patient Identity Removed and the De-identification Methods, behind those of earlier ones (PS3.15 E.1.1)."""
        context = (self._methods, self._codes, self._flags)
        if (known := self._rules.statements.get(context)) is None:
            self._rules.statements.clear()
            known = self._rules.statements[context] = self._new_statement()
        statement, own = known
        self.done.own += own
        return statement

    def _new_statement(self) -> tuple[bytes, list[bytes]]:
        earlier = [one for one in self._methods.split(b"\\") if one]
        methods = [one for one in earlier if not self._is_identity(one, "LO")]
        methods += [method for method in [METHOD.encode()] if method not in methods]
        codes = self._rules.profile.codes_of(self._flags)
        items = [self._code_item(code) for code in codes if code.encode() not in self._codes]
        mine = b"".join(items)
        explicit = self._rules.encoding.explicit
        statement = (
            self._element(0x00120062, b"CS", b"NO" if self._flags == "NO" else b"YES", explicit=explicit)
            + self._element(_METHOD, b"LO", b"\\".join(methods), explicit=explicit)
            # Not there when it would be empty: it is of Type 1C (PS3.3 C.7.1.1).
            + (self._element(_METHOD_CODES, b"SQ", told, explicit=explicit) if (told := self._codes + mine) else b"")
        )
        return statement, [*items, METHOD.encode()]

    def _code_item(self, code: str) -> bytes:
        parts = ((0x00080100, b"SH", code), (0x00080102, b"SH", "DCM"), (0x00080104, b"LO", CODES[code]))
        explicit = self._rules.encoding.explicit
        body = b"".join(self._element(tag, vr, text.encode(), explicit=explicit) for tag, vr, text in parts)
        return self._pack_bare.pack(0xFFFE, 0xE000, len(body)) + body

    def _nothing_burned_in(self) -> bytes:
        return self._element(_BURNED_IN, b"CS", b"NO", explicit=self._rules.encoding.explicit)

    def _temporal(self) -> bytes:
        return self._element(
            _TEMPORAL, b"CS", self._rules.profile.temporal.encode(), explicit=self._rules.encoding.explicit
        )

    # Bytes

    def _made(self, rule: Rule, value: bytes) -> bytes:
        return self._element(rule.tag, rule.written, value, explicit=rule.head != _BARE, pad=rule.vr)

    def _element(self, tag: int, vr: bytes, value: bytes, *, explicit: bool, pad: str = "") -> bytes:
        """An element; a value of odd length is filled up as its VR wants it (PS3.5 6.2)."""
        if len(value) % 2:
            value += b"\0" if (pad or vr.decode()) in {"UI", "OB", "UN", ""} else b" "
        group, element = tag >> 16, tag & 0xFFFF
        if not explicit:
            return self._pack_bare.pack(group, element, len(value)) + value
        if vr in LONG_VRS:
            return self._pack_long.pack(group, element, vr, 0, len(value)) + value
        return self._pack_short.pack(group, element, vr, len(value)) + value

    def _text(self, raw: bytes) -> str:
        return self._decoder._text(raw)  # noqa: SLF001

    def _encoded(self, text: str) -> bytes:
        return text.encode("ascii", "ignore")

    def _overrun(self, tag: int, *, is_top: bool) -> BadData:
        where = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
        if is_top:
            return BadData(f"the data set ends within {where}", cause="truncated")
        return BadData(f"{where} reaches beyond the item that holds it", cause="bad-length")


def fragments_end(read: Read, position: int, end: int, unpack: Callable[[bytes, int], tuple[int, int, int]]) -> int:
    """The position behind encapsulated pixel data (PS3.5 A.4), which begin at `position`."""
    while position + 8 <= end:
        group, element, length = unpack(bytes(read(position, 8)), 0)
        position += 8
        if (group, element) == (0xFFFE, 0xE0DD):
            return position
        if (group, element) != (0xFFFE, 0xE000) or length == _UNDEFINED:
            raise Odd("encapsulated pixel data are damaged")
        position += length
    raise BadData("the data set ends within its pixel data", cause="truncated")


def _shown(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
