import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    MediaStorageDirectoryStorage,
    MRImageStorage,
)

from dcmtools.disk.dataset import encoding_of
from dcmtools.disk.header import check_received, encode_meta, read_header, read_meta
from dcmtools.model.errors import BadData
from dcmtools.model.keys import KEYS
from dcmtools.model.record import Record, decode, encode
from tests.builders import encode_element, encode_file, make_instance, make_record, uid, write_instance

PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
DEEP = encode_element(0x0040A730, "SQ", b"\xfe\xff\x00\xe0" + b"\xff" * 4, 0xFFFFFFFF) * 200
IDENTITY = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


def cause_of(path: Path, **how: Any) -> str:
    with pytest.raises(BadData) as caught:
        read_header(path, **how)
    assert caught.value.exit_code == 65
    assert "path" in caught.value.where
    return caught.value.cause


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def data_set_of(path: Path) -> bytes:
    return path.read_bytes()[read_meta(path).offset :]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_record_holds_the_index_keys_and_the_place(tmp_path: Path, syntax: str) -> None:
    path = write_instance(tmp_path / "a.dcm", syntax=syntax)
    state = path.stat()

    record = read_header(path)

    place: Record = {"path": str(path), "size": state.st_size, "mtime_ns": str(state.st_mtime_ns)}
    assert record == {**make_record(), "TransferSyntaxUID": syntax, **place}
    assert decode(encode(record)) == record


def pydicoms(path: Path) -> Record | None:
    """The index keys of a file as pydicom has them; None when it cannot read it or the file names no instance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = pydicom.dcmread(path, force=True)
            found = {key.keyword: made[key.tag].value for key in KEYS if key.tag in made}
        except Exception:  # noqa: BLE001 - whatever it raises, it has no record
            return None
    return found if all(found.get(key) for key in IDENTITY) else None


def plain(value: Any) -> Any:
    if isinstance(value, list | MultiValue):
        return [plain(one) for one in value] or None
    return float(value) if isinstance(value, int | float) else str(value or "") or None


def check_equal_to_pydicom(folder: Path, known_bad: set[str]) -> int:
    """How many files of a folder have a record; each of them equals pydicom's, and only the known ones have none."""
    count, without = 0, set()
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        theirs = pydicoms(path)
        try:
            record = read_header(path)
        except BadData:
            without |= {path.name} if theirs else set()
            continue
        assert theirs is not None, path
        ours = {key.keyword: record[key.keyword] for key in KEYS if key.keyword in record}
        assert set(ours) == set(theirs), path
        for key in KEYS:
            if key.keyword in ours:
                expected = plain(theirs[key.keyword])
                expected = [expected] if key.many and expected and not isinstance(expected, list) else expected
                assert plain(ours[key.keyword]) == expected, (path, key.keyword)
        count += 1
    assert without == known_bad
    return count


def test_all_vendors_files_equal_pydicoms(data: Path) -> None:
    assert check_equal_to_pydicom(data / "vendors", set()) == 259


def test_odd_files_equal_pydicoms(data: Path) -> None:
    # Its UIDs are hex digits of a hash.
    assert check_equal_to_pydicom(data / "odd", {"bad_sequence.dcm"}) > 60


def test_a_fiftieth_of_a_whole_fmri_series_equals_pydicoms(data: Path, tmp_path: Path) -> None:
    if not (packed := data / "fmri-philips-5460.tar.xz").exists():
        pytest.skip("needs fmri-philips-5460.tar.xz in the folder with real data")
    subprocess.run(["tar", "xf", packed, "-C", tmp_path], check=True)
    for number, path in enumerate(sorted(path for path in tmp_path.rglob("*") if path.is_file())):
        if number % 50:
            path.unlink()

    assert check_equal_to_pydicom(tmp_path, set()) == 110


def test_pydicoms_own_test_files_equal_pydicoms() -> None:
    truncated = {"MR_truncated.dcm", "rtplan_truncated.dcm"}
    no_header_at_all = {"ExplVR_BigEndNoMeta.dcm"}

    assert check_equal_to_pydicom(PYDICOM_FILES, truncated | no_header_at_all) > 100


def ends_of_elements(path: Path) -> list[int]:
    """Where a file may be cut without anybody being able to tell."""
    made = pydicom.dcmread(path)
    raw: list[Any] = [made.get_item(tag) for tag in made.keys()]  # noqa: SIM118 - its items are decoded ones
    return [element.value_tell + element.length for element in raw if isinstance(element, RawDataElement)]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_file_that_is_cut_within_an_element_has_no_record(tmp_path: Path, syntax: str) -> None:
    whole = write_instance(tmp_path / "whole.dcm", syntax=syntax).read_bytes()
    ends = [] if syntax == DeflatedExplicitVRLittleEndian else ends_of_elements(tmp_path / "whole.dcm")
    padded = {end + 1 for end in ends if whole[end : end + 1] == b"\0"}

    for length in set(range(len(whole))) - set(ends) - padded:
        if whole[length:] != b"\0":  # what pads a deflated data set
            assert cause_of(written(tmp_path / "cut.dcm", whole[:length])) in {"truncated", "not-dicom", "bad-uid"}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_large_pixels_cut_by_one_byte_are_noticed(tmp_path: Path, syntax: str) -> None:
    whole = write_instance(tmp_path / "whole.dcm", syntax=syntax, side=256).read_bytes()

    read_header(tmp_path / "whole.dcm")
    assert cause_of(written(tmp_path / "cut.dcm", whole[:-1])) == "truncated"
    assert cause_of(written(tmp_path / "long.dcm", whole + b"X" * 20)) in {"bad-length", "truncated"}


def element_with(keyword: str, value: bytes) -> bytes:
    tag = {key.keyword: key.tag for key in KEYS}[keyword]
    return encode_element(tag, "UI", value)


def identity(**uids: bytes) -> bytes:
    values = {
        "SOPClassUID": MRImageStorage.encode() + b"\0",
        "SOPInstanceUID": b"1.2.3 ",
        "StudyInstanceUID": b"1.2",
        "SeriesInstanceUID": b"1.2.4\0",
    }
    return b"".join(element_with(key, uids.get(key, value)) for key, value in values.items())


@pytest.mark.parametrize("keyword", IDENTITY)
@pytest.mark.parametrize("value", [b"", b"../../x", b"1.2\0.3", b"1." * 40, b"abc", b"1.2\\1.3", b"."])
def test_hostile_or_missing_uids_are_refused(tmp_path: Path, keyword: str, value: bytes) -> None:
    path = written(tmp_path / "x.dcm", encode_file(identity(**{keyword: value})))

    assert cause_of(path) == "bad-uid"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "not-dicom"),
        (b"hello, world\n" * 100, "not-dicom"),
        (bytes(10_000), "not-dicom"),
        (b"\x89PNG\r\n\x1a\n" + bytes(300), "not-dicom"),
        (bytes(128) + b"DICM", "truncated"),
        (bytes(128) + b"DICM" + encode_element(0x00020001, "OB", b"", 50), "truncated"),
        (bytes(128) + b"DICM" + encode_element(0x00020010, "??", b"abcd") + identity(), "bad-length"),
        (encode_file(b""), "truncated"),
        (encode_file(identity())[:-20], "truncated"),
        (
            encode_file(encode_element(0x0040A730, "SQ", b"\xfe\xff\x00\xe0" + b"\xff" * 4, 0xFFFFFFFF) * 200),
            "too-deep",
        ),
    ],
    ids=["empty", "text", "zeros", "png", "prefix", "meta", "bad meta", "no data set", "cut", "deep"],
)
def test_what_is_no_instance_has_a_cause(tmp_path: Path, content: bytes, cause: str) -> None:
    assert cause_of(written(tmp_path / "x", content)) == cause


def test_dicomdir_is_no_instance(tmp_path: Path) -> None:
    meta = encode_meta(MediaStorageDirectoryStorage, "1.2.3", ExplicitVRLittleEndian)

    assert cause_of(written(tmp_path / "DICOMDIR", meta + identity())) == "dicomdir"


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("start", [132, "data set"])
def test_file_without_preamble_is_read(tmp_path: Path, syntax: str, start: int | str) -> None:
    source = write_instance(tmp_path / "a.dcm", syntax=syntax)
    offset = start if isinstance(start, int) else read_meta(source).offset
    bare = written(tmp_path / "bare.dcm", source.read_bytes()[offset:])

    assert read_header(bare)["SOPInstanceUID"] == uid(1, 1, 1, 1)
    assert read_header(bare)["TransferSyntaxUID"] == syntax
    assert read_meta(bare).sop_instance == uid(1, 1, 1, 1)


def test_data_set_that_is_not_in_the_syntax_it_says_is_read(tmp_path: Path) -> None:
    implicit = data_set_of(write_instance(tmp_path / "a.dcm", syntax=ImplicitVRLittleEndian))
    explicit = data_set_of(write_instance(tmp_path / "b.dcm", syntax=ExplicitVRLittleEndian))

    for content, syntax in ((implicit, JPEGBaseline8Bit), (explicit, ImplicitVRLittleEndian)):
        assert read_header(written(tmp_path / "c.dcm", encode_file(content, syntax)))["PatientID"] == "P1"


def test_what_only_pydicom_can_read_is_read_by_it(tmp_path: Path) -> None:
    switch = b"\x09\x00\x10\x00" + (4).to_bytes(4, "little") + b"ABCD"  # one element without a VR among others with one
    whole = identity() + encode_element(0x00200013, "IS", b"7 ")
    path = written(
        tmp_path / "x.dcm", encode_file(whole[: whole.index(b"\x20\x00")] + switch + whole[whole.index(b"\x20\x00") :])
    )

    assert read_header(path)["InstanceNumber"] == 7
    assert cause_of(written(tmp_path / "cut.dcm", path.read_bytes()[:-1])) == "bad-length"


def test_meta_information_may_be_longer_than_the_first_read(tmp_path: Path) -> None:
    whole = write_instance(tmp_path / "a.dcm").read_bytes()
    private = encode_element(0x00020102, "OB", bytes(50_000))
    path = written(tmp_path / "b.dcm", whole[:132] + whole[144:320] + private + whole[320:])

    assert read_header(path)["PatientID"] == "P1"


def test_large_private_element_before_the_keys_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.dcm"
    head = encode_file(identity()[: -len(element_with("SeriesInstanceUID", b"1.2.4\0"))])
    head += encode_element(0x00200003, "OB", b"", (1 << 32) - 4)
    with path.open("wb") as out:
        out.write(head)
        out.seek((1 << 32) - 4, os.SEEK_CUR)  # a hole of 4 GiB
        out.write(element_with("SeriesInstanceUID", b"1.2.4\0"))

    assert read_header(path)["SeriesInstanceUID"] == "1.2.4"


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        (tmp_path / "link").symlink_to(write_instance(tmp_path / "a.dcm"))
        (tmp_path / "loop").symlink_to(tmp_path / "loop")

        for name in ("fifo", "socket", "link", "."):
            assert cause_of(tmp_path / name) == "unreadable"
        assert cause_of(tmp_path / "loop", follow=True) == "unreadable"
        assert cause_of(tmp_path / "nothing") == "vanished"
        assert cause_of(Path("/dev/zero")) == "unreadable"
        assert read_header(tmp_path / "link", follow=True)["PatientID"] == "P1"


def test_name_that_is_not_utf8_is_kept(tmp_path: Path) -> None:
    path = write_instance(tmp_path / "a.dcm").rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.dcm")))

    record = decode(encode(read_header(path)))

    assert record["path"].endswith("/\\xff\n.dcm")
    assert cause_of(written(path, b"")) == "not-dicom"


class Growing:
    """A file that somebody writes to each time when it was read."""

    def __init__(self, path: Path, times: int) -> None:
        self.path, self.left, self.fstat = path, times, os.fstat

    def __call__(self, descriptor: int) -> os.stat_result:
        if self.left:
            self.left -= 1
            os.utime(self.path, ns=(0, self.left))
        return self.fstat(descriptor)


@pytest.mark.parametrize(("times", "ends"), [(1, "record"), (5, "changed")])
def test_file_that_changes_gets_a_second_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, ends: str
) -> None:
    path = write_instance(tmp_path / "a.dcm")
    monkeypatch.setattr(os, "fstat", Growing(path, times))

    if ends == "record":
        assert read_header(path)["mtime_ns"] == "0"
    else:
        assert cause_of(path) == "changed"


def test_meta_names_what_the_data_set_holds(tmp_path: Path) -> None:
    path = written(tmp_path / "a.dcm", encode_file(identity(), instance="9.9.9"))

    meta = read_meta(path)

    assert (meta.sop_class, meta.sop_instance, meta.syntax) == (MRImageStorage, "1.2.3", ExplicitVRLittleEndian)
    assert path.read_bytes()[meta.offset :] == identity()


@pytest.mark.parametrize("content", [b"", b"text" * 100, encode_file(b"", instance="../x"), bytes(128) + b"DICM"])
def test_meta_of_what_cannot_be_sent_is_bad_data(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadData):
        read_meta(written(tmp_path / "x", content))


def test_every_file_with_a_record_can_be_sent(data: Path) -> None:
    for path in sorted((data / "vendors").rglob("*.dcm")):
        meta, record = read_meta(path), read_header(path)

        assert (meta.sop_instance, meta.sop_class) == (record["SOPInstanceUID"], record["SOPClassUID"])


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_received_file_is_checked_to_its_end(tmp_path: Path, syntax: str) -> None:
    data_set = data_set_of(write_instance(tmp_path / "a.dcm", syntax=syntax))
    head = encode_meta(MRImageStorage, uid(1, 1, 1, 1), syntax, "SENDER")
    path = written(tmp_path / "received", head + data_set)

    record = check_received(path, MRImageStorage, uid(1, 1, 1, 1), syntax, len(head))

    assert record == read_header(path)
    assert cause_of_received(path, (data_set + b"\1")[1:], syntax) in {"bad-length", "truncated", "unreadable"}
    for length in (0, 10, len(data_set) // 2, len(data_set) - 3):
        assert cause_of_received(path, data_set[:length], syntax) in {"truncated", "bad-uid"}


@pytest.mark.parametrize("syntax", [syntax for syntax in SYNTAXES if not encoding_of(syntax).deflated])
@pytest.mark.parametrize("element", [(0x00020010, "UI", b"1.2.840.10008.1.2.1.99"), (0x00020102, "OB", b"\0\1")])
def test_received_data_set_must_not_go_on_with_meta_information(
    tmp_path: Path, syntax: str, element: tuple[int, str, bytes]
) -> None:
    data_set = data_set_of(write_instance(tmp_path / "a.dcm", syntax=syntax))

    assert cause_of_received(tmp_path / "received", encode_element(*element) + data_set, syntax) == "bad-length"


def cause_of_received(path: Path, data_set: bytes, syntax: str, *, sop_class: str = MRImageStorage) -> str:
    head = encode_meta(sop_class, uid(1, 1, 1, 1), syntax)
    path.write_bytes(head + data_set)
    with pytest.raises(BadData) as caught:
        check_received(path, sop_class, uid(1, 1, 1, 1), syntax, len(head))
    return caught.value.cause


def test_received_instance_must_be_the_one_that_was_announced(tmp_path: Path) -> None:
    other = data_set_of(write_instance(tmp_path / "a.dcm", 1, 1, 1, 2))
    same = data_set_of(write_instance(tmp_path / "b.dcm"))

    assert cause_of_received(tmp_path / "x", other, ExplicitVRLittleEndian) == "mismatch"
    assert cause_of_received(tmp_path / "x", same, ExplicitVRLittleEndian, sop_class="1.2.3") == "mismatch"
    assert cause_of_received(tmp_path / "x", same + DEEP, ExplicitVRLittleEndian) in {"too-deep", "truncated"}
    assert cause_of_received(tmp_path / "x", same, ImplicitVRLittleEndian) in {"bad-length", "truncated"}


def test_meta_that_we_write_is_read_by_pydicom_and_dcmtk(tmp_path: Path) -> None:
    for instance in ("1.2.3.4", "1.2.3.44"):
        head = encode_meta(MRImageStorage, instance, ExplicitVRLittleEndian, "SENDER")
        path = written(
            tmp_path / "a.dcm", head + data_set_of(write_instance(tmp_path / "b.dcm", SOPInstanceUID=instance))
        )

        meta = pydicom.dcmread(path).file_meta
        dump = subprocess.run(["dcmdump", path], capture_output=True, check=True, text=True)

        assert meta.MediaStorageSOPInstanceUID == instance
        assert meta.SourceApplicationEntityTitle == "SENDER"
        assert meta.FileMetaInformationGroupLength == len(head) - 144
        assert len(str(meta.ImplementationVersionName)) <= 16
        assert dump.stderr == ""


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_bad_data(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = written(tmp_path_factory.getbasetemp() / "fuzz", bytes(128) + b"DICM" + content)

    with pytest.raises(BadData):
        read_header(path)


def changed_files(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    whole = write_instance(tmp_path / "a.dcm").read_bytes()
    for place in range(132, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        yield place, written(tmp_path / "b.dcm", bytes(damaged))


def test_one_wrong_byte_anywhere_never_does_worse_than_bad_data(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _, path in changed_files(tmp_path):
            try:
                encode(read_header(path))
            except BadData as problem:
                assert problem.cause  # noqa: PT017 - either is right


def test_reading_a_header_imports_no_heavy_library(tmp_path: Path) -> None:
    path = write_instance(tmp_path / "a.dcm", PatientName="Müller^Jörg")
    code = (
        "import sys; from dcmtools.disk.header import read_header, read_meta\n"
        "import dcmtools.files.import_\n"
        f"read_header({str(path)!r}); read_meta({str(path)!r})\n"
        "assert not {'pydicom', 'numpy', 'pynetdicom', 'typer'} & set(sys.modules)\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


def test_instance_of_make_instance_is_valid(tmp_path: Path) -> None:
    made = make_instance(2, 3, 4, 5, PatientName=None, StationName="X")

    assert made.SOPInstanceUID == uid(2, 3, 4, 5)
    assert "PatientName" not in made
    assert (
        subprocess.run(["dcmftest", write_instance(tmp_path / "a.dcm")], check=False, capture_output=True).returncode
        == 0
    )


def test_file_that_is_cut_tells_whose_instance_is_missing(tmp_path: Path) -> None:
    path = write_instance(tmp_path / "cut.dcm")
    whole = read_header(path)
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(BadData) as caught:
        read_header(path)

    told = caught.value.record()
    assert told["cause"] == "truncated"
    uids = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    assert {key: told[key] for key in uids} == {key: whole[key] for key in uids}
