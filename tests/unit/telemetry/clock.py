"""A clock that the test moves."""


class Clock:
    now = 100.0
    idle = 0.0

    def __call__(self):
        return self.now

    def worked(self):
        return self.now - self.idle
