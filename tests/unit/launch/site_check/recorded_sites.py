"""Sites as recorded from a real Slurm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mgpt4_hpc.launch.site_check.finding import Finding, Level
from mgpt4_hpc.launch.slurm.cluster import SlurmSite, parse_slurm_site

RECORDED = Path(__file__).parent / "recorded"


def site(name: str = "default", **replaced: tuple[str, str]) -> SlurmSite:
    """A recorded site; ``config=(old, new)`` changes its text."""
    texts = {
        kind: (RECORDED / f"slurm-22.05-{name}.{kind}").read_text()
        for kind in ("config", "partition")
    }
    texts["nodes"] = (RECORDED / "slurm-22.05-nodes").read_text()
    for kind, (old, new) in replaced.items():
        assert old in texts[kind], old
        texts[kind] = texts[kind].replace(old, new)
    return parse_slurm_site(texts["config"], texts["partition"], texts["nodes"])


def told(findings: Sequence[Finding], level: Level | None = None) -> str:
    return "\n".join(
        f"{one.what} | {one.fix}" for one in findings if level is None or one.level is level
    )
