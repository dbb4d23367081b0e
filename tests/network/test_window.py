"""Sending where the node grants a window: several instances on their way, answered in any order (PS3.7 D.3.3.3)."""

import random
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcmtools.model.errors import DcmtoolsError
from dcmtools.model.node import Local
from dcmtools.model.record import Record
from dcmtools.network import command
from dcmtools.network.acceptor import Acceptor, Policy
from dcmtools.network.association import Association, Message, Timeouts
from dcmtools.network.door import Port
from dcmtools.network.store import store
from tests.builders import uid, write_instance, write_series
from tests.network.certificates import Certificates, certificates
from tests.network.storing import data_set, node
from tests.network.test_store import records_of, states

__all__ = ["certificates"]

LOCAL = Local(ae_title="SENDER")
WINDOW = 8
# Nobody sends more for so many seconds: what is to be answered together is together.
QUIET = 0.02


@dataclass
class Peer:
    """An SCP that gathers requests, as many as `bursts` says in turn, and answers them together in a random order.

    Associations end, each in its way, after so many answers as the first of `ends` says, and then the next; `busy`
    holds how often an instance is still answered with A700. What came, and the most that waited, can be looked at.
    """

    bursts: list[int] = field(default_factory=lambda: [WINDOW])
    ends: list[tuple[int, str]] = field(default_factory=list)
    busy: Counter[str] = field(default_factory=Counter)
    poison: frozenset[str] = frozenset()
    seed: int = 0
    came: list[str] = field(default_factory=list)
    data: dict[str, bytes] = field(default_factory=dict)
    answered: Counter[str] = field(default_factory=Counter)
    most: int = 0
    windows: list[tuple[int, int]] = field(default_factory=list)
    _ending: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, association: Association) -> None:
        """Serves one association until it ends."""
        chance, turn = random.Random(self.seed), 0
        self.windows.append(association.theirs.window)
        with self._ending:
            left, way = self.ends.pop(0) if self.ends else (-1, "")
        while True:
            waiting = self._gathered(association, self.bursts[turn % len(self.bursts)])
            turn += 1
            chance.shuffle(waiting)
            for message in waiting:
                if left == 0 or message.command["AffectedSOPInstanceUID"] in self.poison:
                    self._end(association, way or "close")
                    return
                self._answer(association, message)
                left -= 1

    def _gathered(self, association: Association, many: int) -> list[Message]:
        waiting: list[Message] = []
        while not waiting or (len(waiting) < many and association.wait(QUIET)):
            message = association.receive(idle=20)
            instance = message.command["AffectedSOPInstanceUID"]
            self.data[instance] = association.read_data(1 << 30)
            self.came.append(instance)
            waiting.append(message)
            self.most = max(self.most, len(waiting))
        return waiting

    def _answer(self, association: Association, message: Message) -> None:
        instance, status = message.command["AffectedSOPInstanceUID"], 0
        if self.busy[instance]:
            self.busy[instance] -= 1
            status = 0xA700
        else:
            self.answered[instance] += 1
        respond(association, message, status)

    def _end(self, association: Association, way: str) -> None:
        association.connection.close() if way == "close" else getattr(association, way)()


def respond(association: Association, message: Message, status: int = 0, **keys: Any) -> None:
    answer = {"CommandField": command.C_STORE_RSP, "MessageIDBeingRespondedTo": message.command["MessageID"]}
    association.send(message.context, {**answer, "Status": status, **keys})


@contextmanager
def accepting(peer: Peer, **policy: Any) -> Iterator[Acceptor]:
    """An acceptor that grants a window and lets `peer` serve."""

    def choose(_abstract: str, syntaxes: tuple[str, ...]) -> str:
        return syntaxes[0] if syntaxes else ""

    def ignore(_problem: DcmtoolsError) -> None:
        pass

    wanted = {"ae_title": "PEER", "choose": choose, "window": WINDOW, "timeouts": Timeouts(idle=20), **policy}
    acceptor = Acceptor(Port("127.0.0.1", 0), Policy(**wanted), peer.serve, ignore)
    acceptor.start()
    try:
        yield acceptor
    finally:
        acceptor.drain(0.5)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty small instances."""
    return write_series(tmp_path_factory.mktemp("series"), 40, side=4)


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """Short pauses before something is tried again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcmtools.network.sender._PAUSE", 0.001)
        yield


def sent(paths: list[Path], acceptor: Acceptor, **how: Any) -> list[Record]:
    return list(store(records_of(*paths), node(acceptor.port), LOCAL, **how))


def tries(records: list[Record]) -> list[int]:
    return [record["tries"] for record in records]


@pytest.mark.parametrize("tls", [False, True])
def test_as_many_as_the_window_takes_are_on_their_way_and_answers_may_come_in_any_order(
    series: list[Path], certificates: Certificates, tls: bool
) -> None:
    peer, policy, keys = Peer(), {}, {}
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server, certificates.key(certificates.server))
        policy, keys = {"tls": context}, {"tls": True, "tls_ca": str(certificates.ca)}

    with accepting(peer, **policy) as acceptor:
        records = list(store(records_of(*series), node(acceptor.port, **keys), LOCAL))

    assert states(records) == ["sent"] * 40
    assert [record["path"] for record in records] == list(map(str, series))
    assert tries(records) == [1] * 40
    assert peer.most == WINDOW
    assert {record["SOPInstanceUID"]: data_set(Path(record["path"])) for record in records} == peer.data
    assert len({record["association"] for record in records}) == 1


@pytest.mark.parametrize(("granted", "most"), [(1, 1), (3, 3), (0xFFFF, 32)])
def test_no_more_are_on_their_way_than_the_node_grants_and_we_asked_for(
    series: list[Path], granted: int, most: int
) -> None:
    peer = Peer(bursts=[50])

    with accepting(peer, window=granted) as acceptor:
        records = sent(series, acceptor)

    assert states(records) == ["sent"] * 40
    assert peer.most == most
    assert peer.windows == [(32, 1)]


@given(
    bursts=st.lists(st.integers(1, WINDOW), min_size=1, max_size=5),
    ends=st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["close", "abort", "release"])), max_size=2),
    busy=st.lists(st.integers(1, 20), max_size=3, unique=True),
    jobs=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_whatever_the_node_does_each_instance_arrives_and_has_its_record(
    series: list[Path], bursts: list[int], ends: list[tuple[int, str]], busy: list[int], jobs: int, seed: int
) -> None:
    peer = Peer(bursts, ends, Counter({uid(1, 1, 1, number): 1 for number in busy}), seed=seed)

    with accepting(peer) as acceptor:
        records = sent(series[:20], acceptor, jobs=jobs, retries=5)

    assert states(records) == ["sent"] * 20
    assert [record["path"] for record in records] == list(map(str, series[:20]))
    assert set(peer.answered) == {record["SOPInstanceUID"] for record in records}
    assert all(Counter(peer.came)[record["SOPInstanceUID"]] <= record["tries"] for record in records)
    assert peer.most <= WINDOW


def test_what_was_answered_before_the_association_was_lost_is_not_sent_again(series: list[Path]) -> None:
    peer = Peer(ends=[(11, "abort")])

    with accepting(peer) as acceptor:
        records = sent(series, acceptor)

    assert states(records) == ["sent"] * 40
    assert sum(number > 1 for number in tries(records)) <= WINDOW
    assert max(peer.answered.values()) == 1


def test_an_instance_at_which_the_node_breaks_off_costs_the_others_one_try_at_most(series: list[Path]) -> None:
    peer = Peer(poison=frozenset({uid(1, 1, 1, 2), uid(1, 1, 1, 5), uid(1, 1, 1, 30)}))

    with accepting(peer) as acceptor:
        records = sent(series, acceptor, retries=1)

    assert [number for number, record in enumerate(records, 1) if record["state"] == "failed"] == [2, 5, 30]
    assert max(tries(records)) == 2


def test_without_retries_one_lost_association_is_one_instance_that_failed(series: list[Path]) -> None:
    peer = Peer(poison=frozenset({uid(1, 1, 1, 2)}))

    with accepting(peer) as acceptor:
        records = sent(series[:5], acceptor, retries=0)

    assert states(records) == ["sent", "failed", "sent", "sent", "sent"]
    assert peer.windows[0] == (1, 1)


def test_a_node_that_is_out_of_resources_is_asked_again_for_each(series: list[Path]) -> None:
    peer = Peer(busy=Counter({uid(1, 1, 1, number): 1 for number in range(1, 11)}))

    with accepting(peer) as acceptor:
        records = sent(series, acceptor)
        assert acceptor.counts["associations"] == 1

    assert states(records) == ["sent"] * 40
    assert tries(records) == [2] * 10 + [1] * 30


def test_an_answer_to_what_nobody_asked_ends_the_association(series: list[Path]) -> None:
    class Confused(Peer):
        def _answer(self, association: Association, message: Message) -> None:
            lost = len(self.windows) == 1
            respond(association, message, MessageIDBeingRespondedTo=999 if lost else message.command["MessageID"])

    peer = Confused()
    with accepting(peer) as acceptor:
        records = sent(series[:WINDOW], acceptor)
        peer.windows.clear()
        (failed,) = sent(series[:1], acceptor, retries=0)

    assert states(records) == ["sent"] * WINDOW
    assert tries(records) == [2] * WINDOW
    assert "answered something else" in failed["reason"]


def test_a_node_that_stops_answering_loses_what_is_on_its_way_and_no_more(series: list[Path]) -> None:
    class Sleepy(Peer):
        def _answer(self, association: Association, message: Message) -> None:
            if len(self.windows) > 1 or sum(self.answered.values()) < 3:
                super()._answer(association, message)

    peer = Sleepy()
    with accepting(peer) as acceptor:
        records = list(store(records_of(*series), node(acceptor.port, dimse_timeout=0.4), LOCAL))

    assert states(records) == ["sent"] * 40
    assert sum(number == 2 for number in tries(records)) <= WINDOW
    assert max(tries(records)) == 2


def test_what_waits_for_an_answer_takes_no_more_than_so_much_memory(tmp_path: Path) -> None:
    peer = Peer(bursts=[50])
    path = write_instance(tmp_path / "1.dcm", side=1024)

    with accepting(peer, window=32) as acceptor:
        records = sent([path] * 20, acceptor)

    assert states(records) == ["sent"] * 20
    assert 1 < peer.most <= (32 << 20) // path.stat().st_size + 1


def test_a_large_file_goes_between_small_ones(series: list[Path], tmp_path: Path) -> None:
    peer = Peer()
    large = write_instance(tmp_path / "large.dcm", 2, side=2048)

    with accepting(peer) as acceptor:
        records = sent([*series[:10], large, *series[10:20]], acceptor)

    assert states(records) == ["sent"] * 21
    assert peer.data[records[10]["SOPInstanceUID"]] == data_set(large)


def test_stop_finishes_what_is_on_its_way(series: list[Path]) -> None:
    stop = threading.Event()

    class Stopping(Peer):
        def _answer(self, association: Association, message: Message) -> None:
            stop.set()
            super()._answer(association, message)

    peer = Stopping()
    with accepting(peer) as acceptor:
        records = sent(series, acceptor, stop=stop.is_set)

    assert states(records) == ["sent"] * len(peer.came)
    assert WINDOW <= len(records) < 40


def test_more_kinds_than_an_association_takes_wait_for_each_others_end(tmp_path: Path) -> None:
    paths = [
        write_instance(tmp_path / f"{number}.dcm", instance=number, SOPClassUID=uid(7, number), side=2)
        for number in range(1, 151)
    ]
    peer = Peer()

    with accepting(peer) as acceptor:
        records = sent(paths, acceptor)
        opened = acceptor.counts["associations"]

    assert states(records) == ["sent"] * 150
    assert tries(records) == [1] * 150
    assert opened == 2


def test_pynetdicom_which_grants_no_window_gets_one_after_the_other(series: list[Path]) -> None:
    from pynetdicom import AE, evt

    asked: list[tuple[int, int]] = []
    theirs = AE(ae_title="PEER")
    theirs.add_supported_context("1.2.840.10008.5.1.4.1.1.4")

    def windows(event: Any) -> tuple[int, int]:
        asked.append((event.nr_invoked, event.nr_performed))
        return 5, 5

    handlers: list[Any] = [(evt.EVT_ASYNC_OPS, windows), (evt.EVT_C_STORE, lambda _: 0)]
    server = theirs.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        records = list(store(records_of(*series[:5]), node(server.server_address[1]), LOCAL))
    finally:
        server.shutdown()

    assert states(records) == ["sent"] * 5
    assert asked == [(32, 1)]
