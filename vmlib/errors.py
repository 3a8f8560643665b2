"""What can go wrong, sorted by who can act on it."""


class VmError(Exception):
    """Base of everything vmlib raises on purpose. `hint` says what to do, when there is something."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class SpecError(VmError):
    """The job asks for something that can never work here. Retrying does not help."""


class HostError(VmError):
    """The node lacks something or is set up wrongly; its operator can mend it."""


class NoCapacityError(VmError):
    """Not now: the thing is taken. Retrying helps."""


class HypervisorError(VmError):
    """The VMM failed. `log_tail` holds its last words, when it had any; with `says_why` the message is its reason."""

    def __init__(self, message: str, *, hint: str = "", log_tail: str = "", says_why: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.log_tail = log_tail
        self.says_why = says_why


class LaunchError(HypervisorError):
    """The VMM did not come as far as a guest that is ready to run."""
