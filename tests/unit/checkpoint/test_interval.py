from mgpt4_hpc.checkpoint.interval import SaveInterval


def test_due_every_so_many_seconds():
    interval = SaveInterval(30, started_at=100)
    assert not interval.next_save_due(129.9)
    assert interval.next_save_due(130)
    interval.saved(131, stall_s=0.02)
    assert not interval.next_save_due(160)
    assert interval.next_save_due(161)


def test_grows_only_past_half_a_percent():
    interval = SaveInterval(30, started_at=0)
    interval.saved(30, stall_s=0.15)
    assert interval.interval_s == 30
    interval.saved(60, stall_s=0.6)
    interval.saved(90, stall_s=0.6)
    assert interval.interval_s == 120


def test_one_slow_save_is_no_reason():
    interval = SaveInterval(30, started_at=0)
    for stall_s in (5.0, 0.01, 0.01):
        interval.saved(0, stall_s)
    assert interval.interval_s == 30
