"""Pages as a browser without scripts uses them: forms that are found in the HTML, filled in and sent."""

import html
import re
from typing import Any

import httpx

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


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
