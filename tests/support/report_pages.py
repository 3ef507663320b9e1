"""A page as a reader of HTML that is not ours takes it: its elements, and the text that people see."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

UNSEEN = {"style", "title"}


@dataclass
class Page:
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Names and attributes, in order."""
    text: str = ""

    def named(self, name: str) -> list[dict[str, str]]:
        return [attributes for element, attributes in self.elements if element == name]

    @property
    def addresses(self) -> list[str]:
        """All that the page could ask for or lead to."""
        names = ("src", "href", "xlink:href", "action", "data", "srcset", "poster", "formaction", "background")
        return [value for _, given in self.elements for name, value in given.items() if name in names]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self.inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag in UNSEEN:
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.inside:
            self.inside.remove(tag)

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.page.text += " ".join(data.split()) + "\n" if data.strip() else ""


def read_page(html: str) -> Page:
    reader = _Reader()
    reader.feed(html)
    return reader.page


def require_alone(page: Page) -> None:
    """Require that a page runs nothing and asks for nothing that is not inside it."""
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {name for name, _ in page.elements}
    assert [address for address in page.addresses if not address.startswith(("data:image/", "#"))] == []
    handlers = [name for _, given in page.elements for name in given if name.startswith("on")]
    assert handlers == []
