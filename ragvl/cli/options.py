"""Options that several commands have."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import typer
from typer.core import TyperCommand

from ragvl.compression import Compression

STDOUT = "-"  # as the name of a file

Source = Annotated[
    Path,
    typer.Argument(
        help="A data set: a folder of WebQA's or MultimodalQA's files, Karpathy's JSON, lines of "
        "image,caption, or your own questions (.jsonl)."
    ),
]

Images = Annotated[
    Path | None, typer.Option(help="The pictures' folder, of formats that keep them apart.")
]

Protocol = Annotated[Literal["1k", "5k"] | None, typer.Option(help="Of Flickr30K and MSCOCO.")]

Modality = Annotated[
    Literal["image", "text", "both"] | None,
    typer.Option(
        help="Of WebQA, MultimodalQA: documents are pictures (the default), texts, or both."
    ),
]

Strict = Annotated[bool, typer.Option(help="Stop at the first problem with the data.")]

Captions = Annotated[
    Path | None,
    typer.Option(
        help="Pictures' captions: lines of image,caption under that header, paths from the file's "
        "folder or the current one."
    ),
]

CaptionTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Cut a longer caption to so many tokens; by default none is."),
]

Date = Annotated[
    str | None,
    typer.Option(help="What the chat template takes for today; always 2024-07-26 by default."),
]

ChatTemplateKwargs = Annotated[
    str | None,
    typer.Option(help="Variables of the reranker's chat template, as JSON: '{\"name\": value}'."),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")]

JsonFile = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="[FILE]",
        help="Print JSON in place of tables; with a file's name, also write it there, and print "
        "tables.",
    ),
]

Split = Annotated[
    str | None,
    typer.Option(help="Which; if not given, the one that results are usually of."),
]

PictureEncoder = Annotated[
    str | None, typer.Option("--encoder", help="What looks at pictures: a hub id or a folder.")
]

TextEncoder = Annotated[
    str | None,
    typer.Option(help="What reads captions and texts, of sentence-transformers: id or folder."),
]

Fusion = Annotated[
    str | None,
    typer.Option(
        help="How both make one order: rrf (reciprocal ranks), or the share of the pictures' order."
    ),
]

RetrieverWeight = Annotated[
    str | None,
    typer.Option(
        help="How much the retriever's order counts in reranking: a candidate's log-odds are "
        "lowered by so many times the logarithm of its place; by default what `ragvl calibrate` "
        "estimated and saved, or else 0."
    ),
]

Reranker = Annotated[str, typer.Option(help="The reranker: a hub id or a folder.")]

Template = Annotated[
    str | None,
    typer.Option(help="The reranker's prompt; by default its preset's, or else the data set's."),
]

Compressed = Annotated[
    Compression | None,
    typer.Option(help="For keys and values, which changes scores a little; exact without."),
]

Candidates = Annotated[int, typer.Option(min=1, help="How many documents are reranked.")]

TopK = Annotated[
    int | None,
    typer.Option(min=1, help="How many are kept at most; 1 for MultimodalQA and captions, else 2."),
]

Questions = Annotated[
    int | None, typer.Option(min=1, help="Only the first so many questions; all.")
]

Skip = Annotated[int, typer.Option(min=0, help="Leave out so many questions, the first ones.")]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, int8 (on a CPU), fastest")]
Model = Annotated[str, typer.Option(help="A hub id or a folder.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit, of a model on the hub.")]
Subfolder = Annotated[
    str | None, typer.Option(help="Where the model is in the folder or hub repository.")
]
Adapters = Annotated[
    str | None,
    typer.Option(help="Adapters (LoRA) to merge into the model: a hub id or a folder."),
]
Preset = Annotated[
    str,
    typer.Option(
        help="How the checkpoint is asked and read: the name of a published reranker's preset, or "
        "what its files say."
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Work by Ray: on the cluster of that address, HOST:PORT, or that of RAY_ADDRESS, or "
        "else on this machine's cores.",
    ),
]
Progress = Annotated[bool, typer.Option(help="Show progress bars.")]


def everywhere(path: Path, ray: str | None) -> Path:
    """With --ray a path as it means the same to workers, whatever folder they run in."""
    return path if ray is None else path.absolute()


class DeclaredLater(TyperCommand):
    """`ragvl serve` until it is asked for: declaring its options imports what no other needs."""

    def declared(self) -> Any:
        """The command itself."""
        from ragvl.cli.serve import serve

        app = typer.Typer(add_completion=False)
        app.command(self.name)(serve)
        return typer.main.get_command(app)

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """That of the command itself."""
        return self.declared().make_context(info_name, args, parent, **extra)


class _MayStandAlone(TyperCommand, ABC):
    """A command with an option that stands alone or before a value."""

    option: ClassVar[str]
    alone: ClassVar[str]  # its value where it stands alone

    @staticmethod
    @abstractmethod
    def is_value(text: str) -> bool:
        """Whether what follows the option is its value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Completes an option that no value follows."""
        complete = []
        for arg, follows in zip(args, [*args[1:], "--"], strict=False):
            complete.append(arg)
            if arg == self.option and not self.is_value(follows):
                complete.append(self.alone)
        return super().parse_args(ctx, complete)


class JsonMayNameAFile(_MayStandAlone):
    """A command whose `--json` stands alone or before a file's name."""

    option, alone = "--json", STDOUT

    @staticmethod
    def is_value(text: str) -> bool:
        """Whether it is a file's name, or the one of standard output."""
        return not text.startswith("-") or text == STDOUT


_ADDRESS = r"(ray://)?([\w.-]+|\[[\da-fA-F:]+\]):\d+"


class RayMayHaveAnAddress(_MayStandAlone):
    """A command whose `--ray` stands alone or before a cluster's address."""

    option, alone = "--ray", ""

    @staticmethod
    def is_value(text: str) -> bool:
        """Whether it is an address, which a path or an option is not."""
        return text == "auto" or re.fullmatch(_ADDRESS, text) is not None
