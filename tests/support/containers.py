"""A stand-in for a container, where there is no engine: the same command on a read-only root, as another user.

In a mount namespace of its own a new root is put together: the system's folders, this checkout and this Python
environment, all read-only, with `/tmp` in memory (from where nothing is run) and what is mounted. In it the command
runs as the image's user, without capabilities, and cannot gain any: but for the one to read every file, where this
checkout or environment was made with a umask that shuts others out. What it lacks of a container: an own network and
process table, limits, and the image itself.
"""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.compose import Start
from tests.support.documents import ROOT

_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "etc", "usr", "opt", "dev", "proc", "sys")

READ_EVERY_FILE = "dac_read_search"
"""The capability of `capabilities(7)`, as `setpriv` names it."""

# Arguments: the new root, its mounts (`source target mode` a line), user, group, folder, options of setpriv in a line;
# then the command.
_SCRIPT = """
set -euo pipefail
root=$1 mounts=$2 user=$3 group=$4 folder=$5
read -ra capabilities <<< "$6"
shift 6
umask 022
mount -t tmpfs -o mode=755 none "$root"
mkdir -p "$root/tmp" "$root$folder"
mount -t tmpfs -o mode=1777,noexec,nosuid,nodev none "$root/tmp"
bind() {
    if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$(dirname "$root$2")"; : > "$root$2"; fi
    mount --rbind "$1" "$root$2"
    if [ "$3" = ro ]; then mount -o remount,bind,ro "$root$2"; fi
}
while read -r source target mode; do
    if [ -L "$source" ]; then cp -P "$source" "$root$target"; else bind "$source" "$target" "$mode"; fi
done < "$mounts"
mount -o remount,ro "$root"
exec chroot "$root" setpriv --reuid "$user" --regid "$group" --clear-groups --no-new-privs \
    "${capabilities[@]}" -- env --chdir="$folder" "$@"
"""


def require_containers() -> None:
    """Skip the test, aloud, where a stand-in cannot be had."""
    if os.geteuid() != 0:
        pytest.skip("a read-only root and another user: only root may make them")
    if missing := [name for name in ("unshare", "setpriv", "chroot", "mount") if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    tried = subprocess.run(["unshare", "--mount", "--propagation", "private", "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no mount namespace can be had here: {tried.stderr.strip()}")


def capabilities() -> list[str]:
    """Name the capabilities that the stand-in's user is left with: none where others may read what is mounted."""
    mounted = (ROOT, ROOT / "shared", Path(sys.prefix), Path(pytest.__file__))
    return [] if all(path.stat().st_mode & stat.S_IROTH for path in mounted) else [READ_EVERY_FILE]


def contained(
    start: Start, folder: Path, *, secrets: Path, volumes: Mapping[Path, str], environment: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """The command line, and the environment of all of it, that runs `start` as in its container.

    Args:
        start: what an engine would start; its `tini` is left out, and `dearkd` is this environment's. Another program
            is the system's.
        folder: an empty one, for the root and its list of mounts.
        secrets: the folder of secrets, by file.
        volumes: where folders of the host are mounted, to be written.
        environment: what replaces parts of the service's: addresses, which are others here.
    """
    root = folder / "root"
    root.mkdir(parents=True)
    mounts = [(f"/{name}", f"/{name}", "rw" if name in ("dev", "proc", "sys") else "ro") for name in _SYSTEM]
    mounts = [mount for mount in mounts if Path(mount[0]).exists()]
    for needed in dict.fromkeys((str(ROOT), sys.prefix, sys.base_prefix)):
        if not needed.startswith("/usr"):
            mounts.append((needed, needed, "ro"))
    mounts += [(str(path), f"/run/secrets/{path.name}", "ro") for path in sorted(secrets.iterdir())]
    mounts += [(str(source), target, "rw") for source, target in volumes.items()]
    for source in volumes:
        os.chown(source, start.user, start.group)
    (folder / "mounts").write_text("".join(f"{' '.join(mount)}\n" for mount in mounts))
    command = _program(start.command)
    given = {"PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": start.folder}
    given |= {name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    given |= start.environment | dict(environment)
    left = "".join(f",+{name}" for name in capabilities())
    dropped = f"--inh-caps=-all{left} --ambient-caps=-all{left} --bounding-set=-all{left}"
    place = (str(root), str(folder / "mounts"), str(start.user), str(start.group), start.folder, dropped)
    line = ["unshare", "--mount", "--propagation", "private", "bash", "-c", _SCRIPT, "container", *place, *command]
    return line, given


def _program(command: Sequence[str]) -> list[str]:
    """The command with programs of this environment in place of the image's."""
    # By the interpreter: no capability that is left lets another user run a script that its owner keeps to himself.
    programs = {"dearkd": [sys.executable, str(Path(sys.executable).parent / "dearkd")], "python": [sys.executable]}
    words = list(command[2:] if list(command[:2]) == ["tini", "--"] else command)
    return [*programs.get(words[0], words[:1]), *words[1:]]
