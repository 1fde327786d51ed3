"""Commands that submit, show and steer runs. What they do is in ``launch`` and ``telemetry``."""
