"""Ctrl-C and SIGTERM, held back: what a script does before it imports anything else."""

import _signal  # what `signal` is made of, and here at once: without enum, functools, ...

SIGNALS = (_signal.SIGINT, _signal.SIGTERM)


def hold_signals() -> set | None:
    """Have signals wait for release_signals(), in the processes that are started meanwhile too.

    Without it, Ctrl-C while modules are imported is a traceback. Returns the signals that waited
    before; None on Windows, where none can.
    """
    return _mask("SIG_BLOCK")


def release_signals() -> None:
    """Let in the signals that wait, and later ones."""
    _mask("SIG_UNBLOCK")


def _mask(how: str) -> set | None:
    if not hasattr(_signal, "pthread_sigmask"):
        return None
    return _signal.pthread_sigmask(getattr(_signal, how), SIGNALS)
