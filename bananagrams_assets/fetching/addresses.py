"""Which machines may be asked for pictures: those on the public internet.

A manifest comes from outside and names any URL; a builder that follows them all would fetch from inside
its own network (server-side request forgery, CWE-918). The check is made on the addresses that are
connected to, after name resolution, so no name and no redirect goes around it.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from functools import lru_cache
from typing import TypeAlias

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

ALLOW_VARIABLE = "BANANAGRAMS_ALLOW_HOSTS"
"""Environment: names, addresses and networks (CIDR), comma-separated, that may be asked all the same."""

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class HostRefusedError(Exception):
    """A host that lies outside the public internet and is not allowed."""


class Allowed:
    """Hosts that are allowed beside the public ones."""

    def __init__(self, entries: str) -> None:
        self.names: set[str] = set()
        self.networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for entry in filter(None, (part.strip().lower() for part in entries.split(","))):
            try:
                self.networks.append(ipaddress.ip_network(entry.strip("[]"), strict=False))
            except ValueError:
                self.names.add(entry.rstrip("."))

    @classmethod
    def from_environment(cls) -> Allowed:
        return cls(os.environ.get(ALLOW_VARIABLE, ""))

    def accepts(self, host: str, address: Address) -> bool:
        """Whether `address`, to which `host` leads, may be connected to."""
        if host.lower().rstrip(".") in self.names or is_public(address):
            return True
        candidates = (address, _embedded(address))
        return any(candidate in network for candidate in candidates if candidate for network in self.networks)


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet; an IPv4 address inside an IPv6 one counts too."""
    embedded = _embedded(address)
    if embedded is not None:
        return is_public(embedded)
    return address.is_global and not address.is_multicast


@lru_cache(maxsize=1024)
def check_literal(host: str, allowed: Allowed) -> None:
    """Check a host that is an address itself: such a one is never resolved. Raises HostRefusedError."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return
    if not allowed.accepts(host, address):
        raise HostRefusedError(_refusal(host, [str(address)]))


class PublicResolver(AbstractResolver):
    """Resolves names and keeps the addresses that may be connected to."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As `AbstractResolver.resolve`; raises HostRefusedError where no address may be used."""
        found = await self._resolver.resolve(host, port, family)
        kept = [
            result
            for result in found
            if self._allowed.accepts(host, ipaddress.ip_address(result["host"].partition("%")[0]))
        ]
        if found and not kept:
            raise HostRefusedError(_refusal(host, sorted({result["host"] for result in found})))
        return kept

    async def close(self) -> None:
        await self._resolver.close()


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _refusal(host: str, addresses: list[str]) -> str:
    where = f"{host} ({', '.join(addresses)})" if addresses != [host] else host
    return f"host is not on the public internet: {where}; list it in {ALLOW_VARIABLE} to allow it"
