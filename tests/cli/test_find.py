"""dcmtools find as a process: what it finds in an index and on nodes, for itself and for records on stdin."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.cli.conftest import records
from tests.conftest import RunDcmtools
from tests.peers.processes import StartDcmqrscp

Find = Callable[..., "tuple[int, list[dict[str, object]], str]"]


@pytest.fixture
def find(dcmtools: RunDcmtools, filled: Path) -> Find:
    """Runs find on the archive; exit code, records, stderr."""

    def go(*words: object, stdin: str = "") -> tuple[int, list[dict[str, object]], str]:
        done = dcmtools("find", "--archive", filled, *words, stdin=stdin)
        return done.returncode, records(done.stdout), done.stderr

    return go


def test_find_without_selectors_gives_all_studies_and_says_nothing(find: Find) -> None:
    code, found, said = find()

    assert (code, said) == (0, "")
    assert [one["type"] for one in found] == ["study"] * 3
    assert {one["NumberOfStudyRelatedInstances"] for one in found} == {25}


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["--patient-id", "phantom-0-00[1]"], 0),
        (["--patient-id", "phantom-0-00?"], 3),
        (["-p", "PHANTOM-0-001"], 1),
        (["-n", "müller*"], 1),
        (["--date", "2024-01-31"], 3),
        (["--date", "20240101-20240131", "--limit", "2"], 2),
        (["--until", "2024-01-30"], 0),
        (["-m", "SR,CT", "--level", "series"], 3),
        (["-m", "MR"], 3),
        (["--level", "patient"], 3),
        (["--level", "image", "--where", "InstanceNumber=1"], 6),
        (["--physician", "smith*"], 2),
        (["--description", "Head*", "-l", "series"], 3),
        (["--description", "Phantom"], 3),
        (["-k", "PatientSex=F"], 1),
    ],
)
def test_selectors_select(find: Find, words: list[str], count: int) -> None:
    code, found, said = find(*words)

    assert (code, len(found), said) == (0, count, "")


def test_answers_come_in_the_order_asked_for(find: Find) -> None:
    _, found, _ = find("--sort", "-PatientID")

    assert [one["PatientID"] for one in found] == ["PHANTOM-0-003", "PHANTOM-0-002", "PHANTOM-0-001"]


def test_paths_are_those_of_instances_and_are_there(dcmtools: RunDcmtools, filled: Path) -> None:
    done = dcmtools("find", "--archive", filled, "--modality", "MR", "--format", "paths0")

    paths = done.stdout.split("\0")[:-1]
    assert len(paths) == 72
    assert all(Path(path).is_file() for path in paths)


def test_nothing_found_is_0_and_3_when_that_is_to_fail(find: Find) -> None:
    assert find("--patient-id", "nobody")[:2] == (0, [])
    assert find("--patient-id", "nobody", "--fail-if-empty")[:2] == (3, [])


def test_missing_index_is_66_and_says_how_to_make_one(dcmtools: RunDcmtools) -> None:
    done = dcmtools("find", "--index", "nowhere.jsonl")

    assert done.returncode == 66
    assert "dcmtools index" in done.stderr
    assert records(done.stdout)[0]["cause"] == "missing"


def test_index_elsewhere_is_asked_with_the_paths_of_its_own_folder(dcmtools: RunDcmtools, filled: Path) -> None:
    done = dcmtools("find", "--index", filled / "index.jsonl", "--format", "paths", "--archive", "elsewhere")

    assert all(Path(path).is_file() for path in done.stdout.splitlines())


# Records on stdin


def lines(*found: Mapping[str, object]) -> str:
    return "".join(json.dumps(one) + "\n" for one in found)


def test_records_on_stdin_ask_for_what_belongs_to_them(find: Find) -> None:
    _, studies, _ = find("--sort", "PatientID", "--limit", "2")

    code, series, said = find("-", "--level", "series", stdin=lines(*studies))

    assert (code, said) == (0, "")
    assert len(series) == 4
    assert {one["StudyInstanceUID"] for one in series} == {one["StudyInstanceUID"] for one in studies}


def test_records_of_a_lower_level_ask_for_what_is_above_them_once(find: Find) -> None:
    _, instances, _ = find("--level", "instance")

    code, studies, _ = find("-", stdin=lines(*instances))

    assert (code, len(studies)) == (0, 3)


def test_more_records_than_fit_one_question_are_all_asked_for(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    studies = [{"type": "study", "StudyInstanceUID": f"1.2.{number}"} for number in range(150)]
    index = [
        {**one, "type": "instance", "SOPInstanceUID": f"{number}", "path": "x"} for number, one in enumerate(studies)
    ]
    (tmp_path / "index.jsonl").write_text(lines(*index))

    done = dcmtools("find", "-", "--index", "index.jsonl", "--format", "uids", stdin=lines(*studies[:140]))

    assert done.returncode == 0
    assert done.stdout.split() == [one["StudyInstanceUID"] for one in studies[:140]]


def test_keys_on_stdin_are_matched(find: Find) -> None:
    wishes = lines(
        {"AccessionNumber": "*"}, {"PatientName": "müller*"}, {"type": "patient", "PatientID": "PHANTOM-0-002"}
    )

    code, found, _ = find("-", "--sort", "PatientID", stdin=wishes)

    assert (code, len(found)) == (0, 3)


def test_selectors_narrow_what_records_ask_for(find: Find) -> None:
    _, studies, _ = find()

    _, found, _ = find("-", "--level", "series", "--modality", "SR", stdin=lines(*studies))

    assert [one["Modality"] for one in found] == ["SR"] * 3


def test_what_cannot_be_asked_for_is_told_and_the_rest_is_asked(find: Find) -> None:
    error = {"type": "error", "cause": "x", "reason": "from upstream", "exit_code": 65}

    code, found, said = find("-", stdin=lines(error, {"PatientID": "PHANTOM-0-001"}, {"Fruit": "apple"}) + "{torn\n")

    assert code == 3
    assert sorted(str(one["type"]) for one in found) == ["error", "error", "error", "study"]
    assert "from upstream" not in said
    assert "nothing that could be asked for" in said


# Nodes


def test_unknown_node_is_78_and_unreachable_one_69(dcmtools: RunDcmtools, free_port: Callable[[], int]) -> None:
    unknown = dcmtools("find", "--node", "NOWHERE")
    unreachable = dcmtools("find", "--node", f"NOBODY@127.0.0.1:{free_port()}")

    assert (unknown.returncode, unreachable.returncode) == (78, 69)
    assert records(unreachable.stdout)[0]["cause"] == "unreachable"


def test_node_and_index_answer_alike_and_a_node_that_is_away_stops_no_other(
    dcmtools: RunDcmtools, dcmqrscp: StartDcmqrscp, filled: Path, free_port: Callable[[], int]
) -> None:
    pacs = dcmqrscp()
    sent = dcmtools("store", "--archive", filled, "--all", "--to", pacs.node)
    away = f"NOBODY@127.0.0.1:{free_port()}"

    here = dcmtools("find", "--archive", filled, "--modality", "MR", "--level", "series", "--format", "uids")
    there = dcmtools("find", "--node", pacs.node, "--modality", "MR", "--level", "series", "--format", "uids")
    both = dcmtools("find", "--node", f"{away},{pacs.node}", "--level", "series")
    for_each = dcmtools("find", "-", "--level", "series", stdin=dcmtools("find", "--node", pacs.node).stdout)

    assert sent.returncode == 0, sent.stderr
    assert there.returncode == 0
    assert sorted(here.stdout.split()) == sorted(there.stdout.split())
    assert both.returncode == 3
    assert len(records(both.stdout, "series")) == 6
    assert [one["node"] for one in records(both.stdout, "error")] == [away]
    assert {one["node"] for one in records(for_each.stdout, "series")} == {pacs.node}
    assert len(records(for_each.stdout, "series")) == 6


def test_node_that_is_away_is_waited_for_once(find: Find, free_port: Callable[[], int]) -> None:
    away = f"NOBODY@127.0.0.1:{free_port()}"
    wishes: list[dict[str, object]] = [{"type": "patient", "PatientID": f"P{number}"} for number in range(3)]

    code, found, _ = find("-", "--node", away, stdin=lines(*wishes))

    assert code == 69
    assert [one["cause"] for one in found] == ["unreachable"] * 3


def test_nodes_or_uids_that_are_empty_do_not_ask_for_everything(dcmtools: RunDcmtools, archive: Path) -> None:
    for words in (["--node", ","], ["--node", ""], ["--study-uid", ","], ["--patient-id", ""]):
        done = dcmtools("find", "--archive", archive, *words)

        assert (done.returncode, "has no value" in done.stderr) == (2, True)


def test_limit_of_records_on_stdin_is_kept(dcmtools: RunDcmtools, archive: Path) -> None:
    studies = dcmtools("find", "--archive", archive)

    done = dcmtools("find", "-", "--limit", "2", "--archive", archive, stdin=studies.stdout)

    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)


def test_names_match_without_accents_when_asked_to(find: Find) -> None:
    assert len(find("-n", "muller*")[1]) == 0
    assert len(find("-n", "muller*", "--ignore-accents")[1]) == 1


def test_count_tells_how_many_and_nothing_else(find: Find) -> None:
    assert find("--count")[1] == [{"type": "count", "level": "study", "count": 3}]
    assert find("--count", "-m", "SR", "-l", "instance")[1] == [{"type": "count", "level": "instance", "count": 3}]
    assert find("--count", "-p", "nobody")[1][0]["count"] == 0


def test_return_tells_all_values_of_a_lower_level(find: Find) -> None:
    (study,) = find("-p", "PHANTOM-0-001", "--return", "SeriesNumber,InstanceNumber")[1]

    assert len(study["SeriesNumber"]) == 2  # type: ignore[arg-type]
    assert study["InstanceNumber"] == list(range(1, 25))
    assert len(find("--return", "InstanceNumber", "--where", "InstanceNumber>23", "-l", "series")[1]) == 3


@pytest.mark.parametrize("words", [["--return", "Nonsense"], ["--sort", "Nonsense"], ["--where", "Nonsense=1"]])
def test_key_that_nobody_has_is_a_usage_error(find: Find, words: list[str]) -> None:
    code, _, said = find(*words)

    assert code == 2
    assert "'Nonsense'" in said


def test_study_tells_its_size_and_dates(find: Find) -> None:
    instances = find("-p", "PHANTOM-0-001", "-l", "instance")[1]
    (study,) = find("-p", "PHANTOM-0-001")[1]

    assert study["size"] == sum(int(str(one["size"])) for one in instances)
    assert study["date_range"] == "20240131"


def test_sizes_can_be_compared_and_sorted(find: Find) -> None:
    sizes = [one["size"] for one in find("-l", "instance", "--sort", "-size")[1]]
    large = find("-l", "instance", "--where", f"size>={sizes[9]}")[1]

    assert sizes == sorted(sizes, reverse=True)  # type: ignore[type-var]
    assert {one["size"] for one in large} == {size for size in sizes if size >= sizes[9]}  # type: ignore[operator]


def test_tree_has_patients_with_studies_with_series(dcmtools: RunDcmtools, filled: Path) -> None:
    done = dcmtools("find", "--archive", filled, "--tree")

    rows = done.stdout.splitlines()
    assert [len(row) - len(row.lstrip()) for row in rows] == [0, 2, 4, 4] * 3
    assert rows[0].startswith("PHANTOM-0-001")
    assert rows[2].endswith("24 instances")


def test_records_on_stdin_can_be_the_index(find: Find, dcmtools: RunDcmtools) -> None:
    lines = "".join(f"{json.dumps(one)}\n" for one in find("-l", "instance", "-m", "MR")[1])

    done = dcmtools("find", "--index", "-", "--level", "series", "-n", "müller*", stdin=lines)

    (series,) = records(done.stdout)
    assert (series["NumberOfSeriesRelatedInstances"], series["Modality"]) == (24, "MR")


def test_records_of_a_node_can_be_the_index(find: Find, dcmtools: RunDcmtools) -> None:
    instances = [{**one, "type": "image"} for one in find("-l", "instance", "-m", "SR")[1]]
    lines = "".join(f"{json.dumps({key: one[key] for key in one if key != 'path'})}\n" for one in instances)

    done = dcmtools("find", "--index", "-", "--level", "instance", stdin=lines)

    assert [one["SOPInstanceUID"] for one in records(done.stdout)] == [one["SOPInstanceUID"] for one in instances]
    assert all("path" not in one for one in records(done.stdout))


def test_text_that_is_no_text_matches_nothing(dcmtools: RunDcmtools, filled: Path) -> None:
    for option in ("--patient-id", "--patient-name", "--study-uid", "--instance-uid"):
        done = dcmtools("find", "--archive", filled, option, os.fsdecode(b"\xff"))

        assert (done.returncode, records(done.stdout)) == (0, []), done.stderr


def test_several_indexes_are_asked_as_one(dcmtools: RunDcmtools, filled: Path, phantoms: Path, tmp_path: Path) -> None:
    dcmtools("index", phantoms, "--index", tmp_path / "other.jsonl")

    both = dcmtools("find", filled, tmp_path / "other.jsonl")
    missing = dcmtools("find", filled, tmp_path / "none.jsonl")

    assert [one["NumberOfStudyRelatedInstances"] for one in records(both.stdout)] == [25, 25, 25]
    assert missing.returncode == 66
    assert "none.jsonl" in missing.stderr


def test_lines_that_are_no_records_are_said(dcmtools: RunDcmtools, archive: Path) -> None:
    with (archive / "index.jsonl").open("a") as out:
        out.write("{broken\n")

    done = dcmtools("find", "--archive", archive)

    assert done.returncode == 0
    assert "1 line of" in done.stderr
    assert "dcmtools index check" in done.stderr
