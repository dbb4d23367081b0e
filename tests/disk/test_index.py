import os
import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcmtools.disk.index import Index
from dcmtools.disk.ordering import ordered
from dcmtools.model.errors import DiskFull, NoInput
from dcmtools.model.levels import group
from dcmtools.model.query import Query
from dcmtools.model.record import Record, decode, encode, event, path_keys
from tests.builders import make_record, uid


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(tmp_path / "archive" / "index.jsonl")


def inside(index: Index, *numbers: int, **keys: Any) -> Record:
    """A record of a file in the index's folder."""
    record = make_record(*numbers, **keys)
    return {**record, "path": f"{index.root}/{record['SOPInstanceUID']}.dcm", **keys}


def uids(records: Iterator[Record]) -> list[str]:
    return [str(record["SOPInstanceUID"]) for record in records]


def lines(index: Index) -> list[Record]:
    return [decode(line) for line in index.file.read_bytes().splitlines()]


def test_missing_index_is_empty_and_stays_missing(index: Index) -> None:
    assert list(index.instances()) == []
    assert list(index.find(Query())) == []
    assert index.lookup(["1.2"]) == {}
    assert index.catch_up() == []
    assert not index.file.parent.exists()


def test_index_that_must_exist_ends_with_66(tmp_path: Path) -> None:
    with pytest.raises(NoInput) as caught:
        Index(tmp_path / "none.jsonl", must_exist=True)

    assert caught.value.exit_code == 66


def test_record_comes_back_as_it_went(index: Index) -> None:
    record = inside(index, PatientName="Müller^Jörg=山田", private_key={"a": [1, None]})

    index.append([record])

    assert list(index.instances()) == [record]


def test_paths_in_the_archive_are_relative_in_the_file_and_absolute_outside(index: Index, tmp_path: Path) -> None:
    index.append(
        [
            inside(index),
            make_record(instance=2, path="/elsewhere/2.dcm"),
            make_record(instance=3, path=f"{index.root}2/3.dcm"),
        ]
    )

    assert [line["path"] for line in lines(index)] == [
        f"{uid(1, 1, 1, 1)}.dcm",
        "/elsewhere/2.dcm",
        f"{index.root}2/3.dcm",
    ]

    moved = (tmp_path / "archive").rename(tmp_path / "moved")
    found = list(Index(moved / "index.jsonl").instances())
    assert [record["path"] for record in found[:2]] == [f"{moved}/{uid(1, 1, 1, 1)}.dcm", "/elsewhere/2.dcm"]


def test_index_elsewhere_can_belong_to_an_archive(tmp_path: Path) -> None:
    index = Index(tmp_path / "other" / "my.jsonl", tmp_path / "archive")
    index.append([inside(index)])

    assert lines(index)[0]["path"] == f"{uid(1, 1, 1, 1)}.dcm"
    assert (tmp_path / "other" / "my.lock").exists()


def test_name_that_is_not_utf8_comes_back(index: Index) -> None:
    for number, folder in enumerate((index.root, "/elsewhere"), 1):
        index.append([make_record(instance=number, **path_keys(os.fsdecode(os.fsencode(folder) + b"/\xff.dcm")))])

    for record, folder in zip(index.instances(), (index.root, "/elsewhere"), strict=True):
        path = os.fsdecode(os.fsencode(folder) + b"/\xff.dcm")
        assert record["path"] == f"{folder}/\\xff.dcm"
        assert index.by_paths([path]) == {path: record}
        index.forget([record])
    assert list(index.instances()) == []


def test_last_line_for_an_instance_at_a_path_wins(index: Index) -> None:
    index.append([inside(index, PatientID="wrong"), inside(index, instance=2)])
    index.append([inside(index, PatientID="right")])

    assert [record["PatientID"] for record in index.instances()] == ["P1", "right"]


def test_tombstone_deletes_and_a_later_line_brings_back(index: Index) -> None:
    index.append([inside(index), inside(index, instance=2)])

    index.forget([inside(index)])
    assert uids(index.instances()) == [uid(1, 1, 1, 2)]
    assert list(index.by_series(uid(1, 1, 1))) == [inside(index, instance=2)]

    index.append([inside(index)])
    assert uids(index.instances()) == [uid(1, 1, 1, 2), uid(1, 1, 1, 1)]


def test_first_file_in_the_archive_is_the_answer_of_several(index: Index) -> None:
    index.append([make_record(path="/reference"), inside(index), inside(index, path=f"{index.root}/second")])

    assert [record["path"] for record in index.instances()] == [f"{index.root}/{uid(1, 1, 1, 1)}.dcm"]
    index.forget([inside(index)])
    assert [record["path"] for record in index.instances()] == [f"{index.root}/second"]


def test_alias_is_the_answer_only_when_nothing_else_is_left(index: Index) -> None:
    index.append([make_record(path="/first"), make_record(path="/second", duplicate_of="/first")])

    assert [record["path"] for record in index.instances()] == ["/first"]
    index.forget([make_record(path="/first")])
    assert [record["path"] for record in index.instances()] == ["/second"]


def test_conflict_is_never_an_answer(index: Index) -> None:
    first = inside(index)
    other = inside(index, path=f"{index.root}/quarantine/x.dcm", state="conflict", duplicate_of=first["path"])
    index.append([first, other])

    assert list(index.instances()) == [first]
    assert lines(index)[1]["duplicate_of"] == f"{uid(1, 1, 1, 1)}.dcm"
    assert index.by_paths([other["path"]]) == {other["path"]: other}
    index.forget([first])
    assert list(index.instances()) == []


def test_what_a_command_says_of_a_record_is_not_kept(index: Index) -> None:
    index.append([inside(index, state="received")])

    assert "state" not in lines(index)[0]


def test_events_are_kept_in_their_order(index: Index) -> None:
    index.append([event("incomplete", SeriesInstanceUID="1.2", expected=3, received=2, missing=["1.2.3"])])
    index.append([inside(index), event("series-complete", SeriesInstanceUID="1.2")])

    assert [one["event"] for one in index.events()] == ["incomplete", "series-complete"]
    assert len(list(index.instances())) == 1


def test_bad_line_in_the_middle_is_skipped_and_counted(index: Index) -> None:
    index.append([inside(index)])
    with index.file.open("ab") as out:
        out.write(b'{"torn": \n[]\n{"SOPInstanceUID":5,"path":"x"}\n{"type":"instance"}\n\xff\n')
        out.write(b'{"path":"x","SOPInstanceUID":"1.2","path_b64":"*"}\n')
    index.append([inside(index, instance=2)])

    assert len(list(index.instances())) == 2
    assert index.bad_lines == 6


def test_tail_without_its_newline_is_left_for_later(index: Index) -> None:
    index.append([inside(index)])
    with index.file.open("ab") as out:
        out.write(encode(inside(index, instance=2))[:-1])
        out.flush()
        assert len(list(index.instances())) == 1
        assert len(index.catch_up()) == 1
        out.write(b"\n")

    assert len(list(index.instances())) == 2
    assert uids(iter(index.catch_up())) == [uid(1, 1, 1, 2)]


def test_catch_up_tells_each_line_once(index: Index) -> None:
    writer = Index(index.file)
    writer.append([inside(index)])
    assert uids(iter(index.catch_up())) == [uid(1, 1, 1, 1)]
    assert index.catch_up() == []

    writer.append([inside(index, instance=2), event("series-complete", SeriesInstanceUID=uid(1, 1, 1))])
    list(index.instances())  # looking otherwise takes nothing from it

    assert [one.get("event", "instance") for one in index.catch_up()] == ["instance", "series-complete"]
    assert index.catch_up() == []


def test_reader_follows_a_file_that_was_replaced(index: Index) -> None:
    index.append([inside(index), inside(index, instance=2)])
    assert len(index.catch_up()) == 2
    old = index.instances()
    assert next(old)["InstanceNumber"] == 1

    new = index.file.with_name("new")
    new.write_bytes(b"".join(map(encode, [inside(index, instance=2), inside(index, instance=3)])))
    new.rename(index.file)

    assert uids(index.instances()) == [uid(1, 1, 1, 2), uid(1, 1, 1, 3)]
    assert uids(iter(index.catch_up())) == [uid(1, 1, 1, 3)]
    assert index.catch_up() == []
    assert uids(old) == [uid(1, 1, 1, 2)]  # who was reading goes on in the old one


def test_reader_follows_a_file_that_was_cut_or_rewritten_in_place(index: Index) -> None:
    index.append([inside(index), inside(index, instance=2)])
    whole = index.file.read_bytes()
    assert len(list(index.instances())) == 2

    index.file.write_bytes(whole[: whole.index(b"\n") + 1])
    assert uids(index.instances()) == [uid(1, 1, 1, 1)]

    index.file.write_bytes(b"".join(encode(inside(index, instance=number)) for number in (5, 6, 7)))
    assert uids(index.instances()) == [uid(1, 1, 1, number) for number in (5, 6, 7)]

    index.file.unlink()
    assert list(index.instances()) == []


def test_read_only_archive_can_be_read_without_a_lock(index: Index) -> None:
    index.append([inside(index)])
    index.file.with_suffix(".lock").unlink()
    index.file.parent.chmod(0o500)

    assert len(list(Index(index.file).instances())) == 1
    assert not index.file.with_suffix(".lock").exists()
    index.file.parent.chmod(0o700)


def test_studies_and_series_are_expanded_to_their_instances(index: Index) -> None:
    index.append([inside(index, *numbers) for numbers in ((1, 1, 1, 1), (1, 1, 2, 1), (1, 2, 1, 1), (2, 1, 1, 1))])
    asked: list[Record] = [
        {"type": "study", "StudyInstanceUID": uid(1, 1)},
        {"type": "series", "SeriesInstanceUID": uid(1, 2, 1), "note": "x"},
        {"type": "patient", "PatientID": "P2"},
        {"type": "image", "SOPInstanceUID": uid(1, 1, 1, 1), "note": "kept"},
        {"type": "instance", "SOPInstanceUID": "9.9", "path": "/given"},
        event("series-complete", SeriesInstanceUID="1.2"),
        {"type": "volume", "path": "/x.nii.gz"},
    ]

    found = list(index.expand(asked))

    assert uids(iter(found[:5])) == [
        uid(1, 1, 1, 1),
        uid(1, 1, 2, 1),
        uid(1, 2, 1, 1),
        uid(2, 1, 1, 1),
        uid(1, 1, 1, 1),
    ]
    assert found[4]["note"] == "kept"
    assert found[4]["path"] == inside(index)["path"]
    assert found[5:] == asked[4:]


def test_what_cannot_be_expanded_becomes_an_error_record(index: Index) -> None:
    index.append([inside(index)])
    asked: list[Record] = [
        {"type": "study", "StudyInstanceUID": "9.9"},
        {"type": "patient", "PatientID": "secret"},
        {"type": "series"},
        {"type": "instance", "SOPInstanceUID": "9.9"},
    ]

    found = list(index.expand(asked))

    assert [(record["type"], record["cause"]) for record in found] == [
        ("error", "missing"),
        ("error", "missing"),
        ("error", "bad-uid"),
        ("error", "missing"),
    ]
    assert found[0]["StudyInstanceUID"] == "9.9"
    assert "secret" not in str(found)


def test_find_answers_at_every_level(index: Index) -> None:
    index.append([inside(index, *numbers) for numbers in ((1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 2, 1), (2, 1, 1, 1))])

    assert [record["PatientID"] for record in index.find(Query(level="patient"))] == ["P1", "P2"]
    (study,) = index.find(Query(keys={"PatientID": "p1"}))
    assert study["NumberOfStudyRelatedInstances"] == 3
    (series,) = index.find(Query(level="series", keys={"SOPInstanceUID": uid(1, 1, 1, 2)}))
    assert series["NumberOfSeriesRelatedInstances"] == 2
    newest = Query(level="instance", sort=(("SOPInstanceUID", True),), limit=1)
    assert uids(index.find(newest)) == [uid(2, 1, 1, 1)]


PLACES = st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.integers(1, 3))
WHAT = ["add", "add", "alias", "conflict", "elsewhere", "forget", "event", "odd"]
VALUES: dict[str, list[Any]] = {
    "PatientName": ["DOE^JOHN", "Doe^John^=山田^太郎", "Müller^Jörg", "MULLER [A]^J", "", None, 7, ["A^B", "C^D"]],
    "PatientID": ["P1", "p1", " P1 ", "*", None, 5, True],
    "StudyDate": ["20240101", "2024.01.31", "20250615", "", None, "oops"],
    "Modality": ["MR", "CT", "mr", None, ["MR", "PT"]],
    "AccessionNumber": ["A1", "a1", None],
    "SeriesNumber": [1, 1.0, "1", True, None],
    "SliceThickness": [1.5, None],
    "size": [1000, 2000, -5, "x", 1 << 70, None],
}
ODD = st.dictionaries(st.sampled_from(sorted(VALUES)), st.integers(0, 9), max_size=4).map(
    lambda chosen: {key: VALUES[key][number % len(VALUES[key])] for key, number in chosen.items()}
)
STEPS = st.lists(st.tuples(st.sampled_from(WHAT), PLACES, ODD), max_size=25)
WANTED: dict[str, list[str]] = {
    "StudyInstanceUID": [uid(1, 1), uid(1, 1) + "\\" + uid(2, 2), uid(1) + "*", "*", ""],
    "SeriesInstanceUID": [uid(2, 1, 1), uid(1, 1, 1) + "\\9.9"],
    "SOPInstanceUID": [uid(1, 2, 1, 1), uid(1, 1, 1, 1) + "\\" + uid(2, 2, 2, 2), "\\"],
    "PatientID": ["P1", "p?", "*1", "5", "True"],
    "PatientName": ["doe*", "D?E^JOHN", "*山田*", "müller*", "muller*", "*[a]*", "C^D", "7"],
    "StudyDate": ["20240101", "20240101-20240131", "20250101-", "-2024.12.31", "2024*", "20240101\\20250615"],
    "Modality": ["MR", "C*", "MR\\PT"],
    "ModalitiesInStudy": ["mr"],
    "AccessionNumber": ["A1", "?1"],
    "SliceThickness": ["1.5", "*"],
    "SeriesNumber": ["1"],
}
KEYS = st.dictionaries(st.sampled_from(sorted(WANTED)), st.integers(0, 9), max_size=3).map(
    lambda chosen: {key: WANTED[key][number % len(WANTED[key])] for key, number in chosen.items()}
)
LEVELS = st.sampled_from(["patient", "study", "series", "instance"])
SORTS = st.sampled_from(
    [(), (("PatientName", True), ("StudyDate", False)), (("size", False),), (("InstanceNumber", True),)]
)


def made_by(what: str, number: int) -> Record:
    """The keys of a record by which its line is told from others."""
    if what in {"add", "forget", "odd"}:
        return {}
    if what == "elsewhere":
        return {"path": f"/elsewhere/{number % 2}"}
    mark = {"path": f"/{what}", "duplicate_of": "/first"}
    return {**mark, "state": "conflict"} if what == "conflict" else mark


def written(index: Index, steps: list[tuple[str, Any, Record]]) -> tuple[list[Record], list[Record]]:
    """The instances that are answers after the steps, and all that is at any path, by the plainest of all ways."""
    live: dict[tuple[str, str], tuple[int, int, Record]] = {}
    ranks = {"elsewhere": 1, "alias": 2, "conflict": 3}
    lines: list[Record] = []
    for number, (what, place, values) in enumerate(steps):
        record = inside(index, *place, StudyDescription=str(number % 3), **values, **made_by(what, number))
        if number % 2 and what == "add":
            folders = [record[key] for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
            record["path"] = f"{index.root}/{'/'.join(folders)}.dcm"
        key = (record["SOPInstanceUID"], record["path"])
        if what == "event":
            lines += [event("incomplete", SeriesInstanceUID="1.2"), {"type": "volume", "path": "/x.nii"}]
        elif what == "forget":
            lines.append({**record, "type": "tombstone"})
            live.pop(key, None)
        else:
            lines.append(record)
            live[key] = (ranks.get(what, 0), number, record)
    index.append(lines)
    best: dict[str, tuple[int, int, Record]] = {}
    for entry in live.values():
        name = entry[2]["SOPInstanceUID"]
        if entry[0] < 3:
            best[name] = min(entry, best.get(name, entry), key=lambda one: one[:2])
    answers = [record for _, _, record in sorted(best.values(), key=lambda one: one[1])]
    return answers, [record for _, _, record in sorted(live.values(), key=lambda one: one[1])]


@settings(deadline=None)
@given(STEPS, STEPS, LEVELS, KEYS, SORTS)
def test_answers_equal_those_of_a_plain_scan(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[tuple[str, Any, Record]],
    later: list[tuple[str, Any, Record]],
    level: Any,
    keys: dict[str, str],
    sort: Any,
) -> None:
    file = tmp_path_factory.mktemp("scan") / "index.jsonl"
    index = Index(file)
    query = Query(level=level, keys=keys, sort=sort)

    written(index, before)
    list(index.instances())  # so that what comes later is caught up with
    answers, files = written(index, before + later)

    at_paths = index.everywhere({str(record["SOPInstanceUID"]) for record in files} | {"9.9"})
    assert sorted(map(str, (one for several in at_paths.values() for one in several))) == sorted(map(str, files))
    for several in at_paths.values():
        assert several == [record for record in files if record in several]
    assert index.lookup([*at_paths, "9.9"]) == {record["SOPInstanceUID"]: record for record in answers}
    last = {record["path"]: record for record in files}
    assert index.by_paths([*last, "/nowhere"]) == last
    assert list(index.instances()) == answers
    assert list(index.find(query)) == list(index.scan(query)) == list(ordered(group(answers, query), query))
    index.file.with_suffix(".sqlite").unlink(missing_ok=True)
    assert list(Index(file).find(query)) == list(index.scan(query))
    assert index.by_paths([*last, "/nowhere"]) == last
    assert index.lookup(at_paths) == {record["SOPInstanceUID"]: record for record in answers}


def test_full_disk_adds_nothing_and_says_so(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import resource, sys
        from dcmtools.disk.index import Index
        from dcmtools.model.errors import DiskFull
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        index = Index(sys.argv[1])
        try:
            for number in range(1000):
                index.append([{"SOPInstanceUID": f"1.{number}", "path": "/x", "ballast": "x" * 1000}])
                print(number)
        except DiskFull as full:
            print(full.exit_code, file=sys.stderr)
    """)

    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "index.jsonl"], check=True, capture_output=True, text=True
    )

    assert done.stderr == "74\n"
    assert len(list(Index(tmp_path / "index.jsonl").instances())) == len(done.stdout.split()) < 20
    assert issubclass(DiskFull, Exception)


def test_threads_write_and_read_at_once(index: Index) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            chance = random.Random(number)
            for instance in range(20):
                index.append([inside(index, number, 1, 1, instance)])
                seen = index.lookup([uid(number, 1, 1, instance)])
                assert seen, instance
                if chance.random() < 0.3:
                    list(index.instances())
        except BaseException as problem:  # noqa: BLE001 - the main thread raises it
            failures.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
    assert len(list(index.instances())) == 120
    assert len(index.catch_up()) == 120
