"""Tests of ``launch/runs/run_facts.py``."""

from pathlib import Path

from tests.cli.synthetic import attempt, make_run


def test_a_long_ledger_is_not_read_whole(tmp_path: Path) -> None:
    from mgpt4_hpc.launch.runs.run_facts import read_facts
    from mgpt4_hpc.telemetry.ledger import read_ledgers

    run = make_run(tmp_path)
    attempt(run, 1, first=1, last=3000, cause="preempted")
    (whole,) = read_ledgers(run.ledger)
    (edges,) = read_facts(run).attempts
    assert edges == whole
