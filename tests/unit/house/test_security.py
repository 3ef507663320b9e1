"""docs/security.md promises nothing that no test shows."""

import re

from tests.support.documents import ROOT, read


def test_each_promise_has_its_test() -> None:
    rows = [row for row in read("docs/security.md").splitlines() if row.startswith("| ") and "| test |" not in row]
    assert len(rows) > 20
    for row in rows:
        promise, shown = row.strip("|").split("|")
        named = re.findall(r"`(tests/[^`:]+)(?:::(\w+))?`", shown)
        assert named, promise
        for path, test in named:
            text = (ROOT / path).read_text(encoding="utf-8")
            assert not test or re.search(rf"^def {test}\(", text, re.MULTILINE), f"{promise}: {test}"
            assert not path.endswith(".py") or re.search(r"^def test_", text, re.MULTILINE), path
