from hypothesis import given
from hypothesis import strategies as st

from dcmtools.disk.dataset import Encoding, Walk
from dcmtools.disk.runs import Runs
from dcmtools.model.errors import BadData
from tests.builders import encode_element

WANTED = frozenset({0x00080008, 0x00080018, 0x00080060, 0x00100010, 0x00100020, 0x00200013})
LAST = 0x00200013
VRS = ["LO", "CS", "UI", "OB", "UN", "SQ", "XX"]

tags = st.sampled_from([*sorted(WANTED), 0x00090010, 0x00090011, 0x00180015, 0x00280010])
elements = st.tuples(tags, st.sampled_from(VRS), st.binary(max_size=12))
data_sets = st.lists(elements, max_size=12).map(
    lambda some: b"".join(encode_element(tag, vr, value) for tag, vr, value in some)
)


def outcome(data: bytes, runs: Runs | None) -> object:
    walk = Walk(0, len(data), Encoding(explicit=True), WANTED, last=LAST, runs=runs)
    try:
        return walk.through(lambda position, size: data[position : position + size]), walk.position
    except BadData as problem:
        return problem.cause


@given(st.lists(data_sets, min_size=2, max_size=6), st.lists(st.integers(0, 5), min_size=4, max_size=12))
def test_data_sets_read_the_same_whatever_was_read_before(different: list[bytes], order: list[int]) -> None:
    runs = Runs(WANTED)

    for number in order:
        data = different[number % len(different)]
        assert outcome(data, runs) == outcome(data, None)


@given(data_sets, st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_damaged_data_set_is_seen_as_damaged_beside_whole_ones(data: bytes, place: int, damage: bytes) -> None:
    runs = Runs(WANTED)
    outcome(data, runs)
    damaged = data[: place % (len(data) + 1)] + damage + data[place % (len(data) + 1) + len(damage) :]

    assert outcome(damaged, runs) == outcome(damaged, None)
    assert outcome(damaged[:-1], runs) == outcome(damaged[:-1], None)
    assert outcome(data, runs) == outcome(data, None)


def test_what_is_remembered_is_bounded() -> None:
    runs = Runs(WANTED)

    for length in range(0, 4000, 2):
        outcome(encode_element(0x00080008, "LO", b" " * length) + encode_element(0x00080018, "UI", b"1.2"), runs)

    assert 0 < len(runs.known) <= 512
