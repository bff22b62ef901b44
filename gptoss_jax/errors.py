"""The one exception type whose message is meant for the user as it stands."""


class UserError(ValueError):
    """A mistake in the user's input: one line that names the thing and the fix.

    The verbs print the message alone and exit 1 (`--debug` shows the traceback).
    """


class UsageError(UserError):
    """Wrong use of a verb: flags or a config that cannot be meant. Exit code 2."""
