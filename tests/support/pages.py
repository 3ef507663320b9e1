"""Pages as a browser without scripts uses them: forms that are found in the HTML, filled in and sent."""

import html
import re
from typing import Any

import httpx

from tests.support.services import Api

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def get(api: Api, path: str, status: int = 200) -> httpx.Response:
    """The page of a path, after checking that it is one."""
    page = api.http.get(path, headers=HTML)
    assert page.status_code == status, page.text
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.startswith("<!doctype html>")
    return page


def forms(page: str, action: str) -> list[dict[str, str]]:
    """The hidden fields of each form of a page that is sent to an address."""
    found = re.findall(rf'<form[^>]*action="{re.escape(action)}"[^>]*>(.*?)</form>', page, re.DOTALL)
    return [
        {
            html.unescape(name): html.unescape(value)
            for name, value in re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', form)
        }
        for form in found
    ]


def send(http: httpx.Client, page: httpx.Response, action: str, **fields: Any) -> httpx.Response:
    """Fill in the one form of a page that is sent to an address, and send it as a browser would."""
    (form,) = forms(page.text, action)
    own = {"Origin": str(http.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    return http.post(action, data=form | fields, headers=HTML | own)
