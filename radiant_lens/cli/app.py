"""Commands of `radiant-lens`; each is a thin layer over the Python interface of the same name.

Modules that load torch are imported inside the commands, so that `radiant-lens --help` starts at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radiant_lens.cli import options as o
from radiant_lens.cli.ablate import ablate
from radiant_lens.cli.output import emit, shows, table
from radiant_lens.cli.report import report
from radiant_lens.cli.stopping import Stopped, interruptible
from radiant_lens.distributed import launched
from radiant_lens.errors import InvalidArgumentError, RadiantError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SHARED = ("collect", "generate", "evaluate", "ablate")
"""Commands that share their work among the processes of one launch."""

app = typer.Typer(
    name="radiant-lens",
    help="Detect undesirable content in attention heads and edit them, with a stated probability that it works.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(ablate)
app.command()(report)


def main() -> None:
    """Run a command: exit status 0 for success, 1 for failure, 2 for bad usage, 130 and 143 if it was stopped."""
    try:
        # Around everything, so that a signal during imports ends in one sentence too.
        with interruptible():
            app()
    except Stopped as stop:
        typer.echo(f"radiant-lens: {stop}", err=True)
        sys.exit(stop.exit_status)
    except (RadiantError, OSError, MemoryError) as error:
        rank = launched()
        typer.echo(f"radiant-lens: {f'rank {rank.number}: ' if rank.n > 1 else ''}{error}", err=True)
        sys.exit(error.exit_status if isinstance(error, RadiantError) else 1)


def _print_version(show: bool) -> None:
    if show:
        import radiant_lens as rl

        typer.echo(f"radiant-lens {rl.__version__}")
        raise typer.Exit


@app.callback()
def check_launch(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Refuse several processes where a command does not share its work."""
    # Several processes would write the same files over each other.
    if context.invoked_subcommand not in SHARED:
        _one_process(
            f"`{context.invoked_subcommand}`", f"Work is shared by {', '.join(f'`{name}`' for name in SHARED)}."
        )


def _one_process(command: str, hint: str) -> None:
    n = launched().n
    if n > 1:
        raise InvalidArgumentError(f"{command} runs in one process; {n} were launched. {hint}")


@app.command()
def demo(
    model: o.Model = "tiny",
    data: o.Data = "tiny-facts",
    out: o.Out = Path("radiant-demo"),
    gamma: o.Gamma = None,
    samples: o.Samples = 3,
    seed: o.Seed = 0,
    device: o.Device = None,
    dtype: o.Dtype = None,
    prepend_bos: o.PrependBos = None,
    as_json: o.Json = False,
) -> None:
    """Collect, fit, certify, steer, and compare with ITI and controls, in about a minute.

    Example: radiant-lens demo
    """
    from radiant_lens.cli.demo import run_demo
    from radiant_lens.cli.policies import DEFAULTS

    def load() -> TransformerBridge:
        return o.load_model(model, device=device, dtype=dtype, prepend_bos=prepend_bos)

    promise: float = DEFAULTS["radiant"]["gamma"] if gamma is None else gamma
    result, shown = run_demo(model, load, data, out, gamma=promise, n_samples=samples, seed=seed, quiet=as_json)
    emit(result, as_json=as_json, shown=shown)


@app.command()
def collect(
    out: Annotated[
        Path | None, typer.Option(help="Folder to write at the end; one of the same kind is replaced.")
    ] = None,
    store: o.Store = None,
    model: o.Model = "tiny",
    data: o.Data = "tiny-facts",
    positions: o.Positions = "answer",
    layers: o.Layers = None,
    max_tokens: o.MaxTokens = None,
    device: o.Device = None,
    device_map: o.DeviceMap = None,
    dtype: o.Dtype = None,
    prepend_bos: o.PrependBos = None,
    as_json: o.Json = False,
) -> None:
    """Save the activation of every head on labelled text.

    Example: radiant-lens collect --data my.jsonl --out my-cache

    Several processes: torchrun --nproc-per-node 4 --no-python radiant-lens collect --data my.jsonl --store my-cache
    """
    import radiant_lens as rl
    from radiant_lens._files import check_target

    path = store or out
    if path is None or (store and out):
        raise InvalidArgumentError("Give either --out or --store, the folder to write.")
    if store is None:
        _one_process("`collect --out`", "`--store` is shared.")
        check_target(path, "head cache")
    cache = rl.collect(
        o.load_model(model, device=device, device_map=device_map, dtype=dtype, prepend_bos=prepend_bos),
        rl.load_dataset(data),
        positions=positions,
        layers=None if layers is None else o.numbers("layers", layers),
        max_tokens=max_tokens,
        progress=shows(as_json),
        store=store,
    )
    if store is None:
        cache.save(path)
    result = {"path": str(path), "examples": len(cache), "texts": len(cache.texts), "shape": list(cache.z.shape)}
    emit(result, as_json=as_json, shown=[cache, f"written to {path}"])


@app.command()
def fit(
    out: o.Out,
    model: o.Model = "tiny",
    data: o.Data = "tiny-facts",
    policy: Annotated[
        str,
        typer.Option(
            help="'radiant', 'iti', 'mean_shift', 'moment_matching', 'linear_act', 'leace' or 'ablation'; its options "
            "are set by the flags below or by --option."
        ),
    ] = "radiant",
    option: Annotated[
        list[str] | None, typer.Option(help="Any option of the policy, such as heads=all or trust=0.999; repeatable.")
    ] = None,
    gamma: o.Gamma = None,
    geometry: Annotated[
        str | None, typer.Option(help="'mahalanobis' (default), 'wasserstein' or 'procrustes'; of 'radiant'.")
    ] = None,
    gate: Annotated[
        str | None, typer.Option(help="'head', 'vote' (default of 'radiant'), 'layer' or 'none' (of the others).")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Strength of 'iti' (default 2) or 'mean_shift' (1).")] = None,
    fnr_weight: Annotated[float, typer.Option(help="Weight of a miss against a false alarm.")] = 0.65,
    positions: o.Positions = "answer",
    seed: o.Seed = 0,
    device: o.Device = None,
    device_map: o.DeviceMap = None,
    dtype: o.Dtype = None,
    prepend_bos: o.PrependBos = None,
    as_json: o.Json = False,
) -> None:
    """Fit a steering on 60% of the groups, choose its heads on 20%, certify it on 20%.

    Example: radiant-lens fit --model ./my-gpt2 --data my.jsonl --gamma 0.05 --out my-steering

    Another policy: radiant-lens fit --policy mean_shift --alpha 2 --option heads=all --out my-shift
    """
    import radiant_lens as rl
    from radiant_lens import studies
    from radiant_lens._files import check_target
    from radiant_lens.cli.policies import names_heads, policy_from_flags

    # Everything that can be refused is refused before the model is loaded.
    check_target(out, "steering")
    flags = {"gamma": gamma, "geometry": geometry, "gate": gate, "alpha": alpha}
    chosen = policy_from_flags(policy, flags, option or [])
    detector = studies.recommended_detector(seed).set_params(fnr_weight=fnr_weight)
    experiment = studies.prepare(
        o.load_model(model, device=device, device_map=device_map, dtype=dtype, prepend_bos=prepend_bos),
        rl.load_dataset(data),
        detector=detector,
        positions=positions,
        seed=seed,
        progress=not as_json,
    )
    steering = chosen.fit(experiment.train_cache, experiment.detector)
    # Heads that were named stay; by default the policy's heads are reduced to those that act.
    if policy == "radiant" and experiment.validation.prompts and not names_heads(option or []):
        steering = steering.select(rl.head_effects(experiment.model, experiment.validation, steering))
    certificate = steering.certify(experiment.test_cache())
    path = steering.save(out)
    result = {
        "path": str(path),
        "heads": [str(site) for site in steering.sites],
        "significant_heads": int(experiment.detector.head_significant_.sum()),
        "certificate": certificate.to_dataframe().to_dict("records"),
    }
    emit(result, as_json=as_json, shown=[experiment.detector, steering, str(certificate), f"written to {path}"])


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts.")],
    steering: o.Steering = None,
    model: o.Model = "tiny",
    compare: Annotated[
        bool, typer.Option("--compare", help="Print answers without steering next to steered ones.")
    ] = False,
    max_new_tokens: o.NewTokens = 20,
    temperature: o.Temperature = 1.0,
    samples: o.Samples = 1,
    seed: o.Seed = 0,
    device: o.Device = None,
    device_map: o.DeviceMap = None,
    dtype: o.Dtype = None,
    prepend_bos: o.PrependBos = None,
    as_json: o.Json = False,
) -> None:
    """Continue prompts, with or without steering.

    Example: radiant-lens generate --steering radiant-demo --compare "Q : what is the capital of dupeka ? A :"
    """
    import radiant_lens as rl
    from radiant_lens.evaluation import generate_answers

    if compare and steering is None:
        raise InvalidArgumentError("`--compare` needs `--steering`, the folder of the steering to compare with.")
    loaded = None if steering is None else rl.Steering.load(steering)
    bridge = o.load_model(model, device=device, device_map=device_map, dtype=dtype, prepend_bos=prepend_bos)

    def answer() -> list[list[str]]:
        return generate_answers(
            bridge, prompts, n_samples=samples, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
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


@app.command()
def evaluate(
    model: o.Model = "tiny",
    data: o.Data = "tiny-facts",
    steering: o.Steering = None,
    part: Annotated[
        str, typer.Option(help="'test' (the 20% of groups that `fit` leaves alone with the same seed) or 'all'.")
    ] = "test",
    metrics: o.Metrics = None,
    judge: o.Judge = None,
    fluency_model: o.FluencyModel = None,
    out: o.OutFile = None,
    samples: o.Samples = 1,
    max_new_tokens: o.NewTokens = 20,
    temperature: o.Temperature = 1.0,
    seed: o.Seed = 0,
    device: o.Device = None,
    device_map: o.DeviceMap = None,
    dtype: o.Dtype = None,
    prepend_bos: o.PrependBos = None,
    as_json: o.Json = False,
) -> None:
    """Judge generated answers and measure KL and cross entropy on desirable text; other metrics on request.

    Example: radiant-lens evaluate --steering my-steering --data my.jsonl --samples 4 --metrics answers --metrics choice
    """
    import radiant_lens as rl
    from radiant_lens import _checks
    from radiant_lens._files import check_target
    from radiant_lens.evaluation import get_judge

    _checks.choice("part", part, ("test", "all"))
    if out is not None:
        check_target(out)
    dataset = rl.load_dataset(data)
    dataset = dataset if part == "all" else dataset.split((0.6, 0.2, 0.2), seed=seed)[2]
    loaded = None if steering is None else rl.Steering.load(steering)
    result = rl.evaluate(
        o.load_model(model, device=device, device_map=device_map, dtype=dtype, prepend_bos=prepend_bos),
        dataset,
        loaded,
        n_samples=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        judge=None if judge is None else get_judge(judge, device=device),
        metrics=metrics,
        fluency_model=fluency_model,
    )
    # All ranks have the whole result; one writes it.
    if out is not None and launched().number == 0:
        result.save(out)
    rows = [{"metric": name, **m._asdict()} for name, m in result.metrics.items()]
    emit({"metrics": result.metrics, "settings": result.settings}, as_json=as_json, shown=[table(repr(dataset), rows)])


@app.command(
    "lm-eval",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness, with all its own options, on a steered model.

    Example: radiant-lens lm-eval --model radiant-lens --model_args pretrained=tiny,steering=my-steering --tasks my_task
    """
    from radiant_lens.harness import run_command_line

    run_command_line(context.args)


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="Model to check.")] = "tiny",
    device: o.Device = None,
    dtype: o.Dtype = None,
    prepend_bos: o.PrependBos = None,
    as_json: o.Json = False,
) -> None:
    """Check that a model's heads can be read, steered and trusted here; print versions and devices.

    Exit status 1, with the reason, where a check does not hold.

    Example: radiant-lens doctor ./my-gpt2
    """
    from radiant_lens.cli.doctor import examine, rows

    report = examine(model, device, dtype=dtype, prepend_bos=prepend_bos)
    emit(report, as_json=as_json, shown=[table("radiant-lens doctor", rows(report))])
    if not report["ok"]:
        raise typer.Exit(1)
