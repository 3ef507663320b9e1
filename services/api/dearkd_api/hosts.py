"""The names under which this server may be called, so that no page reads it through a foreign name pointed here."""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Self

from dearkd.errors import InvalidInput

_AUTHORITY = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,254}))(?::(?P<port>[0-9]{0,5}))?"
)
_PATTERN = re.compile(r"\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Authority:
    """A host in lower case, IPv6 in brackets and its shortest form, and the port if one is given."""

    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse a Host header; None if it is malformed, with a user name or blanks for instance."""
        match = _AUTHORITY.fullmatch(text)
        if match is None or int(match["port"] or 0) > 65535:
            return None
        port = int(match["port"]) if match["port"] else None
        if match["v6"]:
            address = _address(match["v6"])
            return cls(f"[{address}]", port) if isinstance(address, IPv6Address) else None
        # The root's dot changes nothing of a name.
        name = match["name"].lower()
        name = name.removesuffix(".") if _address(name.removesuffix(".")) is None else name
        return cls(name, port) if name and not name.startswith(".") and not name.endswith(".") else None

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        address = _address(self.host.strip("[]"))
        return address.is_loopback if isinstance(address, IPv4Address) else address == IPv6Address("::1")


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """The allowed hosts: loopback names, and those that the operator has named."""

    names: frozenset[str]
    suffixes: tuple[str, ...]
    """The allowed endings: `.example.com` for `*.example.com`."""
    any: bool
    """True for `*`: every Host is allowed. Other sites' Origins stay foreign."""

    @classmethod
    def parse(cls, text: str, *, bound: str = "") -> Self:
        """Parse `DEARKD_ALLOWED_HOSTS`, and add the host that the server is bound to.

        Raises:
            InvalidInput: if an entry is not a host.
        """
        entries = [entry.strip().lower() for entry in text.split(",") if entry.strip()]
        names: set[str] = set()
        for entry in entries:
            if not _PATTERN.fullmatch(entry) or (entry.startswith("[") and Authority.parse(entry) is None):
                raise InvalidInput(
                    f"DEARKD_ALLOWED_HOSTS has {entry!r}, which is no host: give names or addresses by commas, without "
                    "scheme and port, such as dearkd.example.com,*.example.org,[2001:db8::1]; * allows all"
                )
            if not entry.startswith("*"):
                authority = Authority.parse(entry)
                assert authority is not None
                names.add(authority.host)
        address = _address(bound)
        if bound and not (address is not None and address.is_unspecified):
            names.add(f"[{address}]" if isinstance(address, IPv6Address) else bound.lower())
        return cls(frozenset(names), tuple(entry[1:] for entry in entries if entry.startswith("*.")), "*" in entries)

    def allow(self, hosts: Iterable[str]) -> bool:
        """True if there is one Host header, well-formed, with an allowed name."""
        given = list(hosts)
        authority = Authority.parse(given[0]) if len(given) == 1 else None
        return authority is not None and (self.any or authority.is_loopback or self._named(authority.host))

    def own(self, origin: str, host: str) -> bool:
        """True if an Origin is this server's own: the request's Host and port, or a host that the operator named."""
        scheme, _, rest = origin.partition("://")
        theirs, ours = Authority.parse(rest), Authority.parse(host)
        if scheme not in _DEFAULT_PORTS or theirs is None or ours is None:
            return False
        default = _DEFAULT_PORTS[scheme]
        same_port = (theirs.port or default) == (ours.port or default)
        return (theirs.host == ours.host and same_port) or (not theirs.is_loopback and self._named(theirs.host))

    def _named(self, host: str) -> bool:
        return host in self.names or any(host.endswith(suffix) and host != suffix for suffix in self.suffixes)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
