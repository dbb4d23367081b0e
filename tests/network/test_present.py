"""Skipping what a node has: Orthanc and dcmqrscp say what that is, and only the rest is sent."""

from pathlib import Path

import pytest

from dcmtools.disk.header import read_header
from dcmtools.model.errors import Unavailable
from dcmtools.model.node import Local, node_from_address
from dcmtools.network.present import Present
from dcmtools.network.store import store
from tests.builders import write_instance, write_series
from tests.network.storing import answering, node
from tests.network.test_store import records_of, states
from tests.peers.processes import StartOrthanc

LOCAL = Local(ae_title="SENDER")


def test_only_what_the_node_lacks_is_sent(orthanc: StartOrthanc, tmp_path: Path) -> None:
    pacs = node_from_address(orthanc().node)
    paths = [*write_series(tmp_path, 6), *write_series(tmp_path, 2, 2)]
    assert states(list(store(records_of(*paths[:4]), pacs, LOCAL))) == ["sent"] * 4

    records = list(store(records_of(*paths), pacs, LOCAL, present=Present(pacs, LOCAL)))
    again = list(store(map(read_header, paths), pacs, LOCAL, present=Present(pacs, LOCAL)))

    assert states(records) == ["skipped"] * 4 + ["sent"] * 4
    assert states(again) == ["skipped"] * 8
    assert records[0]["reason"] == f"{pacs.where} has it already"
    assert [record["path"] for record in records] == [str(path) for path in paths]


def test_a_node_that_answers_no_queries_is_said_so(tmp_path: Path) -> None:
    def storage_only(abstract: str, syntaxes: tuple[str, ...]) -> str | None:
        return None if abstract.startswith("1.2.840.10008.5.1.4.1.2.") else syntaxes[0] if syntaxes else ""

    items = records_of(write_instance(tmp_path / "a.dcm"))
    with answering(lambda *_: 0, choose=storage_only) as (acceptor, _):
        peer = node(acceptor.port)
        with pytest.raises(Unavailable, match=r"does not offer queries \(C-FIND\)"):
            list(store(items, peer, LOCAL, present=Present(peer, LOCAL)))


def test_a_file_that_no_index_could_take_is_for_the_node_to_judge(tmp_path: Path) -> None:
    items = records_of(write_instance(tmp_path / "a.dcm", StudyInstanceUID=None))

    with answering(lambda *_: 0) as (acceptor, came):
        peer = node(acceptor.port)
        assert states(list(store(items, peer, LOCAL, present=Present(peer, LOCAL)))) == ["sent"]

    assert len(came) == 1
