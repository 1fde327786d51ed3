"""Tests of ``cli/data/convert.py``."""

import json
from pathlib import Path

from tests.cli.fakes import Mgpt4


def test_convert(mgpt4: Mgpt4, tmp_path: Path) -> None:
    rows = [{"url": f"http://a.org/{n}", "caption": "a dog"} for n in range(200)]
    (tmp_path / "list.json").write_text(json.dumps([*rows, {"url": "http://a.org/x"}]))
    made = mgpt4("data", "convert", "list.json", "--out", "all", "--json").json
    assert (made["num_rows"], made["num_written"], made["num_bad"]) == (201, 200, 1)
    assert made["reasons"] == {"it has no caption": 1}
    assert made["bad_rows"][0]["row"] == 200
    part = mgpt4("data", "convert", "list.json", "--out", "part", "--fraction", "0.3", "--seed", 5)
    assert "of 201 rows in 1 file," in part.out
    assert "1 bad: it has no caption" in part.out
    assert str(Path("part") / "bad_rows.jsonl") in part.err
    again = mgpt4("data", "convert", "list.json", "--out", "part")
    assert again.code == 1
    assert "is not an empty folder" in again.err
    gone = mgpt4("data", "convert", "nope.json", "--out", "none").err
    assert gone.count("nope.json") == 1 and "No such file" in gone
