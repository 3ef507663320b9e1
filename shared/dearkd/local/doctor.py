"""The checks of what a machine needs for dearkd, one by one; each finding says how to mend what is wrong."""

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from redis import Redis

from dearkd.addresses import StorageAddress
from dearkd.client import Client
from dearkd.data.manifests import datasets
from dearkd.errors import DearKDError, InvalidInput, NotFound, Unavailable, Unreadable
from dearkd.identifiers import is_id
from dearkd.jobs.model import Job, kind_of, owner_of
from dearkd.jobs.offers import offers
from dearkd.jobs.queue import QUEUES
from dearkd.jobs.settlement import final_key, read_job
from dearkd.local.embedded_redis import find_redis_server
from dearkd.local.findings import Finding
from dearkd.local.store_rules import try_rules
from dearkd.redaction import without_credentials
from dearkd.redis_client import connect
from dearkd.settings import Settings
from dearkd.storage.api_keys import KeyRecords
from dearkd.storage.catalog import models, teachers
from dearkd.storage.checkpoints import read_pointer
from dearkd.storage.marker import KEY, KnownStorage
from dearkd.storage.objects import Storage

LOW_DISK_BYTES = 5 * 10**9
NO_DISK_BYTES = 5 * 10**8
IMPORT_SECONDS = 300
NEWEST_JOBS = 200
"""The jobs whose documents are read; there may be any number of older ones."""

INSTALL = "pip install --constraint constraints.txt 'dearkd[all]'"

# In a process of its own: importing torch takes seconds and memory, and a broken build of it may take the process down.
_TORCH_PROBE = """
import json
import torch
report = {"torch": torch.__version__, "cuda": None, "cured": False}
if torch.cuda.is_available():
    report["cuda"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
try:
    from dearkd.vision import torchvision_ops
    report["cured"] = torchvision_ops.DEFINITIONS is not None
    import timm
    report["timm"] = timm.__version__
except Exception as error:
    report["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(report))
"""


def examine(settings: Settings, *, resubmit: bool = False) -> Iterator[Finding]:
    """All checks, in the order in which mending them makes sense; none raises.

    Args:
        settings: of this machine.
        resubmit: retry the jobs that did not end and are lost, rather than only to name them.
    """
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        check_python,
        check_api_packages,
        check_torch,
        check_redis,
        check_storage,
        check_disk,
        check_api,
    )
    for check in checks:
        yield from check(settings)
    yield from check_documents(settings)
    yield from check_jobs(settings, resubmit=resubmit)


def check_python(settings: Settings) -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def check_api_packages(settings: Settings) -> Iterator[Finding]:
    missing = [name for name in ("fastapi", "uvicorn", "python_multipart") if find_spec(name) is None]
    if missing:
        yield Finding("API", "problem", f"{', '.join(missing)} not installed", INSTALL)
    else:
        yield Finding("API", "ok", "its packages are installed")


def check_torch(settings: Settings) -> Iterator[Finding]:
    if find_spec("torch") is None:
        yield Finding("torch", "problem", "not installed: workers need it", INSTALL)
        return
    report, failure = _probe_torch()
    if report is None:
        yield Finding("torch", "problem", f"does not import: {failure}", f"reinstall it: {INSTALL}")
        return
    if report["cuda"]:
        yield Finding("torch", "ok", f"{report['torch']}, on {', '.join(report['cuda'])}")
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "torch",
            "remark",
            f"{report['torch']} sees no CUDA device, but this machine has NVIDIA's driver: jobs run on the CPU",
            "install a CUDA build of torch that fits the driver (nvidia-smi shows its version)",
        )
    else:
        yield Finding("torch", "ok", f"{report['torch']}, on the CPU")
    if "error" in report:
        yield Finding("timm", "problem", f"does not import: {report['error']}", INSTALL)
    else:
        cured = "; torchvision's compiled operators do not load, and are not needed" if report["cured"] else ""
        yield Finding("timm", "ok", f"{report['timm']}{cured}")


def _probe_torch() -> tuple[dict[str, Any] | None, str]:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _TORCH_PROBE], capture_output=True, text=True, timeout=IMPORT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return None, f"it took longer than {IMPORT_SECONDS} s"
    if done.returncode != 0:
        return None, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report, ""


def check_redis(settings: Settings) -> Iterator[Finding]:
    if "redis_url" in settings.model_fields_set:
        try:
            with connect(settings) as redis:
                version = redis.info("server")["redis_version"]
                forgets = _forgetful(redis)
                there = {name: sorted(map(str, offers(redis, name))) for name in QUEUES.values()}
        except (Unavailable, ValueError) as error:
            why = error.cause if isinstance(error, Unavailable) else error
            yield Finding(
                "Redis",
                "problem",
                f"the one at DEARKD_REDIS_URL does not answer: {why}",
                "start it, mend the URL, or unset DEARKD_REDIS_URL so that `dearkd up` starts its own",
            )
        else:
            yield Finding("Redis", "ok", f"{version}, the one at DEARKD_REDIS_URL")
            for name, found in there.items():
                if found:
                    yield Finding("workers", "ok", f"on the queue {name!r}: {'; or '.join(found)}")
            if forgets:
                yield Finding(
                    "Redis",
                    "remark",
                    f"it can lose the records of jobs that were accepted: {'; '.join(forgets)}",
                    "set `appendonly yes` and `maxmemory-policy noeviction` in its configuration",
                )
        return
    try:
        server = find_redis_server()
    except DearKDError as error:
        yield Finding(
            "Redis",
            "problem",
            "no redis-server or valkey-server for `dearkd up` to start",
            error.message.partition(": ")[2],
        )
        return
    done = subprocess.run([server, "--version"], capture_output=True, text=True)
    if done.returncode == 0:
        yield Finding("Redis", "ok", f"{server} ({done.stdout.strip()})")
    else:
        yield Finding(
            "Redis", "problem", f"{server} does not run: {done.stderr.strip()}", "install redis-server or valkey-server"
        )


def _forgetful(redis: Redis) -> list[str]:
    """The settings by which a Redis forgets what it holds; none where it does not show its configuration."""
    try:
        # One at a time: Redis before 7 takes no more.
        keeps = cast("dict[str, str]", redis.config_get("appendonly")).get("appendonly")
        policy = cast("dict[str, str]", redis.config_get("maxmemory-policy")).get("maxmemory-policy", "noeviction")
    except Unavailable:
        return []
    found = ["it keeps no append-only file"] if keeps == "no" else []
    if policy != "noeviction":
        found.append(f"short of memory, it drops keys (maxmemory-policy {policy})")
    return found


def check_storage(settings: Settings) -> Iterator[Finding]:
    url = settings.storage_url
    found: list[Finding] = []
    try:
        root = _local_root(settings)
        redis = connect(settings) if "redis_url" in settings.model_fields_set and _answers(settings) else None
        if root is None or (root.exists() and any(root.iterdir())):
            found = _try_storage(Storage.open(settings, redis))
        elif redis is not None and KnownStorage(redis).identifier() is not None:
            Storage.open(settings, redis).ping()  # which says what is wrong, and makes nothing
        else:
            # Nothing is there yet: try where it will be made, and leave nothing there.
            parent = next(folder for folder in (root, *root.parents) if folder.is_dir())
            with tempfile.TemporaryDirectory(prefix=".dearkd-doctor-", dir=parent) as trial:
                found = _try_storage(Storage.open(settings.model_copy(update={"storage_url": f"file://{trial}"})))
    except (DearKDError, OSError) as error:
        cause = f" ({error.cause})" if isinstance(error, DearKDError) and error.cause else ""
        remedy = "set DEARKD_STORAGE_URL to a folder or bucket that can be written"
        yield Finding("storage", "problem", f"{without_credentials(url)}: {error}{cause}", remedy)
    else:
        if not any(finding.state == "problem" for finding in found):
            yield Finding("storage", "ok", f"{url} can be written, and keeps the rules that dearkd needs")
        yield from found
        if root is not None and (root / KEY).exists() and root.stat().st_mode & 0o077:
            yield Finding("storage", "remark", f"others on this machine can look into {root}", f"chmod 700 '{root}'")


def _answers(settings: Settings) -> bool:
    """Tell whether there is a Redis that could know the storage; that there is none is said by the check of Redis."""
    try:
        with connect(settings) as redis:
            return bool(redis.ping())
    except (Unavailable, ValueError):
        return False


def adopt(settings: Settings) -> Finding:
    """Make the storage that is there the one that Redis knows."""
    try:
        with connect(settings) as redis:
            identifier = Storage.open(settings, redis).adopt()
    except DearKDError as error:
        return Finding("storage", "problem", f"it was not adopted: {error.message}", "mend that first")
    return Finding("storage", "ok", f"it is {identifier} from now on")


def _local_root(settings: Settings) -> Path | None:
    try:
        address = StorageAddress.parse(settings.storage_url)
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    return address.folder if address.scheme == "file" else None


def _try_storage(storage: Storage) -> list[Finding]:
    """Findings of the store's rules: of a bucket each, of a folder only those that it breaks."""
    storage.ping()
    return [finding for finding in try_rules(storage) if finding.state != "ok" or not storage.is_local]


def check_disk(settings: Settings) -> Iterator[Finding]:
    folder = settings.cache_dir.absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free under {folder}"
    if free < NO_DISK_BYTES:
        yield Finding("disk", "problem", detail, "make room, or set DEARKD_CACHE_DIR and DEARKD_STORAGE_URL elsewhere")
    elif free < LOW_DISK_BYTES:
        yield Finding("disk", "remark", detail, "large datasets will not fit")
    else:
        yield Finding("disk", "ok", detail)


def check_api(settings: Settings) -> Iterator[Finding]:
    try:
        with Client(settings.url, settings.api_key) as client:
            ready = client.is_ready()
    except DearKDError as error:
        given = "url" in settings.model_fields_set
        yield Finding("service", "problem" if given else "remark", error.message)
        return
    if ready:
        yield Finding("service", "ok", f"ready at {settings.url}")
    else:
        yield Finding("service", "problem", f"{settings.url} answers, but is not ready", "see its /readyz and its log")


def _owner(storage: Storage, secret: str) -> str:
    """The owner of what a key makes: the id of one that was created, else a digest, as for one of the environment."""
    digest = sha256(secret.encode()).digest()
    records, _ = KeyRecords(storage).all()
    created = (one.id for one in records if digest.hex() in [known.sha256 for known in one.secrets])
    return next(created, owner_of(digest))


def check_jobs(settings: Settings, *, resubmit: bool) -> Iterator[Finding]:
    """Jobs that were accepted and have not ended, by what storage knows; lost are those that the API knows no more."""
    try:
        root = _local_root(settings)
        if root is not None and not root.exists():
            return
        storage = Storage.open(settings, fresh=False)
        unended = unended_jobs(storage)
        if settings.api_key:
            # Those of other keys are as if they did not exist, and not lost.
            owner = _owner(storage, settings.api_key)
            unended = [name for name in unended if _accepted(storage, name).visible_to(owner)]
    except Unreadable as error:
        yield Finding("jobs", "problem", error.message)
        return
    except DearKDError:
        return  # said already, by the check of storage
    lost = []
    try:
        with Client(settings.url, settings.api_key) as client:
            for identifier in unended:
                try:
                    client.get_job(identifier)
                except NotFound:
                    lost.append(identifier)
            again = [client.retry_job(identifier).id for identifier in lost] if resubmit else []
    except DearKDError as error:
        if unended:
            detail = f"storage says that {len(unended)} have not ended: {_some(unended)}"
            yield Finding("jobs", "remark", detail, f"start dearkd and look again ({error.message})")
        return
    if again:
        yield Finding("jobs", "ok", f"{len(again)} that Redis had lost were submitted again: {_some(again)}")
    elif lost:
        detail = f"{len(lost)} did not end, and Redis has lost them: {_some(lost)}"
        yield Finding(
            "jobs", "problem", detail, "`dearkd doctor --resubmit` submits them again, or `dearkd retry ID` one"
        )
    else:
        yield Finding("jobs", "ok", f"{len(unended)} have not ended, and none is lost")


def check_documents(settings: Settings) -> Iterator[Finding]:
    """Documents in storage that this version cannot read: damaged ones, and those that a newer version wrote."""
    try:
        root = _local_root(settings)
        if root is not None and not root.exists():
            return
        storage = Storage.open(settings, fresh=False)
        seen = 0
        for read in _readers(storage):
            try:
                seen += read() is not None
            except NotFound:
                continue  # not finished, or just deleted
            except Unreadable as error:
                yield Finding("documents", "problem", error.message)
    except DearKDError:
        return  # said already, by the check of storage
    yield Finding("documents", "ok", f"{seen} can be read: teachers, datasets, models, keys, the newest jobs")


def _readers(storage: Storage) -> Iterator[Callable[[], object]]:
    """Reads of each document, but of jobs only the newest: what a newer version wrote is among them."""
    for catalog in (teachers(storage), datasets(storage), models(storage)):
        for identifier in storage.children(catalog.root):
            if is_id(identifier, catalog.kind):
                yield partial(catalog.get, identifier)
    keys = KeyRecords(storage)
    yield from (partial(keys.get, Path(stored.key).stem) for stored in storage.objects("keys"))
    by_time = sorted(storage.children("jobs"), key=lambda identifier: identifier.partition("-")[2])
    for identifier in by_time[-NEWEST_JOBS:]:
        yield partial(read_job, storage, f"jobs/{identifier}/job.json")
        yield partial(read_job, storage, final_key(identifier))
        yield partial(read_pointer, storage, identifier)


def _accepted(storage: Storage, identifier: str) -> Job:
    return read_job(storage, f"jobs/{identifier}/job.json")


def unended_jobs(storage: Storage) -> list[str]:
    """Ids of jobs that were accepted and have not ended, those that others may wait for first."""
    parts: dict[str, set[str]] = {}
    for stored in storage.objects("jobs"):
        _, identifier, name = stored.key.split("/", 2)
        parts.setdefault(identifier, set()).add(name)
    found = [name for name, has in parts.items() if "job.json" in has and "final.json" not in has]
    return sorted(found, key=lambda identifier: (kind_of(identifier) != "synthesis", identifier))


def _some(identifiers: list[str]) -> str:
    return ", ".join(identifiers[:10]) + (f" and {len(identifiers) - 10} more" if len(identifiers) > 10 else "")
