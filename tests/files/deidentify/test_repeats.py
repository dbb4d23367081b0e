"""What is remembered from file to file changes nothing: a file comes out as if it were the first one."""

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcmtools.files.deidentify import repeats
from dcmtools.files.deidentify.instance import Deidentifier, Settings
from dcmtools.files.deidentify.profile import Action, Profile
from dcmtools.files.deidentify.pseudonyms import Key
from dcmtools.model.errors import DcmtoolsError
from tests.files.deidentify.markers import Writer

KEY = Key(b"k" * 32)
PROFILES = [
    Profile(),
    Profile(clean_descriptors=True, clean_structured_content=True, clean_graphics=True),
    Profile(retain_dates="modified", retain_safe_private=True, retain_patient_characteristics=True),
    Profile(retain_uids=True, retain_dates="full", retain_device_identity=True),
    Profile(pseudonyms=("accession", "study-id"), own={0x00181030: Action("K"), 0x00080070: Action("R", value="ACME")}),
]
# Of each attribute a few values: identity, the UIDs of an instance that has them or has not, and nothing of these.
VALUES: dict[int, tuple[str, list[bytes]]] = {
    0x00080005: ("CS", [b"ISO_IR 100", b"ISO_IR 192"]),
    0x00080008: ("CS", [b"ORIGINAL\\PRIMARY", b"DERIVED"]),
    0x00080018: ("UI", [b"1.2.3.1", b"1.2.3.2", b"1.2.3.33"]),
    0x00080020: ("DA", [b"20200102", b"20200103", b"never", b""]),
    0x00080032: ("TM", [b"101112", b"101113"]),
    0x00080050: ("SH", [b"A-778899", b"7"]),
    0x00080070: ("LO", [b"ACME", b"ACME Li", b"of Zwentibold", b"1.2.3.2", b"Zw\xc3\xa9", b"R5.1.7 for 1.2.3.33"]),
    0x00081030: ("LO", [b"Brain of Quirin", b"Brain 3mm"]),
    0x0008103E: ("LO", [b"T1 head", b"Li"]),
    0x00081155: ("UI", [b"1.2.3.1", b"1.2.840.10008.5.1.4.1.1.4", b"1.2.9.9"]),
    0x00100010: ("PN", [b"Zwentibold^Quirin", b"Li^Bo", b"Zw\xc3\xa9^Q"]),
    0x00100020: ("LO", [b"ZQ-778899", b"12"]),
    0x00100030: ("DA", [b"19501224"]),
    0x00120063: ("LO", [b"earlier tool"]),
    0x00180015: ("CS", [b"", b"HEAD"]),
    0x00180050: ("DS", [b"3", b"12", b"2.5"]),
    0x00181020: ("LO", [b"1.2.3.1", b"5.1", b"S\0c\0"]),
    0x00181030: ("LO", [b"T1 of Zwentibold", b"T1"]),
    0x0020000E: ("UI", [b"1.2.3.4", b"1.2.3.5"]),
    0x00200010: ("SH", [b"55443322"]),
    0x00200032: ("DS", [b"1\\2\\3", b"1\\2\\4"]),
    0x00204000: ("LT", [b"calls Quirin", b"nothing"]),
    0x00280303: ("CS", [b"UNMODIFIED"]),
    0x00290010: ("LO", [b"SIEMENS CSA HEADER", b"other"]),
    0x00291010: ("OB", [b"Zwentibold", b"\0\1"]),
    0x20010010: ("LO", [b"Philips Imaging DD 001"]),
    0x20011003: ("FL", [b"\0\0\0\0", b"\0\0\x80?"]),
    0x60000040: ("CS", [b"R", b"G"]),
    0x60000102: ("US", [b"\0\0", b"\1\0"]),
    0x60003000: ("OW", [b"\1\2"]),
}
SEQUENCES = [0x00081140, 0x00082112, 0x00400275, 0x0040A730, 0x00120064, 0x52009229, 0x00291140]

Part = tuple[Any, ...]  # tag, value; or tag, items, whether their lengths are undefined

element = st.sampled_from(sorted(VALUES)).flatmap(lambda tag: st.tuples(st.just(tag), st.sampled_from(VALUES[tag][1])))
elements = st.lists(element, max_size=9, unique_by=lambda one: one[0])
nested = st.recursive(
    elements,
    lambda inner: st.lists(
        st.tuples(st.sampled_from(SEQUENCES), st.lists(inner, max_size=3), st.booleans()) | element,
        max_size=5,
        unique_by=lambda one: one[0],
    ),
    max_leaves=6,
)
sequence = st.tuples(st.sampled_from(SEQUENCES), st.lists(nested, max_size=3), st.booleans())
data_sets = st.lists(element | sequence, min_size=4, max_size=24, unique_by=lambda one: one[0])


@st.composite
def series(draw: st.DrawFn) -> list[list[Part]]:
    """Files that have most of their elements in common."""
    first = draw(data_sets)
    files = [first]
    for _ in range(draw(st.integers(2, 6))):
        gone = draw(st.lists(st.sampled_from([one[0] for one in first]), max_size=2))
        other = {one[0]: one for one in [*first, *draw(st.lists(element | sequence, max_size=4))]}
        files.append([one for tag, one in other.items() if tag not in gone])
    return files


def encoded(writer: Writer, parts: list[Part]) -> list[bytes]:
    made = []
    for tag, value, *undefined in sorted(parts, key=lambda part: part[0]):
        if undefined:
            items = [writer.item(*encoded(writer, one), undefined=undefined[0]) for one in value]
            made.append(writer.sequence(tag, *items, undefined=undefined[0]))
        else:
            made.append(writer.element(tag, VALUES[tag][0], value))
    return made


def result_of(engine: Deidentifier, source: Path) -> object:
    target = source.with_name("target")
    try:
        outcome = engine.deidentify(source, target)
    except DcmtoolsError as problem:
        return type(problem), problem.cause, problem.reason
    made = target.read_bytes()
    target.unlink()
    return made, asdict(outcome)


@pytest.mark.parametrize("profile", PROFILES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(files=series(), encoding=st.sampled_from(["explicit", "explicit", "implicit", "big"]))
def test_file_comes_out_as_if_it_were_the_first(profile: Profile, files: list[list[Part]], encoding: str) -> None:
    how = Settings(profile, burned_in="allow")
    experienced = Deidentifier(KEY, how)
    writer = Writer(encoding)
    with TemporaryDirectory() as folder:
        for parts in [*files, *files]:
            source = Path(folder) / "source"
            source.write_bytes(writer.file(*encoded(writer, parts)))

            assert result_of(experienced, source) == result_of(Deidentifier(KEY, how), source)


def test_files_that_repeat_most_of_their_elements_are_known_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[int] = []
    keep = repeats.Repeats.keep

    def noted(self: repeats.Repeats, place: int, known: repeats.Known) -> None:
        learnt.append(len(known.raw))
        keep(self, place, known)

    monkeypatch.setattr(repeats.Repeats, "keep", noted)
    engine, writer = Deidentifier(KEY, Settings(Profile())), Writer()
    for number in range(12):
        parts: list[Part] = [
            (0x00080018, b"1.2.3.%d" % number),
            *((tag, VALUES[tag][1][0]) for tag in (0x00080020, 0x00080070)),
        ]
        source = tmp_path / "source"
        source.write_bytes(writer.file(*encoded(writer, parts)))
        engine.deidentify(source, None)
        if number == 5:
            learnt.clear()

    assert not learnt


def test_memory_is_bounded() -> None:
    memory = repeats.Memory()

    for number in range(10_000):
        memory.of(number)

    assert len(memory._contexts) < 5_000
