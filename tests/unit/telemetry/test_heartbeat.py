import json
import os

from mgpt4_hpc.telemetry.heartbeat import Heartbeat, read_heartbeat


def test_at_most_every_few_seconds(tmp_path):
    now = [0.0]
    heartbeat = Heartbeat(tmp_path / "heartbeat.json", 2, clock=lambda: now[0])
    assert heartbeat.beat(1)
    assert not heartbeat.beat(2)
    assert heartbeat.beat(3, force=True)
    now[0] = 4.9
    assert not heartbeat.beat(4)
    now[0] = 5
    assert heartbeat.beat(5)
    beat = read_heartbeat(tmp_path / "heartbeat.json")
    assert (beat.step, beat.attempt, beat.pid) == (5, 2, os.getpid())
    assert [path.name for path in tmp_path.iterdir()] == ["heartbeat.json"]


def test_a_missing_folder_is_survived(tmp_path):
    assert not Heartbeat(tmp_path / "gone" / "heartbeat.json", 1).beat(1)


def test_rubbish_is_no_beat(tmp_path):
    path = tmp_path / "heartbeat.json"
    assert read_heartbeat(path) is None
    for text in ("", "[]", "{}", '{"step": null, "time": 1, "attempt": 1}', "\0\0"):
        path.write_text(text)
        assert read_heartbeat(path) is None
    path.write_text(json.dumps({"step": 1, "time": 2, "attempt": 3}))
    assert read_heartbeat(path).step == 1
