"""A local run's process is recognised by more than its id."""

from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import Mgpt4
from tests.cli.synthetic import make_run, submitted
from tests.support.processes import sleeper


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return submitted(make_run(tmp_path / "runs"))


@pytest.mark.parametrize(
    "words", [(), ("mgpt4_hpc.launch.local",), ("mgpt4_hpc.launch.local", "/other/run/slurm")]
)
def test_a_process_with_a_reused_id_is_left_alone(
    mgpt4: Mgpt4, run: RunDir, words: tuple[str, ...]
) -> None:
    stranger = sleeper(*words)
    try:
        submitted(run, str(stranger.pid), executor="local")
        assert mgpt4("cancel", "one").out.startswith("one: nothing to cancel: lost")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
