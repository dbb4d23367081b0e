"""Which addresses may connect."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from dcmtools.model.errors import UsageError


@dataclass(frozen=True, slots=True)
class Hosts:
    """Whether an address is in one of these networks; in none it need not be."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def __call__(self, host: str) -> bool:
        """Whether this address may connect."""
        if not self.networks:
            return True
        address = ip_address(host.partition("%")[0])
        return any(address in network for network in self.networks)


def among(texts: Iterable[str]) -> Hosts:
    """Whether an address is one of these, or in one of these networks (10.1.2.0/24); UsageError for what is neither."""
    return Hosts(tuple(map(_network, texts)))


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text.strip())
    except ValueError:
        advice = "write an address as 10.1.2.3, or a network as 10.1.2.0/24"
        raise UsageError(f"'{text[:40]}' is not an address", advice) from None
