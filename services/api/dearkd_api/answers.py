"""Answers that the schema alone names: problems, health, pages of events and metrics."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dearkd.answers import FieldProblem, MetricsRow, Page
from dearkd.jobs.model import Event


class Problem(BaseModel):
    """A problem document (RFC 9457). `code` is stable and meant for programs; members beside these may be there."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(pattern="^urn:dearkd:problem:[a-z0-9_]+$")
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    code: str = Field(pattern="^[a-z0-9_]+$")
    errors: list[FieldProblem]


class Alive(BaseModel):
    """The process lives."""

    status: Literal["alive"]


class EventPage(Page[Event]):
    pass


class MetricsPage(Page[MetricsRow]):
    pass
