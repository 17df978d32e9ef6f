"""The one exception that means "you can fix this": its message is one line with the value and the fix."""


class UserError(ValueError):
    """A mistake in configuration, data or files. The entry points print its message and exit with status 2."""
