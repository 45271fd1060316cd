"""For all tests."""

import signal

import pytest
import torch


def pytest_configure() -> None:
    """Ctrl-C is not ignored, as it is where a shell has started the tests in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def keep_signal_handlers():
    """A run handles Ctrl-C and SIGTERM: give back the former handlers."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.fixture
def settings_of_torch():
    """How it multiplies float32: given back after a test that changes it."""
    products = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
