"""The folder of links that TensorBoard reads."""

from __future__ import annotations

from pathlib import Path

from mgpt4_hpc.launch.side_jobs.tensorboard import link_runs
from mgpt4_hpc.run_dir import RunDir


def test_a_link_for_each_run_and_none_for_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    one, same_name, two = (RunDir(tmp_path / name) for name in ("a/one", "b/one", "a/two"))

    def linked() -> dict[str, str]:
        return {path.name: str(path.readlink()) for path in folder.iterdir()}

    link_runs(folder, [one, same_name])
    assert linked() == {"one": str(one.tensorboard), "one (2)": str(same_name.tensorboard)}
    link_runs(folder, [same_name, two])
    assert linked() == {"one": str(same_name.tensorboard), "two": str(two.tensorboard)}
