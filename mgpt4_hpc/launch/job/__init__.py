"""What runs inside a training job: a rank, its stop and its end, the supervisor.

Nothing here submits a run.
"""
