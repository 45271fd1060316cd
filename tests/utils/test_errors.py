"""How a script ends."""

import ast
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from utils.console import visible
from utils.errors import InputError, run_script
from utils.signals import SIGNALS, handled_by

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def handlers():
    """Those of pytest, put back."""
    with handled_by({number: signal.getsignal(number) for number in SIGNALS}):
        yield


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


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGINT, 130, "interrupted.\n"), (signal.SIGTERM, 143, "terminated.\n")],
)
@pytest.mark.parametrize("becomes", [None, ImportError("numpy failed"), InputError("unreadable.")])
def test_a_signal_ends_with_the_shells_status_whatever_becomes_of_it(
    number, status, said, becomes, capsys
):
    def main():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            if becomes:
                raise becomes from None
            raise

    assert ends_with(main) == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("args", "status"), [((), 130), ((signal.SIGTERM,), 143)])
def test_a_second_signal_of_training_ends_with_the_status_of_the_first(args, status):
    def main():
        raise KeyboardInterrupt(*args)

    assert ends_with(main) == status


def test_a_signal_that_is_ignored_stays_ignored():
    """As Ctrl-C is by jobs in the background of a shell script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert ends_with(lambda: signal.raise_signal(signal.SIGINT)) is None


def test_a_command_line_that_is_refused_keeps_its_status():
    assert ends_with(lambda: sys.exit(2)) == 2


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows holds no signals")
@pytest.mark.parametrize("place", ["import", "main", "exit"])
def test_a_signal_at_any_moment_is_one_sentence(place):
    """Before run_script(), within it, and after it, where it changes nothing any more."""
    script = """
import os, signal, sys, time
from utils.hold import hold_signals
hold_signals()

def interrupt(place):
    if place == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)

interrupt("import")
import atexit
from utils.errors import run_script

def main():
    interrupt("main")

atexit.register(interrupt, "exit")
run_script(main)
"""
    command = [sys.executable, "-c", script, place]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=50)
    expected = (0, "") if place == "exit" else (130, "interrupted.\n")
    assert (ended.returncode, ended.stderr) == expected


@pytest.mark.parametrize("name", ["train", "test", "retrieve", "prepare", "quickstart", "bench"])
def test_scripts_hold_signals_before_they_import_anything(name):
    _, first, *_ = ast.parse((ROOT / f"{name}.py").read_text()).body
    said = ["if __name__ == '__main__':", "    from utils.hold import hold_signals"]
    assert ast.unparse(first).splitlines() == [*said, "    hold_signals()"]


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
