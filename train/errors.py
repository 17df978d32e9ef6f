"""What ends a command: a mistake that the user can fix, or a signal that asked it to stop."""


class UserError(ValueError):
    """A mistake in configuration, data or files. The entry points print its message, one line with the value and the
    fix, and exit with status 2."""


class Interrupted(BaseException):
    """A signal asked the work to stop; everything is saved and the same command goes on from there.

    Like ``KeyboardInterrupt`` no ``Exception``, so that nothing on the way takes it for a failure and goes on: it
    ends a whole multirun. The entry points print its message and exit with ``status``, which schedulers read as
    "try again" (``EX_TEMPFAIL`` of sysexits.h).
    """

    status = 75


def first_line(error: BaseException) -> str:
    """Of an error that is not ours, for a message of one line; its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
