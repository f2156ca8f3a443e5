"""Commands of `radiant-lens`; each is a thin layer over the Python interface of the same name.

Modules that load torch are imported inside the commands, so that `radiant-lens --help` starts at once.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radiant_lens.cli import options as o
from radiant_lens.cli.ablate import ablate
from radiant_lens.cli.bench import bench, side_effects
from radiant_lens.cli.collect import collect
from radiant_lens.cli.columns import columns
from radiant_lens.cli.evaluate import evaluate
from radiant_lens.cli.explore import explore
from radiant_lens.cli.fit import fit
from radiant_lens.cli.generate import generate
from radiant_lens.cli.groups import spread
from radiant_lens.cli.launch import SHARED, require_one_process
from radiant_lens.cli.output import emit, table
from radiant_lens.cli.report import report
from radiant_lens.cli.serve import serve
from radiant_lens.cli.stopping import Stopped, interruptible
from radiant_lens.cli.usage import Commands
from radiant_lens.distributed import launched
from radiant_lens.errors import RadiantError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

app = typer.Typer(
    name="radiant-lens",
    cls=Commands,
    help="Detect undesirable content in attention heads and edit them, with a stated probability that it works.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run a command: exit status 0 for success, 1 for failure, 2 for bad usage, 130 and 143 if it was stopped."""
    try:
        # Around everything, so that a signal during imports ends in one sentence too.
        with interruptible(), warnings.catch_warnings():
            warnings.showwarning = _print_warning
            app()
    except Stopped as stop:
        typer.echo(f"radiant-lens: {stop}", err=True)
        sys.exit(stop.exit_status)
    except (RadiantError, OSError, MemoryError) as error:
        rank = launched()
        typer.echo(f"radiant-lens: {f'rank {rank.number}: ' if rank.n > 1 else ''}{error}", err=True)
        sys.exit(error.exit_status if isinstance(error, RadiantError) else 1)


def _print_warning(message: Warning | str, *place: object, **options: object) -> None:
    """Print a warning as a sentence, without the line of code that it comes from."""
    typer.echo(f"radiant-lens: {message}", err=True)


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
    if context.invoked_subcommand not in SHARED:
        names = ", ".join(f"`{name}`" for name in SHARED)
        require_one_process(f"`{context.invoked_subcommand}`", f"Work is shared by {names}.")


def demo(
    model: o.Model = "tiny",
    data: Annotated[
        str | None, typer.Option(help="Data file or name; default 'tiny-facts' for 'tiny', else 'misconceptions'.")
    ] = None,
    out: o.Out = Path("radiant-demo"),
    gamma: Annotated[float, typer.Option(help="Share that may still be flagged after the edit, in (0, 0.5).")] = 0.01,
    samples: o.Samples = 3,
    seed: o.Seed = 0,
    as_json: o.Json = False,
    *,
    reading: o.Reading,
    loading: o.Loading,
) -> None:
    """Collect, fit, certify, steer, and compare with ITI and controls, in about a minute.

    On another model than the embedded one: answers before and after a least-KL steering, with its gain and its cost
    (`--gamma` and `--samples` are for the embedded one).

    Example: radiant-lens demo

    A pretrained model: radiant-lens demo --model smollm2-135m-instruct
    """
    from radiant_lens.cli.demo import run_demo
    from radiant_lens.cli.demo_model import run_model_demo

    def load() -> TransformerBridge:
        return loading.load(model)

    own = model == "tiny"
    dataset = reading.load(data or ("tiny-facts" if own else "misconceptions"), model=model)
    if own or not any(prompt.has_choices for prompt in dataset.prompts):
        result, shown = run_demo(model, load, dataset, out, gamma=gamma, n_samples=samples, seed=seed, quiet=as_json)
    else:
        result, shown = run_model_demo(model, load, dataset, out, seed=seed, quiet=as_json)
    emit(result, as_json=as_json, shown=shown)


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness, with all its own options, on a steered model.

    Example: radiant-lens lm-eval --model radiant-lens --model_args pretrained=tiny,steering=my-steering --tasks my_task
    """
    from radiant_lens.harness import run_command_line

    run_command_line(context.args)


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


for command in (demo, columns, collect, fit, generate, evaluate, side_effects, ablate, bench, report, explore, doctor):
    app.command()(spread(command))
app.command(
    "lm-eval",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(lm_eval)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
