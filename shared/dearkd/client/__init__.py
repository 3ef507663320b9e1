"""The client of the control API, thin over httpx."""

from dearkd.client.api import JOBS as JOBS
from dearkd.client.api import Client as Client
from dearkd.client.transport import Json as Json
