"""The calls of the control API: what is asked, and what comes back.

Answers are the project's own models: jobs, manifests, events and what `dearkd.answers` adds. A reference that does not
exist, a spec that breaks a rule and so on raise what the API meant by them: `NotFound`, `InvalidInput` with its
pointers, `Conflict`, `TooLarge`, `Unavailable`; `Unavailable` with code `unreachable` where no API answers at all.
"""

from dearkd.client.jobs import JobCalls
from dearkd.client.keys import KeyCalls
from dearkd.client.resources import ResourceCalls


class Calls(ResourceCalls, JobCalls, KeyCalls):
    """All calls of the control API."""

    async def close(self) -> None:
        await self._transport.close()

    async def is_ready(self) -> bool:
        """Tell whether the API can reach Redis and storage.

        Raises:
            Unavailable: if no API answers.
        """
        return (await self._transport.send("GET", "/readyz")).status_code == 200
