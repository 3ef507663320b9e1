"""Times in requests: RFC 3339, with their zone, and nothing that merely could be read as a time."""

import re
from typing import Annotated, Any

from pydantic import AwareDatetime, BeforeValidator, Field


def _require_rfc_3339(value: Any) -> Any:
    if not isinstance(value, str) or not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]", value):
        raise ValueError("no date and time of RFC 3339, such as 2026-03-01T09:30:00Z")
    return value


Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_require_rfc_3339)]
