import tracemalloc
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from dcmtools.disk.dataset import MAX_DEPTH, Encoding, Odd, Walk, encoding_of, walk
from dcmtools.disk.inflated import Buffer
from dcmtools.disk.values import Element
from dcmtools.model.errors import BadData
from tests.builders import encode_element, make_instance

PATIENT_ID, ROWS, PIXELS = 0x00100020, 0x00280010, 0x7FE00010
WANTED = frozenset({PATIENT_ID, ROWS})
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0" + bytes(4), b"\xfe\xff\xdd\xe0" + bytes(4)
SYNTAXES: list[str] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


def encoded(data_set: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    encoding = encoding_of(syntax)
    made = DicomBytesIO()
    made.is_implicit_VR, made.is_little_endian = not encoding.explicit, not encoding.big
    write_dataset(made, data_set)
    return made.getvalue()


def nested(undefined: bool = True) -> Dataset:
    """An instance with sequences in sequences, in both ways of telling where they end."""
    made = make_instance()
    del made.file_meta
    made["PixelData"].VR = "OW"
    inner = Dataset()
    inner.PatientID = "INNER"
    inner.Rows = 99
    middle = Dataset()
    middle.ReferencedSOPInstanceUID = "1.2.3"
    middle.ContentSequence = Sequence([inner, inner])
    made.ReferencedStudySequence = Sequence([middle, Dataset(), middle])
    for item in (middle, inner):
        item.is_undefined_length_sequence_item = undefined
    made["ReferencedStudySequence"].is_undefined_length = undefined
    middle["ContentSequence"].is_undefined_length = not undefined
    return made


def ends_of_elements(data_set: Dataset, syntax: str) -> set[int]:
    """The lengths at which a file may be cut without anybody being able to tell."""
    ends, length = {0}, 0
    for element in data_set:
        alone = Dataset()
        alone.add(element)
        length += len(encoded(alone, syntax))
        ends.add(length)
    return ends


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [True, False])
def test_wanted_elements_are_those_of_the_top_level(syntax: str, undefined: bool) -> None:
    found = walk(encoded(nested(undefined), syntax), 0, syntax, WANTED)

    assert found[PATIENT_ID][1] == b"P1"
    assert int.from_bytes(found[ROWS][1], "big" if syntax == ExplicitVRBigEndian else "little") == 4
    assert found[ROWS][0] == (b"" if syntax == ImplicitVRLittleEndian else b"US")


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [True, False])
def test_data_set_that_is_cut_anywhere_within_an_element_is_truncated(syntax: str, undefined: bool) -> None:
    whole = encoded(nested(undefined), syntax)
    ends = ends_of_elements(nested(undefined), syntax)

    for length in range(len(whole)):
        last_end = max(end for end in ends if end <= length)
        if not any(whole[last_end:length]):  # a zero after an element may be padding
            walk(whole[:length], 0, syntax, WANTED)
        else:
            with pytest.raises(BadData) as caught:
                walk(whole[:length], 0, syntax, WANTED)
            assert caught.value.cause == "truncated", length


def in_windows(whole: bytes, size: int, syntax: str) -> dict[int, Element]:
    """Walks as over a file that is read in windows of `size` bytes."""
    steps = Walk(0, len(whole), encoding_of(syntax), WANTED, deep=True)
    while not steps.done:
        position = steps.position
        window = whole[position : position + max(size, steps.needed)]
        steps.feed(window, position)
    return steps.found


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("size", [1, 7, 8, 11, 12, 13, 64, 100000])
def test_the_size_of_the_windows_does_not_matter(syntax: str, size: int) -> None:
    whole = encoded(nested(), syntax)

    assert in_windows(whole, size, syntax) == walk(whole, 0, syntax, WANTED)


def test_walk_can_stop_before_a_tag_and_go_on() -> None:
    whole = encoded(nested())
    steps = Walk(0, len(whole), Encoding(explicit=True), WANTED, last=PATIENT_ID)

    steps.feed(whole, 0)
    assert set(steps.found) == {PATIENT_ID}
    assert whole[steps.position : steps.position + 2] == b"\x20\x00"

    steps.go_on()
    steps.feed(whole[steps.position :], steps.position)
    assert set(steps.found) == WANTED
    assert steps.position == len(whole)


def test_elements_out_of_order_are_found_behind_the_last_tag() -> None:
    rows, patient = encode_element(ROWS, "US", b"\4\0"), encode_element(PATIENT_ID, "LO", b"P1")
    whole = encode_element(0x00200013, "IS", b"1 ") + encode_element(0x00080060, "CS", b"MR") + rows + patient
    steps = Walk(0, len(whole), Encoding(explicit=True), WANTED, last=0x00270000)

    steps.feed(whole, 0)

    assert set(steps.found) == WANTED


def chain(depth: int, undefined: bool) -> bytes:
    """Sequences nested so deep; built from the outside, for what is built from the inside takes a minute."""
    if undefined:
        head = encode_element(0x0040A730, "SQ", ITEM + b"\xff" * 4, UNDEFINED)
        return head * depth + (ITEM_END + SEQUENCE_END) * depth
    size = 20 * depth
    return b"".join(
        encode_element(0x0040A730, "SQ", ITEM + (size - 20 * level - 20).to_bytes(4, "little"), size - 20 * level - 12)
        for level in range(depth)
    )


@pytest.mark.parametrize("undefined", [True, False])
def test_nesting_is_followed_to_the_limit(undefined: bool) -> None:
    walk(chain(MAX_DEPTH, undefined), 0, ExplicitVRLittleEndian, WANTED)


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 100_000])
def test_deeper_nesting_is_refused(undefined: bool, depth: int) -> None:
    with pytest.raises(BadData) as caught:
        walk(chain(depth, undefined), 0, ExplicitVRLittleEndian, WANTED)

    assert caught.value.cause == "too-deep"


def test_unknown_vr_without_length_holds_implicit_items() -> None:
    inner = b"\x10\x00\x20\x00" + (2).to_bytes(4, "little") + b"XX"
    content = ITEM + b"\xff" * 4 + inner + ITEM_END + SEQUENCE_END
    whole = encode_element(0x00091010, "UN", content, UNDEFINED) + encode_element(PATIENT_ID, "LO", b"P1")

    assert walk(whole, 0, ExplicitVRLittleEndian, WANTED) == {PATIENT_ID: (b"LO", b"P1")}


def fragments(*sizes: int) -> bytes:
    return b"".join(ITEM + size.to_bytes(4, "little") + bytes(size) for size in sizes)


@pytest.mark.parametrize("vr", ["OB", "OW", "UN"])
def test_encapsulated_pixels_are_passed_fragment_by_fragment(vr: str) -> None:
    tail = encode_element(0xFFFCFFFC, "OB", bytes(10))
    whole = encode_element(PIXELS, vr, fragments(0, 70000, 10) + SEQUENCE_END, UNDEFINED) + tail

    assert walk(whole, 0, JPEGBaseline8Bit, WANTED) == {}


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (fragments(4), "truncated"),
        (ITEM + b"\xff" * 4 + SEQUENCE_END, "bad-length"),
        (ITEM + b"\x00\x00\x10\x00" + SEQUENCE_END, "truncated"),
        (b"garbage!" + SEQUENCE_END, "bad-length"),
    ],
)
def test_damaged_fragments_are_refused(content: bytes, cause: str) -> None:
    with pytest.raises(BadData) as caught:
        walk(encode_element(PIXELS, "OB", content, UNDEFINED), 0, JPEGBaseline8Bit, WANTED)

    assert caught.value.cause == cause


@pytest.mark.parametrize(
    ("whole", "cause"),
    [
        (encode_element(PATIENT_ID, "LO", b"P1", 200), "truncated"),
        (encode_element(PIXELS, "OW", b"", 0xFFFFFFF0), "truncated"),
        (encode_element(0x0040A730, "SQ", ITEM + (50).to_bytes(4, "little") + bytes(8)) + bytes(60), "bad-length"),
        (encode_element(PATIENT_ID, "UT", b"", UNDEFINED), "bad-length"),
        (encode_element(PATIENT_ID, "UT", bytes(1 << 21)), "bad-length"),
        (encode_element(PATIENT_ID, "LO", b"P1") + ITEM_END, "bad-length"),
        (encode_element(PATIENT_ID, "LO", b"P1") + b"garbage at the end", "bad-length"),
        (encode_element(0x0040A730, "SQ", encode_element(PATIENT_ID, "LO", b"P1")), "bad-length"),
    ],
    ids=["value", "pixels", "item", "no length", "huge value", "stray end", "garbage", "no item"],
)
def test_lengths_that_lie_are_found_out(whole: bytes, cause: str) -> None:
    with pytest.raises(BadData) as caught:
        walk(whole, 0, ExplicitVRLittleEndian, WANTED)

    assert caught.value.cause == cause


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("count", [1, 2, 7, 8, 100, 100_000])
def test_zeros_at_the_end_are_padding(syntax: str, count: int) -> None:
    whole = encoded(nested(), syntax)

    assert walk(whole + bytes(count), 0, syntax, WANTED) == walk(whole, 0, syntax, WANTED)


def test_a_file_that_was_made_longer_and_never_filled_is_refused() -> None:
    with pytest.raises(Odd):
        walk(encoded(nested()) + bytes(2 << 20), 0, ExplicitVRLittleEndian, WANTED)


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def test_deflated_data_set_is_walked_to_its_end() -> None:
    whole = encoded(nested()) + encode_element(0x7FE10010, "OB", bytes(3 << 20))

    found = walk(b"before" + deflate(whole) + b"\0", 6, DeflatedExplicitVRLittleEndian, WANTED)

    assert found[PATIENT_ID] == (b"LO", b"P1")


@pytest.mark.parametrize(
    ("packed", "cause"),
    [
        (deflate(encoded(nested()))[:-8], "truncated"),
        (deflate(encoded(nested())[:-3]), "truncated"),
        (b"\xff" * 100, "unreadable"),
        (b"", "truncated"),
    ],
    ids=["cut", "cut before", "damaged", "empty"],
)
def test_damaged_deflated_data_set_is_refused(packed: bytes, cause: str) -> None:
    with pytest.raises(BadData) as caught:
        walk(packed, 0, DeflatedExplicitVRLittleEndian, WANTED)

    assert caught.value.cause == cause


def bomb() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(encode_element(0x7FE10010, "OB", b"", 200 << 20))
    return packed + b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()


def test_deflate_bomb_is_refused_in_little_memory() -> None:
    packed = bomb()
    tracemalloc.start()

    with pytest.raises(BadData, match="inflates"):
        walk(packed, 0, DeflatedExplicitVRLittleEndian, WANTED)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_black_image_that_packs_as_well_as_a_bomb_is_read() -> None:
    whole = encode_element(PATIENT_ID, "LO", b"P1") + encode_element(PIXELS, "OW", bytes(20 << 20))

    assert walk(deflate(whole), 0, DeflatedExplicitVRLittleEndian, WANTED) == {PATIENT_ID: (b"LO", b"P1")}


@given(st.binary(max_size=200), st.sampled_from([*SYNTAXES, DeflatedExplicitVRLittleEndian]))
def test_any_bytes_are_a_data_set_or_bad_data(data: bytes, syntax: str) -> None:
    with suppress(BadData):
        walk(data, 0, syntax, WANTED)


WHOLE = {syntax: encoded(nested(), syntax) for syntax in SYNTAXES}


@given(st.sampled_from(SYNTAXES), st.integers(0, 10**6), st.binary(min_size=1, max_size=6))
def test_damage_anywhere_is_bad_data_or_goes_unseen(syntax: str, place: int, damage: bytes) -> None:
    whole = bytearray(WHOLE[syntax])
    place %= len(whole)
    whole[place : place + len(damage)] = damage

    with suppress(BadData):
        walk(whole, 0, syntax, WANTED)


def test_source_that_shrinks_under_the_walk_is_truncated() -> None:
    whole = encoded(nested())

    def read(position: int, size: int) -> Buffer:
        return whole[position : min(position + size, 100)]

    with pytest.raises(BadData, match="shorter"):
        Walk(0, len(whole), Encoding(explicit=True), WANTED).through(read)


def test_pixels_are_jumped_over_and_not_read() -> None:
    head = encode_element(PATIENT_ID, "LO", b"P1") + encode_element(PIXELS, "OW", b"", 500 << 20)
    asked: list[int] = []

    def read(position: int, size: int) -> Buffer:
        asked.append(size)
        return head[position:].ljust(min(size, len(head) + (500 << 20) - position), b"\0")

    found = Walk(0, len(head) + (500 << 20), Encoding(explicit=True), WANTED).through(read)

    assert found == {PATIENT_ID: (b"LO", b"P1")}
    assert sum(asked) < 100_000
