"""TensorBoard curves that survive requeues: one folder for the life of the run, no torch.

A requeued attempt replays the steps since its checkpoint. It opens the same folder with
`purge_step`, which hides what the dead attempt had drawn from there on, so that every step
appears once and the curve goes on where it was.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING

from mgpt4_hpc.telemetry import tags
from mgpt4_hpc.telemetry.event_file import EventFiles


class TensorBoardWriter:
    """Writes event files in the background. No call raises for the disk's sake.

    When the disk refuses, points wait in memory and are drawn once it takes them.

    Args:
        folder: RUN/tensorboard.
        purge_step: first step that this attempt will draw again, the restored one + 1: what was
            drawn at it and later is hidden. None where nothing was restored.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self.folder = Path(folder)
        self._closed = False
        first = []
        if purge_step is not None:
            # The first gives the step a file version of its own, the second hides what other
            # files have drawn from this step on: the pair that TensorBoard looks for.
            first.append(Event(step=purge_step, file_version="brain.Event:2"))
            session = SessionLog(status=SessionLog.START)
            first.append(Event(step=purge_step, session_log=session))
        self._events = EventFiles(self.folder, first)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Draw one point per tag at `step`.

        Raises:
            ValueError: a tag that tags.py does not list.
        """
        unknown = sorted(tag for tag in values.keys() - tags.ALL if not tag.startswith(tags.EVAL))
        if unknown:
            raise ValueError(f"unknown tags {unknown}; telemetry/tags.py lists them all")
        points = [
            Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()
        ]
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=points)))

    def text(self, step: int, tag: str, text: str) -> None:
        """Write Markdown under a tag."""
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(
            dtype=DT_STRING,
            string_val=[text.encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        )
        value = Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))

    def picture(self, step: int, tag: str, png: bytes) -> None:
        """Show a PNG under a tag; TensorBoard has a slider for its steps."""
        width, height = struct.unpack(">II", png[16:24])  # of the header, which comes first
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
        value = Summary.Value(tag=tag, image=image)
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))

    def attempt(self, step: int, number: int, note: str = "") -> None:
        """Mark that an attempt begins, with its number and a line of text."""
        self.text(step, tags.EVENTS, f"**attempt {number}** starts at step {step}. {note}".strip())

    def hyperparameters(
        self, step: int, values: Mapping[str, bool | float | str], run: str
    ) -> None:
        """Show the run under its settings in TensorBoard's HParams page.

        Args:
            step: where the attempt begins.
            values: settings by dotted key.
            run: its name; TensorBoard would average runs of equal settings without it.
        """
        # Imported here: it belongs to another page of TensorBoard's, and nothing else needs it.
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        summary = hparams_pb(dict(values), trial_id=run)
        self._add(Event(wall_time=time.time(), step=step, summary=summary))

    def finished(self, step: int) -> None:
        """Mark the run as done on the HParams page.

        It believes the first word about a run's end, so an attempt that comes back says nothing.
        """
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

        now = time.time()
        status = HParamsPluginData(
            session_end_info=SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=now)
        )
        value = Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(status),
            tensor=metadata.NULL_TENSOR,
        )
        self._add(Event(wall_time=now, step=step, summary=Summary(value=[value])))

    def flush(self) -> None:
        """Bring every point to the file; returns when it is there, or the disk refused."""
        if not self._closed:
            self._events.flush()

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is pending; give up after `timeout_s` seconds, as a mount may hang."""
        if not self._closed:
            self._closed = True
            self._events.close(timeout_s)

    def _add(self, event: Event) -> None:
        if not self._closed:
            self._events.add(event)
