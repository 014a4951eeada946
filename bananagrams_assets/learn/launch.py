"""Start a training process: its command line, its link to the launcher, its Dagster Pipes session.

This module does not import torch: processes that only launch a training use it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BananagramsError

if TYPE_CHECKING:
    from dagster_pipes import PipesContext

LOCK_FILE_VARIABLE = "BANANAGRAMS_LIFELINE"
"""Environment variable with the path of the file that the launcher locks while it runs."""


class LaunchError(BananagramsError, RuntimeError):
    """A training that the launcher could not start, or that sent no message."""


def torchrun_command(job: Path | str, processes: int, python: str = sys.executable) -> list[str]:
    """Return the `torchrun` command for one machine with one process per device, without its own restarts."""
    training = ["--module", "bananagrams_assets.learn.train", "--job", str(job)]
    return [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *training]


@contextmanager
def hold_launcher_lock() -> Iterator[dict[str, str]]:
    """Lock a file while the block runs; yield the environment variables that pass it to the training.

    The system releases the lock when the launcher ends for any reason. `stop_when_launcher_exits` waits for
    that in the training. Otherwise an orphaned training would run in parallel with its retry.
    """
    with tempfile.NamedTemporaryFile(prefix="bananagrams-launcher-") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield {LOCK_FILE_VARIABLE: file.name}


def stop_when_launcher_exits() -> None:
    """Send SIGTERM to this process once its launcher has ended; the training then writes a checkpoint.

    Do nothing if the launcher set no lock file.
    """
    if not (name := os.environ.get(LOCK_FILE_VARIABLE)):
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115  (the thread keeps it open until the process ends)
    except FileNotFoundError:
        os.kill(os.getpid(), signal.SIGTERM)
        return

    def wait() -> None:
        fcntl.flock(file, fcntl.LOCK_SH)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="launcher-lock").start()


def open_pipes() -> AbstractContextManager[PipesContext]:
    """Open Dagster Pipes with the parameters in the environment; use S3 if they name a bucket.

    Call this only on rank 0: messages of a second writer are lost once the first has closed.
    """
    import dagster_pipes as pipes

    params = pipes.PipesEnvVarParamsLoader()  # type: ignore[no-untyped-call]
    if "bucket" not in params.load_messages_params():
        return pipes.open_dagster_pipes()
    import boto3

    client = boto3.client("s3")
    return pipes.open_dagster_pipes(
        context_loader=pipes.PipesS3ContextLoader(client),
        message_writer=pipes.PipesS3MessageWriter(client, interval=2),
    )
