"""Our own address, as a node sees it."""

import pytest

from dcmtools.model.errors import Unavailable
from dcmtools.model.node import Node
from dcmtools.network.route import source_address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9"])
def test_node_on_this_machine_sees_the_loopback_address(host: str) -> None:
    assert source_address(Node("A", "A", host, 104)) == "127.0.0.1"


def test_host_that_nobody_knows_is_told_with_its_node() -> None:
    with pytest.raises(Unavailable, match=r"towards A \(A@nowhere\.invalid:104\): ") as failure:
        source_address(Node("A", "A", "nowhere.invalid", 104))

    assert (failure.value.exit_code, failure.value.record()["node"]) == (69, "A")


def test_name_that_is_too_long_for_a_host_is_told() -> None:
    with pytest.raises(Unavailable, match="towards A"):
        source_address(Node("A", "A", "x" * 80 + ".example.org", 104))


def test_address_without_a_route_is_told() -> None:
    with pytest.raises(Unavailable, match="towards A"):
        source_address(Node("A", "A", "fe80::1%nosuchinterface", 104))
