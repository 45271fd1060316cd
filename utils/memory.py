"""Memory: how much there is; freed memory is kept for the next tensor."""

import ctypes
import math
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
NEVER, LARGEST = -1, 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed memory, instead of giving it back to the system; whether that is possible here.

    glibc returns large blocks at once and gets them anew, and zeroed, page by page: on CPUs that
    takes longer than most operations on tensors. It concerns the whole process, so scripts call it;
    memory stays at its peak. Other C libraries have no such setting, or no need of it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, NEVER) and mallopt(M_MMAP_THRESHOLD, LARGEST))


def machine_memory() -> float:
    """Bytes of memory that this machine has; infinite where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # AttributeError: Windows
        return math.inf
