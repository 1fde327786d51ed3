"""The table of ledger lines is complete."""

import re

from mgpt4_hpc.telemetry import event_kinds


def test_the_table_has_a_row_for_each_kind():
    rows = re.findall(r"^\| `(\w+)` \|", event_kinds.__doc__, flags=re.MULTILINE)
    assert sorted(rows) == sorted(event_kinds.Kind)
    assert set(event_kinds.Kind) >= event_kinds.SYNCED
