"""`radiant-lens generate`: answers with and without steering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from radiant_lens.cli import options as o
from radiant_lens.cli.output import emit, table
from radiant_lens.errors import InvalidArgumentError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from radiant_lens.datasets import Prompt


def generate(
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts.")],
    steering: o.SteeringFolder = None,
    model: o.SteeredModel = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Print answers without steering next to steered ones.")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Read each prompt as a user's message, in the model's chat template.")
    ] = False,
    stop: Annotated[
        list[str] | None, typer.Option(help=r"String at which an answer ends, such as '\n' or 'Q:'; repeatable.")
    ] = None,
    max_new_tokens: o.NewTokens = 20,
    temperature: o.Temperature = 1.0,
    samples: o.Samples = 1,
    seed: o.Seed = 0,
    as_json: o.Json = False,
    *,
    loading: o.Loading,
) -> None:
    """Continue prompts, with or without steering.

    Example: radiant-lens generate --steering radiant-demo --compare --stop . "Q : what is the capital of dupeka ? A :"
    """
    import radiant_lens as rl
    from radiant_lens.evaluation import generate_answers

    if compare and steering is None:
        raise InvalidArgumentError("`--compare` needs `--steering`, the folder of the steering to compare with.")
    # A shell passes a backslash and an n where a line break is meant.
    ends = [text.replace(r"\n", "\n") for text in stop or ()]
    loaded = None if steering is None else rl.Steering.load(steering)
    bridge = loading.load_for(loaded, model)
    read = _messages(bridge, prompts) if chat else prompts

    def answer() -> list[list[str]]:
        return generate_answers(
            bridge,
            read,
            n_samples=samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            stop=ends,
            seed=seed,
        )

    columns: dict[str, list[list[str]]] = {}
    if loaded is None or compare:
        columns["plain" if compare else "answer"] = answer()
    if loaded is not None:
        with rl.steer(bridge, loaded):
            columns["steered" if compare else "answer"] = answer()
    rows = [
        {"prompt": prompt, **{name: answers[i][j] for name, answers in columns.items()}}
        for i, prompt in enumerate(prompts)
        for j in range(samples)
    ]
    emit({"answers": rows}, as_json=as_json, shown=[table("Answers", rows)])


def _messages(model: TransformerBridge, prompts: Sequence[str]) -> list[Prompt]:
    """The prompts as messages of a user."""
    from radiant_lens.datasets import Prompt, chat_template

    template = chat_template(model)
    if template is None:
        raise InvalidArgumentError(f"`--chat` needs a model with a chat template; {model.cfg.model_name} has none.")
    return [Prompt(template.prompt(prompt), (), (), rendered=True) for prompt in prompts]
