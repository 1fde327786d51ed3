"""``tools/soak.py`` reads what pytest and the tests recorded, and its page hides no failure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[3] / "tools"

REPORT = """\
<testsuites><testsuite>
<testcase classname="tests.slurm.test_faults" name="test_fault[one]" time="61.2">
  <properties><property name="fault" value="scancel"/><property name="attempts" value="2"/>
  <property name="causes" value="a | b"/><property name="durable_s" value="1.26"/>
  <property name="next_s" value="2.04"/></properties>
</testcase>
<testcase classname="tests.slurm.test_faults" name="test_fault[two]" time="3">
  <properties><property name="fault" value="SIGSTOP of rank 0"/></properties>
  <failure message="AssertionError: not within 5 s&#10;and more">trace</failure>
</testcase>
<testcase classname="tests.slurm.test_faults" name="test_fault[two]" time="1">
  <error message="teardown">trace</error></testcase>
<testcase classname="tests.slurm.test_faults" name="test_fault[three]" time="0">
  <skipped message="no Slurm"/></testcase>
</testsuite></testsuites>
"""


@pytest.fixture
def cases(tmp_path: Path) -> list[dict]:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    return json.loads(_python("print(json.dumps(soak.read_cases(Path(sys.argv[1]))))", report))


def test_cases_are_read_once_each_with_what_they_told(cases: list[dict]) -> None:
    assert [case["result"] for case in cases] == ["passed", "failed", "skipped"]
    assert cases[0]["told"] == {
        "fault": "scancel", "attempts": "2", "causes": "a | b", "durable_s": "1.26",
        "next_s": "2.04",
    }  # fmt: skip
    assert cases[1]["message"] == "AssertionError: not within 5 s"


def test_the_page_shows_failures_and_parts_that_never_ran(cases: list[dict]) -> None:
    found = {
        "date": "2030-01-02", "machine": "m", "load": [1.0, 1.0, 1.0], "slurm": "slurm 1",
        "python": "3", "libraries": "torch 1",
        "cases": [{**case, "commit": "c", "date": "2030-01-01"} for case in cases],
    }  # fmt: skip
    page = _python(
        "found = json.loads(sys.argv[1])\n"
        "others = {'crashes': None, 'identity': found}\n"
        "print(soak.render({'22.05': found, '24.11': None}, others))",
        json.dumps(found),
    ).splitlines()
    assert "| what was done | what happened | seconds | date | commit |" in page
    scancel = "| scancel | passed, 2 attempts, durable 1.26 s, next run after 2.0 s |"
    assert f"{scancel} 61 | 2030-01-01 | c |" in page
    assert "| fault | 22.05 | 24.11 |" in page
    assert f"{scancel} not run |" in page
    assert "| SIGSTOP of rank 0 | FAILED: AssertionError: not within 5 s | not run |" in page
    assert "| fault [three] | skipped: no Slurm | not run |" in page
    assert any(
        line.startswith("- 1 of 3 passed, in 1 minutes, last on 2030-01-02, at c:") for line in page
    )
    assert "Not run yet: `python tools/soak.py --only faults --slurm 24.11`." in page
    assert "Not run yet: `python tools/soak.py --only crashes`." in page


def test_a_test_that_ran_again_replaces_its_earlier_result(cases: list[dict]) -> None:
    again = [{**cases[1], "result": "passed"}, {**cases[0], "name": "another"}]
    order = ["another", cases[1]["name"], cases[0]["name"], "never ran"]
    merged = json.loads(
        _python("print(json.dumps(soak.merge(*map(json.loads, sys.argv[1:]))))",
                json.dumps(cases), json.dumps(again), json.dumps(order))
    )  # fmt: skip
    assert [case["name"] for case in merged] == order[:3], "the third test is no more"
    assert [case["result"] for case in merged] == ["passed", "passed", "passed"]


@pytest.mark.slow
def test_collected_tests_have_the_names_of_the_report() -> None:
    names = json.loads(_python("print(json.dumps(soak.collected('crashes')))"))
    assert "unit.checkpoint.test_kill.test_killed_at_random_moments[50]" in names


def _python(statement: str, *arguments: object) -> str:
    code = f"import json, sys; from pathlib import Path; import soak; {statement}"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=TOOLS,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
