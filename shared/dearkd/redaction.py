"""Texts of other libraries without what only who runs dearkd should see: folders of the machine, passwords in URLs."""

import re

_CREDENTIALS = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/@'\"]*@")
_FOLDER = re.compile(r"(?<![\w./:…-])(?:file:/{2,3})?/(?:[^\s/'\":,;()]+/)+(?=[^\s/'\":,;()]*)")
_RUST = re.compile(r"\s*Debug source:.*", re.DOTALL)


def without_credentials(text: str) -> str:
    """The text with the user and the password of every URL left out."""
    return _CREDENTIALS.sub(r"\g<scheme>…@", text)


def public(text: str) -> str:
    """The text with the folders of absolute paths, passwords in URLs and Rust's debug output left out."""
    return _FOLDER.sub("…/", without_credentials(_RUST.sub("", text)))
