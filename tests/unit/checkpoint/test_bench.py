import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

TOOL = Path(__file__).parents[3] / "tools" / "bench_checkpoint.py"


@pytest.mark.slow
def test_the_benchmark_reports_what_it_promises(tmp_path):
    spec = importlib.util.spec_from_file_location("bench_checkpoint", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    arguments = ["--json", "--size", "7B", "--repeats", "3", "--folder", str(tmp_path)]
    result = CliRunner().invoke(tool.main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    row = report["sizes"]["7B"]
    assert row["bytes"] == 3 * 4 * 3_149_824
    assert row["stall_over_copy"] > 0 and row["durable_s"] > row["stall_s"] > 0
    assert row["overhead_fraction"] < 0.005
    assert list(tmp_path.iterdir()) == []
