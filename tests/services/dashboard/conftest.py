"""One server for all tests of pages in a browser; what they show is made by what workers use."""

from collections.abc import Iterator
from typing import Any

import pytest

from dearkd.settings import Settings
from tests.services.dashboard.contents import Contents, fill
from tests.support.browser import Visit, chromium, visiting
from tests.support.services import Api, database, redis_server, serving

__all__ = ["redis_server"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Not for longer than a module: while Playwright runs, no other test may start an event loop in this thread, and the
    # scope of a package, in folders without `__init__.py`, is that of the session.
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def api(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("dashboard")
    settings = Settings(
        redis_url=database(redis_server, 11), storage_url=f"file://{folder}/storage", cache_dir=folder / "cache"
    )
    with serving(settings, folder) as running:
        yield running


@pytest.fixture(scope="session")
def contents(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Contents:
    return fill(api, tmp_path_factory.mktemp("contents"))


@pytest.fixture
def visit(browser: Any, api: Api) -> Iterator[Visit]:
    with visiting(browser, api.url) as visitor:
        yield visitor


@pytest.fixture
def plain(browser: Any, api: Api) -> Iterator[Visit]:
    """A visitor whose browser runs no scripts."""
    with visiting(browser, api.url, java_script_enabled=False) as visitor:
        yield visitor
