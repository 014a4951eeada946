"""The base class of every error whose message is written for users."""

from __future__ import annotations


class BananagramsError(Exception):
    """An error that a user can act on.

    The message says what happened, to which file, sample, shard or URL, and what to do. The command line
    prints it as one line and exits with status 1. Any other exception is a bug and keeps its traceback.
    """
