from __future__ import annotations

from pathlib import Path

from mgpt4_hpc.launch.site_check.node_findings import node_findings
from mgpt4_hpc.run_dir import RunDir


def test_each_node_without_scontrol_is_named_once(tmp_path: Path) -> None:
    line = "warning: no scontrol on {}: the job cannot requeue itself\n"
    for name, log in {
        "one": "loading modules\n" + line.format("node-3") + line.format("node12.cluster"),
        "two": line.format("node-3"),
        "quoted": "its log ends with: " + line.format("node7"),
        "good": "step 1\n",
    }.items():
        run = RunDir(tmp_path / name)
        run.slurm.mkdir(parents=True)
        (run.slurm / "17_0_log.out").write_text(log)
    runs = [RunDir(path) for path in sorted(tmp_path.iterdir())]
    (finding,) = node_findings([*runs, RunDir(tmp_path / "gone")])
    assert finding.level == "warning" and "on node-3, node12.cluster:" in finding.what
    assert node_findings([RunDir(tmp_path / "good")]) == []
