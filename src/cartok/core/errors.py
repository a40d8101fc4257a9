"""The one way a user's mistake is reported: the rule, what came, the next step."""


class UserError(ValueError):
    """A mistake the user can mend; the command line prints it as one line and exits with 2.

    The message says the rule, what arrived instead, and what to do next. A bug of ours never
    raises this, so a traceback always means a bug.
    """
