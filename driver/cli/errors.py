"""What ends a command with a sentence instead of a result."""


class UsageError(Exception):
    """The person at the shell has to say it otherwise. One line; exit code 2."""


class NoMachineError(Exception):
    """There is no such machine, or it has ended and cannot be asked for more. One line; exit code 1."""
