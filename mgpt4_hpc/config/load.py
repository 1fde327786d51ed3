"""From files, environment and flags to one validated configuration that knows its origins.

Precedence: flag > environment (``MGPT4_*``) > site profile > config file > default.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mgpt4_hpc.config import keys
from mgpt4_hpc.config.assignments import ENV_PREFIX, Layer, env_layer
from mgpt4_hpc.config.epochs import STEPS, ConvertEpochs, StepCount
from mgpt4_hpc.config.original import import_original, is_original
from mgpt4_hpc.config.original_quirks import apply_faithful
from mgpt4_hpc.config.schema import ALONE, RunConfig
from mgpt4_hpc.config.sites import find_site, read_site
from mgpt4_hpc.config.streams import is_url, split_joined
from mgpt4_hpc.config.yaml_file import read_yaml
from mgpt4_hpc.errors import ConfigError, NoSuchStep
from mgpt4_hpc.resources import configs_dir, preset_names, resolve_path
from mgpt4_hpc.run_reference import located_path


class InvalidSettings(ConfigError):
    """Settings that are no configuration.

    Attributes:
        rest: the configuration without the wrong settings, in which other faults can be found;
            None if no part is right.
        wrong: keys of the settings that are left out there, and of those that misspelt ones may
            have meant; what depends on them is unknown.
    """

    def __init__(
        self,
        what: str,
        *,
        rest: Resolved | None = None,
        wrong: frozenset[str] = frozenset(),
        **details: Any,
    ) -> None:
        super().__init__(what, **details)
        self.rest = rest
        self.wrong = wrong


@dataclass(frozen=True)
class Resolved:
    """A validated configuration.

    Attributes:
        config: the values.
        origins: for each dotted key that was set, who set it; a key that is absent is a default.
        notes: where the environment replaces what the config file has; for the user.
    """

    config: RunConfig
    origins: dict[str, str]
    notes: tuple[str, ...] = ()

    def origin(self, key: str) -> str:
        """Who set a setting, or the entries of one that is a mapping."""
        entries = {
            origin
            for full, origin in self.origins.items()
            if full == key or full.startswith(f"{key}.")
        }
        return ", ".join(sorted(entries)) or "default"

    @property
    def digest(self) -> str:
        """BLAKE2b of everything that decides the result.

        The launch section and the name are left out, for a requeue may use other nodes.
        """
        return config_digest(self.config)


NOT_IN_DIGEST: Any = {
    "launch": True, "container": True, "name": True, "checkpoint": True,
    # Who reads the weights and where they lie: what is computed is the same, bit by bit.
    "model": {"read_once_per_node", "shard_llm"},
    # Of data.paths only those count that became a source's path, and those stand there.
    # What a feature cache holds is pinned; where it lies decides nothing.
    "data": {
        "paths", "shares", "num_workers", "max_bad_fraction", "feature_cache", "stage_to",
        "stage_gib",
    },
    "train": {
        "log_every_steps", "max_epochs", "early_stop", "eval_every_steps", "eval_samples",
        "eval_suites", "eval_images", "eval_answer_tokens", "save_every_s", "hang_timeout_s",
        "slow_timeout_s", "max_nonfinite_steps",
    },
}  # fmt: skip
"""Settings that leave every weight as it is; a run may continue with others."""

_NEWER = {
    "text": ("system", "max_tokens", "parse_control_tokens"),
    "train": ("lr_steps",),
}
"""Settings that older runs do not have. A default leaves their digests as they were."""


def config_digest(config: RunConfig) -> str:
    """Hex digest of the settings that decide a run's result, as runs have always been named.

    It has the paths of weights and data and the last step in it, see :func:`settings_digest`.
    """
    return _hash(_decisive(config))


def settings_digest(config: RunConfig) -> str:
    """Hex digest of the settings that decide what each step does: what a run is held to.

    Where weights and data lie is left out, for their content is pinned; and so is ``max_steps``,
    for a run that goes further does the same steps before.
    """
    return _hash(step_settings(config))


def step_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide what each step does, by their dotted keys."""
    nested = _decisive(config)
    for source in nested["data"]["sources"]:
        del source["path"], source["index"]
    del nested["model"]["weights"], nested["model"]["projector"], nested["train"]["max_steps"]
    nested["train"]["lr_steps"] = config.train.cosine_steps
    return keys.flatten(nested)


def keep_schedule(old: RunConfig, new: Resolved, origin: str) -> Resolved:
    """A run that goes further keeps its cosine's length, unless another is asked for."""
    train = new.config.train
    if train.lr_steps is not None or train.max_steps == old.train.max_steps:
        return new
    train = train.model_copy(update={"lr_steps": old.train.cosine_steps})
    config = new.config.model_copy(update={"train": train})
    return replace(new, config=config, origins={**new.origins, "train.lr_steps": origin})


def _decisive(config: RunConfig) -> dict[str, Any]:
    decisive = config.model_dump(mode="json", exclude=NOT_IN_DIGEST)
    for section, names in _NEWER.items():
        defaults = type(getattr(config, section)).model_fields
        for name in names:
            if getattr(getattr(config, section), name) == defaults[name].default:
                del decisive[section][name]
    return decisive


def _hash(decisive: Mapping[str, Any]) -> str:
    text = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def find_config(name: str) -> Path:
    """File of a preset name or a path.

    Raises:
        ConfigError: if there is neither; it lists the presets.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    preset = configs_dir() / f"{name}.yaml"
    if preset.is_file():
        return preset
    raise ConfigError(
        f"no config file or preset {name!r}",
        fix=f"give a YAML file or one of the presets: {', '.join(preset_names())}",
    )


@dataclass(frozen=True)
class Layers:
    """Settings of several origins, before they are merged.

    Attributes:
        layers: the last takes precedence.
        faults: variables of the environment that name no setting.
        notes: where the environment replaces what the config file has; for the user.
    """

    layers: tuple[Layer, ...]
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def resolve(
        self,
        faults: Iterable[str] = (),
        convert_epochs: ConvertEpochs | None = None,
        runs_dir: Path = Path("runs"),
    ) -> Resolved:
        """Merge and validate them; see :func:`load_config`.

        ``runs_dir`` is where a run is looked for that ``model.projector`` names.
        """
        wrong: list[str] = []
        for _, flat in self.layers:
            if "model.projector" in flat:  # a later layer replaces it
                wrong = locate_projector(flat, runs_dir)
        resolved = merge(self.layers, (*faults, *self.faults, *wrong), convert_epochs)
        return replace(resolved, notes=(*self.notes, *resolved.notes))


def read_layers(
    config: str | Path | None,
    overrides: Mapping[str, Any],
    *,
    site: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Layers:
    """Read config file, site profile and environment; arguments as of :func:`load_config`.

    Raises:
        ConfigError: if there is no such file, preset or site, or it cannot be read.
    """
    layers: list[Layer] = []
    if site is not None:
        path = find_site(str(site))
        layers.append((f"site {path.stem}", read_site(path)))
    environment, faults = env_layer(environ or {})
    layers += [environment, ("flag", dict(overrides))]
    notes: tuple[str, ...] = ()
    if config is not None:
        layers.insert(0, _file_layer(find_config(str(config)), layers))
        notes = _replaced(layers[0], environment[1], overrides)
    return Layers(tuple(layers), tuple(faults), notes)


def load_config(
    config: str | Path | None,
    *,
    overrides: Mapping[str, Any] | None = None,
    faults: Iterable[str] = (),
    site: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    convert_epochs: ConvertEpochs | None = None,
) -> Resolved:
    """Resolve one run's configuration.

    Args:
        config: preset name or YAML file, also one of the original's; None starts from the
            defaults.
        overrides: flat dotted keys from flags.
        faults: known faults of flags, reported with the rest.
        site: site profile, by name or path (see ``config/sites.py``).
        environ: environment to read; None reads nothing.
        convert_epochs: makes ``train.max_steps`` of ``train.max_epochs``.

    Raises:
        ConfigError: with every fault at once, also a flag that gives the path of a source that
            the run does not have.
    """
    overrides = overrides or {}
    layers = read_layers(config, overrides, site=site, environ=environ)
    resolved = layers.resolve(faults, convert_epochs)
    if faults := unknown_paths(overrides, [resolved]):
        raise ConfigError("cannot use these settings", faults=faults)
    return resolved


def _replaced(file: Layer, environ: Mapping[str, Any], flags: Mapping[str, Any]) -> tuple[str, ...]:
    """Where a variable, set perhaps long ago, wins over a config file that was named just now."""
    origin, values = file
    return tuple(
        f"{key} is {environ[key]} as the environment has it ({ENV_PREFIX}*), and not "
        f"{values[key]} as in {origin}"
        for key in values
        if key in environ and key not in flags and environ[key] != values[key]
    )


def locate_projector(flat: dict[str, Any], runs_dir: Path) -> list[str]:
    """Replace a run or a checkpoint that ``model.projector`` names by its path; faults."""
    text = flat.get("model.projector")
    if isinstance(text, str):
        try:
            flat["model.projector"] = located_path(text, runs_dir)
        except NoSuchStep as error:
            return [f"model.projector: {error.what}; {error.fix}"]
    return []


def unknown_paths(overrides: Mapping[str, Any], resolved: Iterable[Resolved]) -> list[str]:
    """Flags that name a source that none of the runs has, each with what there is.

    A site or the environment may name more sources than a run reads; who types a flag means one.
    """
    known = [source.name for run in resolved for source in run.config.data.sources]
    listed = ", ".join(dict.fromkeys(known))
    named = [key for key in keys.split_mappings(overrides) if key.startswith(_BY_SOURCE)]
    return [
        f"{key}: there is no data source {name!r}, only {listed}; for sources of your own: "
        f"--set 'data.sources=[{{name: {name}, path: ...}}]'"
        for key in named
        if (name := key.split(".", 2)[2]) not in known
    ]


_BY_SOURCE = ("data.paths.", "data.shares.")


def idle_clearings(overrides: Mapping[str, Any]) -> list[str]:
    """Flags that clear a mapping which a run's sources have taken in: they would change nothing."""
    return [
        f"{key}: a run's sources keep their own; set {key}.SOURCE"
        for key in ("data.paths", "data.shares")
        if overrides.get(key) == {}
    ]


def _file_layer(path: Path, above: list[Layer]) -> Layer:
    """The settings in a file; one of the original's is translated."""
    nested = read_yaml(path)
    if not is_original(nested):
        return f"file {path.name}", keys.flatten(nested)
    # The original's batch size is per GPU, so that the global one needs to know how many.
    gpus = [flat["launch.gpus"] for _, flat in above if "launch.gpus" in flat]
    known = gpus[-1] if gpus and isinstance(gpus[-1], int) and gpus[-1] > 0 else None
    return f"file {path.name}", import_original(nested, path, gpus=known).settings


def merge(
    layers: Iterable[Layer],
    faults: Sequence[str] = (),
    convert_epochs: ConvertEpochs | None = None,
) -> Resolved:
    """Lay ``layers`` over one another, the last on top, and validate the result.

    Args:
        layers: settings by their origin.
        faults: known faults, reported with those found here.
        convert_epochs: makes ``train.max_steps`` of ``train.max_epochs``.

    Raises:
        ConfigError: with every fault at once.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    counts = StepCount()
    for origin, flat in layers:
        for key, value in keys.split_mappings(flat).items():
            if key in keys.MAPPINGS:  # as a whole: {} clears it, and any other value is wrong
                for entry in [entry for entry in values if entry.startswith(f"{key}.")]:
                    del values[entry], origins[entry]
            values[key] = value
            origins[key] = origin
        counts.see(flat)
    apply_faithful(values, origins)
    unknown_steps = counts.settle(values, origins, convert_epochs)
    faults = [*faults, *unknown_steps]
    wrong = keys.suggested(faults) | {STEPS for _ in unknown_steps}
    try:
        config = RunConfig.model_validate(keys.unflatten(values))
    except ValidationError as error:
        own = [item for item in error.errors() if item["loc"]]
        faults += [fault for item in own for fault in keys.explain(item, origins)]
        wrong |= {".".join(map(str, item["loc"][:2])) for item in own} | keys.suggested(faults)
        faults += _contradictions(values, origins, wrong)
    if faults:
        raise InvalidSettings(
            "the configuration has faults",
            faults=faults,
            fix=LISTED,
            rest=_rest(values, origins, wrong),
            wrong=wrong,
        )
    return Resolved(with_absolute_paths(config), origins, counts.notes)


LISTED = "`mgpt4 config keys` lists every setting"
"""Where to look after a wrong setting."""


_ANY: dict[str, Any] = {
    "stage": 1,
    "data.sources": [{"name": "any"}],
    "train.global_batch_size": 1,
    "train.micro_batch_size": 1,
    "train.max_steps": 1,
    "train.lr": 1.0,
}
"""Stands in for required settings that are missing or wrong, to look at the others."""


def _without(values: Mapping[str, Any], wrong: frozenset[str]) -> dict[str, Any]:
    """The settings that are right, between stand-ins, as pydantic takes them."""
    parts = {key: key.split(".") for key in values}
    return keys.unflatten(
        _ANY
        | {
            key: values[key]
            for key, names in parts.items()
            if not wrong & {names[0], ".".join(names[:2])}
        }
    )


def _contradictions(
    values: Mapping[str, Any], origins: Mapping[str, str], wrong: frozenset[str]
) -> list[str]:
    """Faults of several settings, which pydantic does not look for while a single one is wrong."""
    try:
        RunConfig.model_validate(_without(values, wrong) if wrong else keys.unflatten(values))
    except ValidationError as error:
        # What is wrong has another value now, so that whatever mentions it may not be true.
        return [
            fault
            for item in error.errors()
            if not item["loc"]
            for fault in keys.explain(item, origins)
            if not keys.mentions(fault, wrong)
        ]
    return []


def _rest(
    values: Mapping[str, Any], origins: dict[str, str], wrong: frozenset[str]
) -> Resolved | None:
    try:
        rest = RunConfig.model_validate(_without(values, wrong), context=ALONE)
    except ValidationError:
        return None
    if "data.sources" in wrong or "data.sources" not in values:
        rest = rest.model_copy(update={"data": rest.data.model_copy(update={"sources": ()})})
    return Resolved(with_absolute_paths(rest), origins)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same configuration with every path made absolute, for jobs run elsewhere.

    ``data.paths`` becomes the paths of the sources that it names, ``data.shares`` their weights.
    """
    paths = {name: _absolute(path) for name, path in config.data.paths.items()}
    sources = tuple(
        source.model_copy(
            update={
                "path": paths.get(source.name) or _absolute(source.path),
                "index": resolve_path(source.index) if source.index else None,
                "weight": config.data.shares.get(source.name, source.weight),
            }
        )
        for source in config.data.sources
    )
    model = config.model.model_copy(
        update={
            "weights": _absolute(config.model.weights),
            "projector": resolve_path(config.model.projector) if config.model.projector else None,
        }
    )
    cache = config.data.feature_cache
    data = config.data.model_copy(
        update={
            "sources": sources,
            "paths": paths,
            "feature_cache": resolve_path(cache) if cache else None,
        }
    )
    return config.model_copy(update={"model": model, "data": data})


def _absolute(path: str) -> str:
    parts = split_joined(path)
    return "::".join(resolve_path(part) if part and not is_url(part) else part for part in parts)
