"""Run the long tests in parts and write what they found into docs/reliability.md.

make soak                              all parts: two or three hours on two cores
python tools/soak.py --only faults     one part; the page keeps what the others found before
python tools/soak.py --only faults --slurm 24.11      on this release of Slurm alone
python tools/soak.py --only faults -k disk      some of its tests; the same holds for the others
python tools/soak.py --render          write the page again, run nothing

Each part's results lie in docs/soak/PART.json, those of the faults in faults-RELEASE.json there;
the page is written from them and never by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from soak_page import render

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "docs" / "soak"
PAGE = REPO / "docs" / "reliability.md"
PARTS = {
    "faults": [
        f"tests/slurm/test_{name}.py"
        for name in (
            *("faults", "end_after_preemption", "many_preemptions", "successor", "suspended"),
            "held_and_forgotten",
        )
    ],
    "crashes": ["-m", "soak", "tests/unit/checkpoint"],
    "identity": [
        f"tests/slurm/test_{name}.py" for name in ("identity", "folder_faults", "schedules")
    ],
}
PARTS["others"] = [
    *("-m", "soak"),
    *(f"--ignore={word}" for part in PARTS.values() for word in part if word.startswith("tests/")),
]
"""What pytest is given for each; the last part is what the others leave."""
RELEASES = ("22.05", "24.11", "26.05")
"""Of Slurm, on which the faults run, one after the other."""

DEVCLUSTER = (sys.executable, str(REPO / "tools" / "devcluster"))
_VERSIONED = ("torch", "transformers", "timm", "submitit", "webdataset", "numpy")
_NO_TESTS = 5
"""What pytest ends with where nothing was selected."""


def read_cases(report: Path) -> list[dict[str, Any]]:
    """Tests in a JUnit report, in the order in which they ran.

    Each has ``name``, ``result`` ("passed", "failed" or "skipped"), ``seconds``, ``message`` and
    ``told``, what the test itself recorded. A test that fails and whose teardown fails is one case.
    """
    cases: dict[str, dict[str, Any]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('tests.')}.{case.get('name')}"
        fault = next((found for kind in ("failure", "error") for found in case.findall(kind)), None)
        skip = case.find("skipped")
        found = fault if fault is not None else skip
        result = "failed" if fault is not None else "passed" if skip is None else "skipped"
        before = cases.get(name)
        if before is not None and before["result"] != "passed":
            continue
        cases[name] = {
            "name": name,
            "result": result,
            "seconds": round(float(case.get("time", 0)), 1),
            "message": "" if found is None else _first_line(found.get("message") or ""),
            "told": {p.get("name"): p.get("value") for p in case.iter("property")},
        }
    return list(cases.values())


def _first_line(message: str) -> str:
    return (message.splitlines() or [""])[0][:200]


def run_part(part: str, arguments: list[str], release: str = "") -> int:
    """Run one part, on a release of Slurm if one is given, and write its results; pytest's code."""
    started = time.time()
    commit = _output("git", "rev-parse", "--short", "HEAD") or "unknown"
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as folder:
        report = Path(folder) / "report.xml"
        command = [
            # Of the two forms of its report this has properties.
            *(sys.executable, "-m", "pytest", f"--junitxml={report}", "-o", "junit_family=xunit1"),
            *(f"--basetemp={folder}/tests", *PARTS[part], *arguments),
        ]
        environment = {**os.environ, "MGPT4_ASSERT_TIMES": "1", "MGPT4_SLURM": release}
        code = subprocess.run(command, cwd=REPO, env=environment, check=False).returncode
        cases = read_cases(report) if report.exists() else []
    date = time.strftime("%Y-%m-%d", time.localtime(started))
    cases = [{**case, "commit": commit, "date": date} for case in cases]
    file = results_file(part, release)
    if arguments and file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))["cases"]
        cases = merge(before, cases, collected(part))
    RESULTS.mkdir(parents=True, exist_ok=True)
    results = {**place(started, release), "cases": cases}
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0 if code == _NO_TESTS else code


def results_file(part: str, release: str = "") -> Path:
    """Where the results of a part lie."""
    return RESULTS / (f"{part}-{release}.json" if release else f"{part}.json")


def merge(
    old: list[dict[str, Any]], new: list[dict[str, Any]], order: list[str]
) -> list[dict[str, Any]]:
    """Results of a part of which some tests ran again; without those of tests that are no more."""
    latest = {case["name"]: case for case in (*old, *new)}
    return [latest[name] for name in order if name in latest]


def collected(part: str) -> list[str]:
    """Names of all tests of a part, in their order."""
    listed = _output(sys.executable, "-m", "pytest", "--collect-only", "-q", *PARTS[part])
    tests = (line.partition("::") for line in listed.splitlines() if "::" in line)
    return [
        ".".join([*Path(file).with_suffix("").parts[1:], *test.split("::")])
        for file, _, test in tests
    ]


def place(started: float, release: str = "") -> dict[str, Any]:
    """When, where and with what the tests ran last."""
    return {
        "date": time.strftime("%Y-%m-%d", time.localtime(started)),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "load": [round(load, 1) for load in os.getloadavg()],
        "slurm": _output(*DEVCLUSTER, "install", "--check", "--slurm", release or "native"),
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {version(name)}" for name in _VERSIONED),
    }


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def write_page() -> None:
    """Write the page from the results of all parts that ever ran."""

    def read(part: str, release: str = "") -> dict[str, Any] | None:
        file = results_file(part, release)
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    faults = {release: read("faults", release) for release in RELEASES}
    others = {part: read(part) for part in PARTS if part != "faults"}
    PAGE.write_text(render(faults, others), encoding="utf-8")
    print(f"report: {PAGE.relative_to(REPO)}")


def main() -> int:
    """Parse, run, write; the worst of pytest's exit codes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="this part alone")
    parser.add_argument(
        "--slurm", choices=RELEASES, action="append", help="run the faults on this release alone"
    )
    parser.add_argument("--render", action="store_true", help="write the page, run nothing")
    known, arguments = parser.parse_known_args()
    codes = []
    for part in [] if known.render else known.only or PARTS:
        for release in (known.slurm or RELEASES) if part == "faults" else ("",):
            codes.append(run_part(part, arguments, release))
            write_page()
    if known.render:
        write_page()
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
