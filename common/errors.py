"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where, and how to mend it.

    `run.py` prints the message without a traceback and exits with status 2. Raise it before any work is
    done whenever the mistake can be seen early.
    """
