"""The schema, and where each value comes from: presets, files, site profiles, command line.

Reads no data and no weights, and asks no Slurm.
"""

from mgpt4_hpc.config.load import Resolved, load_config
from mgpt4_hpc.config.schema import RunConfig

__all__ = ["Resolved", "RunConfig", "load_config"]
