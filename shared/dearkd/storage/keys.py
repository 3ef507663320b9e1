"""Keys of objects that come from outside."""

from dearkd.errors import InvalidInput

MAX_KEY_BYTES = 900
"""Most bytes of a key in UTF-8; S3 takes 1024, of which the storage root may use some."""
MAX_SEGMENT_BYTES = 255
"""Most bytes of a name between slashes in UTF-8; no file system takes a longer name."""


def check_key(key: str, *, pointer: str) -> str:
    """A key or prefix that came from outside, without surrounding slashes.

    Raises:
        InvalidInput: if it is a URL, absolute, too long as a whole or in a segment, has empty or dotted segments, or
            odd characters.
    """
    text = key.strip("/")
    segments = text.split("/")
    if key.startswith("/") or "://" in key or any(s in ("", ".", "..") for s in segments):
        raise InvalidInput.at(
            pointer, f"{key!r:.200} is no key under the storage root: use names joined by single slashes"
        )
    if not text.isprintable() or "\\" in text:
        raise InvalidInput.at(
            pointer, f"{key!r:.200} holds characters that a key may not have: control characters or a backslash"
        )
    if (size := len(text.encode())) > MAX_KEY_BYTES:
        raise InvalidInput.at(pointer, f"{key!r:.200} has {size} bytes; a key has {MAX_KEY_BYTES} at most")
    for segment in segments:
        if len(segment.encode()) > MAX_SEGMENT_BYTES:
            raise InvalidInput.at(
                pointer,
                f"{segment!r:.200} has {len(segment.encode())} bytes; a name between slashes has {MAX_SEGMENT_BYTES} "
                "at most, as file systems have it",
            )
    return text
