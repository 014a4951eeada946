"""Run asynchronous work so that SIGINT and SIGTERM cancel it cleanly."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal cancelled the work. Call `reraise` after cleaning up."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.strsignal(signum))
        self.signum = signum


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` as `asyncio.run` does and cancel it on the first signal. Raises Interrupted in that case.

    Signal handlers that raise, as Dagster's does, may fire inside a callback of the event loop, which
    swallows the exception.
    """
    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)
    received: list[int] = []

    async def cancellable() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(signum: int) -> None:
            received.append(signum)
            task.cancel()

        previous = {number: signal.getsignal(number) for number in _SIGNALS}
        replaced = [number for number, handler in previous.items() if handler not in (None, signal.SIG_IGN)]
        for number in replaced:
            loop.add_signal_handler(number, stop, number)
        try:
            return await work
        finally:
            for number in replaced:
                loop.remove_signal_handler(number)
                signal.signal(number, previous[number])

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        if not received:
            raise
        raise Interrupted(received[0]) from None


def reraise(interrupted: Interrupted) -> None:
    """Raise the signal again under its original handler, or KeyboardInterrupt if that handler returns."""
    signal.raise_signal(interrupted.signum)
    raise KeyboardInterrupt
