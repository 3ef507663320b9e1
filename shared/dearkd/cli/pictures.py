"""Pictures on a terminal: by its own graphics where it has some (sixel, kitty's), else of half blocks in colour."""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from dearkd.data.image_files import open_image
from dearkd.errors import CorruptData
from dearkd.names import printable

MAX_COLUMNS, MAX_ROWS = 80, 24
OTHER_ROWS = 6
"""Rows of the terminal that are left to what stands beside a picture."""


class TerminalPictures:
    """Makes renderables of PNG files, as the terminal of a console can show them."""

    def __init__(self, console: Console) -> None:
        self._graphics = _graphics() if _may_ask() else None
        self.rows = max(1, min(MAX_ROWS, console.height - OTHER_ROWS))

    @staticmethod
    def shown_on(console: Console) -> bool:
        """Tell whether pictures make sense there: a terminal with colours."""
        colours = console.color_system is not None and not console.no_color
        return console.is_terminal and not console.is_dumb_terminal and colours

    def render(self, png: bytes) -> RenderableType:
        """The picture, as large as it fits; words in its place if it is none."""
        try:
            with open_image(png) as opened:
                image = opened.convert("RGB")
        except CorruptData as error:
            return Text(printable(error.message), style="dim")
        if self._graphics is None:
            return Still(HalfBlocks(image, self.rows))
        return Still(self._graphics(image, width="auto", height=self.rows))


class HalfBlocks:
    """A picture of characters that are each two pixels, one above the other."""

    def __init__(self, image: Image.Image, rows: int) -> None:
        self._image = image
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        columns = min(options.max_width, MAX_COLUMNS)
        scale = min(columns / self._image.width, 2 * self._rows / self._image.height)
        width, rows = max(1, int(self._image.width * scale)), max(1, int(self._image.height * scale / 2))
        pixels = self._image.resize((width, 2 * rows), Image.Resampling.BOX)
        colours = [[Color.from_rgb(*pixels.getpixel((x, y))) for x in range(width)] for y in range(2 * rows)]  # type: ignore[misc]
        for upper, lower in zip(colours[::2], colours[1::2], strict=True):
            yield from (Segment("▀", Style(color=a, bgcolor=b)) for a, b in zip(upper, lower, strict=True))
            yield Segment.line()


class Still:
    """A renderable that is rendered once for each width, however often it is drawn."""

    def __init__(self, picture: RenderableType) -> None:
        self._picture = picture
        self._width = 0
        self._segments: list[Segment] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        if options.max_width != self._width:
            self._width, self._segments = options.max_width, [*console.render(self._picture, options)]
        return self._segments


def _graphics() -> Any:
    """textual-image's renderable for what the terminal says that it can, if that is more than characters."""
    with suppress(Exception):  # of a terminal that answers in no way that anybody expects
        from textual_image import renderable  # asks the terminal as it is imported

        if renderable.Image in (renderable.SixelImage, renderable.TGPImage):
            return renderable.Image
    return None


def _may_ask() -> bool:
    """Tell whether the terminal can be asked: it hears what is written, is read from, and is ours at this moment."""
    try:
        asked = sys.__stdin__ is not None and sys.__stdout__ is not None
        asked = asked and sys.__stdin__.isatty() and sys.__stdout__.isatty()  # type: ignore[union-attr]
        # A process in the background that changes its terminal's mode is stopped.
        return asked and os.tcgetpgrp(sys.__stdin__.fileno()) == os.getpgrp()  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):
        return False
