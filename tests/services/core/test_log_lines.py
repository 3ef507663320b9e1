"""The log of a worker's process as JSON: what each line is, and what it is about."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from dearkd.jobs.ledger import Ledger
from dearkd.jobs.store import JobStore
from dearkd.local.part_log import PartLog
from dearkd.settings import Settings
from tests.support.ledger_steps import synthesis
from tests.support.services import environment

WORKER = """
import logging, threading, warnings
from dearkd.errors import Unavailable
from dearkd.log_lines import log_to_stderr
from dearkd.settings import Settings
from dearkd.work.worker import drain

def away(*_, **__):
    raise Unavailable("from the thread of the lease")

def perform(attempt):
    logging.getLogger("library").warning("a\\nforged %s", "\\x1b[2J")
    attempt.note("from the main thread")
    attempt.ledger.report = away
    attempt.progress(1, None, {})
    attempt.stop_reporting()
    raise ValueError("a fault")

settings = Settings()
log_to_stderr(settings)
drain("synthesis", perform, settings)
logging.getLogger("library").warning("afterwards")
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0, name="counter")
thread.start()
thread.join()
"""


def lines_of(settings: Settings, **more: str) -> str:
    command = [sys.executable, "-c", WORKER]
    ended = subprocess.run(command, env=environment(settings, **more), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def test_each_line_is_an_object_that_names_its_attempt(ledger: Ledger, store: JobStore, settings: Settings) -> None:
    job = synthesis(store)
    token = int(ledger.redis.get("dearkd:fence") or 0)
    written = lines_of(settings, DEARKD_LOG_FORMAT="json")
    lines: list[dict[str, Any]] = [json.loads(line) for line in written.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    by_message = {line["message"]: line for line in lines}
    about = {"job_id": job.id, "unit": "0", "attempt": 1}
    library = by_message["a\nforged \x1b[2J"]
    assert library.items() >= {**about, "level": "WARNING", "logger": "library"}.items()
    assert int(library["claim"]) > token
    assert by_message[f"{job.id} 0: from the main thread"].items() >= about.items()
    assert by_message[f"{job.id}: from the thread of the lease"].items() >= about.items()
    fault = by_message[f"{job.id} unit 0"]
    assert fault["exception"].endswith("ValueError: a fault")
    assert fault.items() >= about.items()
    assert "job_id" not in by_message["afterwards"]
    assert any("UserWarning: old" in message for message in by_message)
    assert by_message["the thread counter ended"]["exception"].endswith("ZeroDivisionError: division by zero")


def test_of_a_json_line_with_a_traceback_up_shows_that_line_alone(tmp_path: Path) -> None:
    shown: list[str] = []
    with PartLog(tmp_path / "api.log", "api", shown.append) as log:
        fault = json.dumps({"level": "ERROR", "exception": "Traceback (most recent call last):\n  File\nValueError"})
        log.take(fault)
        log.take(json.dumps({"level": "INFO", "message": "goes on"}))
    assert shown == [f"api | {fault}"]


def test_text_is_as_it_was(store: JobStore, settings: Settings) -> None:
    job = synthesis(store)
    written = lines_of(settings)
    assert f" INFO dearkd.work.attempt: {job.id} 0: from the main thread\n" in written
    assert r" WARNING library: a\nforged \x1b[2J" in written
