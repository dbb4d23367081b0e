"""Nodes as they are written on the command line, and the hours at which they want transfers."""

from datetime import time

import pytest

from dcmtools.model.errors import ConfigurationError, TryLater
from dcmtools.model.node import Node, check_ae_title, check_host, check_hours, check_port, node_from_address


@pytest.mark.parametrize(
    ("text", "name", "host"),
    [
        ("PACS@pacs.example.org:104", "PACS@pacs.example.org:104", "pacs.example.org"),
        (" A B @[::1]:104", "A B@[::1]:104", "::1"),
        ("A@[fe80::1%eth0]:104", "A@[fe80::1%eth0]:104", "fe80::1%eth0"),
        ("A@10.0.0.1:0104", "A@10.0.0.1:104", "10.0.0.1"),
    ],
)
def test_address_is_a_node_named_as_it_is_written(text: str, name: str, host: str) -> None:
    node = node_from_address(text)

    assert (node.name, node.host, node.port, node.where) == (name, host, 104, name)


@pytest.mark.parametrize(
    "text",
    ["A@b", "A@b:", "@b:1", "A@:1", "A@::1:104", "A@b:0", "A@b:65536", "A@b c:1", "A@B@c:1", "A@[b]:1", "A@b:1\n"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        node_from_address(text)


@pytest.mark.parametrize("title", ["", " ", "x" * 17, "a\\b", "ä", "a\tb"])
def test_what_is_no_ae_title_is_refused(title: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an AE title"):
        check_ae_title(title)


@pytest.mark.parametrize("port", ["", "x", "-1", "1.0", "²", 0, 65536])
def test_what_is_no_port_is_refused(port: str | int) -> None:
    with pytest.raises(ConfigurationError, match="is not a port"):
        check_port(port)


@pytest.mark.parametrize("host", ["", "a b", "a:1", "a..b", "[b]", "::g", "http://a", "a\n", "x" * 254])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a host"):
        check_host(host)


@pytest.mark.parametrize(
    ("hours", "now", "welcome"),
    [
        ("", "12:00", True),
        ("20:00-06:00", "19:59", False),
        ("20:00-06:00", "20:00", True),
        ("20:00-06:00", "00:00", True),
        ("20:00-06:00", "06:00", False),
        ("08:00-10:00, 12:00-13:00", "09:59", True),
        ("08:00-10:00, 12:00-13:00", "10:00", False),
        ("08:00-10:00, 12:00-13:00", "12:30", True),
    ],
)
def test_transfer_begins_only_in_allowed_hours(hours: str, now: str, welcome: bool) -> None:
    node = Node("PACS", "A", "b", 104, allowed_hours=hours)

    if welcome:
        check_hours(node, time.fromisoformat(now))
    else:
        with pytest.raises(TryLater, match=f"only, and it is {now}"):
            check_hours(node, time.fromisoformat(now))
