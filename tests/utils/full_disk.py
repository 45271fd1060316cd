"""A disk that is full after so many bytes, for what runs in a process of its own.

The limit of the size of a file (RLIMIT_FSIZE) fails the same calls as a full disk does, with EFBIG
instead of ENOSPC, and needs no rights.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMITS = """
import resource
from pathlib import Path

def room(size):
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if size is None else size, most))
"""


def run_with_limits(code: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run Python code that has room(bytes) and, as sys.argv[1:], the arguments."""
    pytest.importorskip("resource", reason="needs limits of file sizes, which are of POSIX")
    return subprocess.run(
        [sys.executable, "-c", LIMITS + code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
