"""Options that several commands share, and what they describe: a model, a data set, a part of it."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from radiant_lens.cli.groups import OptionGroup
from radiant_lens.errors import DataError, InvalidArgumentError, ModelLoadError, RadiantError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from radiant_lens.datasets import ChatTemplate, Dataset
    from radiant_lens.steering.steering import Steering

DEFAULT_SPLIT = "0.6,0.2,0.2"
PARTS = ("train", "validation", "test", "all")
CHAT = "chat"
"""Value of `--template` for the chat template of the model's tokenizer."""

Model = Annotated[str, typer.Option(help="'tiny' (embedded), a Hub id, or a local folder in Hugging Face format.")]
SteeredModel = Annotated[
    str | None, typer.Option(help="As for `fit`; default the model that the steering was fitted on, else 'tiny'.")
]
Data = Annotated[
    str,
    typer.Option(
        help="'misconceptions', 'tone' (of the package), 'tiny-facts', 'tiny-tone' (embedded), 'truthfulqa', "
        "'nq_open', 'trivia_qa', 'jigsaw', 'realtoxicityprompts' (from the Hub), or a .csv, .tsv, .json, .jsonl or "
        ".parquet file; `radiant-lens columns FILE` shows how it is read."
    ),
]
Seed = Annotated[int, typer.Option(help="Of splits, samples and controls.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Out = Annotated[Path, typer.Option(help="Folder to write; one of the same kind is replaced.")]
Store = Annotated[
    Path | None,
    typer.Option(help="Folder to write shard by shard, in bounded memory; the same command takes up where it stopped."),
]
Layers = Annotated[str | None, typer.Option(help="Such as 0,1,2: keep these alone, and run none after the last.")]
MaxTokens = Annotated[
    int | None, typer.Option(help="Tokens in one forward pass, padding included; 1024 on the CPU, else 4096.")
]
Samples = Annotated[int, typer.Option(help="Answers to each prompt.")]
NewTokens = Annotated[int, typer.Option(help="Tokens of an answer at most.")]
Temperature = Annotated[float, typer.Option(help="0 for greedy answers.")]
Positions = Annotated[str, typer.Option(help="Tokens to read: 'answer', 'last' or 'all'.")]
SteeringFolder = Annotated[
    Path | None, typer.Option(help="Folder that `fit` or `demo` wrote; none for the model without steering.")
]
Device = Annotated[str | None, typer.Option(help="Such as 'cpu' or 'cuda:0'; default CUDA where there is one.")]
Dtype = Annotated[
    str | None, typer.Option(help="Such as 'float32' or 'bfloat16'; default the checkpoint's where that is fast.")
]
PrependBos = Annotated[
    bool | None,
    typer.Option(
        "--prepend-bos/--no-prepend-bos", help="Begin texts with a BOS token or not; default as the tokenizer does."
    ),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(help="Once for each: 'answers', 'text', 'choice', 'diversity', 'fluency'; default the first two."),
]
Judge = Annotated[
    str | None,
    typer.Option(
        help="'exact', 'contains', 'lexicon', 'overlap'; 'profanity' (offline, extra 'toxicity'), 'toxicity', "
        "'truthfulqa' (models of the Hub); default the data's own."
    ),
]
FluencyModel = Annotated[str | None, typer.Option(help="Second model, for the perplexity of 'fluency'.")]
OutFile = Annotated[Path | None, typer.Option(help="JSON file to write: answers, verdicts and metrics.")]


@dataclass(frozen=True)
class Loading(OptionGroup):
    """Options that say how a model is loaded."""

    panel: ClassVar[str] = "How the model is loaded"

    device: Device = None
    device_map: Annotated[
        str | None, typer.Option(help="In place of a device: 'auto' spreads a model that is too large for one.")
    ] = None
    dtype: Dtype = None
    prepend_bos: PrependBos = None

    def load(self, name: str) -> TransformerBridge:
        """Load the model of this name, or in this folder."""
        # Imported here, as in all commands: `radiant-lens --help` starts without torch.
        from radiant_lens.cli.kernels import bound_kernels
        from radiant_lens.cli.threads import advice_now
        from radiant_lens.models import loading

        bound_kernels()
        advice = advice_now()
        if advice:
            typer.echo(f"radiant-lens: {advice}", err=True)
        return loading.load_model(
            name, device=self.device, device_map=self.device_map, dtype=self.dtype, prepend_bos=self.prepend_bos
        )

    def load_for(self, steering: Steering | None, name: str | None) -> TransformerBridge:
        """Load the model of this name; without one, the model that the steering was fitted on, with its rule for BOS.

        Raises:
            ModelLoadError: the steering names a model that is not to be found from here.
        """
        if name is not None or steering is None:
            return self.load(name or "tiny")
        recorded = steering.meta.get("model", {})
        rule = recorded.get("prepend_bos") if self.prepend_bos is None else self.prepend_bos
        return replace(self, prepend_bos=rule).load(_found(model_name(steering, None)))


@dataclass(frozen=True)
class FileReading(OptionGroup):
    """Options that say how a data file is read."""

    panel: ClassVar[str] = "How the data are read"

    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OURS=THEIRS",
            help="Columns of the file, such as text=statement,label=is_false,group=topic; label=toxic+obscene is 1 "
            "where one of the two is.",
        ),
    ] = None
    undesirable: Annotated[
        list[str] | None,
        typer.Option(help="Labels that are undesirable, such as 0 or toxic,hate; 'below' with a threshold."),
    ] = None
    threshold: Annotated[
        float | None, typer.Option(help="For scores in the label column: at or above it is undesirable.")
    ] = None
    template: Annotated[
        str | None,
        typer.Option(
            help=r"Around questions: 'chat' (the model's chat template), 'plain', or text such as "
            r"'Q: {question}\nA: {answer}'. Default 'chat' where the model has a chat template."
        ),
    ] = None
    system: Annotated[str | None, typer.Option(help="System prompt of the chat, before every question.")] = None
    format: Annotated[
        str | None,
        typer.Option(help="Shape of the file, such as 'contrastive' or 'preference'; default told by its columns."),
    ] = None

    def load(self, data: str, *, model: str, on_bad_rows: str = "raise") -> Dataset:
        """Load a data set; `model` is the one whose chat template is used."""
        from radiant_lens.datasets import load_dataset

        options: dict[str, Any] = {
            "columns": None if self.columns is None else read_columns(self.columns),
            "undesirable": self._labels(),
            "threshold": self.threshold,
            "format": self.format,
            **self._template(model),
        }
        try:
            return load_dataset(data, on_bad_rows=on_bad_rows, **options)
        except (InvalidArgumentError, DataError) as error:
            raise type(error)(as_flags(str(error))) from error

    def _labels(self) -> str | list[str] | None:
        labels = [label for text in self.undesirable or () for label in _pieces("--undesirable", text)]
        return labels[0] if len(labels) == 1 else labels or None

    def _template(self, model: str) -> dict[str, Any]:
        if self.template == CHAT or self.system is not None:
            return {"template": _load_chat_template(model, self.template, self.system)}
        # A shell passes a backslash and an n where a line break is meant.
        return {"template": None if self.template is None else self.template.replace(r"\n", "\n")}


@dataclass(frozen=True)
class Reading(FileReading):
    """The same, and what a model does with texts beyond its context."""

    on_long: Annotated[
        str, typer.Option(help="For texts beyond the model's context: 'skip' and count, 'cut' or 'error'.")
    ] = "skip"

    def load(self, data: str, *, model: str, on_bad_rows: str = "raise") -> Dataset:
        """Load a data set with this rule for long texts, which everything that runs a model on it follows."""
        return replace(super().load(data, model=model, on_bad_rows=on_bad_rows), on_long=self.on_long)

    def _template(self, model: str) -> dict[str, Any]:
        if self.template is None and self.system is None:
            return {"model": _load_tokenizer(model)}
        return super()._template(model)


@dataclass(frozen=True)
class Part(OptionGroup):
    """Options that choose a part of the data, as `fit` splits them."""

    panel: ClassVar[str] = "Which part of the data"

    part: Annotated[
        str, typer.Option(help="'train', 'validation', 'test' (which `fit` with the same seed leaves alone) or 'all'.")
    ] = "all"
    split: Annotated[str, typer.Option(help="Shares of the groups for training, validation and test.")] = DEFAULT_SPLIT

    def check(self) -> None:
        """Raise for a part that does not exist, or shares that do not add up."""
        from radiant_lens import _checks

        _checks.choice("part", self.part, PARTS)
        fractions(self.split)

    def of(self, data: Dataset, seed: int) -> Dataset:
        """Return this part of the data."""
        if self.part == "all":
            return data
        return data.split(fractions(self.split), seed=seed)[PARTS.index(self.part)]


@dataclass(frozen=True)
class TestPart(Part):
    """The same; the test part by default."""

    part: Annotated[
        str, typer.Option(help="'train', 'validation', 'test' (which `fit` with the same seed leaves alone) or 'all'.")
    ] = "test"


def model_name(steering: Steering | None, name: str | None) -> str:
    """Return the model of this name; without one, that which the steering was fitted on, or the embedded one."""
    recorded = {} if steering is None else steering.meta.get("model", {})
    return name or str(recorded.get("name") or "tiny")


def fractions(split: str) -> tuple[float, float, float]:
    """Read three shares that add up to 1."""
    try:
        train, validation, test = shares = tuple(float(piece) for piece in split.split(","))
    except ValueError:
        train, validation, test = shares = (0.0, 0.0, 0.0)
    if not all(0 < share < 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise InvalidArgumentError(
            f"`--split` must be three positive shares that add up to 1, such as {DEFAULT_SPLIT}; got {split!r}."
        )
    return train, validation, test


def numbers(name: str, text: str) -> list[int]:
    """Read whole numbers that are separated by commas."""
    try:
        return [int(piece) for piece in text.split(",")]
    except ValueError as error:
        raise InvalidArgumentError(f"`{name}` must be whole numbers separated by commas; got {text!r}.") from error


def read_columns(texts: list[str]) -> dict[str, str | list[str]]:
    """Read `ours=theirs,ours=theirs`; names that hold a comma stand in quotes."""
    columns: dict[str, str | list[str]] = {}
    for pair in (pair for text in texts for pair in _pieces("--columns", text)):
        ours, equals, theirs = (word.strip() for word in pair.partition("="))
        if not ours or not equals or not theirs:
            raise InvalidArgumentError(
                f"`--columns` must read OURS=THEIRS, such as text=statement,label=is_false; got {pair!r}."
            )
        if ours in columns:
            raise InvalidArgumentError(f"`--columns` names {ours!r} twice; name each of our columns once.")
        several = ours == "label" and "+" in theirs
        columns[ours] = [name.strip() for name in theirs.split("+")] if several else theirs
    return columns


def _pieces(flag: str, text: str) -> list[str]:
    """Cut a text at its commas, but for those in quotes."""
    pieces = next(csv.reader([text], skipinitialspace=True), [])
    if not all(piece.strip() for piece in pieces) or not pieces:
        raise InvalidArgumentError(f"`{flag}` has an empty piece; got {text!r}.")
    return [piece.strip() for piece in pieces]


def as_flags(message: str) -> str:
    """Say a remedy of `load_dataset` as it is typed here: `undesirable=0` as `--undesirable 0`."""
    message = message.replace("template=radiant_lens.datasets.ChatTemplate(tokenizer)", f"--template {CHAT}")
    message = re.sub(r"\{('\w+': \.\.\.(?:, '\w+': \.\.\.)*)\}", _as_pairs, message)
    message = message.replace("[...]", "LABEL,LABEL")
    return re.sub(r"(?<![\w-])(columns|undesirable|threshold|template|format)=,? ?(?=[\w.']|LABEL)", r"--\1 ", message)


def _as_pairs(match: re.Match[str]) -> str:
    return match[1].replace("'", "").replace(": ", "=").replace(", ", ",")


def _found(fitted_on: str) -> str:
    from radiant_lens.models.sources import find_source

    try:
        find_source(fitted_on)
    except RadiantError as error:
        raise ModelLoadError(
            f"This steering was fitted on model {fitted_on!r}, which is not to be found from here: pass its name or "
            "folder as `--model`."
        ) from error
    return fitted_on


def _load_tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    from radiant_lens.models.load_errors import load_errors
    from radiant_lens.models.sources import find_source

    source = find_source(model)
    with load_errors(source):
        return AutoTokenizer.from_pretrained(source.path)


def _load_chat_template(model: str, template: str | None, system: str | None) -> ChatTemplate:
    from radiant_lens.datasets import ChatTemplate

    if template not in (None, CHAT):
        raise InvalidArgumentError(
            f"`--system` is a turn of a chat; leave out `--template {template}`, or name `--template {CHAT}`."
        )
    tokenizer = _load_tokenizer(model)
    if tokenizer.chat_template is None:
        option = "--system" if template is None else f"--template {CHAT}"
        raise InvalidArgumentError(
            f"`{option}` needs a model with a chat template, and {model!r} has none: name another `--model`."
        )
    return ChatTemplate(tokenizer, system)
