"""For all tests."""

import signal

import pytest


@pytest.fixture(autouse=True)
def keep_signal_handlers():
    """train.main() takes over Ctrl-C and SIGTERM: give them back."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)
