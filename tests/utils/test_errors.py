"""How a script ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from utils.console import visible
from utils.errors import InputError, run_script

ROOT = Path(__file__).parents[2]


def ends_with(main):
    with pytest.raises(SystemExit) as ending:
        run_script(main)
    return ending.value.code


@pytest.mark.parametrize("status", [0, 3, None])
def test_status_is_what_main_returns(status):
    assert ends_with(lambda: status) == status


def test_input_error_becomes_one_sentence(capsys):
    def main():
        raise InputError("photo.jpg: no such file.")

    assert ends_with(main) == 1
    assert capsys.readouterr().err == "error: photo.jpg: no such file.\n"


def test_names_of_files_in_an_error_cannot_command_a_terminal():
    assert str(InputError("a\x1b[31m\nb.jpg: ö.")) == "a\\x1b[31m\\nb.jpg: ö."


def test_what_a_terminal_would_obey_is_shown():
    assert visible("é 漢 a\x1b[2J\nb\r\udcff\u202e") == r"é 漢 a\x1b[2J\nb\r\udcff\u202e"
    assert str(InputError("a\n\0: absent.")) == r"a\n\x00: absent."


def test_interruption_ends_with_the_shells_status(capsys):
    def main():
        raise KeyboardInterrupt

    assert ends_with(main) == 130
    assert capsys.readouterr().err == "interrupted.\n"


def test_letters_that_do_not_print_are_made_visible():
    said = str(InputError("\x1b[31mred\x07\nphoto \udcff größer 画.jpg: no such file."))
    assert said == r"\x1b[31mred\x07\nphoto \udcff größer 画.jpg: no such file."


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7. TiB for an array with shape (10,)\nmore"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
def test_memory_that_does_not_suffice_is_one_sentence(error, capsys):
    def main():
        raise error

    assert ends_with(main) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the memory does not suffice.") and len(said.splitlines()) == 1


def test_other_errors_of_torch_keep_their_traceback():
    def main():
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError):
        run_script(main)


def test_a_fault_of_the_program_keeps_its_traceback():
    def main():
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_script(main)


def test_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


def test_ctrl_c_in_a_destructor_is_not_dropped(tmp_path):
    """Where Python would say "Exception ignored" and go on."""
    script = """
import os, signal, time
from utils.console import visible
from utils.errors import run_script

class Workers:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

def main():
    Workers()
    for _ in range(600):
        time.sleep(0.1)

run_script(main)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=50
    )
    assert (ended.returncode, ended.stderr) == (130, "interrupted.\n")
