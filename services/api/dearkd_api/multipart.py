"""A multipart/form-data body as a stream of parts, none of which is ever held in memory as a whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from dearkd.errors import InvalidInput, TooLarge

MAX_HEAD_BYTES = 16 * 2**10
"""The most bytes of a part's headers; usual clients send a few hundred."""

_Event = tuple[Literal["part", "data", "end", "last"], bytes]


@dataclass(frozen=True, slots=True)
class Part:
    """A part's field name, and its contents, which must be read to the end before the next part is asked for."""

    name: str
    chunks: Iterator[bytes]

    def read(self, limit: int) -> bytes:
        """The contents as one.

        Raises:
            TooLarge: if it has more than `limit` bytes.
        """
        data = bytearray()
        for chunk in self.chunks:
            data += chunk
            if len(data) > limit:
                raise TooLarge(f"the part {self.name!r} has more than {limit} bytes, which are allowed")
        return bytes(data)


def parts(content_type: str, body: Iterator[bytes]) -> Iterator[Part]:
    """The parts in the order in which they come.

    Raises:
        InvalidInput: if the body is not multipart/form-data, it breaks off, or the headers of a part are too long.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidInput.at("", f"the content type is {content_type!r}: send multipart/form-data")
    events = _events(boundary, body)
    for event, value in events:
        if event == "part":
            yield Part(value.decode(errors="replace"), _until_end(events))


def _until_end(events: Iterator[_Event]) -> Iterator[bytes]:
    for event, value in events:
        if event == "end":
            return
        yield value


def _events(boundary: bytes, body: Iterator[bytes]) -> Iterator[_Event]:
    pending: list[_Event] = []
    headers: dict[bytes, bytes] = {}
    field, value = bytearray(), bytearray()
    head_bytes = 0

    def take(into: bytearray, data: bytes) -> None:
        nonlocal head_bytes
        head_bytes += len(data)
        if head_bytes > MAX_HEAD_BYTES:
            raise InvalidInput.at("", f"a part's headers have more than {MAX_HEAD_BYTES} bytes, which are allowed")
        into.extend(data)

    def end_header() -> None:
        headers[bytes(field).lower()] = bytes(value)
        field.clear()
        value.clear()

    def begin_part() -> None:
        nonlocal head_bytes
        head_bytes = 0
        _, options = parse_options_header(headers.get(b"content-disposition"))
        headers.clear()
        pending.append(("part", options.get(b"name", b"")))

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_header_field": lambda data, start, end: take(field, data[start:end]),
                "on_header_value": lambda data, start, end: take(value, data[start:end]),
                "on_header_end": end_header,
                "on_headers_finished": begin_part,
                "on_part_data": lambda data, start, end: pending.append(("data", data[start:end])),
                "on_part_end": lambda: pending.append(("end", b"")),
                "on_end": lambda: pending.append(("last", b"")),
            },
        )
        event = ""
        for chunk in body:
            parser.write(chunk)
            for event, data in pending:
                yield event, data
            pending.clear()
    except FormParserError as error:
        raise InvalidInput.at("", f"malformed multipart/form-data: {error}") from None
    if event != "last":
        raise InvalidInput.at("", "the multipart/form-data breaks off before its end")
