"""A bound on what this process, and what it starts, may allocate."""

import resource
import sys


def limit_memory(max_bytes: int) -> None:
    """Let allocations beyond `max_bytes` fail from here on, for good; a lower limit set before stays.

    On Linux, where the kernel counts private writable memory for RLIMIT_DATA; elsewhere nothing happens, since macOS
    counts the heap of the C library's `brk` alone, which nothing uses. Address space (RLIMIT_AS) is no measure: torch
    and thread stacks reserve far more of it than they use.
    """
    if not sys.platform.startswith("linux"):
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [bound for bound in (max_bytes, soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
