"""The one exception of this tool."""


class DevclusterError(Exception):
    """Something is wrong that the user can put right: what it is, and how.

    Args:
        what: the fault, naming the bad value.
        fix: what to do about it; printed on its own line.
    """

    def __init__(self, what: str, fix: str = ""):
        self.what = what
        self.fix = fix
        super().__init__(f"{what}\n  fix: {fix}" if fix else what)


class PortTakenError(DevclusterError):
    """A daemon could not bind its port: another process took it since it was picked."""
