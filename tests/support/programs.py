"""Programs in processes of their own that begin with torch and timm imported: forks of a server that did so once."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.preloaded"])


@dataclass(frozen=True)
class Ended:
    """As `subprocess.CompletedProcess` says it; the return code is minus the signal that killed it."""

    returncode: int
    stdout: str
    stderr: str


def _main(folder: str, cwd: str, environment: dict[str, str], arguments: list[str]) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.update(environment)
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    sys.argv[1:] = arguments
    runpy.run_path(f"{folder}/program.py", run_name="__main__")


def run_program(
    code: str, *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, seconds: float = 300
) -> Ended:
    """Run `code` as `python -c` would, but for what is imported already; `env` is added to this one's environment."""
    with TemporaryDirectory() as folder:
        Path(folder, "program.py").write_text(code)
        process = CONTEXT.Process(target=_main, args=(folder, str(cwd or Path.cwd()), dict(env or {}), [*arguments]))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode is not None
        return Ended(process.exitcode, *(Path(folder, name).read_text() for name in ("stdout", "stderr")))
