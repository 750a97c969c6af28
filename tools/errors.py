"""The one error of the commands that is the user's to mend."""


class UserError(Exception):
    """A mistake in what the user gave; the command line prints its message and exits with code 2."""
