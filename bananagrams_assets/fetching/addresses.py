"""Restrict requests to hosts on the public internet.

A manifest may name any URL. Following all of them would let a manifest read from the builder's own network
(server-side request forgery, CWE-918). The check runs on the address of the connection, after name
resolution, so that neither a host name nor a redirect can bypass it.
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
"""Environment variable: comma-separated names, addresses and networks (CIDR) that are allowed although they
are not public."""

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class HostRefusedError(Exception):
    """The host is neither on the public internet nor in the allow list."""


class HostAllowList:
    """Non-public hosts that are allowed, parsed from a comma-separated list."""

    def __init__(self, entries: str) -> None:
        self.names: set[str] = set()
        self.networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for entry in filter(None, (part.strip().lower() for part in entries.split(","))):
            try:
                self.networks.append(ipaddress.ip_network(entry.strip("[]"), strict=False))
            except ValueError:
                self.names.add(entry.rstrip("."))

    @classmethod
    def from_environment(cls) -> HostAllowList:
        return cls(os.environ.get(ALLOW_VARIABLE, ""))

    def accepts(self, host: str, address: Address) -> bool:
        """Return whether connections to `address`, which `host` resolves to, are allowed."""
        if host.lower().rstrip(".") in self.names or is_public(address):
            return True
        candidates = (address, _embedded_ipv4(address))
        return any(candidate in network for candidate in candidates if candidate for network in self.networks)


def is_public(address: Address) -> bool:
    """Return whether an address is on the public internet. An IPv6 address that embeds an IPv4 address is
    classified by the latter."""
    embedded = _embedded_ipv4(address)
    if embedded is not None:
        return is_public(embedded)
    return address.is_global and not address.is_multicast


@lru_cache(maxsize=1024)
def check_address_literal(host: str, allow_list: HostAllowList) -> None:
    """Raise HostRefusedError if `host` is an address literal that is not allowed.

    Address literals bypass `PublicResolver`. Host names pass.
    """
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return
    if not allow_list.accepts(host, address):
        raise HostRefusedError(_refusal(host, [str(address)]))


class PublicResolver(AbstractResolver):
    """Resolver that drops the addresses that are not allowed."""

    def __init__(self, allow_list: HostAllowList) -> None:
        self._allow_list = allow_list
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Implement `AbstractResolver.resolve`. Raise HostRefusedError if no address is allowed."""
        results = await self._resolver.resolve(host, port, family)
        allowed = [
            result
            for result in results
            if self._allow_list.accepts(host, ipaddress.ip_address(result["host"].partition("%")[0]))
        ]
        if results and not allowed:
            raise HostRefusedError(_refusal(host, sorted({result["host"] for result in results})))
        return allowed

    async def close(self) -> None:
        await self._resolver.close()


def _embedded_ipv4(address: Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _refusal(host: str, addresses: list[str]) -> str:
    resolved = f"{host} ({', '.join(addresses)})" if addresses != [host] else host
    return f"host is not on the public internet: {resolved}; list it in {ALLOW_VARIABLE} to allow it"
