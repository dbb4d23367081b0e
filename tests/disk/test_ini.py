"""Reading and changing INI files: line numbers, all errors at once, and nothing lost by a change."""

import os
import re
import stat
import string
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.disk import ini
from dcmtools.model.errors import CannotCreate, ConfigurationError

FILE = Path("nodes.ini")


def problems(text: str) -> list[str]:
    return [str(problem) for problem in ini.parse(text, FILE).problems]


def values(text: str) -> dict[str, dict[str, str]]:
    return {section.name: section.values for section in ini.parse(text, FILE).sections.values()}


def test_keys_have_their_values_and_lines() -> None:
    document = ini.parse("# first\n\n[PACS]\nhost = a\nPort: 104\n", FILE)

    section = document.section("pacs")

    assert section
    assert (section.name, section.line) == ("PACS", 3)
    assert section.entries == {"host": ini.Entry("host", "a", 4), "port": ini.Entry("port", "104", 5)}


@pytest.mark.parametrize(
    "value", ["100%", "%(host)s", "fe80::1%eth0", "a = b: c", "x ; no comment", "x # none either", "[x]", "$HOME", "é"]
)
def test_value_means_what_it_says(value: str) -> None:
    assert values(f"[A]\nkey = {value}\n") == {"A": {"key": value}}


def test_byte_order_mark_and_windows_line_ends_are_no_part_of_anything() -> None:
    assert values("\ufeff[A]\r\nkey = 1\r\n") == {"A": {"key": "1"}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[PACS]\nport = 1\n[pacs]\n", "nodes.ini:3: [pacs]: stands already in line 1; give it another name"),
        ("[A]\nport = 1\nPORT = 2\n", "nodes.ini:3: port: stands already in line 2"),
        ("[DEFAULT]\nport = 1\n", "nodes.ini:1: [DEFAULT]: has no special meaning here"),
        ("[A]\nport = 1\n  04\n", "nodes.ini:3: is indented, which continues nothing here"),
        ("[a]b]\n", "nodes.ini:1: '[a]b]' is not a section"),
        ("[a] ; b\n", "nodes.ini:1: '[a] ; b' is not a section"),
        ("[ ]\n", "nodes.ini:1: '[ ]' is not a section"),
        ("[a\n", "nodes.ini:1: '[a' is not a section"),
        ("port = 1\n", "nodes.ini:1: port: stands before the first [section]"),
        ("[A]\nport\n", "nodes.ini:2: 'port' is neither [section] nor key = value"),
        ("[A]\n= 4\n", "nodes.ini:2: '= 4' is neither [section] nor key = value"),
        ("[A]\nhost = a\x1b[2J\n", "nodes.ini:2: has a control character"),
        ("[A]\rhost = a\n", "nodes.ini:1: has a control character"),
    ],
)
def test_mistake_is_told_with_its_line(text: str, expected: str) -> None:
    assert [problem[: len(expected)] for problem in problems(text)] == [expected]


def test_keys_below_a_wrong_section_are_not_told_of_too() -> None:
    assert len(problems("[a]b]\nport = 1\n[A]\nport = 1\n")) == 1


def test_all_mistakes_are_told_in_one_go_in_the_order_of_lines() -> None:
    document = ini.parse("x\n[A]\nprt = 1\n[a]\n", FILE)
    found = [*ini.unknown_keys(document.sections["a"], ["port", "host"], FILE), *document.problems]

    with pytest.raises(ConfigurationError) as failure:
        ini.refuse(found)

    assert failure.value.reason == (
        "nodes.ini:1: 'x' is neither [section] nor key = value; "
        "nodes.ini:3: prt: is not known; did you mean port?; "
        "nodes.ini:4: [a]: stands already in line 2; give it another name or take one away"
    )
    assert [place["line"] for place in failure.value.record()["problems"]] == [1, 3, 4]


def test_file_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    document = ini.read(tmp_path / "none.ini")

    assert (document.sections, document.problems) == ({}, [])


def test_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    assert [str(problem) for problem in ini.read(tmp_path).problems] == [f"{tmp_path}: cannot be read: Is a directory"]


def test_file_in_another_encoding_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.ini"
    path.write_bytes("[A]\nhost = a\ndescription = Röntgen\n".encode("latin-1"))

    assert [str(problem) for problem in ini.read(path).problems] == [
        f"{path}:3: is not UTF-8; save the file in that encoding"
    ]


FILE_WITH_COMMENTS = """\
# What this file is for.

# The archive.
[PACS]
ae_title=ARCHIVE
# where it stands
host : a.example.org
Port =   104

#listen_port = 1

; The other one.
[OTHER]
host = b
"""


def test_changed_value_leaves_the_rest_as_it_is() -> None:
    changed = ini.set_keys(FILE_WITH_COMMENTS, "pacs", {"ae_title": "X", "host": "::1", "port": "11112"})

    assert changed == FILE_WITH_COMMENTS.replace("=ARCHIVE", "=X").replace("a.example.org", "::1").replace(
        "   104", "   11112"
    )


def test_new_key_goes_behind_the_last_of_its_section() -> None:
    changed = ini.set_keys(FILE_WITH_COMMENTS, "PACS", {"tls": "yes", "charset": "GBK"})

    assert changed == FILE_WITH_COMMENTS.replace("  104\n", "  104\ntls = yes\ncharset = GBK\n")


def test_key_taken_away_takes_only_its_line() -> None:
    changed = ini.set_keys(FILE_WITH_COMMENTS, "PACS", {"host": None, "nothing": None})

    assert changed == FILE_WITH_COMMENTS.replace("host : a.example.org\n", "")


def test_new_section_goes_to_the_end_behind_a_blank_line() -> None:
    assert ini.add_section("[A]\nx = 1", "B", {"y": "2", "z": ""}) == "[A]\nx = 1\n\n[B]\ny = 2\nz =\n"
    assert ini.add_section("", "B", {"y": "2"}) == "[B]\ny = 2\n"
    assert ini.add_section("# text\n\n", "B", {}) == "# text\n\n[B]\n"


def test_removed_section_takes_its_comment_and_leaves_those_of_others() -> None:
    without_first = ini.remove_section(FILE_WITH_COMMENTS, "pacs")
    without_last = ini.remove_section(FILE_WITH_COMMENTS, "OTHER")

    assert without_first == "# What this file is for.\n\n; The other one.\n[OTHER]\nhost = b\n"
    assert without_last == FILE_WITH_COMMENTS.partition("\n; The other")[0]


def test_comment_at_the_top_outlives_the_first_section() -> None:
    assert ini.remove_section("# Ours.\n[A]\nx = 1\n# b\n[B]\n", "A") == "# Ours.\n# b\n[B]\n"
    assert ini.remove_section("[A]\nx = 1\n", "A") == ""


def test_windows_line_ends_stay_and_are_used_for_what_is_new() -> None:
    text = "[A]\r\nx = 1\r\n\r\n[B]\r\ny = 2"

    assert ini.set_keys(text, "A", {"x": "3", "z": "4"}) == "[A]\r\nx = 3\r\nz = 4\r\n\r\n[B]\r\ny = 2"
    assert ini.set_keys(text, "B", {"z": "4"}) == text + "\r\nz = 4\r\n"


@pytest.mark.parametrize("value", ["a\nport = 1", "a\rb", "\x1b", " a", "a\u2028", "\udcff"])
def test_value_that_would_not_be_read_back_is_not_written(value: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot stand in an INI file"):
        ini.set_keys("[A]\nx = 1\n", "A", {"x": value})


NAMES = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=8).filter(
    lambda name: name.lower() != "default"
)
KEYS = st.text(string.ascii_lowercase + "_", min_size=1, max_size=6)
VALUES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20).map(str.strip)
FILES = st.dictionaries(NAMES, st.dictionaries(KEYS, VALUES, max_size=4), max_size=4).filter(
    lambda found: len({name.casefold() for name in found}) == len(found)
)


def written(file: dict[str, dict[str, str]]) -> str:
    text = ""
    for name, keys in file.items():
        text = ini.add_section(text, name, keys)
    return text


@given(FILES)
def test_whatever_is_written_is_read_back(file: dict[str, dict[str, str]]) -> None:
    text = written(file)

    assert values(text) == file
    assert problems(text) == []


@given(FILES, NAMES, st.dictionaries(KEYS, VALUES, max_size=4))
def test_section_added_and_removed_leaves_no_trace(
    file: dict[str, dict[str, str]], name: str, keys: dict[str, str]
) -> None:
    if name.casefold() not in {other.casefold() for other in file}:
        text = written(file)

        assert ini.remove_section(ini.add_section(text, name, keys), name) == text


@given(FILES, st.data())
def test_change_of_one_section_changes_no_other(file: dict[str, dict[str, str]], data: st.DataObject) -> None:
    if file:
        name = data.draw(st.sampled_from(sorted(file)))
        keys = data.draw(st.dictionaries(KEYS, st.none() | VALUES, max_size=4))
        merged = {**file[name], **keys}

        changed = ini.set_keys(written(file), name, keys)

        expected = {key: value for key, value in merged.items() if value is not None}
        assert values(changed) == {**file, name: expected}


@given(st.text(st.sampled_from("[]=:#; \t\r\nab\ufeff\x00é"), max_size=60))
def test_any_text_is_read_without_a_crash_and_what_is_wrong_has_a_line(text: str) -> None:
    document = ini.parse(text, FILE)

    assert all(1 <= problem.line <= text.count("\n") + 1 for problem in document.problems)


@given(st.text(st.sampled_from("[]=:#; \t\r\nab\ufeffé"), max_size=60), st.sampled_from("ab"), VALUES)
def test_any_text_can_be_changed_where_it_has_a_section(text: str, key: str, value: str) -> None:
    for section in ini.parse(text, FILE).sections.values():
        changed = ini.parse(ini.set_keys(text, section.name, {key: value}), FILE)

        assert changed.sections[section.name.casefold()].values[key] == value
        assert ini.parse(ini.remove_section(text, section.name), FILE).problems is not None


def test_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "config" / "dcmtools" / "nodes.ini"

    ini.rewrite(path, lambda text: text + "[A]\n")

    assert path.read_text() == "[A]\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_mode_that_the_owner_chose_stays(tmp_path: Path) -> None:
    path = tmp_path / "nodes.ini"
    path.write_text("[A]\n")
    path.chmod(0o640)

    ini.rewrite(path, lambda text: text + "[B]\n")

    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_file_behind_a_link_is_changed_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real.ini").write_text("[A]\n")
    (tmp_path / "nodes.ini").symlink_to("real.ini")

    ini.rewrite(tmp_path / "nodes.ini", lambda text: text + "[B]\n")

    assert (tmp_path / "nodes.ini").is_symlink()
    assert (tmp_path / "real.ini").read_text() == "[A]\n[B]\n"


def test_change_that_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "nodes.ini"
    path.write_text("[A]\n")
    before = path.stat()

    ini.rewrite(path, lambda text: text)

    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_failed_change_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "nodes.ini"
    path.write_text("[A]\n")

    with pytest.raises(KeyError):
        ini.rewrite(path, lambda text: ini.set_keys(text, "B", {}))

    assert path.read_text() == "[A]\n"
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".lock")] == ["nodes.ini"]


def test_folder_that_cannot_be_made_ends_with_73(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(CannotCreate, match=re.escape(str(tmp_path / "file"))):
        ini.rewrite(tmp_path / "file" / "nodes.ini", lambda text: text + "[A]\n")


def test_changes_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "nodes.ini"
    names = [f"N{number}" for number in range(12)]

    def add(name: str) -> None:
        ini.rewrite(path, lambda text: ini.add_section(text, name, {"host": name}))

    threads = [threading.Thread(target=add, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(ini.read(path).sections) == sorted(name.casefold() for name in names)
