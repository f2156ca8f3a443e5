"""`radiant-lens bench`: all steerings on one task, each at the same KL; and `side-effects`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from radiant_lens.cli import options as o
from radiant_lens.cli.output import emit
from radiant_lens.errors import InvalidArgumentError

_DEFAULT_GATES = "none,head"
_DEFAULT_BUDGETS = "0.02,0.08,0.25"


def bench(
    data: Annotated[str, typer.Argument(help="Task: a name, or a file; as `--data` of other commands.")] = (
        "tiny-facts"
    ),
    model: o.Model = "tiny",
    arms: Annotated[list[str] | None, typer.Option(help="An arm; repeatable. Default all that `--list` names.")] = None,
    budgets: Annotated[
        str, typer.Option(help="KL in nats a token at which arms are compared, separated by commas.")
    ] = _DEFAULT_BUDGETS,
    folds: Annotated[str, typer.Option(help="'0', '1' or '0,1': which half is tested.")] = "0,1",
    gates: Annotated[
        str,
        typer.Option(
            help="Gates on offer, separated by commas: none, head, vote, layer, joint. Some arms have their own."
        ),
    ] = _DEFAULT_GATES,
    train_groups: Annotated[
        int | None, typer.Option(min=1, help="Training groups to fit on, drawn at random; default all.")
    ] = None,
    validation_groups: Annotated[
        int | None,
        typer.Option(min=1, help="Validation groups to choose on, drawn at random; default all."),
    ] = None,
    test_groups: Annotated[int | None, typer.Option(min=1, help="Test groups, drawn at random; default all.")] = None,
    answers: Annotated[int, typer.Option(min=0, help="Test groups whose generated answers are judged.")] = 40,
    transfer: Annotated[
        list[str] | None,
        typer.Option(help="Another task on which the same steerings are tested; repeatable. A name, or a file."),
    ] = None,
    continuations: Annotated[
        str | None,
        typer.Option(help="Prompts to be continued under every steering, such as RealToxicityPrompts. Name or file."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Of the continuations: 'profanity' (offline, extra 'toxicity') or another of `evaluate`."),
    ] = None,
    continued_groups: Annotated[int, typer.Option(min=1, help="Groups of prompts that each fold continues.")] = 40,
    samples: Annotated[int, typer.Option(min=1, help="Continuations of each prompt.")] = 25,
    seed: o.Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for finished arms; a rerun does what is missing.")] = None,
    list_arms: Annotated[bool, typer.Option("--list", help="List the arms.")] = False,
    as_json: o.Json = False,
    *,
    reading: o.Reading,
    loading: o.Loading,
) -> None:
    """Compare steerings at the same KL: same gates on offer, two folds, controls of style; resumes where it stopped.

    Example: radiant-lens bench tiny-facts --arms "mean shift" --test-groups 20

    A real model: radiant-lens bench misconceptions --model smollm2-135m-instruct --out my-bench
    """
    from radiant_lens import _checks
    from radiant_lens.cli.doctor import versions
    from radiant_lens.evaluation import get_judge
    from radiant_lens.steering.gates import GATES
    from radiant_lens.studies.benchmark import ARMS, Benchmark, Continuations

    if list_arms:
        emit({"arms": list(ARMS)}, as_json=as_json, shown=list(ARMS))
        return
    # What is named twice is computed once: its rows would count twice.
    amounts, parts = sorted(set(_amounts(budgets))), sorted(set(o.numbers("folds", folds)))
    offered = list(dict.fromkeys(gate.strip() for gate in gates.split(",")))
    for gate in offered:
        _checks.choice("gates", gate, GATES)
    dataset, *others = [reading.load(task, model=model) for task in (data, *(transfer or ()))]
    continued = None
    if continuations is not None:
        prompts = reading.load(continuations, model=model)
        chosen = get_judge(prompts.judge if judge is None else judge, device=loading.device)
        continued = Continuations(prompts, continued_groups, samples, chosen)
    elif judge is not None:
        raise InvalidArgumentError(f"`--judge` is for `--continuations`; got {judge!r} without it.")
    benchmark = Benchmark(
        loading.load(model),
        dataset,
        arms=arms,
        budgets=amounts,
        folds=parts,
        gates=offered,
        n_train=train_groups,
        n_validation=validation_groups,
        n_test=test_groups,
        n_answered=answers,
        seed=seed,
        out=out,
        transfer=others,
        continuations=continued,
    )
    result = benchmark.run(progress=True)
    tables = {"continuations": result.continued().to_dict("records")} if continued is not None else {}
    answer = {
        "rows": result.to_dataframe().to_dict("records"),
        **tables,
        "notes": list(result.notes),
        "settings": benchmark.settings(),
        "versions": versions(),
    }
    emit(answer, as_json=as_json, shown=[f"\n{result!r}, value [95% interval]\n", result.to_markdown()])


def _amounts(text: str) -> list[float]:
    try:
        return [float(piece) for piece in text.split(",")]
    except ValueError as error:
        raise InvalidArgumentError(
            f"`--budgets` must be numbers separated by commas, such as {_DEFAULT_BUDGETS}; got {text!r}."
        ) from error


def side_effects(
    steering: Annotated[Path, typer.Argument(help="Folder that `fit` or `demo` wrote.")],
    model: o.SteeredModel = None,
    benchmark: Annotated[
        Path | None, typer.Option(help="File of multiple-choice questions: question, choices, answer.")
    ] = None,
    max_new_tokens: o.NewTokens = 40,
    seed: o.Seed = 0,
    as_json: o.Json = False,
    *,
    loading: o.Loading,
) -> None:
    """Measure what a steering changes that it should not: neutral text, harmless requests, a general benchmark.

    Example: radiant-lens side-effects my-steering
    """
    import radiant_lens as rl

    loaded = rl.Steering.load(steering)
    effects = rl.side_effects(
        loading.load_for(loaded, model),
        loaded,
        benchmark=benchmark,
        max_new_tokens=max_new_tokens,
        seed=seed,
        progress=True,
    )
    rows = effects.to_dataframe().to_dict("records")
    emit(
        {"metrics": rows, "answers": effects.answers.to_dict("records")}, as_json=as_json, shown=[effects.to_markdown()]
    )
