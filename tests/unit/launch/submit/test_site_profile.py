"""Tests of ``launch/submit/site_profile.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.launch.submit.site_profile import choose_site, cluster_name
from tests.unit.config.profiles import write


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment with a sites folder, a home and a user of its own."""
    (tmp_path / "sites").mkdir()
    return {"MGPT4_SITES_DIR": str(tmp_path / "sites"), "HOME": str(tmp_path), "USER": "ann"}


def test_a_flag_the_variable_and_the_clusters_name_in_this_order(
    environ: dict[str, str], tmp_path: Path
) -> None:
    for name in ("flagged", "named", "clustered"):
        write(tmp_path / "sites", name)

    def chosen(given: str | None, **more: str) -> tuple[str, str] | None:
        site = choose_site(given, {**environ, "PATH": "/nowhere", **more})
        return (site.name, site.why) if site else None

    cluster = {"SLURM_CLUSTER_NAME": "clustered"}
    variable = {"MGPT4_SITE": "named", **cluster}
    assert chosen("flagged", **variable) == ("flagged", "flag")
    assert chosen(None, **variable) == ("named", "MGPT4_SITE")
    assert chosen(None, **cluster) == ("clustered", "the cluster's name")
    assert chosen(None, SLURM_CLUSTER_NAME="other") is None
    assert chosen(None, SLURM_CLUSTER_NAME="example-a100") is None, "examples hold nowhere"


def test_the_clusters_name_is_read_from_its_configuration(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text("# ClusterName=no\n  clustername = Perlmutter  # comment\nSlurmctldHost=h\n")
    assert cluster_name({"SLURM_CONF": str(conf), "PATH": "/nowhere"}) == "perlmutter"
    assert cluster_name({"SLURM_CONF": str(tmp_path / "none"), "PATH": "/nowhere"}) == ""


def test_without_profiles_of_ones_own_slurm_is_not_asked(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("nobody needs the name")

    monkeypatch.setattr("mgpt4_hpc.launch.submit.site_profile.cluster_name", asked)
    assert choose_site(None, environ) is None
