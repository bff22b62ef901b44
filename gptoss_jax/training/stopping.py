"""SIGTERM, by which a scheduler asks a run to end. Imports no JAX, so that it is heard early."""

import signal


class Stopped(BaseException):
    """SIGTERM has come before the first step: there is nothing new to save."""


class Stop:
    """Hears SIGTERM as long as its context lasts.

    Attributes:
      told: whether it has come.
      at_once: whether it raises `Stopped` wherever the main thread is; else whoever has something
        to save, or others to agree with, asks for `told`.
    """

    def __init__(self):
        self.told = False
        self.at_once = True

    def __enter__(self) -> "Stop":
        self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _hear(self, *_: object) -> None:
        self.told = True
        if self.at_once:
            raise Stopped
