"""Stand-ins for hosts: a network, a disk and a name of one's own each, on a private net with cables that can be pulled.

A host is a set of namespaces that an idle process keeps: network, mounts and host name. A further network namespace,
the hub, has the other end of each host's cable. Servers of this machine are reached at the hub's end, where a proxy of
this process listens; its sockets belong to the hub, so that nothing of this machine's own network is touched. All of it
is gone with the idle processes, and they end with this one. What a stand-in lacks of a host: a process table and a
kernel.
"""

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_NEW_NETWORK = 0x40000000
"""`CLONE_NEWNET`; Python has `os.setns` from 3.12 on."""
_HOST = ("--net", "--mount", "--uts")
_CABLE = "ip link add name port type veth peer name eth0"


def require_hosts() -> None:
    """Skip the test, aloud, where stand-ins cannot be had."""
    if os.geteuid() != 0:
        pytest.skip("hosts with a network of their own: only root may make them")
    if missing := [name for name in ("ip", "nsenter", "unshare", "mount") if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)} (Debian's iproute2, util-linux and mount)")
    tried = subprocess.run(["unshare", *_HOST, "sh", "-c", _CABLE], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no network of one's own can be had here: {tried.stderr.strip()}")


@dataclass(frozen=True)
class Host:
    """A host that runs.

    Attributes:
        name: its host name.
        hub: the address at which it reaches the hub.
        disk: the folder that is its disk: a file system in memory that nobody else sees.
    """

    name: str
    hub: str
    disk: Path
    _pid: int
    _hub_pid: int

    @property
    def within(self) -> list[str]:
        """The words before a command line that let it run on this host, in its disk."""
        return ["nsenter", f"--target={self._pid}", *_HOST, "--", "env", f"--chdir={self.disk}"]

    def files(self, folder: str) -> list[str]:
        """The paths of all files in a folder of its disk."""
        return _run(*self.within, "find", folder, "-type", "f").splitlines()

    def pull_cable(self) -> None:
        """Let nothing come through from now on, in either direction; nobody is told."""
        _run(*_in_network(self._hub_pid), "ip", "link", "set", self.name, "down")

    def plug_cable(self) -> None:
        _run(*_in_network(self._hub_pid), "ip", "link", "set", self.name, "up")


@dataclass(frozen=True)
class Hub:
    """The middle of a private net."""

    _pid: int
    _stack: ExitStack

    def listener(self) -> socket.socket:
        """A listening socket on a free port of the hub, for this process."""
        # The thread alone is there, and only for as long as it takes: a socket stays where it was made.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self._listen).result()

    def _listen(self) -> socket.socket:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{self._pid}/ns/net") as network:
            if libc.setns(network.fileno(), _NEW_NETWORK) != 0:
                raise OSError(ctypes.get_errno(), "the hub's network cannot be entered")
        return socket.create_server(("", 0))

    def host(self, name: str, number: int, disk: Path) -> Host:
        """A further host, for as long as the hub is there.

        Args:
            name: its host name, and the name of its cable at the hub: 15 letters at most.
            number: from 1 to 250, another for each host.
            disk: an empty folder; the same for several hosts is another disk for each.
        """
        pid = self._stack.enter_context(_idle(*_HOST))
        near, far = f"10.77.{number}.1", f"10.77.{number}.2"
        in_hub, here = _in_network(self._pid), ["nsenter", f"--target={pid}", *_HOST, "--"]
        _run(*in_hub, *f"ip link add name {name} type veth peer name eth0 netns {pid}".split())
        _run(*in_hub, *f"ip addr add {near}/24 dev {name}".split())
        _run(*in_hub, *f"ip link set {name} up".split())
        for command in (f"addr add {far}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _run(*here, "ip", *command.split())
        _run(*here, "mount", "-t", "tmpfs", "-o", "mode=700", "none", str(disk))
        _run(*here, "sh", "-c", f"echo {name} > /proc/sys/kernel/hostname")
        return Host(name, near, disk, pid, self._pid)


@contextmanager
def private_net() -> Iterator[Hub]:
    """A hub without hosts, for as long as the context and this process last."""
    with ExitStack() as stack:
        pid = stack.enter_context(_idle("--net"))
        _run(*_in_network(pid), "ip", "link", "set", "lo", "up")
        yield Hub(pid, stack)


@contextmanager
def _idle(*namespaces: str) -> Iterator[int]:
    """The id of a process in new namespaces; it reads from this one, and so ends with it."""
    process = subprocess.Popen(
        ["unshare", *namespaces, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"there\n")
        assert process.stdout.read(6) == b"there\n"  # it has begun, and so is in them
        yield process.pid
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def _in_network(pid: int) -> list[str]:
    return ["nsenter", f"--target={pid}", "--net", "--"]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout
