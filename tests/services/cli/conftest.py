from collections.abc import Iterator

import pytest

from tests.support.stand_in_api import StandInApi, stand_in_api


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInApi]:
    with stand_in_api() as server:
        monkeypatch.setenv("DEARKD_URL", server.url)
        yield server
