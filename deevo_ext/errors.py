"""The package's one exception type."""


class DeevoError(ValueError):
    """A request that cannot be met.

    The message is one sentence or two that name the argument or the missing thing, what was given,
    what is expected, and what to do about it. The command line prints it without a traceback.
    """
