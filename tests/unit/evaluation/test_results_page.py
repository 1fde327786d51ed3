"""The page of an evaluation shows what was asked, and what could not be."""

from pathlib import Path

from mgpt4_hpc.evaluation.results import Evaluation, TaskResult, Told
from mgpt4_hpc.evaluation.results_page import write_page


def test_what_was_left_out_is_on_the_page_with_its_reason(tmp_path: Path) -> None:
    def page(*left_out: str) -> str:
        asked = TaskResult("detail", "Describe it.", (Told("a.jpg", "a <dog>", True, {}),))
        write_page(tmp_path / "p.html", "one", [], [Evaluation("one", (asked,), left_out)], [])
        return (tmp_path / "p.html").read_text()

    assert "<li>b.jpg: no &lt;image&gt;</li>" in page("b.jpg: no <image>")
    assert "a &lt;dog&gt;" in page() and "Left out" not in page()
