import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.model.names import MAX_BYTES, is_uid, safe_name, short_hash

ANY_TEXT = st.text(st.characters(), max_size=300)
NASTY = st.text(st.sampled_from("./\\ \0\n\x1b\u202e:*?^=~-aé中"), max_size=200)


@given(ANY_TEXT | NASTY)
def test_safe_name_is_one_component_that_means_nothing_to_a_file_system(text: str) -> None:
    name = safe_name(text)

    assert name not in {"", ".", ".."}
    assert not set('<>:"/\\|?*\0\n\r\x1b') & set(name)
    assert not name.startswith((".", " "))
    assert not name.endswith((".", " "))
    assert not any(unicodedata.category(character) in {"Cc", "Cs"} for character in name)
    assert len(name.encode()) <= MAX_BYTES


@given(ANY_TEXT | NASTY)
def test_safe_name_of_a_safe_name_is_itself(text: str) -> None:
    assert safe_name(safe_name(text)) == safe_name(text)


@given(st.text("abc", min_size=130, max_size=200), st.text("abc", min_size=130, max_size=200))
def test_two_long_names_stay_two(one: str, other: str) -> None:
    assert (safe_name(one) == safe_name(other)) == (one == other)


@given(ANY_TEXT)
def test_ascii_only_names_are_ascii(text: str) -> None:
    assert safe_name(text, ascii_only=True).isascii()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("../../etc/passwd", "_.._etc_passwd"),
        ("Müller^Jörg", "Müller_Jörg"),
        ("con", "con_"),
        ("LPT1.txt", "LPT1_.txt"),
        ("", "_"),
        ("...", "_"),
        ("A\u202eB", "A_B"),
        ("a" * 200, "a" * 111 + "~" + short_hash("a" * 200)),
    ],
)
def test_name_says_the_same_as_far_as_that_is_safe(text: str, name: str) -> None:
    assert safe_name(text) == name


@given(st.lists(st.integers(0, 10**20), min_size=1, max_size=3))
def test_dotted_numbers_are_a_uid(numbers: list[int]) -> None:
    text = ".".join(map(str, numbers))

    assert is_uid(text) == (len(text) <= 64)


@pytest.mark.parametrize(
    "text", ["", ".", "1.", ".1", "1..2", "1.2\n", "1.a", "1/2", "../1", "1" * 65, "١.٢", None, 12]
)
def test_anything_else_is_no_uid(text: object) -> None:
    assert not is_uid(text)


def test_leading_zeros_are_let_pass() -> None:
    assert is_uid("1.02.3")
