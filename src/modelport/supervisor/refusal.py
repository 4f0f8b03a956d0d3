"""Why `serve` does not start: a sentence for the person at the terminal, never a traceback."""

from __future__ import annotations


class StartRefused(Exception):
    """The platform can't start as it was asked to; the message says why and what to do.

    `exit_code` is 2 when what was asked can't be done (a taken port, a data directory in use, a wrong setting) and
    1 when something failed on the way.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
