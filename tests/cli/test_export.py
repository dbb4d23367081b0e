"""`dcmtools export` as its users see it: what is in the folder, what is said, and how it ends."""

import json
import os
import re
import stat
import zipfile
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_fragments

from tests.builders import uid, write_instance, write_series
from tests.cli.conftest import records
from tests.conftest import RunDcmtools


def tree(folder: Path) -> dict[str, str]:
    """The files of an export and the hashes of their bytes."""
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith((".dcmtools-", "index."))
    }


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    write_series(tmp_path / "scans" / "DOE_JOHN", 3, patient=1, PatientName="Doeling^Johnathan")
    write_series(tmp_path / "scans" / "other", 3, patient=2)
    (tmp_path / "scans" / "DICOMDIR").write_bytes(b"no instance")
    (tmp_path / "scans" / "letter.txt").write_text("Dear Dr. Smith")
    return tmp_path / "scans"


@pytest.fixture
def key(dcmtools: RunDcmtools, tmp_path: Path) -> Path:
    assert dcmtools("export", "--new-key", "study.key").returncode == 0
    return tmp_path / "study.key"


class TestPlain:
    def test_instances_are_copied_and_nothing_else(self, dcmtools: RunDcmtools, scans: Path, tmp_path: Path) -> None:
        done = dcmtools("export", "out", "scans")

        assert done.returncode == 0, done.stderr
        assert [one["state"] for one in records(done.stdout, "instance")] == ["copied"] * 6
        assert sorted(tree(tmp_path / "out")) == sorted(
            f"{uid(patient, 1)}/{uid(patient, 1, 1)}/{uid(patient, 1, 1, number)}.dcm"
            for patient in (1, 2)
            for number in (1, 2, 3)
        )
        assert set(tree(tmp_path / "out").values()) < set(tree(scans).values())

    def test_output_has_an_index_of_its_own(self, dcmtools: RunDcmtools, scans: Path) -> None:
        dcmtools("export", "out", "scans")

        found = dcmtools("find", "--archive", "out", "--level", "instance", "--all")

        assert len(records(found.stdout)) == 6

    def test_layout_names_the_files(self, dcmtools: RunDcmtools, scans: Path, tmp_path: Path) -> None:
        dcmtools("export", "out", "scans", "--layout", "{PatientID}/{InstanceNumber:03}.dcm")

        assert sorted(tree(tmp_path / "out")) == [f"P{p}/00{n}.dcm" for p in (1, 2) for n in (1, 2, 3)]

    def test_second_run_changes_nothing(self, dcmtools: RunDcmtools, scans: Path, tmp_path: Path) -> None:
        dcmtools("export", "out", "scans")
        before, index = tree(tmp_path / "out"), (tmp_path / "out" / "index.jsonl").read_bytes()

        again = dcmtools("export", "out", "scans")

        assert [one["state"] for one in records(again.stdout, "instance")] == ["present"] * 6
        assert tree(tmp_path / "out") == before
        assert (tmp_path / "out" / "index.jsonl").read_bytes() == index

    def test_link_makes_hard_links(self, dcmtools: RunDcmtools, scans: Path, tmp_path: Path) -> None:
        dcmtools("export", "out", "scans", "--link")

        links = [path.stat().st_nlink for path in (tmp_path / "out").rglob("*.dcm")]
        assert links == [2] * 6

    def test_other_content_under_a_uid_is_told_and_the_first_stays(
        self, dcmtools: RunDcmtools, scans: Path, tmp_path: Path
    ) -> None:
        dcmtools("export", "out", "scans")
        before = tree(tmp_path / "out")
        write_instance(tmp_path / "new" / "a.dcm", 1, 1, 1, 1, PatientID="OTHER")
        write_instance(tmp_path / "new" / "b.dcm", 3, 1, 1, 1)

        done = dcmtools("export", "out", "new")

        assert done.returncode == 3
        assert [one["cause"] for one in records(done.stdout, "error")] == ["conflict"]
        assert before.items() < tree(tmp_path / "out").items()

    def test_archive_is_no_output(self, dcmtools: RunDcmtools, archive: Path) -> None:
        assert dcmtools("export", "archive", "--all", "--archive", "archive").returncode == 2
        assert dcmtools("export", "archive/out", "--all", "--archive", "archive").returncode == 2

    def test_nothing_chosen_is_told(self, dcmtools: RunDcmtools, archive: Path) -> None:
        assert dcmtools("export", "out", "--archive", "archive").returncode == 2

    def test_damaged_file_is_told_and_the_rest_comes(self, dcmtools: RunDcmtools, scans: Path, tmp_path: Path) -> None:
        whole = (scans / "other" / "2-1-1-1.dcm").read_bytes()
        (scans / "other" / "2-1-1-1.dcm").write_bytes(whole[:-7])

        done = dcmtools("export", "out", "scans")

        assert done.returncode == 3
        assert [one["cause"] for one in records(done.stdout, "error")] == ["truncated"]
        assert len(tree(tmp_path / "out")) == 5


class TestDeidentified:
    def test_same_key_gives_the_same_bytes_however_it_is_run(
        self, dcmtools: RunDcmtools, archive: Path, key: Path, tmp_path: Path
    ) -> None:
        call = ("--all", "--archive", "archive", "--anonymize", "--key-file", key, "--burned-in", "allow")

        first = dcmtools("export", "one", *call, "--jobs", 1)
        second = dcmtools("export", "two", *call, "--jobs", 4)

        assert (first.returncode, second.returncode) == (0, 0), first.stderr
        assert len(tree(tmp_path / "one")) == 75
        assert tree(tmp_path / "one") == tree(tmp_path / "two")

    def test_neither_files_nor_names_nor_words_tell_who_it_was(
        self, dcmtools: RunDcmtools, scans: Path, key: Path, tmp_path: Path
    ) -> None:
        done = dcmtools("export", "out", "scans", "--anonymize", "--key-file", key, "--report", "report.jsonl")

        everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
        names = " ".join(str(path.relative_to(tmp_path)) for path in (tmp_path / "out").rglob("*"))
        said = done.stdout + done.stderr + names + (tmp_path / "report.jsonl").read_text()
        assert done.returncode == 0, done.stderr
        for word in ("doeling", "johnathan", "doe_john", uid(1), "20240101", "A11"):
            assert word.encode() not in everything.lower()
            assert word not in said.lower()

    def test_second_run_with_the_key_changes_nothing(
        self, dcmtools: RunDcmtools, scans: Path, key: Path, tmp_path: Path
    ) -> None:
        call = ("export", "out", "scans", "--anonymize", "--key-file", key)
        dcmtools(*call)
        before = tree(tmp_path / "out")

        again = dcmtools(*call)

        assert again.returncode == 0
        assert [one["state"] for one in records(again.stdout, "instance")] == ["present"] * 6
        assert tree(tmp_path / "out") == before

    def test_record_of_a_file_in_the_output_is_refused(self, dcmtools: RunDcmtools, scans: Path) -> None:
        first = dcmtools("export", "out", "scans")

        again = dcmtools("export", "out", "-", stdin=first.stdout)

        assert again.returncode == 77
        assert all("lies in the output" in one["reason"] for one in records(again.stdout, "error"))

    @pytest.mark.parametrize("words", [(), ("--anonymize", "--key-file", "study.key")])
    def test_output_in_the_folder_of_the_sources_is_no_source(
        self, words: tuple[str, ...], dcmtools: RunDcmtools, scans: Path, key: Path
    ) -> None:
        call = ("export", "scans/out", "scans", *words)

        first, again = dcmtools(*call), dcmtools(*call)

        assert (first.returncode, again.returncode) == (0, 0), again.stderr
        assert [one["state"] for one in records(again.stdout, "instance")] == ["present"] * 6
        assert len(list((scans / "out").rglob("*.dcm"))) == 6
        assert dcmtools("export", "scans/out", "scans/out", *words).returncode == 2

    def test_other_options_on_the_same_folder_are_a_conflict(
        self, dcmtools: RunDcmtools, scans: Path, key: Path, tmp_path: Path
    ) -> None:
        call = ("export", "out", "scans", "--anonymize", "--key-file", key)
        dcmtools(*call)

        again = dcmtools(*call, "--retain-dates", "modified")

        assert {one["cause"] for one in records(again.stdout, "error")} == {"conflict"}

    def test_without_a_key_the_folder_must_be_new(self, dcmtools: RunDcmtools, scans: Path) -> None:
        first = dcmtools("export", "out", "scans", "--anonymize")
        again = dcmtools("export", "out", "scans", "--anonymize")

        assert (first.returncode, again.returncode) == (0, 73)
        assert "of this run alone" in first.stderr
        assert "not empty" in again.stderr

    def test_another_key_does_not_fit(self, dcmtools: RunDcmtools, scans: Path, key: Path) -> None:
        dcmtools("export", "--new-key", "other.key")
        dcmtools("export", "out", "scans", "--anonymize", "--key-file", key)

        assert dcmtools("export", "out", "scans", "--anonymize", "--key-file", "other.key").returncode == 73

    def test_key_is_private_and_never_overwritten(self, dcmtools: RunDcmtools, scans: Path, key: Path) -> None:
        before = key.read_bytes()

        again = dcmtools("export", "--new-key", key)
        mode = stat.S_IMODE(key.stat().st_mode)
        key.chmod(0o640)
        readable = dcmtools("export", "out", "scans", "--anonymize", "--key-file", key)

        assert (again.returncode, readable.returncode, mode) == (73, 77, 0o600)
        assert key.read_bytes() == before
        assert before.decode().strip() not in readable.stdout + readable.stderr

    def test_key_file_that_is_a_pipe_or_a_folder_is_told_at_once(
        self, dcmtools: RunDcmtools, scans: Path, tmp_path: Path
    ) -> None:
        os.mkfifo(tmp_path / "pipe", 0o600)
        (tmp_path / "folder").mkdir(0o700)

        for name in ("pipe", "folder"):
            done = dcmtools("export", "out", "scans", "--anonymize", "--key-file", name, timeout=60)

            assert done.returncode == 78
            assert "not a regular file" in done.stderr

    def test_crosswalk_tells_who_became_whom(
        self, dcmtools: RunDcmtools, scans: Path, key: Path, tmp_path: Path
    ) -> None:
        call = ("export", "out", "scans", "--anonymize", "--key-file", key, "--retain-dates", "modified")

        done = dcmtools(*call, "--crosswalk", "crosswalk.jsonl")

        rows = [json.loads(line) for line in (tmp_path / "crosswalk.jsonl").read_text().splitlines()]
        new = {row["old"]: row["new"] for row in rows if row["kind"] != "date_shift"}
        days = {row["old"]: int(row["new"]) for row in rows if row["kind"] == "date_shift"}
        assert done.returncode == 0, done.stderr
        assert stat.S_IMODE((tmp_path / "crosswalk.jsonl").stat().st_mode) == 0o600
        assert {one["SOPInstanceUID"] for one in records(done.stdout, "instance")} < set(new.values())
        assert days.keys() == {"P1", "P2"}
        assert all(-3650 <= shift < 0 for shift in days.values())
        assert dcmtools(*call, "--crosswalk", "crosswalk.jsonl").returncode == 73
        assert dcmtools(*call, "--crosswalk", "out/crosswalk.jsonl").returncode == 2

    def test_what_may_be_burned_in_is_refused_and_the_rest_comes(
        self, dcmtools: RunDcmtools, scans: Path, tmp_path: Path
    ) -> None:
        write_instance(scans / "burned.dcm", 9, BurnedInAnnotation="YES")
        write_instance(scans / "captured.dcm", 8, SOPClassUID=pydicom.uid.SecondaryCaptureImageStorage)
        write_instance(
            scans / "clear.dcm", 7, SOPClassUID=pydicom.uid.SecondaryCaptureImageStorage, BurnedInAnnotation="NO"
        )

        done = dcmtools("export", "out", "scans", "--anonymize")

        assert done.returncode == 3
        assert [one["cause"] for one in records(done.stdout, "error")] == ["burned-in"] * 2
        assert len(tree(tmp_path / "out")) == 7

    def test_result_says_how_it_was_made(self, dcmtools: RunDcmtools, scans: Path, tmp_path: Path) -> None:
        dcmtools("export", "out", "scans", "--anonymize", "--retain-device-identity")

        for path in (tmp_path / "out").rglob("*.dcm"):
            read = pydicom.dcmread(path)
            assert read.PatientIdentityRemoved == "YES"
            assert [code.CodeValue for code in read.DeidentificationMethodCodeSequence] == ["113100", "113109"]
            assert read.LongitudinalTemporalInformationModified == "REMOVED"
            assert read.file_meta.MediaStorageSOPInstanceUID == read.SOPInstanceUID

    def test_single_elements_are_kept_removed_and_replaced(
        self, dcmtools: RunDcmtools, scans: Path, tmp_path: Path
    ) -> None:
        done = dcmtools(
            "export", "out", "scans/other", "--anonymize", "--keep", "StudyDescription", "--remove", "0018,0050",
            "--replace", "PatientName=Trial^One",
        )  # fmt: skip

        read = pydicom.dcmread(next((tmp_path / "out").rglob("*.dcm")))
        assert done.returncode == 0, done.stderr
        assert read.StudyDescription == "Study 1"
        assert read.PatientName == "Trial^One"
        assert "SliceThickness" not in read
        assert "DeidentificationMethodCodeSequence" not in read  # it would have no code

    @pytest.mark.parametrize(
        "words", [("--keep", "NoSuchThing"), ("--replace", "PatientName"), ("--remove", "SOPClassUID")]
    )
    def test_what_names_no_element_is_a_usage_error(
        self, words: tuple[str, str], dcmtools: RunDcmtools, scans: Path
    ) -> None:
        assert dcmtools("export", "out", "scans", "--anonymize", *words).returncode == 2

    def test_profile_without_anonymize_is_a_usage_error(self, dcmtools: RunDcmtools, scans: Path) -> None:
        assert dcmtools("export", "out", "scans", "--retain-uids").returncode == 2
        assert dcmtools("export", "out", "scans", "--anonymize", "--link").returncode == 2


def test_next_run_clears_what_a_killed_one_left(dcmtools: RunDcmtools, scans: Path, tmp_path: Path) -> None:
    left = tmp_path / "out" / ".dcmtools-export" / ".dcmtools-1-abc"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")

    assert dcmtools("export", "out", "scans").returncode == 0

    assert not left.parent.exists()
    assert os.listdir(tmp_path / "out")


class TestVerify:
    def test_deidentified_folder_has_nothing_of_its_sources(
        self, dcmtools: RunDcmtools, scans: Path, key: Path
    ) -> None:
        made = ("export", "out", "scans", "--anonymize", "--key-file", key, "--crosswalk", "walk.csv")
        dcmtools(*made)

        done = dcmtools("export", "out", "--verify", "scans", "--crosswalk", "walk.csv")

        assert done.returncode == 0, done.stderr
        assert {one["state"] for one in records(done.stdout, "file")} == {"verified"}

    @pytest.mark.parametrize("name", ["2.dcm", "Doeling.txt"])
    def test_what_was_put_there_by_others_is_found(
        self, name: str, dcmtools: RunDcmtools, scans: Path, key: Path, tmp_path: Path
    ) -> None:
        dcmtools("export", "out", "scans", "--anonymize", "--key-file", key)
        source = scans / "DOE_JOHN" / "1-1-1-1.dcm"
        (tmp_path / "out" / name).write_bytes(source.read_bytes() if name.endswith(".dcm") else b"a letter")

        done = dcmtools("export", "out", "--verify", "scans")

        assert done.returncode == 3
        assert [Path(one["path"]).name for one in records(done.stdout, "error")] == [name]

    def test_out_that_is_not_there_is_told(self, dcmtools: RunDcmtools, scans: Path) -> None:
        done = dcmtools("export", "missing", "--verify", "scans")

        assert done.returncode == 66
        assert "missing does not exist" in done.stderr

    def test_plain_export_does_not_pass(self, dcmtools: RunDcmtools, scans: Path) -> None:
        dcmtools("export", "out", "scans")

        assert len(records(dcmtools("export", "out", "--verify", "scans").stdout, "error")) >= 6


def test_regions_of_risky_pixels_are_blanked_and_it_is_said(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    capture = pydicom.uid.SecondaryCaptureImageStorage
    source = write_instance(tmp_path / "in" / "a.dcm", SOPClassUID=capture, side=16, Manufacturer="Acme Ltd")
    write_instance(tmp_path / "in" / "b.dcm", 2, SOPClassUID=capture, side=16, Manufacturer="Other")
    rules = [{"Manufacturer": "ACME*", "Rows": 16, "Columns": 16, "regions": [[4, 0, 100, 3]]}]
    (tmp_path / "rules.json").write_text(json.dumps(rules))

    done = dcmtools("export", "out", "in", "--anonymize", "--clean-pixel-data", "rules.json")

    (path,) = (tmp_path / "out").rglob("*.dcm")
    read, before = pydicom.dcmread(path), pydicom.dcmread(source)
    expected = before.pixel_array.copy()
    expected[:3, 4:] = 0
    assert [one["cause"] for one in records(done.stdout, "error")] == ["burned-in"]
    assert (read.pixel_array == expected).all()
    assert read.BurnedInAnnotation == "NO"
    assert [code.CodeValue for code in read.DeidentificationMethodCodeSequence] == ["113100", "113101"]


def test_damaged_frame_is_decoded_or_told_and_the_rest_comes(dcmtools: RunDcmtools, data: Path, tmp_path: Path) -> None:
    read = pydicom.dcmread(data / "odd" / "JPGLosslessP14SV1_1s_1f_8b.dcm")
    (frame,) = generate_fragments(read.PixelData[8:])
    behind_app0 = 4 + int.from_bytes(frame[4:6], "big")
    read.Modality, read.StudyInstanceUID, read.SeriesInstanceUID = "US", uid(5), uid(5, 1)
    (tmp_path / "in").mkdir()
    for number, behind in enumerate((b"twenty bytes of junk" + frame[behind_app0:], b"\xff" * 20)):
        read.PixelData = encapsulate([frame[:behind_app0] + behind])
        read["PixelData"].VR = "OB"
        read.SOPInstanceUID = read.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(uid(5, 1, number))
        read.save_as(tmp_path / "in" / f"{number}.dcm")
    write_series(tmp_path / "in", 2)
    (tmp_path / "rules.json").write_text(json.dumps([{"Modality": "US", "regions": [[0, 0, 10, 10]]}]))

    done = dcmtools("export", "out", "in", "--anonymize", "--clean-pixel-data", "rules.json")

    assert done.returncode == 3, done.stderr
    assert [(one["cause"], Path(one["path"]).name) for one in records(done.stdout, "error")] == [("burned-in", "1.dcm")]
    assert len(tree(tmp_path / "out")) == 3


def test_rules_that_cannot_be_used_are_told(dcmtools: RunDcmtools, scans: Path, tmp_path: Path) -> None:
    for text in ("[", '[{"Model": "x", "regions": [[0, 0, 1, 1]]}]', '[{"regions": [[0, 0, 0, 1]]}]', '[{"Rows": 1}]'):
        (tmp_path / "rules.json").write_text(text)

        assert dcmtools("export", "out", "scans", "--anonymize", "--clean-pixel-data", "rules.json").returncode == 78


class TestQuarantine:
    """What may show identity in its pixels is kept apart: de-identified in all else, and never in the output."""

    CALL = ("export", "out", "in", "--anonymize", "--key-file", "study.key", "--burned-in", "quarantine")

    @pytest.fixture
    def mixed(self, tmp_path: Path, key: Path) -> Path:
        capture = pydicom.uid.SecondaryCaptureImageStorage
        write_series(tmp_path / "in", 2, PatientName="Doeling^Johnathan")
        write_instance(tmp_path / "in" / "capture.dcm", 2, SOPClassUID=capture, PatientName="Doeling^Johnathan")
        write_instance(tmp_path / "in" / "said.dcm", 3, BurnedInAnnotation="YES", PatientName="Doeling^Johnathan")
        return key

    def test_risky_files_are_kept_apart_and_told(self, mixed: Path, dcmtools: RunDcmtools, tmp_path: Path) -> None:
        done = dcmtools(*self.CALL, "--quarantine", "review", "--report", "report.jsonl", "--crosswalk", "walk.csv")

        errors = records(done.stdout, "error")
        held = sorted((tmp_path / "review").rglob("*.dcm"))
        report = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
        assert done.returncode == 3, done.stderr
        assert len(records(done.stdout, "instance")) == len(list((tmp_path / "out").rglob("*.dcm"))) == 2
        assert {one["cause"] for one in errors} == {"burned-in"}
        assert [Path(one["path"]).name for one in errors] == ["capture.dcm", "said.dcm"]
        assert sorted(one["quarantine"] for one in errors) == [str(path) for path in held]
        assert [one["state"] for one in report[1:]] == ["deidentified"] * 2 + ["quarantined"] * 2
        assert stat.S_IMODE((tmp_path / "review").stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in held} == {0o600}
        for path in held:
            read = pydicom.dcmread(path)
            assert b"doeling" not in path.read_bytes().lower()
            assert read.PatientIdentityRemoved == "NO"
            assert "DeidentificationMethodCodeSequence" not in read
            assert read.SOPInstanceUID not in (tmp_path / "walk.csv").read_text()
            assert read.SOPInstanceUID not in (tmp_path / "out" / "index.jsonl").read_text()

    def test_second_run_changes_nothing_and_release_gives_the_same_instance(
        self, mixed: Path, dcmtools: RunDcmtools, tmp_path: Path
    ) -> None:
        dcmtools(*self.CALL, "--quarantine", "review")
        before = tree(tmp_path / "review")
        again = dcmtools(*self.CALL, "--quarantine", "review", "--jobs", 1)
        released = dcmtools("export", "out", "in/capture.dcm", *self.CALL[3:-1], "allow")

        assert again.returncode == 3
        assert tree(tmp_path / "review") == before
        assert len(before) == 2
        assert released.returncode == 0, released.stderr
        assert len(before.items() & tree(tmp_path / "out").items()) == 1

    def test_plan_is_what_is_done(self, mixed: Path, dcmtools: RunDcmtools, tmp_path: Path) -> None:
        plan = dcmtools(*self.CALL, "--quarantine", "review", "--dry-run")
        assert not (tmp_path / "review").exists()
        assert not (tmp_path / "out").exists()

        done = dcmtools(*self.CALL, "--quarantine", "review")

        assert plan.returncode == done.returncode == 3
        assert outcomes(plan.stdout) == outcomes(done.stdout)

    def test_what_a_rule_cannot_clean_is_kept_apart_too(
        self, mixed: Path, dcmtools: RunDcmtools, tmp_path: Path
    ) -> None:
        (tmp_path / "rules.json").write_text(json.dumps([{"regions": [[4000, 0, 9, 9]]}]))

        done = dcmtools(*self.CALL, "--quarantine", "review", "--clean-pixel-data", "rules.json")

        assert {one["cause"] for one in records(done.stdout, "error")} == {"burned-in"}
        held = list((tmp_path / "review").rglob("*.dcm"))
        assert len(held) == len(tree(tmp_path / "review")) == 4
        assert {pydicom.dcmread(path).PatientIdentityRemoved for path in held} == {"NO"}
        assert not tree(tmp_path / "out")

    def test_what_somebody_else_put_at_a_name_is_an_error_and_stays(
        self, mixed: Path, dcmtools: RunDcmtools, tmp_path: Path
    ) -> None:
        dcmtools(*self.CALL, "--quarantine", "review")
        taken = min((tmp_path / "review").rglob("*.dcm"))
        taken.write_bytes(b"no instance")

        again = dcmtools(*self.CALL, "--quarantine", "review")

        assert sorted(one["cause"] for one in records(again.stdout, "error")) == ["burned-in", "conflict"]
        assert taken.read_bytes() == b"no instance"

    def test_folder_of_review_is_apart_private_and_named(
        self, mixed: Path, dcmtools: RunDcmtools, tmp_path: Path
    ) -> None:
        (tmp_path / "open").mkdir(mode=0o755)
        ended = [dcmtools(*self.CALL, "--quarantine", name).returncode for name in ("out", "out/review", ".", "open")]

        assert ended == [2, 2, 2, 77]
        assert dcmtools(*self.CALL).returncode == 2
        assert dcmtools(*self.CALL[:-2], "--quarantine", "review").returncode == 2
        assert not (tmp_path / "out").exists() or not tree(tmp_path / "out")

    def test_folder_of_review_is_no_source(self, mixed: Path, dcmtools: RunDcmtools, tmp_path: Path) -> None:
        dcmtools(*self.CALL, "--quarantine", "in/review")
        again = dcmtools(*self.CALL, "--quarantine", "in/review")

        assert len(records(again.stdout, "error")) == 2
        assert dcmtools("export", "out", "in/review", *self.CALL[3:], "--quarantine", "in/review").returncode == 2

    def test_zip_has_nothing_of_it(self, mixed: Path, dcmtools: RunDcmtools, tmp_path: Path) -> None:
        done = dcmtools("export", "out.zip", "in", "--zip", *self.CALL[3:], "--quarantine", "review")

        with zipfile.ZipFile(tmp_path / "out.zip") as packed:
            assert sum(name.endswith(".dcm") for name in packed.namelist()) == 2
        assert done.returncode == 3
        assert len(tree(tmp_path / "review")) == 2


def outcomes(stdout: str) -> list[dict[str, object]]:
    """What became of each file, less what only a file that is there has."""
    return [
        {key: value for key, value in one.items() if key not in {"dry_run", "size", "mtime_ns"}}
        for one in records(stdout)
        if one["type"] != "event"
    ]


class TestDryRun:
    """A plan is exact: what it says is what comes."""

    def test_regions_and_pixels_are_looked_at(self, dcmtools: RunDcmtools, key: Path, tmp_path: Path) -> None:
        capture = pydicom.uid.SecondaryCaptureImageStorage
        for number, (maker, side) in enumerate((("Acme", 16), ("Acme", 8), ("Other", 16), ("Short", 16))):
            path = write_instance(
                tmp_path / "in" / f"{number}.dcm", number + 1, SOPClassUID=capture, side=side, Manufacturer=maker
            )
            if maker == "Short":
                read = pydicom.dcmread(path)
                read.PixelData = read.PixelData[:-4]
                read.save_as(path)
        write_series(tmp_path / "in", 2, patient=9)
        rules = [{"Manufacturer": name, "regions": [[0, 12, 16, 2]]} for name in ("Acme", "Short")]
        (tmp_path / "rules.json").write_text(json.dumps(rules))
        call = ("export", "out", "in", "--anonymize", "--key-file", key, "--clean-pixel-data", "rules.json")

        plan = dcmtools(*call, "--dry-run")
        assert not (tmp_path / "out").exists()
        done = dcmtools(*call)

        assert len(records(plan.stdout, "instance")) == 3
        assert len(records(plan.stdout, "error")) == 3
        assert outcomes(plan.stdout) == outcomes(done.stdout)

    @pytest.mark.parametrize("words", [(), ("--anonymize", "--key-file", "study.key")])
    def test_sources_of_one_instance_are_told_from_others(
        self, words: tuple[str, ...], dcmtools: RunDcmtools, key: Path, tmp_path: Path
    ) -> None:
        first = write_instance(tmp_path / "in" / "a.dcm")
        (tmp_path / "in" / "b.dcm").write_bytes(first.read_bytes())
        write_instance(tmp_path / "in" / "c.dcm", SliceThickness="7")

        plan, done = dcmtools("export", "out", "in", *words, "--dry-run"), dcmtools("export", "out", "in", *words)

        assert [one.get("state") or one["cause"] for one in outcomes(plan.stdout)][1:] == ["present", "conflict"]
        assert outcomes(plan.stdout) == outcomes(done.stdout)

    def test_compressed_pixels_are_decoded_for_the_plan(
        self, dcmtools: RunDcmtools, data: Path, key: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "in").mkdir()
        for name in ("JPGLosslessP14SV1_1s_1f_8b.dcm", "US1_J2KR.dcm", "SC_rgb_dcmtk_ebcr_dcmd.dcm"):
            (tmp_path / "in" / name).write_bytes((data / "odd" / name).read_bytes())
        broken = (data / "odd" / "JPGLosslessP14SV1_1s_1f_8b.dcm").read_bytes()
        table = broken.rindex(b"\xff\xc4", 0, broken.rindex(b"\xff\xda"))  # of the codes, which becomes a comment
        name = pydicom.dcmread(data / "odd" / "JPGLosslessP14SV1_1s_1f_8b.dcm").SOPInstanceUID.encode()
        (tmp_path / "in" / "broken.dcm").write_bytes(
            (broken[:table] + b"\xff\xfe" + broken[table + 2 :]).replace(name, name[:-1] + b"9")
        )
        (tmp_path / "rules.json").write_text(json.dumps([{"regions": [[0, 0, 10, 10]]}]))
        call = ("export", "out", "in", "--anonymize", "--key-file", key, "--clean-pixel-data", "rules.json")

        plan, done = dcmtools(*call, "--dry-run"), dcmtools(*call)

        assert outcomes(plan.stdout) == outcomes(done.stdout)
        assert len(records(done.stdout, "instance")) == 3
        assert [one["cause"] for one in records(done.stdout, "error")] == ["burned-in"]


class TestMedia:
    def test_dicomdir_lists_what_is_there_and_never_what_was(
        self, dcmtools: RunDcmtools, archive: Path, key: Path, tmp_path: Path
    ) -> None:
        call = ("export", "out", "--all", "--archive", "archive", "--anonymize", "--key-file", key, "--dicomdir")
        done = dcmtools(*call)
        before = tree(tmp_path / "out")
        again = dcmtools(*call)

        read = pydicom.dcmread(tmp_path / "out" / "DICOMDIR")
        kinds = Counter(record.DirectoryRecordType for record in read.DirectoryRecordSequence)
        listed = {
            "/".join(record.ReferencedFileID) for record in read.DirectoryRecordSequence if "ReferencedFileID" in record
        }
        assert (done.returncode, again.returncode) == (0, 0), done.stderr
        assert kinds == {"PATIENT": 3, "STUDY": 3, "SERIES": 6, "IMAGE": 72, "SR DOCUMENT": 3}
        assert listed | {"DICOMDIR"} == set(before)
        assert all(re.fullmatch(r"[A-Z0-9_]{1,8}", part) for name in listed for part in name.split("/"))
        assert tree(tmp_path / "out") == before
        from pydicom.fileset import FileSet

        file_set = FileSet(tmp_path / "out" / "DICOMDIR")
        assert len(file_set) == 75
        file_set._stage["t"].cleanup()  # it leaves that to the collector, which warns

    def test_zip_has_the_folder_and_is_the_same_again(
        self, dcmtools: RunDcmtools, scans: Path, key: Path, tmp_path: Path
    ) -> None:
        call = ("export", "out.zip", "scans", "--zip", "--anonymize", "--key-file", key)
        first = dcmtools(*call)
        before = (tmp_path / "out.zip").read_bytes()
        again = dcmtools(*call)
        dcmtools("export", "out", "scans", "--anonymize", "--key-file", key)

        with zipfile.ZipFile(tmp_path / "out.zip") as packed:
            members = {
                name: sha256(packed.read(name)).hexdigest() for name in packed.namelist() if name != "index.jsonl"
            }
            assert len(packed.read("index.jsonl").splitlines()) == 6
        assert first.returncode == 0, first.stderr
        assert members == tree(tmp_path / "out")
        assert {one["state"] for one in records(again.stdout, "instance")} == {"present"}
        assert (tmp_path / "out.zip").read_bytes() == before
        assert not list(tmp_path.glob(".dcmtools-*"))

    def test_zip_is_never_replaced(self, dcmtools: RunDcmtools, scans: Path, tmp_path: Path) -> None:
        (tmp_path / "out.zip").write_bytes(b"mine")

        assert dcmtools("export", "out.zip", "scans", "--zip").returncode == 73
        assert (tmp_path / "out.zip").read_bytes() == b"mine"
