"""Freed memory that is kept, in a process of its own."""

import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from utils.memory import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    print("impossible")
    sys.exit()
for _ in range(10):
    torch.ones(16, 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16, 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_tensor_gets_the_memory_of_the_last_one():
    pages = {}
    for how in ("given back", "kept"):
        command = [sys.executable, "-c", COUNT, how]
        pages[how] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if pages["kept"] == "impossible\n":
        pytest.skip("this C library's malloc has no such setting")
    assert int(pages["kept"]) < int(pages["given back"]) / 10, pages
