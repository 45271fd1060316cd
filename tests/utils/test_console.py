"""A console that is closed, full, or lacks letters keeps no work from being done."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.console import Console, visible

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, time
from pathlib import Path
from utils.errors import run_script
from utils.logs import log, progress, start_logging

def main():
    start_logging()
    log.info("working")
    for _ in progress(range(3), 3, "steps"):
        print("x" * 30000)
    print("größe\\x1b[31m")
    log.warning("größe\\x1b[31m")
    sys.stdout.flush()
    Path(sys.argv[1]).write_text("done")

run_script(main)
"""


def run(tmp_path, redirection="", **environment):
    """A script that prints and logs much, then writes a file; its end, and whether it wrote."""
    (tmp_path / "script.py").write_text(SCRIPT.replace("\\\\", "\\"))
    line = f"{sys.executable} {tmp_path}/script.py {tmp_path}/written {redirection}"
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    return ended, (tmp_path / "written").exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "redirection", ["| true", "2>&1 | true", "2>&-", ">&-", ">&- 2>&-", "2>/dev/full", "<&-"]
)
def test_work_is_done_whatever_the_console_is(tmp_path, redirection, unbuffered):
    ended, written = run(tmp_path, redirection, PYTHONUNBUFFERED=unbuffered)
    assert written and ended.returncode == 0
    assert b"Traceback" not in ended.stderr and b"ignored" not in ended.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_named(tmp_path, unbuffered):
    ended, written = run(tmp_path, ">/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert written and ended.returncode == 1
    last = ended.stderr.decode().splitlines()[-1]
    assert last == "error: not all could be printed (No space left on device); files are written."


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_letters_that_the_console_lacks_are_substituted(tmp_path, encoding):
    ended, written = run(tmp_path, PYTHONIOENCODING=encoding)
    assert written and ended.returncode == 0
    name = r"gr\xf6\xdfe" if encoding == "ascii" else "größe"
    for said in (ended.stdout, ended.stderr):
        assert said.decode(encoding).splitlines()[-1].endswith(name + r"\x1b[31m")


def test_a_failure_is_kept_and_nothing_is_tried_again():
    class Full(io.StringIO):
        tried = 0

        def write(self, text):
            self.tried += 1
            raise OSError(28, "No space left on device")

    full = Full()
    console = Console(full)
    assert [console.write("a"), console.write("bc")] == [1, 2]
    assert full.tried == 1 and console.failure.errno == 28
    assert console.isatty() is False


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 1.png", "größe 1.png"),
        ("a\x1b[2J", r"a\x1b[2J"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\u202egnp", r"\u202egnp"),
        ("\udcff", r"\udcff"),
    ],
)
def test_control_characters_are_visible(text, shown):
    assert visible(text) == shown
