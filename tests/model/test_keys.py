import pytest
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag

from dcmtools.model.keys import BY_TAG, KEYS, LAST_TAG, QUERY_KEYS, Key, keywords_of
from dcmtools.model.record import LEVELS


@pytest.mark.parametrize("key", [*KEYS, *QUERY_KEYS], ids=lambda key: key.keyword)
def test_key_is_in_the_dictionary_as_we_have_it(key: Key) -> None:
    assert keyword_for_tag(key.tag) == key.keyword
    assert dictionary_VR(key.tag) == key.vr
    assert key.many == (dictionary_VM(key.tag) != "1")


def test_keys_stand_in_the_order_of_their_tags() -> None:
    assert [key.tag for key in KEYS] == sorted(BY_TAG)
    assert max(BY_TAG) == LAST_TAG


def test_each_key_belongs_to_one_level() -> None:
    assert sorted(keyword for level in LEVELS for keyword in keywords_of(level)) == sorted(key.keyword for key in KEYS)
