"""A real browser for tests: Debian's Chromium, which Playwright drives, and what each page must keep to in it."""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

AXE = Path(__file__).with_name("axe") / "axe.min.js"
SCREENSHOTS = os.environ.get("SCREENSHOTS_DIR")
"""The folder for screenshots of what the tests see; none are made without."""
SCREENSHOTS_OF = os.environ.get("SCREENSHOTS_OF", "").split()
"""The names of those that are made; all without any."""
REQUIRED = bool(os.environ.get("REQUIRE_BROWSER"))
"""True where a test without a browser is to fail, as in CI."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A running Chromium; the test is skipped, or fails where one is required, if there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _lacking("playwright is not installed: pip install playwright")
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        _lacking("there is no Chromium: apt-get install chromium, or name one in CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def _lacking(what: str) -> None:
    if REQUIRED:
        pytest.fail(what)
    pytest.skip(what)


@dataclass
class Visit:
    """One visitor of a server: a page of the browser, and what went wrong in it."""

    page: Any
    url: str
    faults: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)
    """Parts of faults that a test expects, such as the status that it asks for."""

    def open(self, path: str) -> Any:
        """Go to a path; returns the browser's answer."""
        return self.page.goto(self.url + path)

    def look(self, name: str) -> None:
        """Require that axe finds nothing serious, light or dark, and leave screenshots: light, dark, phone."""
        self.require_accessible()
        self._shoot(f"{name}-light")
        self.page.emulate_media(color_scheme="dark")
        self.require_accessible(only=["color-contrast"])
        self._shoot(f"{name}-dark")
        self.page.emulate_media(color_scheme="light")
        size = self.page.viewport_size
        self.page.set_viewport_size({"width": 390, "height": 844})
        wide = self.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"{name} is {wide} px wide on a phone"
        self._shoot(f"{name}-phone")
        self.page.set_viewport_size(size)

    def require_accessible(self, only: list[str] | None = None) -> None:
        """Require that axe finds nothing that is serious or worse, by all of its rules or by some."""
        options = {"resultTypes": ["violations"]} | ({"runOnly": only} if only else {})
        found = self.page.evaluate("(options) => axe.run(document, options)", options)
        bad = [
            f"{one['id']} ({one['impact']}): {[node['html'][:160] for node in one['nodes'][:3]]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert not bad, "\n".join(bad)

    def _shoot(self, name: str) -> None:
        if SCREENSHOTS and (not SCREENSHOTS_OF or name.rpartition("-")[0] in SCREENSHOTS_OF):
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            picture = self.page.screenshot(full_page=True)
            with Image.open(io.BytesIO(picture)) as opened:
                opened.convert("RGB").save(f"{SCREENSHOTS}/{name}.webp", quality=60, method=6)

    def require_no_faults(self) -> None:
        """Require that the console has no error, and that nothing was asked of another server."""
        bad = [fault for fault in self.faults if not any(part in fault for part in self.allowed)]
        assert not bad, "\n".join(bad)


@contextmanager
def visiting(browser: Any, url: str, **options: Any) -> Iterator[Visit]:
    """A new visitor without a past. Leaving requires that nothing went wrong but what was allowed."""
    context = browser.new_context(viewport={"width": 1180, "height": 800}, **options)
    context.add_init_script(path=AXE)
    page = context.new_page()
    page.set_default_timeout(15_000)
    visit = Visit(page, url)

    def heard(said: Any) -> None:
        if said.type in ("error", "warning"):
            visit.faults.append(f"console: {said.text} {said.location}")

    def asked(request: Any) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            visit.faults.append(f"elsewhere: {request.url}")

    page.on("console", heard)
    page.on("pageerror", lambda error: visit.faults.append(f"error: {error}"))
    page.on("request", asked)
    try:
        yield visit
        visit.require_no_faults()
    finally:
        context.close()
