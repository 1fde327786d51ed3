"""Tables on terminals of 40 to 100 columns: no run's name and no heading is ever cut."""

from __future__ import annotations

import pytest

from mgpt4_hpc.cli.shared import tables

NAME = "stage2-vicuna7b-seed17"


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_no_word_is_cut(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    headings = ("run", ">productive", ">weights loading", ">checkpoint stall", "nodes", ">goodput")
    table = tables.new_table(*headings, folding=("weights loading", "checkpoint stall", "nodes"))
    for number in range(3):
        nodes = ", ".join(f"gpu-node-{n:02d}" for n in range(number + 1))
        table.add_row(f"{NAME}-{number}", "12.25", "3.5", "0.25", nodes, "98.5%")
    tables.print_table(table)
    told = capsys.readouterr().out
    words = ("productive", "weights", "checkpoint", "gpu-node-02", "98.5%", f"{NAME}-2")
    assert [word for word in words if word not in told] == []


def test_a_pipe_gets_a_row_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    table = tables.new_table("run", "nodes", folding=("nodes",))
    table.add_row("one", "n " * 100)
    tables.print_table(table)
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(("kind", "is_so"), [("xterm", True), ("dumb", False)])
def test_a_dumb_terminal_cannot_be_drawn_over(
    kind: str, is_so: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", kind)
    assert tables.can_be_drawn_over() is is_so
