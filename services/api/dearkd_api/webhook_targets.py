"""Targets to which a webhook may be sent: addresses of the public internet alone, unless a setting allows others.

Who may post a job names the target, and this server sends to it. So that nobody reaches through it what only this
server can reach, a name is resolved once for each attempt, and what is connected to is the address that was checked.
"""

import ipaddress
import socket

import httpx

from dearkd.errors import InvalidInput
from dearkd.settings import Settings
from dearkd.specs.webhook import WebhookRequest

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_UNICAST = ipaddress.ip_network("2000::/3")
"""All that IANA has given out as public; Python's `is_global` is also true of much that nobody has."""


class RefusedTarget(Exception):
    """A target to which nothing is sent; its text is for who reads the log of deliveries."""


def is_public(text: str) -> bool:
    """Tell whether an address is one of the public internet, also where it holds an IPv4 address in an IPv6 one."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if address in _NAT64:
            inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inside:
            return is_public(str(inside))
        if address not in _UNICAST:
            return False
    return address.is_global and not address.is_multicast


def host_of(url: httpx.URL) -> str:
    """The host as DNS and TLS know it, an IPv6 address without its brackets."""
    return url.raw_host.decode("ascii").strip("[]")


def resolve(url: httpx.URL, *, private: bool) -> list[str]:
    """The addresses of a URL's host, each of which may be connected to.

    Args:
        url: of the target.
        private: allow addresses that are not public.

    Raises:
        RefusedTarget: if there are none, or one is not public.
    """
    try:
        found = socket.getaddrinfo(host_of(url), url.port or 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise RefusedTarget("the host's name could not be resolved") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not private and not all(map(is_public, addresses)):
        raise RefusedTarget("the host is not on the public internet, which this server does not allow")
    return addresses


def require_allowed(webhook: WebhookRequest | None, settings: Settings) -> None:
    """Refuse a webhook that names no possible host, or by its number one that is not public.

    A name is looked at when something is sent: by then it may have another address.

    Raises:
        InvalidInput: at `/webhook/url`.
    """
    if webhook is None:
        return
    try:
        host = host_of(httpx.URL(webhook.url))
    except httpx.InvalidURL as error:
        raise InvalidInput.at("/webhook/url", f"{error}: use http://host/path or https://host/path") from None
    if settings.webhook_private_targets:
        return
    try:  # also 127.1, 0x7f000001 and the like
        entries = socket.getaddrinfo(host, 0, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return  # a name
    if not all(is_public(str(entry[4][0])) for entry in entries):
        raise InvalidInput.at(
            "/webhook/url",
            f"{host} is not on the public internet: name a host that is, or ask the operator to allow others "
            "(DEARKD_WEBHOOK_PRIVATE_TARGETS)",
        )
