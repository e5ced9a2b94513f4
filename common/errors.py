"""The one exception for mistakes a user can mend."""

from common.secret import masked


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where, and how to mend it.

    `run.py` prints the message without a traceback and exits with status 2. Raise it before any work is
    done whenever the mistake can be seen early. Keys in the message are masked.
    """

    def __init__(self, message: str):
        super().__init__(masked(message))
