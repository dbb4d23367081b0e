"""A node: a DICOM application entity that we know by name, and our own side (DESIGN §7)."""

import re
from dataclasses import dataclass
from datetime import time
from typing import Literal

from dcmtools.model.errors import ConfigurationError, TryLater

DEFAULT_PORT = 11112
DEFAULT_AE_TITLE = "DCMTOOLS"
_ADDRESS = re.compile(r"(?P<ae>[^@]+)@(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>\d+)\Z")
_HOST = re.compile(r"(?=.{1,253}\Z)[\w-]+(\.[\w-]+)*\.?\Z")

Retrieve = Literal["auto", "move", "get"]


@dataclass(frozen=True, slots=True)
class Node:
    """A remote application entity. Times are in seconds."""

    name: str
    ae_title: str
    host: str
    port: int
    listen_port: int | None = None
    calling_ae_title: str | None = None
    compression: tuple[str, ...] = ()
    charset: str = "ISO_IR 192"
    description: str = ""
    tls: bool = False
    tls_verify: bool = True
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    retrieve: Retrieve = "auto"
    connect_timeout: float = 10.0
    acse_timeout: float = 30.0
    dimse_timeout: float = 60.0
    max_associations: int = 4
    allowed_hours: str = ""  # 20:00-06:00, several with commas between
    origin: str = "command line"
    administered: bool = False

    @property
    def where(self) -> str:
        """The node in words for people: name, AE title, host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        address = f"{self.ae_title}@{host}:{self.port}"
        return address if self.name == address else f"{self.name} ({address})"


@dataclass(frozen=True, slots=True)
class Local:
    """Our own application entity: what we call ourselves and where we listen."""

    ae_title: str = DEFAULT_AE_TITLE
    port: int = DEFAULT_PORT
    bind: str = ""


def is_address(text: str) -> bool:
    """Whether the text is meant as AET@host:port rather than as a name."""
    return "@" in text


def node_from_address(text: str) -> Node:
    """The node written as AET@host:port, or AET@[IPv6]:port; ConfigurationError when it is not written so."""
    match = _ADDRESS.match(text)
    if not match:
        raise ConfigurationError(f"'{text}' is not a node", "write it as AET@host:port or AET@[::1]:port", node=text)
    ae_title, port = check_ae_title(match["ae"]), check_port(match["port"])
    host = check_host(f"[{match['six']}]" if match["six"] else match["host"])
    shown = f"[{host}]" if ":" in host else host
    return Node(name=f"{ae_title}@{shown}:{port}", ae_title=ae_title, host=host, port=port)


def check_ae_title(text: str) -> str:
    """The AE title without the spaces around it; ConfigurationError when it is not one (PS3.5 6.2, VR AE)."""
    title = text.strip(" ")
    if not 1 <= len(title) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise ConfigurationError(
            f"'{title[:40]}' is not an AE title", "use 1 to 16 printable ASCII characters without a backslash"
        )
    return title


def check_host(text: str) -> str:
    """The host without the brackets that an IPv6 address may have; ConfigurationError when it is none."""
    bracketed = text.startswith("[") and text.endswith("]")
    host = text[1:-1] if bracketed else text
    if not (_is_ipv6(host) if bracketed or ":" in host else _HOST.match(host)):
        raise ConfigurationError(f"'{text[:60]}' is not a host", "write an address or a name without the port")
    return host


def _is_ipv6(host: str) -> bool:
    import socket

    try:
        socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except (OSError, ValueError):
        return False
    return True


def check_port(text: str | int) -> int:
    """The port as a number from 1 to 65535; ConfigurationError otherwise."""
    if isinstance(text, str) and not (text.isascii() and text.isdigit()):
        raise ConfigurationError(f"'{text}' is not a port", "use a number from 1 to 65535")
    if not 1 <= (port := int(text)) <= 65535:
        raise ConfigurationError(f"{port} is not a port", "use a number from 1 to 65535")
    return port


def check_hours(node: Node, now: time) -> None:
    """Lets a transfer begin at this time of the day (in our zone); TryLater when the node's `allowed_hours` do not."""
    if node.allowed_hours and not any(_within(span.strip(), now) for span in node.allowed_hours.split(",")):
        reason = f"{node.where} is for transfers at {node.allowed_hours} only, and it is {now:%H:%M}"
        raise TryLater(reason, "run the same command again then", node=node.name, cause="outside-hours")


def _within(span: str, now: time) -> bool:
    """Whether a time is in a span such as 20:00-06:00, which goes on over midnight."""
    first, last = (time.fromisoformat(end) for end in span.split("-"))
    return first <= now < last if first < last else now >= first or now < last
