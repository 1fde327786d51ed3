"""Forks gloo ranks on request: ``{"run": DIR, "world_size": N}``, then ``{"wait": true}``.

A folder as the only argument takes what each rank writes, as ``RANK.log``.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

# Imported once, before the forks: every rank then starts at once.
import mgpt4_hpc.train.run as run_module
from mgpt4_hpc.distributed import Ranks, end_group, rendezvous, start_group
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.train.state import Ending, Outcome
from mgpt4_hpc.train.stopping.stop import SignalStop


def rank_process(run: Path, rank: int, world_size: int, token: str) -> int:
    import torch

    stop = SignalStop().install()
    ranks = Ranks(rank, rank, world_size, world_size)
    store = rendezvous(ranks, "127.0.0.1", token) if world_size > 1 else None
    start_group(ranks, torch.device("cpu"), store)

    def end(outcome: Outcome, recorder: object) -> None:
        cause = "finished" if outcome.ending is Ending.FINISHED else "preempted"
        recorder.event("end", cause=cause, step=outcome.step, exit_code=0)

    claim = {"job_id": token, "restart_count": 0, "nodes": [socket.gethostname()]}
    outcome = run_module.run_training(RunDir(run), ranks, stop, claim=claim, end=end)
    end_group()
    return 0 if outcome.ending is Ending.FINISHED else 75


def main() -> None:
    pids: list[int] = []
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("wait"):
            answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        elif "ended" in request:
            # Looked at and not reaped: the exit code is for whoever waits.
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            answer = [int(os.waitid(os.P_PID, pids[request["ended"]], options) is not None)]
        else:
            token = f"fork-{os.getpid()}-{time.time_ns()}"
            pids = []
            for rank in range(request["world_size"]):
                pid = os.fork()
                if pid == 0:
                    if len(sys.argv) > 1:
                        log = Path(sys.argv[1]) / f"{rank}.log"
                        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
                    os.dup2(2, 1)  # the parent's stdout speaks JSON
                    code = 1
                    try:
                        code = rank_process(
                            Path(request["run"]), rank, request["world_size"], token
                        )
                    finally:
                        os._exit(code)
                pids.append(pid)
            answer = pids
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
