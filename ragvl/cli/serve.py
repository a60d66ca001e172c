"""`ragvl serve`."""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ragvl.cli import options
from ragvl.cli.common import (
    command_work,
    hide_loading_bars,
    import_models,
    parse_threshold,
    parse_weight,
)
from ragvl.cli.groups import RerankerOptions, RetrieverOptions, takes
from ragvl.messages import validation_reason
from ragvl.server.settings import TINY_RERANKER, ServerSettings


@dataclass(frozen=True)
class ServedReranker(RerankerOptions):
    """The reranker that is served: by default the one that comes along."""

    model: Annotated[
        str,
        typer.Argument(help="A hub id or a folder.", show_default="the tiny one that comes along"),
    ] = str(TINY_RERANKER)


class ServerOptions:
    """The fields of `ServerSettings` as options of a command."""

    __signature__: inspect.Signature

    def __init__(self, **given: Any) -> None:
        self._given = given

    def settings(self) -> ServerSettings:
        """The settings.

        Raises:
            ValueError: one of them is out of its range, or they contradict each other.
        """
        given = {name: value for name, value in self._given.items() if value is not None}
        try:
            return ServerSettings(**given)
        except ValidationError as error:
            raise ValueError(validation_reason(error)) from None


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    kind, default = field.annotation, field.default
    if get_origin(kind) is tuple:
        kind, default = list[str] | None, None
    elif isinstance(default, str) and kind is int:  # a number of bytes, as people write it
        kind = str
    variable = f"RAGVL_SERVE_{name.upper()}"
    option = typer.Option(
        help=field.description,
        envvar=variable,
        show_envvar=False,
        rich_help_panel=ServerSettings.group(name),
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


ServerOptions.__signature__ = inspect.Signature(
    [_option(name, field) for name, field in ServerSettings.model_fields.items()]
)


@takes(ServedReranker, RetrieverOptions, ServerOptions)
def serve(
    chosen: ServedReranker,
    searched: RetrieverOptions,
    limits: ServerOptions,
    index: Annotated[
        str | None,
        typer.Option(
            help="An index that `ragvl index` wrote, to search in: its folder, or its address in "
            "Milvus."
        ),
    ] = None,
    generator: Annotated[
        str | None, typer.Option(help="What answers questions: a hub id or a folder.")
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Serve the demo's drawn world, with its tiny models.")
    ] = False,
    template: Annotated[str | None, typer.Option(help="A prompt other than the preset's.")] = None,
    threshold: Annotated[
        str, typer.Option(help="From what relevance a document is kept: a number, or a saved name.")
    ] = "natural",
    retriever_weight: options.RetrieverWeight = None,
    caption_tokens: options.CaptionTokens = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="API keys, one a line, of which a request must bring one; also RAGVL_API_KEYS, "
            "with commas between them."
        ),
    ] = None,
) -> None:
    """Serve reranking over HTTP, with a page to try it and documents known by id.

    An index brings the encoders that built it; --encoder and --text-encoder name
    them where they lie elsewhere now. SIGTERM ends it once what was accepted is
    answered. The options in groups may also be variables: RAGVL_SERVE_PORT for
    --port.
    """
    with command_work("serve"), ended_by_sigterm():
        import_models()
        from ragvl.server.access import ApiKeys
        from ragvl.server.documents import DocumentStore
        from ragvl.server.logs import configure_logs
        from ragvl.server.run import (
            bind,
            build_services,
            make_prefix_cache,
            ready,
            run_server,
        )
        from ragvl.server.stages import load_demo, load_stages
        from ragvl.workers import in_passing_thread

        settings = limits.settings()
        keys = ApiKeys.find(api_key_file)
        kept_from = parse_threshold(threshold)
        weight = parse_weight(retriever_weight)
        if demo:
            given = {
                "index": index,
                **{name.replace("_", "-"): value for name, value in vars(searched).items()},
                "retriever-weight": retriever_weight,
                "generator": generator,
                "template": template,
                "caption-tokens": caption_tokens,
            }
            _check_demo(chosen, given)
        elif settings.warm and index is None:
            raise ValueError("--warm is of the documents of an index: give --index")
        chosen.check()
        hide_loading_bars()
        with bind(settings.host, settings.port) as bound:
            configure_logs(settings)
            prefix_cache = make_prefix_cache(settings)
            DocumentStore.by(settings, None).close()  # a damaged one shows before models load
            if demo:
                load = partial(
                    load_demo, device=chosen.device, threshold=kept_from, prefix_cache=prefix_cache
                )
            else:
                load = partial(
                    load_stages,
                    lambda: chosen.load(
                        template=template,
                        threshold=kept_from,
                        caption_tokens=caption_tokens,
                        prefix_cache=prefix_cache,
                    ),
                    thresholds=chosen.model,
                    location=chosen.location,
                    index=index,
                    encoder=searched.encoder,
                    text_encoder=searched.text_encoder,
                    fusion=searched.chosen_fusion(),
                    retriever_weight=weight,
                    generator=generator,
                    device=chosen.device,
                    dtype=chosen.dtype,
                    caption_tokens=caption_tokens,
                    date=chosen.date,
                )
            stages = in_passing_thread(partial(ready, load))
            services = build_services(stages, settings, model=chosen.model, keys=keys)
            code = run_server(services, bound)
    sys.exit(code)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """A block that SIGTERM ends with `SystemExit`, before there is a server that it would drain.

    The system ignores a signal that has no handler where the process is the first of a container.
    """

    def end(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_demo(chosen: ServedReranker, others: dict[str, Any]) -> None:
    """Refuses what `--demo` leaves no choice of.

    Raises:
        ValueError: something was given that belongs to other models or documents.
    """
    given = [f"--{name}" for name, value in others.items() if value is not None]
    if chosen != ServedReranker(device=chosen.device):
        given.insert(0, "a model or its settings")
    if given:
        raise ValueError(
            f"--demo brings its own models and documents: leave out {', '.join(given)}"
        )
