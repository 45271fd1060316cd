"""Ctrl-C and SIGTERM: the first is noted, a second one stops at once."""

import signal
import threading

import pytest

from utils.hold import hold_signals, release_signals
from utils.signals import (
    SIGNALS,
    StopSignals,
    handled_by,
    held_signals,
    ignore_signals,
    waiting_signals,
)


@pytest.fixture
def stop():
    """What notes the signals of a test."""
    stop = StopSignals()
    with stop.noted():
        yield stop


def test_before_a_signal_none_is_received(stop):
    assert stop.received is False and stop.number is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted(number, stop):
    signal.raise_signal(number)
    assert stop.received and stop.number == number


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_interrupts(first, second, stop):
    signal.raise_signal(first)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(second)
    assert stop.number == first


def test_within_at_once_the_first_signal_interrupts(stop):
    with pytest.raises(KeyboardInterrupt), stop.at_once():
        signal.raise_signal(signal.SIGTERM)
    assert stop.received


def test_at_once_interrupts_for_a_signal_noted_before(stop):
    signal.raise_signal(signal.SIGTERM)
    reached = False
    with pytest.raises(KeyboardInterrupt), stop.at_once():
        reached = True
    assert not reached


def test_after_at_once_signals_are_noted_again(stop):
    with stop.at_once():
        pass
    signal.raise_signal(signal.SIGINT)
    assert stop.received


def test_after_an_error_within_at_once_signals_are_noted_again(stop):
    with pytest.raises(ZeroDivisionError), stop.at_once():
        _ = 1 / 0
    signal.raise_signal(signal.SIGINT)
    assert stop.received


def test_ignored_signals_do_nothing(stop):
    ignore_signals()
    for number in SIGNALS:
        signal.raise_signal(number)
        signal.raise_signal(number)
    assert not stop.received


def send_to_main_thread(number: int) -> None:
    """And not to one of torch's, which holds no signals."""
    signal.pthread_kill(threading.main_thread().ident, number)


def test_held_signals_wait(stop):
    with held_signals():
        send_to_main_thread(signal.SIGTERM)
        assert waiting_signals() == {signal.SIGTERM} and not stop.received
    assert stop.number == signal.SIGTERM and waiting_signals() == set()


def test_signals_held_before_are_held_after():
    hold_signals()
    with held_signals():
        pass
    try:
        send_to_main_thread(signal.SIGINT)
        assert waiting_signals() == {signal.SIGINT}
    finally:
        with pytest.raises(KeyboardInterrupt):
            release_signals()


def handlers() -> list:
    return [signal.getsignal(number) for number in SIGNALS]


def test_signals_are_handled_as_before_outside_noted():
    before, stop = handlers(), StopSignals()
    assert handlers() == before
    with stop.noted():
        assert all(handler != former for handler, former in zip(handlers(), before, strict=True))
    assert handlers() == before
    with pytest.raises(ZeroDivisionError), stop.noted():
        _ = 1 / 0
    assert handlers() == before


def test_only_the_signals_that_are_named_are_handled_otherwise():
    before, found = handlers(), []
    with handled_by({signal.SIGTERM: lambda number, _: found.append(number)}):
        assert signal.getsignal(signal.SIGINT) == before[0]
        signal.raise_signal(signal.SIGTERM)
    assert found == [signal.SIGTERM] and handlers() == before
