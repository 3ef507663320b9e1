"""Clients of the control API, thin over httpx: `Client`, which blocks, and `AsyncClient`, for asyncio."""

from dearkd.client.clients import AsyncClient, Client
from dearkd.client.paths import JOBS

__all__ = ["JOBS", "AsyncClient", "Client"]
