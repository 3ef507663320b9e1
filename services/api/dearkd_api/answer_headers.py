"""The headers that every answer bears, so that no page can frame, sniff or run anything that it holds."""

from collections.abc import Mapping
from typing import Final

_NEVER: Final = "frame-ancestors 'none'; base-uri 'none'"

PAGE_HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; " + _NEVER,
    # With `no-referrer` a browser sends its own server's forms with `Origin: null`, as a foreign page could.
    "referrer-policy": "same-origin",
    "cache-control": "no-cache",
}
"""Headers of the pages for people: scripts and styles are from their own files alone, and forms go to us alone."""

REPORT_HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "form-action 'none'; " + _NEVER,
    "cache-control": "no-cache",
}
"""Headers of a page that a worker wrote: whatever it holds, it has no origin, runs nothing and fetches nothing."""

GUARDS: Final[Mapping[str, str]] = {
    "content-security-policy": f"default-src 'none'; form-action 'none'; {_NEVER}",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Headers set on every answer that does not set them itself, as pages do."""
