"""Options that several commands share, and the model that they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radiant_lens.errors import InvalidArgumentError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Model = Annotated[str, typer.Option(help="'tiny' (embedded), a Hub id, or a local folder in Hugging Face format.")]
Data = Annotated[
    str,
    typer.Option(
        help="'tiny-facts', 'tiny-tone' (embedded), 'truthfulqa', 'nq_open', 'trivia_qa', 'jigsaw', "
        "'realtoxicityprompts' (from the Hub), or a .csv, .json or .jsonl file, also of these in their published form."
    ),
]
Seed = Annotated[int, typer.Option(help="Of splits, samples and controls.")]
Device = Annotated[str | None, typer.Option(help="Such as 'cpu' or 'cuda:0'; default CUDA where there is one.")]
DeviceMap = Annotated[
    str | None, typer.Option(help="In place of a device: 'auto' spreads a model that is too large for one.")
]
Dtype = Annotated[
    str | None,
    typer.Option(help="Such as 'float32' or 'bfloat16'; default the checkpoint's where that is fast."),
]
PrependBos = Annotated[
    bool | None,
    typer.Option(
        "--prepend-bos/--no-prepend-bos", help="Begin texts with a BOS token or not; default as the tokenizer does."
    ),
]
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
Gamma = Annotated[
    float | None, typer.Option(help="Share that may still be flagged after the edit, in (0, 0.5); default 0.005.")
]
Steering = Annotated[
    Path | None, typer.Option(help="Folder that `fit` or `demo` wrote; none for the model without steering.")
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(help="Once for each: 'answers', 'text', 'choice', 'diversity', 'fluency'; default the first two."),
]
Judge = Annotated[
    str | None,
    typer.Option(
        help="'exact', 'contains', 'lexicon', 'overlap'; 'toxicity', 'truthfulqa' (models); default the data's own."
    ),
]
FluencyModel = Annotated[str | None, typer.Option(help="Second model, for the perplexity of 'fluency'.")]
OutFile = Annotated[Path | None, typer.Option(help="JSON file to write: answers, verdicts and metrics.")]


def numbers(name: str, text: str) -> list[int]:
    """Read whole numbers that are separated by commas."""
    try:
        return [int(piece) for piece in text.split(",")]
    except ValueError as error:
        raise InvalidArgumentError(f"`{name}` must be whole numbers separated by commas; got {text!r}.") from error


def load_model(
    name: str,
    *,
    device: str | None = None,
    device_map: str | None = None,
    dtype: str | None = None,
    prepend_bos: bool | None = None,
) -> TransformerBridge:
    """Load the model that a command's options describe."""
    # Imported here: `radiant-lens --help` needs no torch.
    from radiant_lens.models.loading import load_model as load

    return load(name, device=device, device_map=device_map, dtype=dtype, prepend_bos=prepend_bos)
