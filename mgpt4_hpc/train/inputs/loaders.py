"""Where data and model meet: loaders that know the tokenizer and the model's sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path

import torch

from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.config.streams import is_streamed, stream_faults
from mgpt4_hpc.data.batching.batch import Batch
from mgpt4_hpc.data.batching.loader import LoaderOptions, StepLoader, ValLoader
from mgpt4_hpc.data.batching.text import TextSpec
from mgpt4_hpc.data.batching.url_stream import StreamLoader
from mgpt4_hpc.data.batching.workers import StillWaiting
from mgpt4_hpc.data.encoding.plan import sample_order
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.reading.feature_cache import FeatureCache
from mgpt4_hpc.data.reading.feature_cache_reader import FeatureReader
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.bundle.bundle import Bundle
from mgpt4_hpc.model.llm_files.chat_template import chat_format
from mgpt4_hpc.model.llm_files.tokenizer import TextTokenizer, load_tokenizer
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.train.inputs.node_staging import NodeStaging, open_staging
from mgpt4_hpc.train.step import forward_loss


def text_spec(config: RunConfig, tokenizer: TextTokenizer, bundle: Bundle) -> TextSpec:
    """How this run's captions and conversations become tokens."""
    context = bundle.llm_config.get("max_position_embeddings")
    limits = [config.text.max_tokens, *([context] if isinstance(context, int) else [])]
    return TextSpec(
        encode=tokenizer.encode,
        bos_id=tokenizer.bos_id,
        pad_id=tokenizer.pad_id,
        num_image_tokens=bundle.architecture.num_image_tokens,
        max_answer_tokens=config.max_answer_tokens,
        end_symbol=config.end_symbol,
        chat_format=chat_format(
            config.template, tokenizer, parse_control_tokens=config.text.parse_control_tokens
        ),
        keep_end_symbol=config.text.keep_end_symbol,
        max_tokens=min(limits),
        system=config.text.system,
        instructions=config.instructions,
        prompt_per=config.text.prompt_per,
        learn_pad=config.text.learn_padding_token,
        clean=config.stage == 1,
        max_words=config.max_words,
    )


def open_features(config: RunConfig) -> FeatureReader | None:
    """The run's encoded images, if it has any. Raises DataError if they are gone."""
    if config.data.feature_cache is None:
        return None
    cache = FeatureCache(Path(config.data.feature_cache))
    return FeatureReader(cache, [source.name for source in config.data.sources])


@dataclass
class Batches:
    """The training batches of one rank, and the held-out ones."""

    training: StepLoader
    held_out: ValLoader | None
    staging: NodeStaging = field(default_factory=NodeStaging)

    def __iter__(self) -> Iterator[list[Batch]]:
        for step in self.training:
            self.staging.advance(self.training.position)
            yield step

    def close(self) -> None:
        """End all workers."""
        self.training.close()
        if self.held_out is not None:
            self.held_out.close()
        self.staging.close()

    def evaluation(
        self,
        model: MiniGPT4,
        device: torch.device,
        ranks: Ranks,
        give_up: Callable[[], bool] = lambda: False,
    ) -> Callable[[], float | None] | None:
        """The held-out loss as a function; a mean over answer tokens of all ranks.

        Args:
            model: as it is trained.
            device: where it computes.
            ranks: this process among the others.
            give_up: asked before each batch; if any rank gives up, the result is None on all.
        """
        held_out = self.held_out
        if held_out is None:
            return None

        @torch.no_grad()
        def evaluate() -> float | None:
            """Mean loss per answer token over all ranks; None if a rank gave up."""
            loss_sum = torch.zeros((), device=device)
            tokens, gives_up = 0, False
            batches = _while_they_come(iter(held_out))
            for batch in _as_many_as_any(batches, held_out, ranks) if model.sharded else batches:
                # Not a collective per batch, unless there is one anyway: the ranks need not have
                # the same number of them.
                if gives_up := ranks.any_says(give_up()) if model.sharded else give_up():
                    break
                if batch is None:
                    model.idle_loss()
                    continue
                loss_sum += forward_loss(model, batch, device)
                tokens += batch.num_answer_tokens
            total, count, given_up = ranks.sum_on_cpu([loss_sum.item(), tokens, gives_up])
            return None if given_up else total / max(count, 1.0)

        return evaluate


def _while_they_come(batches: Iterator[Batch]) -> Iterator[Batch | None]:
    """The batches; in the end None, if one did not come before a stop did."""
    try:
        for batch in batches:  # noqa: UP028 - that would close the loader when it is broken off
            yield batch
    except StillWaiting:
        yield None


def _as_many_as_any(
    batches: Iterator[Batch | None], held_out: ValLoader, ranks: Ranks
) -> Iterator[Batch | None]:
    """This rank's batches, and None as often as another rank has more of them."""
    most = max(ranks.gather(len(held_out)))
    return chain(batches, repeat(None, most - len(held_out)))


def open_batches(
    config: RunConfig,
    indexes: Mapping[str, str],
    bundle: Bundle,
    ranks: Ranks,
    start_position: int,
    run: Path = Path(),
    give_up: Callable[[], bool] = lambda: False,
) -> Batches:
    """Loaders over the run's sources, from sample ``start_position`` on; workers start here.

    ``run`` is the run's path, which identifies its copies on a node;
    ``give_up`` says whether a stop was asked for, while storage keeps a batch from coming.
    """
    if is_streamed(config):
        return _open_streams(config, bundle, ranks, start_position, give_up)
    opened = [ShardIndex.open(indexes[source.name]) for source in config.data.sources]
    order = sample_order(config, opened)
    features = open_features(config)
    staging = NodeStaging()
    if features is None:
        staging = open_staging(config, run, order, opened, ranks, start_position)
    spec = text_spec(config, load_tokenizer(bundle.llm_dir), bundle)
    options = _loader_options(config, ranks, start_position, give_up)
    training = StepLoader(
        order,
        opened,
        spec,
        bundle.architecture.image_size,
        options,
        features=features,
        staged=staging.staged,
    )
    training.start()
    held_out = None
    if config.train.eval_every_steps:
        held_out = ValLoader(
            order,
            opened,
            spec,
            bundle.architecture.image_size,
            options,
            max_samples=config.train.eval_samples,
            features=features,
        )
        # Forked here with the others, not in the middle of the run beside the checkpoint thread.
        held_out.start()
    return Batches(training, held_out, staging)


def _loader_options(
    config: RunConfig, ranks: Ranks, start_position: int, give_up: Callable[[], bool]
) -> LoaderOptions:
    return LoaderOptions(
        micro_batch_size=config.train.micro_batch_size,
        global_batch_size=config.train.global_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_workers=config.data.num_workers,
        start_position=start_position,
        seed=config.seed,
        max_bad_fraction=config.data.max_bad_fraction,
        resize=config.data.resize,
        give_up=give_up,
    )


def _open_streams(
    config: RunConfig,
    bundle: Bundle,
    ranks: Ranks,
    start_position: int,
    give_up: Callable[[], bool],
) -> Batches:
    if faults := stream_faults(config):
        raise ConfigError("these sources cannot be streamed so", faults=faults)
    training = StreamLoader(
        config.data.sources,
        text_spec(config, load_tokenizer(bundle.llm_dir), bundle),
        bundle.architecture.image_size,
        _loader_options(config, ranks, start_position, give_up),
        granularity=config.data.granularity,
    )
    training.start()
    return Batches(training, None)
