"""Every limit of the server, with its default: for the command line, the routes and the docs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ragvl.compression import Compression

TINY_RERANKER = Path(__file__).parents[1] / "assets" / "tiny-reranker"  # where no model is named


def _bytes(size: int | str) -> int:
    from ragvl.prefix_cache.sizes import parse_bytes  # its package imports torch

    return parse_bytes(size)


def _hosts(given: Any) -> Any:
    """Hosts as one text, or several texts, with commas between them."""
    listed = [given] if isinstance(given, str) else given
    hosts = [host for text in listed for host in text.replace(",", " ").split()]
    if hosts:
        from ragvl.server.fetch import allowed_origin  # its package is of the extra [serve]

        for host in hosts:
            allowed_origin(host)
    return hosts


Seconds = Annotated[float, Field(gt=0, lt=1e6, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
# A number, or a text such as "64MiB"
Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1, validate_default=True)]
Hosts = Annotated[tuple[str, ...], BeforeValidator(_hosts)]


def _size(default: str, description: str) -> Any:
    return Field(default, description=description)


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineLimits(_Settings):
    """The queue before the model, and its passes."""

    max_pairs: Count = Field(4096, description="Pairs that may wait for the model; beyond: 429.")
    pass_pairs: Count = Field(
        64, description="Pairs of one pass of the model, of one request or of several."
    )
    pass_documents: Count = Field(
        8, description="New documents of one pass, whose prefixes it computes."
    )
    turn_pairs: Count = Field(
        32, description="Pairs that a request gives to passes before it is another's turn."
    )


class ProcessSettings(_Settings):
    """The server and its cache."""

    host: str = Field("127.0.0.1", description="The address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="The port; 0 takes a free one.")
    model_name: str | None = Field(
        None, min_length=1, description="The model's name in answers; by default as it was given."
    )
    cache: Path | None = Field(
        None, description="A folder for documents and prefixes, which then survive a restart."
    )
    device_cache: str = Field(
        "auto", description="Memory for prefixes on the model's device, such as 8GiB."
    )
    host_cache: str = Field("0", description="Host memory for prefixes, such as 32GiB.")
    disk_cache: str | None = Field(
        None, description="Disk for prefixes in that folder, such as 1TiB; none: no limit."
    )
    compression: Compression | None = Field(
        None, description="For keys and values, int8 or int4, which changes scores; none: exact."
    )
    image_tokens: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of pictures' tokens that prefixes keep; none: the reranker's own.",
    )
    warm: bool = Field(
        False, description="Compute the prefixes of the index's documents from the start."
    )
    threads: Count = Field(4, description="Threads that read and check bodies and pictures.")
    grace: Seconds = Field(
        25.0, description="Seconds after SIGTERM in which what was accepted is answered."
    )


class RequestLimits(_Settings):
    """A request's time and size."""

    timeout: Seconds = Field(
        30.0, description="Seconds that a request may take without X-Request-Timeout; then: 504."
    )
    max_timeout: Seconds = Field(600.0, description="The most that X-Request-Timeout may ask for.")
    max_body_bytes: Bytes = _size("64MiB", "Bytes of a request's body; beyond: 413.")
    max_held_bytes: Bytes = _size(
        "1GiB", "Bytes of all requests that are not answered yet; beyond: 429."
    )
    max_documents: Count = Field(1000, description="Documents of a request; beyond: 413.")
    max_parts: Count = Field(32, description="Texts and pictures of one document or query.")
    max_text: Count = Field(1 << 20, description="Characters of one text.")
    max_request_text: Count = Field(
        1 << 23,
        description="Characters of all texts of a request; those of known documents do not count.",
    )
    max_pixels: Count = Field(
        50_000_000, description="Pixels of one picture, by its header, before it is decoded."
    )
    max_request_pixels: Count = Field(
        1_000_000_000, description="Pixels of all pictures of a request."
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Tokens of one prompt; none: the model's context."
    )
    max_answer_tokens: Count = Field(
        256, description="Tokens of a generated answer; nothing else is computed meanwhile."
    )


class ConnectionLimits(_Settings):
    """Connections."""

    max_connections: Count = Field(2048, description="Open connections; more are closed at once.")
    max_header_bytes: Bytes = _size("32KiB", "Bytes of a request's line and headers; beyond: 431.")
    header_seconds: Seconds = Field(
        10.0, description="Seconds in which a request's line and headers must be there."
    )
    body_seconds: Seconds = Field(
        60.0, description="Seconds in which a request's body must be there; then: 408."
    )
    write_seconds: Seconds = Field(
        30.0, description="Seconds that a client may leave an answer unread; then it is cut off."
    )
    keep_alive: Seconds = Field(
        15.0, description="Seconds that a connection without a request stays open."
    )


class StorageLimits(_Settings):
    """Documents that the server keeps by id."""

    max_stored_documents: Count = Field(
        1_000_000, description="Documents that the server keeps by id; beyond: 507."
    )
    max_stored_bytes: Bytes = _size("64GiB", "Bytes of these documents on disk; beyond: 507.")


class UrlSettings(_Settings):
    """Pictures behind URLs."""

    allow_urls: Hosts = Field(
        (), description="Hosts from which pictures are fetched; none: no URL is."
    )
    url_bytes: Bytes = _size("16MiB", "Bytes of a picture behind a URL.")
    url_seconds: Seconds = Field(10.0, description="Seconds for a picture behind a URL.")
    url_redirects: int = Field(3, ge=0, description="Redirects that are followed, to these hosts.")
    allow_private_urls: bool = Field(
        False, description="Fetch from these hosts also where they are private addresses."
    )


class LogSettings(_Settings):
    """The log."""

    log_format: Literal["text", "json"] = Field("text", description="The form of the log's lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is logged."
    )
    log_content: bool = Field(
        False, description="Log also what users wrote, and the messages of errors."
    )


class ServerSettings(
    LogSettings,
    UrlSettings,
    StorageLimits,
    ConnectionLimits,
    EngineLimits,
    RequestLimits,
    ProcessSettings,
):
    """Settings of `ragvl serve`; each is an option of the command of the same name."""

    @model_validator(mode="after")
    def _agree(self) -> ServerSettings:
        if self.max_body_bytes > self.max_held_bytes:
            raise ValueError(
                f"max_body_bytes={self.max_body_bytes} is more than max_held_bytes="
                f"{self.max_held_bytes}: no such body would ever be taken"
            )
        if self.timeout > self.max_timeout:
            raise ValueError(
                f"timeout={self.timeout:g} is more than max_timeout={self.max_timeout:g}"
            )
        return self

    @classmethod
    def group(cls, name: str) -> str:
        """What a setting is about, by the class that has it: "Pictures behind URLs"."""
        owner = next(one for one in cls.__mro__ if name in one.__annotations__)
        return (owner.__doc__ or "").removesuffix(".")
