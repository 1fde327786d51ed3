"""Tests of ``telemetry/tags.py``."""

import re

from mgpt4_hpc.telemetry import tags


def test_the_table_of_tags_is_complete():
    documented = set(re.findall(r"^\| `([a-z_/]+)` \|", tags.__doc__, re.MULTILINE))
    assert documented == tags.ALL
