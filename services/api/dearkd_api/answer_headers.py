"""The headers that every answer bears, so that no page can frame, sniff or run anything that it holds."""

from collections.abc import Mapping
from typing import Final

_NEVER: Final = "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; " + _NEVER
)
"""The content security policy of the pages for people: scripts and styles from their own files alone."""

GUARDS: Final[Mapping[str, str]] = {
    "content-security-policy": f"default-src 'none'; {_NEVER}",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Headers set on every answer that does not set them itself, as pages do."""
