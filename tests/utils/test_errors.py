"""How a script ends."""

import pytest

from utils.errors import InputError, run_script


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
def test_memory_that_does_not_suffice_is_one_sentence(error):
    def main():
        raise error

    said = ends_with(main)
    assert said.startswith("error: the memory does not suffice (") and "\n" not in said


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
