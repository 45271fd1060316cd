"""Scripts in processes of their own, which are copies of one that has imported torch.

A new Python would need seconds for that. The one that is copied has done nothing else.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parent.parent
PATIENCE = 120  # seconds that a process may take for anything

# Before a process is copied: what scripts import, also once they know their options.
IMPORTED = ["pytest", "least_vit", "train", "test", "training.run", "model.zse.method"]
IMPORTED += ["report.curves", "report.results", "retrieval.evaluate", "retrieval.stored"]
IMPORTED += ["datasets.zeroshot", "matplotlib.figure", "matplotlib.backends.backend_agg"]
IMPORTED += ["torch.utils.serialization", "PIL.PngImagePlugin", "PIL.JpegImagePlugin"]
COPIES = multiprocessing.get_context("forkserver")


def start_importing() -> None:
    """Start the process that is copied: it imports while the first tests run."""
    COPIES.set_forkserver_preload(IMPORTED)
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    with patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=path):
        forkserver.ensure_running()


class Script:
    """Python that runs a script in a process of its own, the first of a session, in one thread.

    environment: more of its environment variables.

    pid (attribute): its number, which is that of its session and its process group too.
    """

    def __init__(self, file: str | Path, *words: object, **environment: object):
        self._output = tempfile.NamedTemporaryFile("w+", prefix="output")  # noqa: SIM115
        environment = {name: str(value) for name, value in environment.items()}
        arguments = (str(file), list(map(str, words)), environment, self._output.name)
        self._process = COPIES.Process(target=_run_script, args=arguments)
        self._process.start()
        self.pid = self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, minus the number of a signal that killed it; None while it runs."""
        return self._process.exitcode

    @property
    def output(self) -> str:
        """What it has written so far."""
        return Path(self._output.name).read_text()

    def wait(self) -> int:
        """Until it has ended: its exit status."""
        self._process.join(PATIENCE)
        assert self.status is not None, self.output
        return self.status

    def wait_for(self, happened: Callable[[], object], every: float = 0.02) -> object:
        """Until something has happened, while it runs; the result. every: seconds between looks."""
        deadline = time.monotonic() + PATIENCE
        while not (found := happened()):
            assert self.status is None and time.monotonic() < deadline, self.output
            time.sleep(every)
        return found

    def send(self, number: int) -> None:
        """Send a signal to it alone."""
        os.kill(self.pid, number)

    def send_to_all(self, number: int) -> None:
        """Send a signal to it and its data workers, as Ctrl-C on a terminal does."""
        os.killpg(self.pid, number)

    def end(self) -> None:
        """Kill it, and data workers with it, whatever has become of a test."""
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        self.wait()


def start_together(file: str | Path, *words: object, count: int = 2) -> list[Script]:
    """The processes of a script as torchrun starts them, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{"RANK": number, "LOCAL_RANK": number} for number in range(count)]
    return [Script(file, *words, **world, **rank) for rank in ranks]


def end_well(processes: list[Script]) -> list[str]:
    """Wait for processes, which all have to end with status 0; what each has written."""
    try:
        status = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.end()
    said = [process.output for process in processes]
    assert status == [0] * len(processes), "\n".join(said)
    return said


def _run_script(file: str, words: list[str], environment: dict[str, str], output: str) -> None:
    """In a new process: become Python that runs this script."""
    os.setsid()
    written = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.chdir(ROOT)
    os.environ.update(environment)
    usual = multiprocessing.get_all_start_methods()[0]
    multiprocessing.set_start_method(usual, force=True)  # of data workers: not as this process
    sys.argv = [file, *words]
    runpy.run_path(file, run_name="__main__")
