"""Every TensorBoard tag. The x-axis is always the optimizer step.

| tag | what | unit |
|---|---|---|
| `train/loss` | mean cross entropy per answer token of that step's global batch | nats |
| `train/lr` | learning rate of the step | |
| `train/grad_norm` | L2 norm of the projector's gradient, before clipping | |
| `train/skipped_steps` | steps without an update in the whole run: NaN, infinity, fp16 overflow | |
| `val/loss` | mean cross entropy per answer token over the held-out samples | nats |
| `time/step_s` | median seconds per optimizer step since the last point | s |
| `time/data_wait_fraction` | share of the time that the step waited for samples | 0 to 1 |
| `throughput/samples_per_s` | samples of all ranks per second | 1/s |
| `throughput/mfu` | model FLOPs utilisation | 0 to 1 |
| `memory/peak_gib` | largest memory allocated on this rank's device | GiB |
| `data/skipped` | samples substituted since the run began | |
| `data/cut_turns` | turns left out of that step's conversations, which were too long | |
| `checkpoint/stall_s` | seconds for which the save held the step up | s |
| `checkpoint/durable_s` | seconds from the save's start until it survives a power cut | s |
| `checkpoint/failures` | saves that failed in this attempt | |
| `run/attempt` | number of the attempt that drew the point | |
| `run/goodput` | productive time / time since the run's first start | 0 to 1 |
| `eval/` | set (if another), task and metric: `eval/detail_failing`; see `mgpt4 eval` | 0 to 1 |
| `eval/` | images and text: what was answered, by task, as `eval/detail` | |
| `run/card` | text: settings, code, versions and nodes of each attempt | |
| `run/changes` | text: settings that the user changed, and from which step on | |
| `run/events` | text: starts, restores, stops, faults | |
"""

from __future__ import annotations

TRAIN_LOSS = "train/loss"
TRAIN_LR = "train/lr"
TRAIN_GRAD_NORM = "train/grad_norm"
SKIPPED_STEPS = "train/skipped_steps"
VAL_LOSS = "val/loss"
STEP_S = "time/step_s"
DATA_WAIT_FRACTION = "time/data_wait_fraction"
SAMPLES_PER_S = "throughput/samples_per_s"
MFU = "throughput/mfu"
PEAK_GIB = "memory/peak_gib"
SKIPPED = "data/skipped"
CUT_TURNS = "data/cut_turns"
CHECKPOINT_STALL_S = "checkpoint/stall_s"
CHECKPOINT_DURABLE_S = "checkpoint/durable_s"
CHECKPOINT_FAILURES = "checkpoint/failures"
ATTEMPT = "run/attempt"
GOODPUT = "run/goodput"
CARD = "run/card"
CHANGES = "run/changes"
EVENTS = "run/events"
EVAL = "eval/"

ALL = frozenset(
    value for name, value in list(globals().items()) if name.isupper() and isinstance(value, str)
)
"""Every tag above, for the writer, which refuses a misspelled one."""
