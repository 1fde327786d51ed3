import json
import os
import subprocess
import threading
import time
from itertools import count
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import (
    Ledger,
    append_supervisor_note,
    read_changes,
    read_ledgers,
    read_records,
)


def clock(start=1000.0, step=1.0):
    ticks = count()
    return lambda: start + step * next(ticks)


def write(folder, number, *events, start=1000.0):
    ledger = Ledger(folder, number, clock=clock(start))
    for kind, fields in events:
        ledger.event(kind, **fields)
    ledger.close()


def begin(**fields):
    return (Kind.START, {"attempt": 1, "world_size": 4, **fields})


def test_lines_are_json_with_time_and_kind(tmp_path):
    ledger = Ledger(tmp_path / "ledger", 3, clock=lambda: 12.5)
    ledger.event(Kind.START, job_id="77", nodes=["a", "b"], path=tmp_path)
    ledger.event(Kind.SIGNAL, name="SIGUSR2")
    ledger.close()
    lines = (tmp_path / "ledger" / "attempt-0003.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"t": 12.5, "kind": "start", "job_id": "77", "nodes": ["a", "b"], "path": str(tmp_path)},
        {"t": 12.5, "kind": "signal", "name": "SIGUSR2"},
    ]


def test_a_line_is_there_as_soon_as_the_call_returns(tmp_path):
    ledger = Ledger(tmp_path, 1)
    ledger.event(Kind.STEPS, step=5)
    assert [record["step"] for record in read_records(ledger.path)] == [5]


def test_important_kinds_are_synced_and_others_not(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    ledger = Ledger(tmp_path, 1)
    ledger.event(Kind.STEPS, step=1)
    assert synced == []
    for kind in (Kind.START, Kind.RESTORE, Kind.SAVE, Kind.END):
        ledger.event(kind)
    assert len(synced) == 4


def test_a_whole_attempt(tmp_path):
    write(
        tmp_path,
        1,
        begin(job_id=42, restart_count=0, nodes=["n1", "n2"], hostname="n1", versions={"t": "2"}),
        (Kind.RESTORE, {"step": 100, "samples_seen": 800, "path": "x"}),
        (Kind.FIRST_STEP, {"step": 101}),
        (Kind.SIGNAL, {"name": "SIGTERM"}),
        (Kind.SUBSTITUTION, {"position": 9}),
        (Kind.FAULT, {"what": "slow disk"}),
        (Kind.DAMAGED, {"path": "p", "reason": "r"}),
        (Kind.SAVE_FAILED, {"step": 105, "reason": "full"}),
        (Kind.SAVE, {"step": 110, "durable_s": 0.2, "stall_s": 0.01}),
        (Kind.REQUEUE, {"accepted": True}),
        (Kind.END, {"cause": "preempted", "step": 111, "exit_code": 75, "buckets": {}}),
    )
    [attempt] = read_ledgers(tmp_path)
    assert (attempt.number, attempt.job_id, attempt.nodes) == (1, "42", ["n1", "n2"])
    assert (attempt.hostname, attempt.world_size, attempt.versions) == ("n1", 4, {"t": "2"})
    assert (attempt.start, attempt.end, attempt.seconds) == (1000, 1010, 10)
    assert (attempt.restored_step, attempt.first_step, attempt.first_step_at) == (100, 101, 1002)
    assert (attempt.last_step, attempt.steps_done, attempt.last_saved_step) == (111, 11, 110)
    assert (attempt.cause, attempt.exit_code, attempt.ended) == ("preempted", 75, True)
    assert (attempt.saves, attempt.save_failures, attempt.substitutions) == (1, 1, 1)
    assert attempt.signals == ["SIGTERM"]
    assert attempt.faults[0]["what"] == "slow disk" and attempt.damaged[0]["reason"] == "r"
    assert attempt.requeue["accepted"] is True


@pytest.mark.parametrize("keep", range(0, 60, 7))
def test_a_torn_last_line_costs_that_line_only(tmp_path, keep):
    write(tmp_path, 1, begin(), (Kind.STEPS, {"step": 7}), (Kind.STEPS, {"step": 8}))
    path = tmp_path / "attempt-0001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:-1][: min(keep, len(lines[2]) - 2)])
    assert read_ledgers(tmp_path)[0].last_step == 7
    write(tmp_path, 1, (Kind.STEPS, {"step": 9}))
    assert read_ledgers(tmp_path)[0].last_step == 9


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"kind": "end"}',
        b'{"t": "now"}',
        b"\0" * 50,
        b'{"t": 1, "kind": "start", "nodes": 5, "versions": [], "world_size": "x"}',
        b'{"t": 1, "kind": "steps", "step": null, "buckets": {"productive": "x"}}',
        b'{"t": 1, "kind": "of the future", "step": {}}',
        b'{"t": 1, "kind": ["start"]}',
    ],
)
def test_foreign_lines_are_passed_over(tmp_path, line):
    (tmp_path / "attempt-0001.jsonl").write_bytes(line + b'\n{"t": 2, "kind": "steps", "step": 3}')
    (tmp_path / "attempt-0001.jsonl.swp").write_bytes(b"x")
    [attempt] = read_ledgers(tmp_path)
    assert attempt.last_step == 3


def test_a_change_at_a_start_has_the_step_of_the_checkpoint_that_was_read(tmp_path):
    def changed(what, **fields):
        return (Kind.CHANGED, {"what": [what], **fields})

    write(tmp_path, 1, begin(), (Kind.FIRST_STEP, {"step": 1}), changed("longer", step=7))
    write(tmp_path, 2, begin(), changed("killed before it read one"))
    write(tmp_path, 3, begin(), changed("rate"), (Kind.RESTORE, {"step": 6}))
    write(tmp_path, 4, begin(), changed("batch"), (Kind.FIRST_STEP, {"step": 1}))
    write(tmp_path, 5, begin(), (Kind.RESTORE, {"step": 9}))
    seen = [(change.attempt, change.step, change.what) for change in read_changes(tmp_path)]
    killed = (2, 6, "killed before it read one")
    assert seen == [(1, 7, "longer"), killed, (3, 6, "rate"), (4, 0, "batch")]


def test_a_run_without_attempts(tmp_path):
    assert read_ledgers(tmp_path / "nowhere") == []


def test_without_an_end_the_cause_is_unknown_or_running(tmp_path):
    write(tmp_path, 1, begin())
    write(tmp_path, 2, begin(), start=1100)
    first, second = read_ledgers(tmp_path)
    assert (first.cause, second.cause) == ("unknown", "running")


def test_a_supervisor_fills_in_what_a_killed_attempt_could_not_say(tmp_path):
    write(tmp_path, 1, begin(), (Kind.STEPS, {"step": 30}))
    append_supervisor_note(tmp_path, 1, cause="killed", exit_code=137, step=34, reason="kill -9")
    append_supervisor_note(tmp_path, 2, cause="node_failure")
    first, second = read_ledgers(tmp_path)
    assert (first.cause, first.exit_code, first.last_step) == ("killed", 137, 34)
    assert first.supervisor["reason"] == "kill -9"
    assert (second.number, second.cause, second.start > 0) == (2, "node_failure", True)


def test_what_an_attempt_says_of_itself_wins(tmp_path):
    write(tmp_path, 1, begin(), (Kind.END, {"cause": "time_limit", "step": 3, "exit_code": 75}))
    append_supervisor_note(tmp_path, 1, cause="killed", exit_code=1)
    [attempt] = read_ledgers(tmp_path)
    assert (attempt.cause, attempt.exit_code) == ("time_limit", 75)


def test_replayed_steps_are_counted_where_they_were_done_again(tmp_path):
    buckets = {"productive": 100.0, "data_wait": 10.0}
    write(tmp_path, 1, begin(), (Kind.STEPS, {"step": 100, "buckets": buckets}))
    write(tmp_path, 2, begin(), (Kind.RESTORE, {"step": 90}), start=2000)
    third = {"step": 95, "buckets": {"productive": 5.0}}
    write(tmp_path, 3, begin(), (Kind.RESTORE, {"step": 90}), (Kind.STEPS, third), start=3000)
    fourth = {"step": 113, "buckets": {"productive": 20.0}, "cause": "finished", "exit_code": 0}
    write(tmp_path, 4, begin(), (Kind.RESTORE, {"step": 93}), (Kind.END, fourth), start=4000)
    attempts = read_ledgers(tmp_path)
    assert [attempt.steps_replayed for attempt in attempts] == [0, 0, 5, 7]
    assert attempts[2].buckets["replayed"] == 5 and attempts[2].productive_s == 0
    assert attempts[3].buckets["replayed"] == pytest.approx(7)
    assert attempts[3].productive_s == pytest.approx(13)


def test_the_queue_wait_is_what_lies_between(tmp_path):
    write(tmp_path, 1, begin(submitted_at=940), (Kind.END, {"cause": "preempted"}))
    write(tmp_path, 2, begin(submitted_at=940), start=1121)
    waits = [attempt.buckets.get("queue_wait") for attempt in read_ledgers(tmp_path)]
    assert waits == [60, 120]


def test_a_run_was_in_no_queue_before_it_was_resumed(tmp_path):
    write(tmp_path, 1, begin(submitted_at=940), (Kind.END, {"cause": "cancelled"}))
    write(tmp_path, 2, begin(submitted_at=90_000), start=90_030)
    waits = [attempt.buckets.get("queue_wait") for attempt in read_ledgers(tmp_path)]
    assert waits == [60, 30]


def test_a_refusing_disk_is_survived_and_its_lines_come_later(tmp_path):
    (tmp_path / "ledger").write_text("a file where the folder should be")
    ledger = Ledger(tmp_path / "ledger", 1)
    ledger.event(Kind.START)
    ledger.event(Kind.STEPS, step=1)
    (tmp_path / "ledger").unlink()
    ledger.event(Kind.STEPS, step=2)
    kinds = [(record["kind"], record.get("step")) for record in read_records(ledger.path)]
    assert kinds == [("start", None), ("steps", 1), ("steps", 2)]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_really_full_disk(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        ledger = Ledger(tmp_path, 1)
        ledger.event(Kind.START)
        ballast = tmp_path / "ballast"
        with pytest.raises(OSError), ballast.open("wb", buffering=0) as stream:
            while stream.write(b"x" * 4096):
                pass
        for step in range(200):
            ledger.event(Kind.STEPS, step=step, padding="x" * 1000)
        assert len(read_records(ledger.path)) < 150
        ballast.unlink()
        ledger.event(Kind.END, cause="finished")
        ledger.close()
        records = read_records(ledger.path)
        assert [r["step"] for r in records if r["kind"] == "steps"] == list(range(200))
        assert [r["kind"] for r in records].count("end") == 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_threads_do_not_mix_their_lines(tmp_path):
    ledger = Ledger(tmp_path, 1)

    def work(name):
        for step in range(200):
            ledger.event(Kind.STEPS, name=name, step=step, padding="x" * 300)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = read_records(ledger.path)
    assert sorted((r["name"], r["step"]) for r in records) == [
        (name, step) for name in range(4) for step in range(200)
    ]


@pytest.mark.slow
def test_a_ledger_of_a_million_lines_is_summarised_in_seconds(tmp_path: Path) -> None:
    progress = [
        b'{"t": %d.5, "kind": "steps", "step": %d, "loss": 4.5, "buckets": {"productive": %d.0}}\n'
        % (1000 + step, step, step)
        for step in range(1, 10**6)
    ]
    torn = b'{"t": 1, "kind": "steps", "st'
    start = b'{"t": 1000, "kind": "start", "job_id": "17"}\n'
    (tmp_path / "attempt-0001.jsonl").write_bytes(start + b"".join(progress) + torn)
    began = time.process_time()
    (attempt,) = read_ledgers(tmp_path)
    assert time.process_time() - began < 3
    assert (attempt.job_id, attempt.last_step, attempt.productive_s) == ("17", 10**6 - 1, 10**6 - 1)
