"""Which addresses may connect."""

from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network

from dcmtools.model.errors import UsageError


def among(texts: Iterable[str]) -> Callable[[str], bool]:
    """Whether an address is one of these, or in one of these networks (10.1.2.0/24); UsageError for what is neither."""
    networks = []
    for text in texts:
        try:
            networks.append(ip_network(text.strip()))
        except ValueError:
            advice = "write an address as 10.1.2.3, or a network as 10.1.2.0/24"
            raise UsageError(f"'{text[:40]}' is not an address", advice) from None

    def allowed(host: str) -> bool:
        address = ip_address(host.partition("%")[0])
        return not networks or any(address in network for network in networks)

    return allowed
