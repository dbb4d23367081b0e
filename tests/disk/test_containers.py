import bz2
import io
import os
import random
import struct
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcmtools.disk import containers
from dcmtools.disk.containers import Member, kind_of, members_of
from dcmtools.disk.tree import Skipped
from dcmtools.model.record import Record
from tests.builders import write_instance, write_series

TAR_MODES = ["w", "w:gz", "w:xz", "w:bz2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where members are unpacked to."""
    path = tmp_path / "unpacked"
    path.mkdir()
    return path


@pytest.fixture
def instance(tmp_path: Path) -> bytes:
    return write_instance(tmp_path / "instance").read_bytes()


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, *members: tuple[tarfile.TarInfo | str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def unpacked(path: Path, folder: Path, skipped: Skipped | None = None) -> tuple[dict[str, bytes], list[Record]]:
    """Name in the archive -> content, and the error records."""
    good: dict[str, bytes] = {}
    bad: list[Record] = []
    for one in members_of(path, kind_of(path), folder, Skipped() if skipped is None else skipped):
        if isinstance(one, Member):
            assert one.path.parent == folder
            assert one.container == path
            good[one.source.removeprefix(f"{path}!")] = one.path.read_bytes()
            one.path.unlink()
        else:
            assert one["path"] == str(path)
            bad.append(one)
    assert list(folder.iterdir()) == []
    return good, bad


def causes(bad: list[Record]) -> list[str]:
    return [record["cause"] for record in bad]


def test_kinds_are_told_by_content(tmp_path: Path, instance: bytes) -> None:
    tarred(tmp_path / "t", ("a", instance))
    zipped(tmp_path / "z", a=instance)
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "both").write_bytes(b"PK\3\4" + instance[4:])

    names = ["t", "z", "empty", "fifo", "both", "nothing", "."]

    assert [kind_of(tmp_path / name) for name in names] == ["tar", "zip", "", "", "", "", ""]
    assert kind_of(tmp_path / "instance") == ""


@pytest.mark.parametrize("mode", TAR_MODES)
def test_tar_gives_its_files_with_their_times(tmp_path: Path, folder: Path, mode: str) -> None:
    write_series(tmp_path / "in" / "a", 5)
    with tarfile.open(tmp_path / "t", mode) as archive:  # type: ignore[call-overload]
        archive.add(tmp_path / "in", "in")

    found = list(members_of(tmp_path / "t", kind_of(tmp_path / "t"), folder, Skipped()))

    assert sorted(one.source for one in found if isinstance(one, Member)) == [
        f"{tmp_path / 't'}!in/a/1-1-1-{number}.dcm" for number in range(1, 6)
    ]
    for one in found:
        assert isinstance(one, Member)
        source = tmp_path / one.source.rpartition("!")[2]
        assert one.path.read_bytes() == source.read_bytes()
        assert one.path.stat().st_mtime == int(source.stat().st_mtime)
        assert one.path.stat().st_mode & 0o777 == 0o600


def test_zip_gives_its_files_and_names_the_others(tmp_path: Path, folder: Path, instance: bytes) -> None:
    skipped = Skipped()
    members = {"a/1": instance, "a/DICOMDIR": b"x", "b/2": instance, "readme": b"hello", "__MACOSX/x": b"", "c/": b""}
    path = zipped(tmp_path / "z", **members)

    good, bad = unpacked(path, folder, skipped)

    assert good == {"a/1": instance, "b/2": instance}
    assert causes(bad) == ["not-dicom"]
    assert bad[0]["source"] == f"{path}!readme"
    assert skipped == {"dicomdir": 1, "hidden": 1}


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..\\x", "a/.."])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_leave_the_folder_are_refused(
    tmp_path: Path, folder: Path, instance: bytes, kind: str, name: str
) -> None:
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a", "w") as archive:
            archive.writestr(name, instance)
            archive.writestr("good", instance)
    else:
        tarred(tmp_path / "a", (name, instance), ("good", instance))

    good, bad = unpacked(tmp_path / "a", folder)

    assert list(good) == ["good"]
    assert causes(bad) == ["bad-name"]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "instance", "unpacked"}


def test_links_and_devices_in_a_tar_are_no_files(tmp_path: Path, folder: Path, instance: bytes) -> None:
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    infos = [tarfile.TarInfo(f"x{number}") for number in range(len(kinds))]
    for info, kind in zip(infos, kinds, strict=True):
        info.type, info.linkname = kind, "/etc/passwd"

    good, bad = unpacked(tarred(tmp_path / "t", *((info, b"") for info in infos), ("good", instance)), folder)

    assert list(good) == ["good"]
    assert causes(bad) == ["not-a-file"] * 5


def test_link_in_a_zip_is_no_file(tmp_path: Path, folder: Path, instance: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("good", instance)

    good, bad = unpacked(tmp_path / "z", folder)

    assert (list(good), causes(bad)) == (["good"], ["not-a-file"])


def test_encrypted_and_damaged_members_cost_only_themselves(tmp_path: Path, folder: Path, instance: bytes) -> None:
    path = zipped(tmp_path / "z", a=instance, b=instance, c=instance)
    data = bytearray(path.read_bytes())
    first = data.index(b"PK\1\2")
    data[first + 8] |= 1
    with zipfile.ZipFile(path) as archive:
        second = archive.infolist()[1]
    data[second.header_offset + 31 + second.compress_size // 2] ^= 0xFF
    path.write_bytes(data)

    good, bad = unpacked(path, folder)

    assert list(good) == ["c"]
    assert causes(bad) == ["encrypted", "truncated"]


def test_compression_that_nobody_knows_is_named(tmp_path: Path, folder: Path, instance: bytes) -> None:
    path = zipped(tmp_path / "z", a=instance)
    data = bytearray(path.read_bytes())
    for at in (data.index(b"PK\3\4") + 8, data.index(b"PK\1\2") + 10):
        data[at] = 99
    path.write_bytes(data)

    assert causes(unpacked(path, folder)[1]) == ["unreadable"]


@pytest.mark.parametrize("kind", ["zip", *TAR_MODES])
def test_truncated_anywhere_an_archive_says_so_and_gives_what_is_whole(
    tmp_path: Path, folder: Path, instance: bytes, kind: str
) -> None:
    noise = random.Random(kind).randbytes(3000)
    members = [(f"m{number}", instance + noise) for number in range(5)]
    path = zipped(tmp_path / "a", **dict(members)) if kind == "zip" else tarred(tmp_path / "a", *members, mode=kind)
    whole = path.read_bytes()
    assert [len(part) for part in unpacked(path, folder)] == [5, 0]

    for size in range(40, len(whole) - 10240 if kind == "w" else len(whole) - 9, 331):
        path.write_bytes(whole[:size])
        if kind == "w" and size % 512 == 0:  # as if it had no end mark, which some programs do not write
            continue
        good, bad = unpacked(path, folder)
        assert len(bad) == 1, size
        assert bad[0]["exit_code"] == 65
        assert all(content == instance + noise for content in good.values())


def test_garbage_behind_a_good_head_is_an_error_and_no_traceback(tmp_path: Path, folder: Path, instance: bytes) -> None:
    chance = random.Random(7)
    originals = [
        zipped(tmp_path / "z", a=instance, b=instance).read_bytes(),
        *(tarred(tmp_path / "t", ("a", instance), ("b", instance), mode=mode).read_bytes() for mode in TAR_MODES),
    ]
    for original in originals:
        for _ in range(60):
            data = bytearray(original)
            for _ in range(chance.randrange(1, 6)):
                data[chance.randrange(6, len(data))] = chance.randrange(256)
            (tmp_path / "x").write_bytes(data)
            if kind_of(tmp_path / "x"):
                good, bad = unpacked(tmp_path / "x", folder)
                assert len(good) + len(bad) <= 3
                assert all(record["exit_code"] == 65 for record in bad)


@pytest.mark.parametrize("kind", ["zip", "w:gz"])
def test_bomb_is_stopped_at_its_limit(
    tmp_path: Path, folder: Path, instance: bytes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "MAX_EXPANDED", 1 << 20)
    bomb = instance + bytes(8 << 20)
    members = {"a": instance, "b": bomb, "c": instance}
    path = zipped(tmp_path / "x", **members) if kind == "zip" else tarred(tmp_path / "x", *members.items(), mode=kind)

    good, bad = unpacked(path, folder)

    assert list(good) == ["a"]
    assert causes(bad) == ["too-large"]


def test_bomb_that_is_no_dicom_file_is_not_unpacked(tmp_path: Path, folder: Path, instance: bytes) -> None:
    path = zipped(tmp_path / "z", bomb=bytes(64 << 20), good=instance)

    good, bad = unpacked(path, folder)

    assert (list(good), causes(bad)) == (["good"], ["not-dicom"])


def test_tar_headers_cannot_claim_memory(tmp_path: Path, folder: Path) -> None:
    for kind in (b"L", b"x"):  # a long name, and extended headers
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, 5 << 30
        (tmp_path / "t").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"a" * 4096)

        assert causes(unpacked(tmp_path / "t", folder)[1]) == ["too-large"]


def test_list_of_a_zip_cannot_claim_memory(tmp_path: Path, folder: Path) -> None:
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 1 << 30, 0, 0)
    (tmp_path / "z").write_bytes(b"PK\3\4" + bytes(100) + end)
    assert causes(unpacked(tmp_path / "z", folder)[1]) == ["too-large"]

    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 1 << 40, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 104, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 0xFFFFFFFF, 0, 0)
    (tmp_path / "z").write_bytes(b"PK\3\4" + bytes(100) + end64 + locator + end)
    assert causes(unpacked(tmp_path / "z", folder)[1]) == ["too-large"]


def test_compressed_file_that_is_no_tar_is_named(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "x").write_bytes(bz2.compress(b"hello"))

    assert causes(unpacked(tmp_path / "x", folder)[1]) == ["not-dicom"]


MEMORY = """
    import resource, sys
    from pathlib import Path
    from dcmtools.disk.containers import kind_of, members_of
    from dcmtools.disk.tree import Skipped
    path = Path(sys.argv[1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = sum(1 for _ in members_of(path, kind_of(path), Path(sys.argv[2]), Skipped()))
    print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def _many(count: int) -> Iterator[tuple[str, bytes]]:
    for number in range(count):
        yield f"folder/{number}.txt", b"no DICOM"


def test_number_of_members_costs_no_memory(tmp_path: Path, folder: Path) -> None:
    grown = []
    for count in (2_000, 20_000):
        tarred(tmp_path / "t.tar.gz", *_many(count), mode="w:gz")
        words = [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path / "t.tar.gz"), str(folder)]
        found, kilobytes = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
        assert int(found) == count
        grown.append(int(kilobytes))

    assert grown[1] - grown[0] < 4_000
