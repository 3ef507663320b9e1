"""Help and completion: fast, since they import next to nothing, and complete."""

import os
import subprocess
import sys
from importlib.metadata import distribution

import pytest

from dearkd.cli import SUMMARIES, application

DEARKD = [sys.executable, "-c", "import sys; from dearkd.cli import main; sys.argv[0] = 'dearkd'; main()"]


def dearkd(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [*DEARKD, *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def loaded_by(*arguments: str) -> set[str]:
    """Top-level names of the modules that are loaded once the command has printed."""
    program = f"""
import atexit, sys
from dearkd.cli import main
atexit.register(lambda: print(*{{name.partition(".")[0] for name in sys.modules}}, file=sys.stderr))
main({list(arguments)})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stderr.split())


def test_the_list_of_commands_imports_no_library_but_typer() -> None:
    found = loaded_by("--help")
    assert {"typer", "dearkd"} <= found
    assert not {"pydantic", "httpx", "redis", "obstore", "PIL", "numpy", "torch", "importlib.metadata"} & found


@pytest.mark.parametrize(
    "command", [["jobs"], ["synth"], ["dataset", "add"], ["teacher", "add"], ["teacher", "check"], ["up"], ["gc"]]
)
def test_a_commands_help_imports_nothing_of_what_it_works_with(command: list[str]) -> None:
    # typer itself asks pydantic about the types of a command's options.
    assert not {"httpx", "redis", "obstore", "PIL", "numpy", "torch"} & loaded_by(*command, "--help")


def test_each_command_of_the_services_is_listed_with_what_its_help_begins_with() -> None:
    plugged_in = {entry.name for entry in distribution("dearkd").entry_points.select(group="dearkd.commands")}
    assert plugged_in == SUMMARIES.keys()
    for name, summary in SUMMARIES.items():
        (command,) = (one for one in application(name).registered_commands if (one.name or name) == name)
        assert command.callback is not None
        assert (command.callback.__doc__ or "").startswith(summary.removesuffix("."))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [("dearkd ev", "evaluate"), ("dearkd evaluate --cl", "--class-order"), ("dearkd jobs --status que", "queued")],
)
def test_shells_complete_commands_options_and_choices(line: str, wanted: str) -> None:
    in_bash = dearkd(_DEARKD_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(line.count(" ")))
    assert in_bash.split() == [wanted]
    assert f'"{wanted}"' in dearkd(_DEARKD_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=line)
    in_fish = dearkd(
        _DEARKD_COMPLETE="complete_fish", _TYPER_COMPLETE_ARGS=line, _TYPER_COMPLETE_FISH_ACTION="get-args"
    )
    assert in_fish.split()[0] == wanted


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_calls_this_program(shell: str) -> None:
    # Without that variable typer takes the shell that it is started from.
    script = dearkd("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert f"complete_{shell}" in script
    assert "_DEARKD_COMPLETE" in script
