import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.errors import SlurmUnreachable
from mgpt4_hpc.launch.site_check import doctor
from tests.cli.fakes import Mgpt4
from tests.cli.test_main import HEAVY, PROBE
from tests.support.shown import assert_schema
from tests.unit.launch.site_check.recorded_sites import site


@pytest.fixture
def with_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded site, where sbatch would take any job."""
    monkeypatch.setattr("mgpt4_hpc.launch.slurm.commands.has_slurm", lambda: True)
    monkeypatch.setattr(doctor, "read_slurm_site", site)
    # What the testing machine happens to be is no part of the test.
    monkeypatch.setattr("mgpt4_hpc.launch.site_check.doctor_folder.file_system", lambda _: "nfs4")
    monkeypatch.setattr("mgpt4_hpc.launch.site_check.doctor_folder.not_shared", lambda _: "")
    monkeypatch.setattr("mgpt4_hpc.launch.site_check.doctor_machine.not_shared", lambda _: "")
    monkeypatch.setattr(
        "mgpt4_hpc.launch.site_check.doctor_machine.torch_build", lambda: ("2.14", "13.0")
    )
    answers = {"sacctmgr": "dev||normal\n"}

    def answer(words: list[str], **_: object) -> str:
        return answers.get(words[0], "")

    monkeypatch.setattr("mgpt4_hpc.launch.slurm.commands.run_slurm", answer)
    monkeypatch.setattr("mgpt4_hpc.launch.slurm.accounting.run_slurm", answer)


@pytest.mark.usefixtures("with_slurm")
def test_a_partition(mgpt4: Mgpt4) -> None:
    ended = mgpt4("doctor", "--partition", "a100-preempt")
    assert ended.code == 0, ended.out
    out = " ".join(ended.out.split())
    assert "20 s of grace" in out and "what happens to a run in a100-preempt" in out
    assert "--set launch.partition=a100-preempt" in ended.out

    told = mgpt4("doctor", "--json").json
    assert_schema("doctor", told)
    assert told["ok"] and told["faults"] == 0
    assert [one["partition"] for one in told["partitions"]] == ["a100", "a100-preempt"]
    assert {"level", "topic", "what", "fix"} == set(told["findings"][0])


@pytest.mark.usefixtures("with_slurm")
def test_faults_end_with_3_and_their_fix(mgpt4: Mgpt4) -> None:
    ended = mgpt4("doctor", "-p", "a10")
    assert ended.code == 3
    assert "fix: use one of: a100, a100-preempt" in ended.out
    assert "1 fault" in ended.out
    assert mgpt4("doctor", "-p", "a10", "--json").json["ok"] is False


@pytest.mark.usefixtures("with_slurm")
def test_what_the_site_profile_names_is_examined(
    mgpt4: Mgpt4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = tmp_path / "the-sites", tmp_path / "given"
    profile = tmp_path / "here.yaml"
    profile.write_text(f"launch: {{runs_dir: {folder}, account: vision, qos: long}}\n")
    asked: list[list[str]] = []
    monkeypatch.setattr(
        "mgpt4_hpc.launch.slurm.commands.run_slurm",
        lambda words, **_: str(asked.append(list(words)) or ""),
    )
    monkeypatch.delenv("MGPT4_RUNS_DIR", raising=False)
    ended = mgpt4("doctor", "--site", str(profile))
    assert "site profile here, chosen by flag" in ended.out
    assert str(folder) in ended.out
    assert any({"--account=vision", "--qos=long"} <= set(words) for words in asked)
    assert str(other) in mgpt4("doctor", "--site", str(profile), "--runs-dir", str(other)).out


@pytest.mark.usefixtures("with_slurm")
def test_slurm_does_not_answer(mgpt4: Mgpt4, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent() -> None:
        raise SlurmUnreachable("`scontrol show config` cannot reach Slurm: down", fix="try again")

    monkeypatch.setattr(doctor, "read_slurm_site", silent)
    ended = mgpt4("doctor")
    assert ended.code == 5
    assert "cannot reach Slurm" in ended.err
    assert "runs folder" in ended.out and "Python" in ended.out
    assert ended.out.startswith("\nSlurm\n  warning")
    assert "Slurm could not be asked" in ended.out.splitlines()[-1]
    assert "drill" not in ended.out
    assert "cannot reach Slurm" in mgpt4("doctor", "--json").json["unreachable"]


@pytest.mark.slow
def test_it_imports_nothing_heavy(tmp_path: Path) -> None:
    """On a login node it must be there in a second; torch's facts are read from its files."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=HEAVY), "doctor", "--runs-dir", str(tmp_path)],
        env={"PATH": str(tmp_path)},  # neither Slurm nor GPUs
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == "LOADED [] CODE 0", done.stdout + done.stderr


def test_no_slurm_at_all(mgpt4: Mgpt4, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mgpt4_hpc.launch.slurm.commands.has_slurm", lambda: False)
    ended = mgpt4("doctor", "--runs-dir", tmp_path)
    assert ended.code == 0, ended.out
    assert "--executor local" in ended.out and "renames" in ended.out
    assert mgpt4("doctor", "-p", "a100").code == 3
