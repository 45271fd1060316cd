"""Scalars for TensorBoard.

torch's SummaryWriter writes in a thread of its own, which a full disk ends with a traceback and
for good; here the same events are written by who has them, and wait while the disk refuses.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from utils.errors import InputError
from utils.files import append_whole, reason
from utils.logs import log

PENDING_EVENTS = 10_000  # that the disk has not taken


class Board:
    """Curves in a folder that `tensorboard --logdir` shows.

    first_step: where a run begins or goes on: what an earlier one wrote of later steps is hidden.
    Raises InputError where TensorBoard is not installed. Nothing else: a disk that refuses is a
    warning, and the events wait for the next call; of more than PENDING_EVENTS the oldest are lost.
    """

    def __init__(self, folder: Path, first_step: int = 0):
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        except ImportError as error:
            raise InputError(
                "--tensorboard needs the package tensorboard: pip install tensorboard"
            ) from error
        self.folder = folder
        # Readers take the files of a folder in the order of their names.
        place = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = folder / f"events.out.tfevents.{place}"
        self._refusal: str | None = None  # why the disk refused last
        start = SessionLog(status=SessionLog.START)
        purge = Event(step=first_step + 1, session_log=start)  # hides steps from this one on
        self._pending = deque([self._record(purge)], maxlen=PENDING_EVENTS)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One point more for each curve. step: of the whole training. values: by curve's name."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._pending.append(self._record(Event(step=step, summary=Summary(value=scalars))))
        self._write()

    def close(self) -> None:
        """Give what the disk has not taken a last try."""
        if self._pending:
            self._write()

    def _record(self, event) -> bytes:
        """An event as it stands in a file, with the time of now."""
        from io import BytesIO

        from tensorboard.summary.writer.record_writer import RecordWriter

        event.wall_time = time.time()
        record = BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        return record.getvalue()

    def _write(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        try:
            self.folder.mkdir(exist_ok=True)
            begun = self._file.exists() and self._file.stat().st_size > 0
            header = b"" if begun else self._record(Event(file_version="brain.Event:2"))
            append_whole(self._file, header + b"".join(self._pending))
        except OSError as error:
            if reason(error) != self._refusal:
                log.warning(
                    "%s: TensorBoard's curves cannot be written (%s). Training goes on, and they "
                    "wait in memory.",
                    self.folder,
                    reason(error),
                )
            self._refusal = reason(error)
            return
        self._pending.clear()
        if self._refusal:
            log.info("%s: TensorBoard's curves are written again.", self.folder)
        self._refusal = None
