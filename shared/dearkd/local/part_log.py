"""The output of a part of the tree: all of it to its log file, its warnings and errors also to the terminal."""

import logging
import re
import subprocess
import threading
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Self

MAX_LOG_BYTES = 16 * 2**20
MAX_SHOWN_CHARACTERS = 300

_ALARM = re.compile(r"\b(WARNING|ERROR|CRITICAL|FATAL)\b")
_TRACEBACK = "Traceback (most recent call last)"


class PartLog:
    """The log of one part over all its lives. `say`, if there is one, gets `name | line` for every alarming line."""

    def __init__(self, path: Path, name: str, say: Callable[[str], None] | None) -> None:
        self.path = path
        self._name = name
        self._say = say
        self._last = ""
        self._in_traceback = False
        # One older file is kept, so that a part which complains for weeks does not fill the disk.
        self._file = RotatingFileHandler(path, maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @property
    def last_words(self) -> str:
        """The last line that was not blank, as a clause; nothing if there was none."""
        return f"; last line: {self._last[:MAX_SHOWN_CHARACTERS]}" if self._last else ""

    def follow(self, process: subprocess.Popen[bytes]) -> threading.Thread:
        """Read the process's output until its end, in a thread of its own."""
        self._last = ""
        reader = threading.Thread(target=self._read, args=(process,), name=f"log-{self._name}", daemon=True)
        reader.start()
        return reader

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for raw in output:
                self.take(raw.decode("utf-8", errors="replace").rstrip())

    def take(self, line: str) -> None:
        """One line of output."""
        self._file.emit(logging.makeLogRecord({"msg": line}))
        if line.strip():
            self._last = line.strip()
        if self._say is not None and self._is_alarming(line):
            self._say(f"{self._name} | {line[:MAX_SHOWN_CHARACTERS]}")

    def _is_alarming(self, line: str) -> bool:
        if _TRACEBACK in line:
            self._in_traceback = not line.startswith("{")  # in a JSON object it ends with its line
            return True
        if self._in_traceback:
            # A traceback ends with the first line that is not indented: the exception itself.
            self._in_traceback = line[:1].isspace() or not line
            return True
        return _ALARM.search(line) is not None
