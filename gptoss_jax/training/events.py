"""Scalars for TensorBoard, written at once: the disk's errors are the caller's, not a thread's."""

import socket
import time
from collections.abc import Mapping
from pathlib import Path

# protobuf makes these classes at run time, where pyright does not look.
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar


class Events:
    """A file events.out.tfevents.* of its own for each start of a run."""

    def __init__(self, directory: Path, step: int):
        """Begins the file.

        Args:
          directory: to put it in.
          step: TensorBoard shows no earlier start's events from it on.
        """
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._writer = RecordWriter(str(directory / name))
        self._add(0, file_version="brain.Event:2")
        self._add(step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars by name."""
        for name, value in values.items():
            self._add(step, summary=scalar(name, value))
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()

    def _add(self, step: int, **what) -> None:
        event = Event(wall_time=time.time(), step=step, **what)
        self._writer.write(event.SerializeToString())
