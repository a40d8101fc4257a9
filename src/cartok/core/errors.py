"""How a user hears of mistakes, and of what works less well than it could."""

import logging

STOPPED = 130
"""Exit code of what was asked to stop, and goes on later: SIGTERM and Ctrl-C alike."""

_LOG = logging.getLogger("cartok")


class UserError(ValueError):
    """A mistake the user can mend; the command line prints it as one line and exits with 2.

    The message says the rule, what arrived instead, and what to do next. A bug of ours never
    raises this, so a traceback always means a bug.
    """


def warn(message: str) -> None:
    """Tells of something that goes on, but slower or later than a user would expect.

    A line on standard error, unless the program that cartok is part of has set up logging.
    """
    _LOG.warning(message)
