"""How many steps a run has; the user may change it while it trains."""

from __future__ import annotations

from dataclasses import dataclass, field

from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.config.schema import RunConfig, TrainConfig
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.train.inputs.pins import repin_values
from mgpt4_hpc.train.inputs.resolve import pinned_values
from mgpt4_hpc.train.recorder import Recorder
from mgpt4_hpc.train.state import TrainState


@dataclass
class PlannedSteps:
    """``train.max_steps`` as config.yaml has it now; for the first rank.

    The file is read again only where it is another than before. What cannot be read changes
    nothing.

    Attributes:
        run: the run.
        config: the settings that this attempt began with; the numbers of steps as they are now.
        recorder: records a change.
        state: where the run stands.
    """

    run: RunDir
    config: RunConfig
    recorder: Recorder
    state: TrainState
    _seen: tuple[int, int] | None = field(default=None, init=False)

    def __call__(self) -> int:
        """The number of steps; a change is noted once, in ledger, curves and pins."""
        try:
            stat = self.run.config_file.stat()
            if self._seen != (stat.st_ino, stat.st_mtime_ns):
                self._seen = stat.st_ino, stat.st_mtime_ns
                self._follow(read_config(self.run.config_file).config.train)
        except (OSError, ValueError, MgptError):
            pass  # as it was; a change that is not noted here is noted at the next start
        return self.config.train.max_steps

    def _follow(self, wanted: TrainConfig) -> None:
        old = self.config.train
        if wanted.max_steps == old.max_steps:
            return
        # The cosine keeps its length, which the file names from now on.
        new = {"max_steps": wanted.max_steps, "lr_steps": wanted.lr_steps}
        train = old.model_copy(update=new)
        self.config = self.config.model_copy(update={"train": train})
        changed = [
            f"train.{name} was {getattr(old, name)}, is {value}"
            for name, value in new.items()
            if getattr(old, name) != value
        ]
        self.recorder.changed(self.state.step, changed)
        repin_values(self.run, pinned_values(self.config))
