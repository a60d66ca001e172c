"""The Ray Serve application: a server whose documents are owned by replicas of the model.

serve run ragvl.distributed.app:build model=OpenGVLab/InternVL3-2B-hf replicas=4 gpus=1
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from ragvl.distributed.owner import Owner
from ragvl.distributed.owners import Owners
from ragvl.distributed.worker import versions
from ragvl.extras import extra
from ragvl.messages import validation_reason
from ragvl.retriever import parse_fusion
from ragvl.server.access import ApiKeys
from ragvl.server.app import create_app
from ragvl.server.logs import configure_logs
from ragvl.server.metrics import Metrics
from ragvl.server.run import services_over
from ragvl.server.settings import (
    TINY_RERANKER,
    Bytes,
    ConnectionLimits,
    Count,
    Seconds,
    ServerSettings,
)
from ragvl.server.stages import (
    estimated_weight,
    open_filled_index,
    take_saved_fusion,
    warn_of_another_search,
)

with extra("ray", "ray"):
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from ragvl.distributed.routing import OwnerRouter, ReplicaLink

_MANY = 4096  # calls of a replica at once: queues of ragvl's own refuse what is too much
_CONSTRUCTED = 3  # times that a replica may fail to start, before the deployment has failed
_OWN_VARIABLES = "RAGVL_"  # which replicas get, too


class AppSettings(ServerSettings):
    """Arguments of the application: those of `ragvl serve` and some of its own."""

    model: str = Field(str(TINY_RERANKER), min_length=1, description="A hub id or a folder.")
    replicas: Count = Field(1, description="Replicas of the model, which own documents.")
    cpus: float = Field(1, ge=0, description="Cores of a replica; torch takes as many threads.")
    gpus: float = Field(0, ge=0, description="GPUs of a replica.")
    held_documents: Bytes = Field(
        1 << 30, description="Bytes of documents that a replica holds, besides prefixes."
    )
    health_seconds: Seconds = Field(
        10, description="Seconds between Ray's looks at a replica; the third in vain replaces it."
    )
    preset: str | None = Field(None, description="The model's published recipe.")
    revision: str | None = Field(None, description="The revision on the hub.")
    template: str | None = Field(None, description="A prompt other than the preset's.")
    dtype: str = Field("auto", description="The model's dtype.")
    threshold: float | str = Field(
        "natural", description="From what relevance a document is kept: a number or a saved name."
    )
    index: str | None = Field(None, description="An index to search in, where the ingress runs.")
    encoder: str | None = Field(None, description="The index's dual encoder, if it was moved.")
    text_encoder: str | None = Field(None, description="The same of its text encoder.")
    fusion: str | None = Field(
        None, description="Makes one order of both encoders; by default as estimated, or as saved."
    )
    retriever_weight: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="How much the index's order counts in reranking; by default as estimated.",
    )
    api_key_file: Path | None = Field(None, description="API keys, one a line; by the ingress.")

    @model_validator(mode="after")
    def _of_use(self) -> AppSettings:
        """Refuses what Ray Serve decides itself."""
        idle = {*ConnectionLimits.model_fields, "host", "port", "grace"} & self.model_fields_set
        if idle:
            raise ValueError(
                f"{', '.join(sorted(idle))}: of no use here: Ray Serve listens (http_options)"
            )
        of_index = {"encoder", "text_encoder", "fusion", "retriever_weight"}
        if self.index is None and (unused := of_index & self.model_fields_set):
            raise ValueError(f"{', '.join(sorted(unused))}: of no use without an index")
        if self.fusion is not None:
            parse_fusion(self.fusion)
        return self

    @field_validator("model", "index", "encoder", "text_encoder", "cache", "api_key_file")
    @classmethod
    def _found_anywhere(cls, given: Any) -> Any:
        """A path as others find it, whatever folder they run in."""
        if isinstance(given, Path):
            return given.absolute()
        return os.path.abspath(given) if given is not None and os.path.exists(given) else given

    @property
    def load(self) -> dict[str, Any]:
        """What `Reranker.from_pretrained` takes, of what was given."""
        names = ("preset", "revision", "template", "dtype", "threshold")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


class ReplicaOwner(Owner):
    """A replica of the model.

    Args:
        settings: the application's.
        versions: those of the process that builds it.
    """

    def __init__(self, settings: AppSettings, versions: Mapping[str, str]) -> None:
        configure_logs(settings)
        super().__init__(
            settings.model,
            settings,
            held_bytes=settings.held_documents,
            versions=versions,
            **settings.load,
        )

    def __del__(self) -> None:
        """Of Ray Serve, which calls it at an orderly end."""
        self.close()


class Ingress:
    """Speaks the server's protocol, and has owners score.

    Args:
        owners: the handle of `ReplicaOwner`.
        settings: the application's.
    """

    def __init__(self, owners: Any, settings: AppSettings) -> None:
        configure_logs(settings)
        self._link, self._settings = ReplicaLink(owners), settings

    async def __serve_build_asgi_app__(self) -> Any:
        """Of Ray Serve: the application that answers requests, once an owner has loaded."""
        settings = self._settings
        keys = ApiKeys.find(settings.api_key_file)
        retriever = None
        if settings.index is not None:
            retriever = open_filled_index(
                settings.index,
                encoder=settings.encoder,
                text_encoder=settings.text_encoder,
                fusion=None if settings.fusion is None else parse_fusion(settings.fusion),
            )
        described = await self._link.describe()
        saved = described.thresholds
        if settings.fusion is None and saved is not None and saved.fusion is not None:
            estimate = saved.fusion, saved.encoder
            take_saved_fusion(retriever, lambda: [estimate])
        weight = settings.retriever_weight
        if weight is None:
            weight = estimated_weight(described.thresholds, retriever)
        warn_of_another_search(described.thresholds, retriever, weight)
        services = services_over(
            Owners(self._link),
            settings,
            Metrics(),
            model=described.model_name,
            threshold=described.threshold,
            thresholds=described.thresholds,
            retriever=retriever,
            retriever_weight=weight,
            keys=keys,
        )
        return create_app(services)


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application, for `serve run` and `serve deploy`.

    Args:
        args: by the names of `AppSettings`; also as texts, as `serve run` has them.

    Raises:
        ValueError: one of them is unknown or out of its range.
    """
    try:
        settings = AppSettings(**args)
    except ValidationError as error:
        raise ValueError(validation_reason(error)) from None
    variables = {
        name: value for name, value in os.environ.items() if name.startswith(_OWN_VARIABLES)
    }
    shared: dict[str, Any] = {
        "max_ongoing_requests": _MANY,
        "max_constructor_retry_count": _CONSTRUCTED,
        "health_check_period_s": settings.health_seconds,
        "health_check_timeout_s": settings.health_seconds,
        # Its lines hold paths, and so ids of documents; ragvl logs each request without
        "logging_config": {"enable_access_log": False},
    }
    environment = {"env_vars": variables} if variables else {}
    owners = serve.deployment(
        ReplicaOwner,
        name="Owner",
        num_replicas=settings.replicas,
        ray_actor_options={
            "num_cpus": settings.cpus,
            "num_gpus": settings.gpus,
            "runtime_env": environment,
        },
        request_router_config=RequestRouterConfig(request_router_class=OwnerRouter),
        **shared,
    ).bind(settings, versions())
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        ray_actor_options={"num_cpus": 0, "runtime_env": environment},
        **shared,
    )
    return ingress.bind(owners, settings)
