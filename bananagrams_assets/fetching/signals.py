"""Asynchronous work that SIGINT and SIGTERM end in good order."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal came and the work was cancelled; hand it on with `hand_on` once all is put away."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.strsignal(signum))
        self.signum = signum


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, with the work cancelled by the first signal. Raises Interrupted after that.

    A handler that raises wherever the program happens to be, as Dagster's does, may raise inside a
    callback of the event loop, which swallows it.
    """
    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)
    came: list[int] = []

    async def watched() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(signum: int) -> None:
            came.append(signum)
            task.cancel()

        previous = {number: signal.getsignal(number) for number in _SIGNALS}
        ours = [number for number, handler in previous.items() if handler not in (None, signal.SIG_IGN)]
        for number in ours:
            loop.add_signal_handler(number, stop, number)
        try:
            return await work
        finally:
            for number in ours:
                loop.remove_signal_handler(number)
                signal.signal(number, previous[number])

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        if not came:
            raise
        raise Interrupted(came[0]) from None


def hand_on(interrupted: Interrupted) -> None:
    """Let the signal do what it does to this process; raises KeyboardInterrupt if that is nothing."""
    signal.raise_signal(interrupted.signum)
    raise KeyboardInterrupt
