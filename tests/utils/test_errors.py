"""How a script ends."""

import pytest

from utils.errors import InputError, run_script, visible


def ends_with(main):
    with pytest.raises(SystemExit) as ending:
        run_script(main)
    return ending.value.code


@pytest.mark.parametrize("status", [0, 3, None])
def test_status_is_what_main_returns(status):
    assert ends_with(lambda: status) == status


def test_input_error_becomes_one_sentence():
    def main():
        raise InputError("photo.jpg: no such file.")

    assert ends_with(main) == "error: photo.jpg: no such file."  # python: to stderr, status 1


def test_what_a_terminal_would_obey_is_shown():
    assert visible("é 漢 a\x1b[2J\nb\r\udcff\u202e") == r"é 漢 a\x1b[2J\nb\r\udcff\u202e"
    assert str(InputError("a\n\0: absent.")) == r"a\n\x00: absent."


def test_interruption_ends_with_the_shells_status(capsys):
    def main():
        raise KeyboardInterrupt

    assert ends_with(main) == 130
    assert capsys.readouterr().err == "interrupted.\n"


def test_a_fault_of_the_program_keeps_its_traceback():
    def main():
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_script(main)


def test_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)
