from mgpt4_hpc.telemetry.goodput import goodput


def test_nothing_is_zero():
    assert goodput([]).with_queue == goodput([]).without_queue == 0
