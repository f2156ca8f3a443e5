"""`radiant-lens report`: one page about saved artefacts and, if a model is named, about its steered answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from radiant_lens.cli import options as o
from radiant_lens.cli.output import emit


def report(
    steering: Annotated[Path | None, typer.Option(help="Folder that `fit` or `demo` wrote.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that `collect` wrote, of groups that took no part in the fit.")
    ] = None,
    evaluation: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE that `evaluate --out` wrote; repeatable, the unsteered model first."),
    ] = None,
    steered: Annotated[str | None, typer.Option(help="Which NAME is the steering; default the second.")] = None,
    detector: Annotated[
        Path | None, typer.Option(help="Folder that `fit` wrote where it ended without a steering.")
    ] = None,
    model: o.SteeredModel = None,
    prompt: Annotated[str | None, typer.Option(help="To answer, token by token; needs --steering.")] = None,
    title: Annotated[str, typer.Option(help="At the head of the page.")] = "What the steering does",
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    as_json: o.Json = False,
    *,
    loading: o.Loading,
) -> None:
    """Write one self-contained HTML page about a steering.

    Example: radiant-lens report --steering radiant-demo --evaluation plain=plain.json --evaluation steered=on.json
    """
    import radiant_lens as rl
    from radiant_lens._files import check_target
    from radiant_lens.detectors import load_detector
    from radiant_lens.errors import InvalidArgumentError

    if prompt is not None and steering is None:
        raise InvalidArgumentError("`--prompt` needs `--steering`, the folder of the steering to answer it with.")
    if prompt is None and model is not None:
        raise InvalidArgumentError("`--model` needs `--prompt`, which the model answers.")
    # Before the model is loaded and runs.
    check_target(out)
    loaded = None if steering is None else rl.Steering.load(steering)
    sections: dict[str, Any] = {
        "detector": None if detector is None else load_detector(detector),
        "cache": None if cache is None else rl.HeadCache.load(cache),
        "evaluations": {name: rl.Evaluation.load(path) for name, path in map(_named, evaluation or [])},
    }
    if prompt is not None and loaded is not None:
        sections["answer"] = rl.trace_answer(loading.load_for(loaded, model), prompt, loaded)
    page = rl.report(loaded, **sections, steered=steered, title=title)
    path = page.save(out)
    emit({"path": str(path), "bytes": path.stat().st_size}, as_json=as_json, shown=[f"report written to {path}"])


def _named(text: str) -> tuple[str, str]:
    from radiant_lens.errors import InvalidArgumentError

    name, equals, path = text.partition("=")
    if not name or not equals or not path:
        raise InvalidArgumentError(f"`--evaluation` must read NAME=FILE; got {text!r}.")
    return name, path
