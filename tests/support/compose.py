"""The compose file and the Dockerfiles, read: what a container of one of our services is started with."""

import json
import re
from dataclasses import dataclass
from typing import Any

import yaml

from tests.support.documents import read

COMPOSE: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
IMAGES = ("api", "synth", "trainer")
"""The services of which the Dockerfiles are."""


@dataclass(frozen=True)
class Start:
    """The command line in a container, its environment and its user, as image and compose file say together."""

    command: list[str]
    environment: dict[str, str]
    user: int
    group: int
    folder: str


def image_of(service: str) -> str:
    """The folder under `services` of the Dockerfile that a service is built from."""
    return str(SERVICES[service]["build"]["dockerfile"]).split("/")[1]


def interpolated(value: str) -> str:
    """Compose's `${NAME:-default}` and `$$`, in an environment without any of them."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value).replace("$$", "$")


def instructions(image: str) -> dict[str, list[str]]:
    """A Dockerfile's instructions by name, continued lines joined."""
    found: dict[str, list[str]] = {}
    text = read(f"services/{image}/Dockerfile").replace("\\\n", " ")
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if name.isupper():
            found.setdefault(name, []).append(" ".join(rest.split()))
    return found


def start_of(service: str) -> Start:
    """What the engine would start for one of our services."""
    found, told = instructions(image_of(service)), SERVICES[service]
    entrypoint = told.get("entrypoint") or json.loads(found["ENTRYPOINT"][0])
    command = told.get("command") or json.loads(found["CMD"][0])
    environment = dict(pair.split("=", 1) for line in found.get("ENV", []) for pair in line.split())
    environment |= {name: interpolated(value) for name, value in told["environment"].items()}
    user, _, group = str(told.get("user", found["USER"][-1])).partition(":")
    return Start([*entrypoint, *command], environment, int(user), int(group), found["WORKDIR"][-1])


def start_of_foreign(service: str, folder: str) -> Start:
    """What the engine would start for a service of another's image, of which the file replaces the entrypoint."""
    told = SERVICES[service]
    words = [interpolated(word) for word in [*told["entrypoint"], *told["command"]]]
    environment = {name: interpolated(value) for name, value in told["environment"].items()}
    user, _, group = str(told["user"]).partition(":")
    return Start(words, environment, int(user), int(group), folder)
