"""An engine on a thread of its own, asked by any number of threads and event loops."""

import asyncio
import atexit
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from gptoss_jax.errors import UserError
from gptoss_jax.inference import requests
from gptoss_jax.inference.engine import Engine
from gptoss_jax.inference.requests import Request, TokenLogprobs
from gptoss_jax.inference.runner import Timings

_T = TypeVar("_T")
# Other processes hear as often (seconds) that there is nothing to do: no collective waits for long.
_SIGN_OF_LIFE = 1.0


class ServiceError(RuntimeError):
    """A request that gets no answer, or not all of it, for no fault of its own."""


class OverloadedError(ServiceError):
    """As many requests as the service takes are open; another may be taken later."""


class StoppedError(ServiceError):
    """The service was closed, or its engine failed (then that error is the cause)."""


class Stream:
    """What comes of a request: iterate in a thread (`for`) or an event loop (`async for`).

    Each item is the list of all tokens that came since the last one, so that a slow reader gets
    longer lists and nobody waits for it. For one reader. Whoever stops iterating cancels.

    Attributes:
      request: what was asked.
      sequence: what the engine knows of it, None before it has taken it. Its lists only grow: up to
        the tokens given they may be read from any thread.
    """

    def __init__(self, request: Request):
        """Nothing has come yet."""
        self.request = request
        self.sequence: requests.Sequence | None = None
        self._changed = threading.Condition()
        self._wake: Callable[[], object] | None = None
        self._came: list[int] = []
        self._seen = 0
        self._error: Exception | None = None
        self._ended = False
        self._cancelled = False

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """Of the tokens given and perhaps some more, where the request asks for them."""
        return [] if self.sequence is None else self.sequence.logprobs

    @property
    def cut_short(self) -> str | None:
        """As of `Sequence`; None before the engine has taken the request."""
        return None if self.sequence is None else self.sequence.cut_short

    def cancel(self) -> None:
        """Ends the request and the iteration; what it holds is free before the next device call.

        From any thread, at any time, more than once.
        """
        with self._changed:
            self._cancelled = True
            if self.sequence is not None:
                self.sequence.cancelled = True
            self._end(None)

    def __iter__(self) -> Iterator[list[int]]:
        """Waits for tokens, until there will be no more.

        Raises:
          StoppedError: the service ended before the answer did.
          UserError: the engine refused the request after `submit` had not.
        """
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(self._is_ready)
                    tokens = self._take()
                if not tokens:
                    return
                yield tokens
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[list[int]]:
        """As `__iter__`, without holding up the event loop; closing the generator cancels."""
        try:
            while tokens := await self._next():
                yield tokens
        finally:
            self.cancel()

    async def _next(self) -> list[int]:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        with self._changed:
            if self._is_ready():
                return self._take()
            self._wake = lambda: loop.call_soon_threadsafe(arrived.set)
        await arrived.wait()
        with self._changed:
            return self._take()

    def _is_ready(self) -> bool:
        return bool(self._came) or self._ended

    def _take(self) -> list[int]:
        """What came; nothing: the end."""
        tokens, self._came = self._came, []
        if not tokens and self._error is not None:
            raise self._error
        return tokens

    # --- What the service's thread calls ---------------------------------------------------------

    def _begin(self, sequence: requests.Sequence) -> None:
        with self._changed:
            self.sequence = sequence
            sequence.cancelled = self._cancelled

    def _deliver(self) -> bool:
        """Passes on what the engine made since the last time; gives whether that was the end."""
        sequence = self.sequence
        if sequence is None:
            return self._ended
        first = len(self.request.prompt) + self._seen
        with self._changed:
            tokens = sequence.tokens[first:]
            self._seen += len(tokens)
            if not self._ended and tokens:
                self._came += tokens
                self._notify()
            if sequence.ended:
                self._end(None)
        return sequence.ended

    def _end(self, error: Exception | None) -> None:
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
                self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        wake, self._wake = self._wake, None
        if wake is not None:
            try:
                wake()
            except RuntimeError:  # the reader's event loop is closed: nobody reads any more
                self.cancel()


class Service:
    """Steps an engine while there is work, and sleeps while there is none.

    The engine is this object's alone from now on. `with Service(engine) as service:` closes it.

    Of several processes all make one, and only that of process 0 takes requests; to close another
    is to wait until that one is closed. Meanwhile nothing else is to be computed by all of them.
    """

    def __init__(self, engine: Engine, *, max_open: int = 1024):
        """Begins the thread.

        Args:
          engine: that nobody else calls.
          max_open: requests that run or wait; more are refused.
        """
        self.engine = engine
        self._max_open = max_open
        self._changed = threading.Condition()
        self._new: list[Stream] = []
        self._open: list[Stream] = []
        self._errands: list[tuple[Callable[[], None], Future]] = []
        self._count = 0
        self._stop: StoppedError | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # Before the interpreter ends threads wherever they are, as in the middle of a device call.
        atexit.register(self.close)
        self._thread.start()

    @property
    def open(self) -> int:
        """How many requests run or wait."""
        return self._count

    def submit(self, request: Request) -> Stream:
        """Takes a request, from any thread, without waiting.

        Raises:
          UserError: no engine could run it, or this one has not the room, or process 0 takes it.
          OverloadedError: `max_open` are open.
          StoppedError: the service was closed, or its engine failed.
        """
        if self.engine.follows:
            raise UserError("of several processes only process 0 takes requests; submit it there")
        self.engine.limit_of(request)
        stream = Stream(request)
        with self._changed:
            self._check_running()
            if self._count >= self._max_open:
                raise OverloadedError(f"{self._count} requests are open; try again later")
            self._count += 1
            self._new.append(stream)
            self._changed.notify()
        return stream

    def between_steps(self, function: Callable[[Engine], _T]) -> _T:
        """What a function makes of the engine, called by its thread between two steps.

        As to load an adapter: `service.between_steps(lambda its: its.adapters.load(name, file))`.
        Every answer waits as long.

        Raises:
          UserError: this is one of several processes; do it to the engine, before the service.
          StoppedError: the service was closed, or its engine failed.
          Exception: what the function raises; the service goes on.
        """
        if self.engine.leads or self.engine.follows:
            raise UserError(
                "the engine of one of several processes cannot be changed while it serves; do it "
                "in all of them before the Service is made"
            )
        done: Future[_T] = Future()

        def run() -> None:
            try:
                done.set_result(function(self.engine))
            except Exception as error:
                done.set_exception(error)

        with self._changed:
            self._check_running()
            self._errands.append((run, done))
            self._changed.notify()
        return done.result()

    def follow(self, stream: Stream) -> Iterator[list[int]]:
        """A submitted request's new tokens as they come, as `Engine.follow`."""
        return iter(stream)

    def cancel(self, stream: Stream) -> None:
        """Ends a request, as `Engine.cancel`; what iterates over its stream ends at once."""
        stream.cancel()

    @property
    def timings(self) -> Timings:
        """Of all that ran."""
        return self.engine.timings

    def close(self) -> None:
        """Ends all requests after the device call under way, and the thread.

        Of several processes, all but process 0 wait here until that one has done so.

        Raises:
          StoppedError: this is another process than process 0, and its engine failed.
        """
        atexit.unregister(self.close)
        with self._changed:
            self._stop = self._stop or StoppedError("the service is closed")
            self._changed.notify()
        self._thread.join()
        if self.engine.follows and self._stop.__cause__ is not None:
            self._check_running()  # nobody else is told

    def __enter__(self) -> "Service":
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes."""
        self.close()

    def _check_running(self) -> None:
        if self._stop is not None:
            raise StoppedError(str(self._stop)) from self._stop.__cause__

    # --- The thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._take_new():
                self.engine.step()
                self._deliver()
            self._end_all(StoppedError("the service was closed"))
            while self.engine.busy:  # gives the pages back
                self.engine.step()
            self.engine.close()
        except Exception as error:
            # Of no use to anyone after this: the cache was the failed call's.
            failed = StoppedError(f"the engine failed: {error}")
            failed.__cause__ = error
            with self._changed:
                self._stop = failed
            self._end_all(failed)

    def _take_new(self) -> bool:
        """Waits for work and gives it to the engine; False: the service is to end."""
        if self.engine.follows:
            return not self.engine.closed
        with self._changed:
            self._changed.wait_for(
                lambda: self._new or self._errands or self._stop or self.engine.busy,
                _SIGN_OF_LIFE if self.engine.leads else None,
            )
            if self._stop:
                return False
            new, self._new = self._new, []
            errands, self._errands = self._errands, []
            self._open += new
        for run, _ in errands:
            run()
        for stream in new:
            try:
                stream._begin(self.engine.submit(stream.request))
            except UserError as error:  # what only this thread can tell; the others go on
                stream._end(error)
        return True

    def _deliver(self) -> None:
        going = [stream for stream in self._open if not stream._deliver()]
        with self._changed:
            self._open, self._count = going, len(going) + len(self._new)

    def _end_all(self, why: StoppedError) -> None:
        with self._changed:
            streams, self._open, self._new, self._count = self._open + self._new, [], [], 0
            errands, self._errands = self._errands, []
        for _, done in errands:
            done.set_exception(StoppedError(str(why)))
        for stream in streams:
            # An exception keeps the traceback of whoever raised it: one for each.
            own = StoppedError(str(why))
            own.__cause__ = why.__cause__
            stream._end(own)
            stream.cancel()
