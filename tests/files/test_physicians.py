"""Spellings of one physician meet in one folder, others never do."""

import json
import unicodedata
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dcmtools.files.physicians import (
    Physician,
    Registry,
    Spellings,
    folder_name,
    key_of,
    name_in,
    numbered,
    read_merges,
)
from dcmtools.model.errors import ConfigurationError, NoInput

SMITH = ["Smith^John", "SMITH^JOHN", "Smith^John^^^", "Smith ^ John", "Smith, John", "smith^john^^Dr"]
NOBODY = ["-", "DN", "none", "anonymized", "", None, "^^^^"]
# What was seen in the field, and what a folder must come of it.
SPELLINGS: list[tuple[str | None, str | None]] = [
    *((name, "Smith_John") for name in SMITH),
    ("Smith^John^A", "Smith_John_A"),
    (unicodedata.normalize("NFC", "Müller^Eva"), "Müller_Eva"),
    (unicodedata.normalize("NFD", "Müller^Eva"), "Müller_Eva"),
    ("O'Brien^Pat", "O'Brien_Pat"),
    ("O’Brien^Pat", "O'Brien_Pat"),
    ("=山田^太郎", "山田_太郎"),
    *((name, None) for name in NOBODY),
    ("RICE WESTON L", "RICE WESTON L"),
    ("ward", "ward"),
]
HOSTILE = [
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "CON",
    "x" * 300,
    "山" * 300,
    "a\0b\nc\x1b[2J",
    "\u202eevil",
    ".",
    "~",
]


def registry(tmp_path: Path, **options: object) -> Registry:
    return Registry(tmp_path / "physicians.json", **options)  # type: ignore[arg-type]


def physician(name: str, identifier: str = "") -> Physician:
    return Spellings().read(name, identifier)[0]


def test_each_of_the_21_spellings_lands_as_listed(tmp_path: Path) -> None:
    folders = registry(tmp_path)

    landed = [
        [folders.folder(one) for one in Spellings().read(*name_in({"ReferringPhysicianName": name}))]
        for name, _ in SPELLINGS
    ]

    assert len(SPELLINGS) == 21
    assert landed == [[folder] if folder else [] for _, folder in SPELLINGS]


def test_record_without_the_attribute_names_nobody() -> None:
    assert Spellings().read(*name_in({})) == ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Müller^Eva", "Mueller^Eva"),
        ("Smith^John", "Smith^John^A"),
        ("Smith^John", "Smith^Jon"),
        ("Smith John", "John Smith"),
        ("ハシ^タロウ", "バシ^タロウ"),  # a kana's mark is no accent
    ],
)
def test_similar_names_stay_two(one: str, other: str) -> None:
    assert key_of(one) != key_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Nuñez^José", "NUNEZ^JOSE"),
        ("Straße^Udo", "STRASSE^udo"),
        ("Smi\u200fth^John", "Smith^John"),
        ("ＳＭＩＴＨ^Ｊｏｈｎ", "Smith^John"),
        ("^^=山田^太郎", "=山田^太郎=やまだ^たろう"),
        ("RICE WESTON L", "Rice^Weston^L"),
        ("Smith-Jones^A.", "Smith Jones^A"),
    ],
)
def test_other_ways_to_write_a_name_are_one(one: str, other: str) -> None:
    assert key_of(one) == key_of(other)


@given(st.text())
@example("ΐ")
@example("İ")
def test_key_of_a_key_is_itself(name: str) -> None:
    key = key_of(name)

    assert key_of(key) == key
    assert key == " ".join(key.split())


@given(st.one_of(st.text(), st.sampled_from(HOSTILE)), st.booleans())
def test_folder_is_one_safe_path_component(name: str, ascii_only: bool) -> None:
    folder = folder_name(name, ascii_only=ascii_only)

    assert folder not in {"", ".", ".."}
    assert not set(folder) & set('<>:"/\\|?*^=\0\n\x1b\u202e')
    assert len(folder.encode()) <= 120
    assert folder.isascii() or not ascii_only
    assert numbered(folder, 2).endswith("~2")
    assert len(numbered(folder, 12).encode()) <= 120


@pytest.mark.parametrize(
    ("name", "folder"),
    [("Müller^Jörg", "Muller_Jorg"), ("Weiß^Ø", "Weiss_O"), ("Łukasz^Þór", "Lukasz_Thor")],
)
def test_ascii_folder_keeps_each_latin_letter(name: str, folder: str) -> None:
    assert folder_name(name, ascii_only=True) == folder


def test_names_that_ascii_cannot_tell_apart_get_two_folders() -> None:
    folders = {folder_name(name, ascii_only=True) for name in ("=山田^太郎", "=田中^太郎")}

    assert len(folders) == 2
    assert all(folder.isascii() and folder.startswith("physician-") for folder in folders)


def test_several_values_are_several_physicians() -> None:
    found = Spellings().read("\\Smith^John\\SMITH^JOHN\\DN\\Doe^Jane")

    assert [one.spelling for one in found] == ["Smith^John", "Doe^Jane"]
    assert name_in({"ReferringPhysicianName": ["Smith^John", None, "Doe^Jane"]})[0] == "Smith^John\\\\Doe^Jane"


def test_list_of_words_for_nobody_can_be_another() -> None:
    spellings = Spellings(nobody=frozenset({"Ward", "N/A"}))

    assert spellings.read("WARD\\n/a") == ()
    assert spellings.read("none") != ()


class TestRegistry:
    def test_first_spelling_names_the_folder_in_the_next_run_too(self, tmp_path: Path) -> None:
        first = registry(tmp_path)
        assert first.folder(physician("SMITH^JOHN")) == "SMITH_JOHN"
        first.save()

        assert registry(tmp_path).folder(physician("Smith^John")) == "SMITH_JOHN"

    def test_file_tells_key_folder_spellings_and_counts(self, tmp_path: Path) -> None:
        folders = registry(tmp_path)
        folders.folder(physician("Müller^Eva"))
        folders.count({"muller eva": {"Müller^Eva": 2, "MULLER^EVA": 1}})

        folders.save()

        assert json.loads((tmp_path / "physicians.json").read_text()) == {
            "muller eva": {"folder": "Müller_Eva", "spellings": {"Müller^Eva": 2, "MULLER^EVA": 1}}
        }
        assert (tmp_path / "physicians.json").stat().st_mode & 0o777 == 0o600

    def test_what_has_not_changed_is_not_written(self, tmp_path: Path) -> None:
        folders = registry(tmp_path)
        folders.folder(physician("Doe^Jane"))
        folders.save()
        before = (tmp_path / "physicians.json").stat()

        again = registry(tmp_path)
        again.folder(physician("Doe^Jane"))
        again.save()

        assert (tmp_path / "physicians.json").stat() == before

    def test_two_keys_with_one_folder_in_another_case_get_a_number(self, tmp_path: Path) -> None:
        folders = registry(tmp_path)

        assert folders.folder(Physician("one key", "A?b")) == "A_b"
        assert folders.folder(Physician("another key", "A|B")) == "A_B~2"
        assert folders.folder(Physician("a third", "a^b")) == "a_b~3"

    def test_names_of_our_own_files_are_taken(self, tmp_path: Path) -> None:
        folders = registry(tmp_path, reserved=["_unknown", "sorted.jsonl"])

        assert folders.folder(physician("sorted.jsonl")) == "sorted.jsonl~2"
        assert folders.folder(Physician("x", "^Unknown")) == "_Unknown~2"

    def test_folder_that_was_renamed_by_hand_is_used(self, tmp_path: Path) -> None:
        entry = {"smith john": {"folder": "Cardiology, Smith", "spellings": {}}}
        (tmp_path / "physicians.json").write_text(json.dumps(entry))

        assert registry(tmp_path).folder(physician("Smith^John")) == "Cardiology, Smith"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "{",
            '{"a": 1}',
            '{"a": {"folder": "../out", "spellings": {}}}',
            '{"a": {"folder": "", "spellings": {}}}',
            '{"a": {"folder": "x"}}',
        ],
    )
    def test_broken_file_is_told_with_its_path(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "physicians.json").write_text(text)

        with pytest.raises(ConfigurationError, match=r"physicians\.json"):
            registry(tmp_path)

    def test_physicians_folder_cannot_be_the_one_for_nobody(self, tmp_path: Path) -> None:
        folders = registry(tmp_path)
        folders.folder(physician("Misc"))
        folders.save()

        with pytest.raises(ConfigurationError, match="misc is the folder of a physician"):
            registry(tmp_path, reserved=["misc"])

    def test_identifier_finds_its_folder_under_any_name(self, tmp_path: Path) -> None:
        folders = registry(tmp_path)
        folders.folder(physician("Smith^Anna", "LANR 1"))
        folders.save()

        again = registry(tmp_path)

        assert again.folder(physician("Miller^Anna", "LANR 1")) == "Smith_Anna"
        assert again.folder(physician("Smith^Anna", "LANR 2")) == "Smith_Anna~2"
        assert again.folder(physician("Smith^Anna")) == "Smith_Anna"

    def test_identifier_joins_the_folder_that_the_name_has(self, tmp_path: Path) -> None:
        folders = registry(tmp_path)

        assert folders.folder(physician("Smith^Anna")) == "Smith_Anna"
        assert folders.folder(physician("Smith^Anna", "LANR 1")) == "Smith_Anna"
        assert folders.folder(physician("SMITH^A", "LANR 1")) == "Smith_Anna"


def test_identifier_is_read_from_the_sequence() -> None:
    code = {"CodingSchemeDesignator": "LANR", "CodeValue": "4711"}
    record = {
        "ReferringPhysicianName": "-",
        "ReferringPhysicianIdentificationSequence": [{"PersonIdentificationCodeSequence": [code]}],
    }

    found = Spellings().read(*name_in(record))

    assert found == (Physician("id LANR 4711", "LANR 4711", "LANR 4711"),)


@pytest.mark.parametrize("odd", [None, [], ["x"], [{}], [{"PersonIdentificationCodeSequence": [{}]}], 5])
def test_odd_identification_is_none(odd: object) -> None:
    assert name_in({"ReferringPhysicianIdentificationSequence": odd}) == ("", "")


class TestMerges:
    def merges(self, tmp_path: Path, text: str) -> dict[str, str]:
        file = tmp_path / "merge.txt"
        file.write_text(text, encoding="utf-8")
        return read_merges(file)

    def test_alias_is_read_as_the_other_name(self, tmp_path: Path) -> None:
        merges = self.merges(tmp_path, "# typing errors\n\nSmyth^John = Smith^John\nward=-\n")

        (found,) = Spellings(merges).read("SMYTH^JOHN^^Dr")

        assert (found.key, found.shown) == ("smith john", "Smith^John")
        assert Spellings(merges).read("Ward") == ()

    def test_new_folder_has_the_name_that_the_file_gives(self, tmp_path: Path) -> None:
        merges = self.merges(tmp_path, "RICE WESTON L=Rice^Weston\nRice^Weston=Rice^Weston\n")

        (found,) = Spellings(merges).read("rice weston l")

        assert registry(tmp_path).folder(found) == "Rice_Weston"

    def test_chain_leads_to_its_end(self, tmp_path: Path) -> None:
        assert self.merges(tmp_path, "A=B\nB=C\n") == {"a": "C", "b": "C"}

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("Smith\n", r"merge\.txt:1"),
            ("A=B\n=C\n", r"merge\.txt:2"),
            ("A=\n", r"merge\.txt:1"),
            ("A=B\na=C\n", r"merge\.txt:2"),
            ("A=B\nB=A\n", "circle"),
        ],
    )
    def test_bad_line_is_told_by_its_number(self, tmp_path: Path, text: str, told: str) -> None:
        with pytest.raises(ConfigurationError, match=told):
            self.merges(tmp_path, text)

    def test_file_that_is_not_there_or_not_text_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "latin").write_bytes(b"M\xfcller=Muller\n")

        with pytest.raises(ConfigurationError, match="UTF-8"):
            read_merges(tmp_path / "latin")
        with pytest.raises(NoInput):
            read_merges(tmp_path / "none")


@pytest.mark.parametrize(
    ("one", "other"),
    [("Андрей", "Андреи"), ("Алёна", "Алена"), ("Їжак", "Іжак")],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_marks_of_cyrillic_make_other_letters(one: str, other: str, form: Literal["NFC", "NFD"]) -> None:
    assert key_of(unicodedata.normalize(form, one)) != key_of(other)
    assert key_of(unicodedata.normalize(form, one)) == key_of(one)


def test_accents_of_latin_and_greek_are_none() -> None:
    assert key_of("Müller^Zoë") == key_of("Muller^Zoe")
    assert key_of("Nguyễn") == key_of("Nguyen")
    assert key_of("Παπαδόπουλος") == key_of("Παπαδοπουλος")
