from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcmtools.disk.index import Index
from dcmtools.disk.indexes import Indexes
from dcmtools.disk.ordering import ordered
from dcmtools.model.levels import group
from dcmtools.model.query import Query
from dcmtools.model.record import Record  # noqa: TC001  # hypothesis looks at it
from tests.builders import make_record

PLACES = st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))
LISTS = st.lists(st.lists(PLACES, max_size=6, unique=True), min_size=1, max_size=3)
KEYS = st.sampled_from(
    [{}, {"PatientID": "P1"}, {"SeriesNumber": "2"}, {"Manufacturer": "B*"}, {"InstanceNumber": "1"}]
)


def filled(folder: Path, places: list[list[Any]]) -> list[Index]:
    """Indexes with these instances; each has its own Manufacturer and folder."""
    indexes = []
    for number, some in enumerate(places):
        index = Index(folder / f"{number}.jsonl")
        maker = "ABC"[number]
        index.append(
            make_record(*place, Manufacturer=maker, path=f"/{maker}/{'.'.join(map(str, place))}") for place in some
        )
        indexes.append(index)
    return indexes


@settings(deadline=None)
@given(LISTS, st.sampled_from(["patient", "study", "series", "instance"]), KEYS)
def test_several_indexes_answer_as_one_of_all_their_instances(
    tmp_path_factory: pytest.TempPathFactory, places: list[list[Any]], level: Any, keys: dict[str, str]
) -> None:
    indexes = filled(tmp_path_factory.mktemp("several"), places)
    query = Query(
        level, keys, sort=(("SOPInstanceUID", False), ("StudyInstanceUID", False), ("SeriesInstanceUID", False))
    )
    together: dict[str, Record] = {}
    for index in indexes:
        for record in index.instances():
            together.setdefault(record["SOPInstanceUID"], record)

    found = list(Indexes(indexes).find(query))

    expected = list(ordered(group(together.values(), query), query))
    assert sorted(map(str, found)) == sorted(map(str, expected))
