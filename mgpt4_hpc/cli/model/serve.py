"""``mgpt4 serve``: a conversation about images in a web browser, or by OpenAI's API."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgpt4_hpc.cli.shared.model_options import (
    find_model,
    locate,
    make_sampling,
    model_options,
    sampling_options,
    say_toy,
)
from mgpt4_hpc.cli.shared.options import Number, absolute, runs_dir_option
from mgpt4_hpc.cli.shared.srun_options import go_to_node, slurm_options, split_slurm
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.run_reference import find_all

if TYPE_CHECKING:
    from mgpt4_hpc.chat.server import Endpoint
    from mgpt4_hpc.chat.shared_model import SharedModel
    from mgpt4_hpc.model.generation.chat_model import ChatModel, ModelSource

FIRST_PORT = 7860
"""Gradio's own; the next free one is taken where it is in use."""
_SHORTEST_TOKEN = 8


@click.command(
    "serve", short_help="A web page and an API to talk with a trained model about images."
)
@click.argument("models", nargs=-1, metavar="[RUN|CHECKPOINT|FILE]...")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; others than this machine's own ask for a token.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), help=f"Port; 0 is any. [{FIRST_PORT}, or the next]"
)
@click.option(
    "--token",
    envvar="MGPT4_SERVE_TOKEN",
    help="Asked of every visitor, at least 8 characters; better given as MGPT4_SERVE_TOKEN, which "
    "`ps` does not show.",
)
@click.option("--api", is_flag=True, help="Answer OpenAI's chat completions API below /v1 too.")
@click.option("--no-page", is_flag=True, help="With --api: without the page.")
@click.option(
    "--max-upload-mib",
    type=Number(0.1, 1024),
    default=20,
    show_default=True,
    help="Size of an image.",
)
@click.option(
    "--max-megapixels",
    type=Number(0.01, 100),
    default=50,
    show_default=True,
    help="Width times height of an image, in millions.",
)
@model_options
@sampling_options
@runs_dir_option
@slurm_options
@click.pass_context
def serve_command(
    context: click.Context,
    /,
    models: tuple[str, ...],
    host: str,
    port: int | None,
    token: str | None,
    api: bool,
    no_page: bool,
    max_upload_mib: float,
    max_megapixels: float,
    weights: str | None,
    template: str | None,
    device: str,
    precision: str,
    runs_dir: Path,
    **others: Any,
) -> None:
    """Serve a page with image upload, conversation, sampling sliders and the MODELS to choose from.

    The models share one copy of the frozen weights, so they must be of one variant; without any,
    the projector in the bundle (--weights) answers. The page listens on this machine only: the
    printed ssh line brings it to yours. Ctrl-C stops it. Uploads are not kept.

    With --api, clients of OpenAI's API use the printed address as base_url, and the token, where
    there is one, as api_key. Answers of several requests are computed in one batch.

    \b
    mgpt4 serve stage1-vicuna7b stage2-vicuna7b
    mgpt4 serve stage2-vicuna7b --api --slurm --partition a100

    --slurm ends with the terminal. docs/serve.md has the sbatch line of an endpoint that stays.
    """
    if no_page and not api:
        raise ConfigError("--no-page leaves nothing to serve", fix="give --api too")
    node, sampling = split_slurm(others)
    settings = make_sampling(**sampling)
    from mgpt4_hpc.chat.limits import Limits
    from mgpt4_hpc.chat.server import require_gradio, serve

    require_gradio()
    if node.wanted:
        _own_or_made_token(token, host)
        find = partial(find_model, runs_dir=absolute(runs_dir), weights=weights)
        check = partial(find_all, models or (None,), find)
        go_to_node(node, context, terminal=sys.stdin.isatty(), check=check)
        return
    endpoint = _listen(host, port, token)
    place = partial(locate, runs_dir=absolute(runs_dir), weights=weights, template=template)
    sources = find_all(models, place) if models else [place(None)]
    shared_model, chat_model = _open_shared_model(sources, device, precision)
    page = not no_page
    limits = Limits(int(max_upload_mib * 2**20), int(max_megapixels * 1e6), _longest(chat_model))
    ready = partial(_print_ready, shared_model, chat_model, sources[0], endpoint, page, api)
    serve(shared_model, settings, limits, endpoint, page=page, api=api, on_ready=ready)
    click.echo("stopped", err=True)


def _open_shared_model(
    sources: Sequence[ModelSource], device: str, precision: str
) -> tuple[SharedModel, ChatModel]:
    """Load the weights, which takes its time."""
    from mgpt4_hpc.chat.shared_model import SharedModel, require_shared
    from mgpt4_hpc.model.generation.chat_model import ChatModel

    require_shared(sources)
    chat_model = ChatModel(sources[0], device=device, precision=precision)
    return SharedModel(chat_model, sources), chat_model


def _longest(chat_model: Any) -> int:
    """End of the slider: half of what the language model can hold, the rest is for questions."""
    from mgpt4_hpc.model.generation.prompt_embedding import context_length

    return max(16, min(2048, (context_length(chat_model.model) or 2048) // 2))


def _print_ready(
    shared_model: SharedModel,
    chat_model: ChatModel,
    source: ModelSource,
    endpoint: Endpoint,
    page: bool,
    api: bool,
) -> None:
    """Print the models' names and their device, a notice if they are toys, and the address."""
    names = ", ".join(shared_model.speakers)
    click.echo(f"{names} on {chat_model.model.device}; Ctrl-C stops", err=True)
    say_toy(source)
    _print_address(endpoint, page=page, api=api)


def _print_address(endpoint: Endpoint, *, page: bool, api: bool) -> None:
    """How to reach it on stderr; on stdout the page's URL, or the API's where there is no page."""
    from mgpt4_hpc.launch.side_jobs.tunnel import LOOPBACK, tunnel_line

    host, port, token = endpoint.host, endpoint.port, endpoint.token
    click.echo(f"from your own machine:  {tunnel_line(host, port)}", err=True)
    if host not in LOOPBACK:
        click.echo(
            "the connection is not encrypted: on a network you do not trust use the line above",
            err=True,
        )
    # What listens on every address is reached under this machine's own.
    name = "127.0.0.1" if host in ("localhost", "0.0.0.0", "::") else host
    url = f"http://{f'[{name}]' if ':' in name else name}:{port}/"
    if api:
        key = f"  api_key: {token}" if token else ""
        click.echo(f"for OpenAI's clients:  base_url: {url}v1{key}", err=True)
    query = f"?token={token}" if token else ""
    click.echo(f"{url}{query}" if page else f"{url}v1")


def _listen(host: str, port: int | None, token: str | None) -> Endpoint:
    """Listen, before the models are loaded: loading is slow, and others may take the port."""
    from mgpt4_hpc.chat.server import Endpoint
    from mgpt4_hpc.launch.side_jobs.tunnel import listen

    token = _own_or_made_token(token, host)
    return Endpoint(host, listen(host, port, FIRST_PORT), token)


def _own_or_made_token(token: str | None, host: str) -> str | None:
    """The token that visitors must have; None where only this machine reaches the page."""
    from mgpt4_hpc.launch.side_jobs.tunnel import LOOPBACK

    if token is None:
        return None if host in LOOPBACK else secrets.token_urlsafe(24)
    if len(token) < _SHORTEST_TOKEN or not all(c.isalnum() or c in "-._~" for c in token):
        raise ConfigError(
            f"the token of MGPT4_SERVE_TOKEN or --token must have at least {_SHORTEST_TOKEN} "
            "letters, digits, - . _ or ~, and nothing else",
            fix="set another one; or unset MGPT4_SERVE_TOKEN and leave --token out: a good one is "
            "made where one is needed",
        )
    return token
