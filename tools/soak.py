"""Run the long tests and write a dated report: what ran, where, for how long, with which result.

make soak            writes docs/soak/YYYY-MM-DD.md, which is committed
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

REPO = Path(__file__).resolve().parents[1]
_VERSIONED = ("torch", "transformers", "timm", "submitit", "webdataset", "numpy")


@dataclass(frozen=True)
class Case:
    """One test of the run."""

    name: str
    result: str
    seconds: float
    message: str


def read_cases(report: Path) -> list[Case]:
    """Tests in a JUnit report, in the order in which they ran."""
    cases = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        found = next(
            (
                case.find(kind)
                for kind in ("failure", "error", "skipped")
                if case.find(kind) is not None
            ),
            None,
        )
        cases.append(
            Case(
                f"{case.get('classname', '').removeprefix('tests.')}.{case.get('name')}",
                "passed" if found is None else found.tag,
                float(case.get("time", 0)),
                "" if found is None else (found.get("message") or "").splitlines()[0][:200],
            )
        )
    return cases


def render(cases: list[Case], commit: str, started: float) -> str:
    """The report as Markdown."""
    slurm = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, check=False)
    packages = ", ".join(f"{name} {version(name)}" for name in _VERSIONED)
    passed = sum(case.result == "passed" for case in cases)
    lines = [
        f"# Soak of {time.strftime('%Y-%m-%d', time.localtime(started))}",
        "",
        f"- command: `make soak` at commit {commit}",
        f"- machine: {os.cpu_count()} cores, {platform.machine()}, {platform.system()}; "
        f"Python {platform.python_version()}; {slurm.stdout.strip() or 'no Slurm'}",
        f"- libraries: {packages}",
        f"- result: {passed} of {len(cases)} passed in {(time.time() - started) / 60:.0f} minutes",
        "",
        "| test | result | seconds |",
        "|---|---|---|",
    ]
    for case in cases:
        told = case.result + (f": {case.message}" if case.message else "")
        lines.append(f"| {case.name} | {told.replace('|', chr(92) + '|')} | {case.seconds:.0f} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Run pytest with the remaining arguments and write the report; pytest's exit code."""
    started = time.time()
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "soak", f"--junitxml={report}", *arguments]
        code = subprocess.run(command, cwd=REPO, check=False).returncode
        cases = read_cases(report)
    target = REPO / "docs" / "soak" / time.strftime("%Y-%m-%d.md", time.localtime(started))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render(cases, git.stdout.strip(), started), encoding="utf-8")
    print(f"report: {target.relative_to(REPO)}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
