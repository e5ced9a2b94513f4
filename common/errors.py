"""The one exception for mistakes a user can fix."""

from common.secret import masked


class UserError(ValueError):
    """Bad input, said in one line: what is wrong, where, and how to fix it.

    A ValueError, so that a program that calls seedloop needs no import of ours to catch it. `run.py` prints the
    message without a traceback and exits with status 2; a library call never exits. Raise it before any work is
    done whenever the mistake can be seen early. Code that reads numbers or JSON under `except ValueError`
    must let it through. Keys in the message are masked.
    """

    def __init__(self, message: str):
        super().__init__(masked(message))
