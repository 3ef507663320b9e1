"""The number of files that this process may have open: many shells and service managers say 1,024."""

import resource
from contextlib import suppress


def allow_open_files(count: int) -> bool:
    """Raise this process's limit on open files to `count`, as far as it may; True if so many may be open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        soft = count if hard == resource.RLIM_INFINITY else min(count, hard)
        # A kernel may have a bound of its own that `hard` does not show (macOS: kern.maxfilesperproc).
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft == resource.RLIM_INFINITY or soft >= count
