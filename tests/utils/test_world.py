"""Which process this is, as torchrun says, without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from utils.world import is_main, rank, world_size

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (1, 0, True)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, (1, 0, True)),
        ({"WORLD_SIZE": "2", "RANK": "0"}, (2, 0, True)),
        ({"WORLD_SIZE": "2", "RANK": "1"}, (2, 1, False)),
        ({"WORLD_SIZE": "16", "RANK": "11", "LOCAL_RANK": "3"}, (16, 11, False)),
    ],
)
def test_the_first_process_is_the_main_one_and_a_single_one_is_too(monkeypatch, given, expected):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert (world_size(), rank(), is_main()) == expected


def test_no_torch_is_needed():
    code = "import sys, utils.world; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
