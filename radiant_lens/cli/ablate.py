"""`radiant-lens ablate`: ready studies, the user's own from a YAML file, or a grid from flags."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radiant_lens.cli import options as o
from radiant_lens.cli.output import emit, table
from radiant_lens.cli.policies import read_value

if TYPE_CHECKING:
    from radiant_lens.datasets import Dataset


def ablate(
    study: Annotated[
        str | None,
        typer.Argument(help="A ready study or paper:TABLE (see --list), a .yaml file, 'knock-out', or 'detecting'."),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="An axis of a grid, such as gamma=0.005,0.05 or heads=effective,least_risk:4; repeatable."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Default the study's own, else 'tiny'.")] = None,
    data: Annotated[str | None, typer.Option(help="Default the study's own, else 'tiny-facts'.")] = None,
    test_data: Annotated[str | None, typer.Option(help="Of a paper:TABLE: the file to test on.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="Of a paper:TABLE, in place of its own, such as 'overlap', which is offline.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0,1,2; default the file's, else 0.")] = None,
    samples: Annotated[int | None, typer.Option(help="Answers to each prompt; default the file's, else 3.")] = None,
    groups: Annotated[
        int | None, typer.Option(help="For a quick look: the first groups of the data; of a paper:TABLE drawn ones.")
    ] = None,
    controls: Annotated[str | None, typer.Option(help="'reference' (of the first arm) or 'all'.")] = None,
    kind: Annotated[str, typer.Option(help="Of the knock-out: 'zero', 'mean' or 'resample'.")] = "mean",
    metric: Annotated[str, typer.Option(help="Of the knock-out: 'log_odds' or a metric of `evaluate`.")] = "log_odds",
    jobs: Annotated[int, typer.Option(help="Processes to share the cells among.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for finished evaluations; a rerun does what is missing.")
    ] = None,
    list_studies: Annotated[bool, typer.Option("--list", help="List the ready studies.")] = False,
    as_json: o.Json = False,
    *,
    reading: o.Reading,
    loading: o.Loading,
) -> None:
    """Compare steerings and their controls, over seeds, with intervals; resumes where it was stopped.

    Example: radiant-lens ablate --vary gamma=0.005,0.05 --groups 40 --out my-study
    """
    from radiant_lens import _checks, studies
    from radiant_lens.errors import InvalidArgumentError
    from radiant_lens.evaluation import get_judge

    if list_studies:
        _list_studies(as_json)
        return
    if (study is None) == (not vary):
        raise InvalidArgumentError("Name a study (see --list), or give at least one --vary, but not both.")
    is_paper = study is not None and study.startswith("paper:")
    without = {"--controls": controls} if is_paper else {"--test-data": test_data, "--judge": judge}
    for name, value in without.items():
        if value is not None:
            raise InvalidArgumentError(f"`{name}` is {'not ' * is_paper}for a paper:TABLE; got {str(value)!r}.")
    # A study loads its models by name, unless their settings differ from the default ones.
    source: Any = model if loading == o.Loading() else loading.load(model or "tiny")
    # So do data, unless they are read in a way of their own.
    dataset: str | Dataset | None = data
    if reading != o.Reading():
        if is_paper:
            raise InvalidArgumentError(
                "The paper's tables read their data in the published format: leave out its options."
            )
        dataset = reading.load(data or "tiny-facts", model=model or "tiny")
    if study in ("knock-out", "detecting"):
        _one_by_one(study, source or "tiny", dataset or "tiny-facts", seeds, kind, metric, as_json)
        return
    if study is not None and is_paper:
        changes: dict[str, Any] = {"n_groups": groups, "n_samples": samples, "out": out}
        changes = {name: value for name, value in changes.items() if value is not None}
        if judge is not None:
            changes["judge"] = get_judge(judge, device=loading.device)
        _paper(study.removeprefix("paper:"), source, (data, test_data), seeds, as_json, changes)
        return
    options: dict[str, Any] = {"n_samples": samples, "n_groups": groups, "controls": controls, "out": out}
    options |= {"model": source, "data": dataset, "seeds": None if seeds is None else o.numbers("seeds", seeds)}
    options = {name: value for name, value in options.items() if value is not None}
    if vary:
        chosen = [studies.Study("grid", studies.grid(**_axes(vary)), **options)]
    elif study is not None and study.endswith((".yaml", ".yml")):
        chosen = [studies.read_study(study, **options)]
    else:
        _checks.known("ready study", str(study), [*studies.READY, "knock-out", "detecting"], hint="See --list.")
        chosen = studies.ready_studies(str(study), **options)
    results = [one.run(progress=True, n_jobs=jobs) for one in chosen]
    emit(
        {"studies": [_summary(r) for r in results]} if as_json else {},
        as_json=as_json,
        shown=[text for r in results for text in _texts(r)],
    )


def _list_studies(as_json: bool) -> None:
    from radiant_lens import studies

    rows = [{"study": name, "asks": ready.title} for name, ready in studies.READY.items()]
    tables = [
        {"study": f"paper:{name}", "asks": f"{t.model} on {t.test_data or t.data} (unmeasured)"}
        for name, t in studies.PAPER_TABLES.items()
    ]
    shown = [table("Ready studies", rows), table("The paper's tables, under its protocol", tables)]
    emit({"studies": [*rows, *tables]}, as_json=as_json, shown=shown)


def _summary(result: Any) -> dict[str, Any]:
    return {
        "study": result.name,
        "computed": result.n_computed,
        "rows": result.to_dataframe().to_dict("records"),
        "pooled": result.pooled().to_dict("records"),
        "markdown": result.to_markdown(),
    }


def _texts(result: Any) -> list[str]:
    return [f"\n{result.name}, value [95% interval]\n", result.to_markdown()]


def _paper(
    name: str,
    model: Any,
    files: tuple[str | None, str | None],
    seeds: str | None,
    as_json: bool,
    changes: dict[str, Any],
) -> None:
    """Run a table of the paper; `changes` are further arguments of its `run`."""
    from radiant_lens import _checks, studies
    from radiant_lens.cli.doctor import versions

    _checks.known("table of the paper", name, studies.PAPER_TABLES, hint="See --list.")
    chosen = o.numbers("seeds", seeds) if seeds else (0,)
    paper = studies.PAPER_TABLES[name]
    result = paper.run(model, *files, seeds=chosen, progress=True, **changes)
    judge = changes.get("judge", paper.options["judge"])
    settings = {
        "table": name,
        "model": model if isinstance(model, str) else paper.model if model is None else str(model.cfg.model_name),
        # Names alone: where a file lies is nobody else's business.
        "files": [None if file is None else Path(file).name for file in files],
        "judge": judge if isinstance(judge, str) else repr(judge),
        "groups": changes.get("n_groups"),
        "seeds": list(chosen),
    }
    answer = {
        "choices": result.choices.to_dict("records"),
        "rows": result.comparison.to_dataframe().to_dict("records"),
        "pooled": result.comparison.pooled().to_dict("records"),
        "settings": settings,
        "versions": versions(),
    }
    emit(answer, as_json=as_json, shown=[result.choices.to_string(), result.to_markdown()])


def _one_by_one(
    study: str, model: Any, data: str | Dataset, seeds: str | None, kind: str, metric: str, as_json: bool
) -> None:
    from radiant_lens import datasets, studies
    from radiant_lens.models import loading

    seed = o.numbers("seeds", seeds)[0] if seeds else 0
    experiment = studies.prepare(
        loading.load_model(model),
        datasets.load_dataset(data) if isinstance(data, str) else data,
        seed=seed,
        progress=True,
    )
    if study == "knock-out":
        frame = studies.knock_out(experiment, kind=kind, metric=metric, progress=True).to_dataframe()
        title = f"Effect of the {kind} ablation of each head on {metric}"
        extra: dict[str, Any] = {}
    else:
        comparison = studies.detecting_and_doing(experiment)
        frame, extra = comparison.table, {"correlations": comparison.correlations()}
        title = "Risk of each head's detector, and the effect of editing the head (nats)"
    rows = frame.to_dict("records")
    emit({"heads": rows, **extra}, as_json=as_json, shown=[table(title, rows), *map(str, extra.values())])


def _axes(vary: list[str]) -> dict[str, list[Any]]:
    """Read axes from `name=value,value`; values are read as YAML, so that numbers are numbers and null is None."""
    from radiant_lens.errors import InvalidArgumentError

    axes: dict[str, list[Any]] = {}
    for text in vary:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise InvalidArgumentError(f"`vary` must read name=value,value; got {text!r}.")
        axes[name.replace("-", "_")] = [read_value("--vary", text, value) for value in values.split(",")]
    return axes
