"""`radiant-lens explore`: a steering that is moved by hand, on a page of a local server."""

from __future__ import annotations

import signal
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from radiant_lens.cli import options as o
from radiant_lens.cli.output import console
from radiant_lens.cli.stopping import Stopped


def explore(
    steering: Annotated[Path, typer.Option(help="Folder that `fit` or `demo` wrote.")],
    model: o.SteeredModel = None,
    data: Annotated[
        str | None,
        typer.Option(help="As for `fit`; for examples, budgets of KL and the tokens that excite a head. Default none."),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of this machine; 0 for any that is free.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    max_new_tokens: o.NewTokens = 20,
    effects: Annotated[
        int | None,
        typer.Option(help="Estimate the effect of each head first, on this many groups of the data.", min=2),
    ] = None,
    *,
    reading: o.Reading,
    loading: o.Loading,
) -> None:
    """Open a page on which heads, strength, KL and gate are moved by hand; Ctrl-C ends it.

    The page is served to this machine alone, at an address with a secret token.

    Example: radiant-lens explore --model tiny --steering my-steering --data tiny-facts
    """
    import radiant_lens as rl
    from radiant_lens import _checks
    from radiant_lens.analysis.sensitivity import require_gain
    from radiant_lens.errors import InvalidArgumentError
    from radiant_lens.viz.explorer import Explorer, Source, serving
    from radiant_lens.viz.explorer.settings import MOST_NEW_TOKENS

    # Everything that can be refused is refused before the model is loaded.
    _checks.whole("port", port, 0, 65535)
    _checks.whole("max_new_tokens", max_new_tokens, 1, MOST_NEW_TOKENS)
    if effects is not None and data is None:
        raise InvalidArgumentError(f"`--effects {effects}` needs `--data` with correct and incorrect answers.")
    loaded = rl.Steering.load(steering)
    name = o.model_name(loaded, model)
    dataset = None if data is None else reading.load(data, model=name)
    groups_with_answers = None
    if effects is not None and dataset is not None:
        groups_with_answers = dataset.only({prompt.group for prompt in require_gain(dataset.prompts)}).sample(effects)
    bridge = loading.load_for(loaded, model)
    source = Source(name, str(steering), _options(loading, bool(bridge.cfg.default_prepend_bos)))
    estimated = (
        None if groups_with_answers is None else rl.head_effects(bridge, groups_with_answers, loaded, progress=True)
    )
    explorer = Explorer(bridge, loaded, dataset, effects=estimated, max_new_tokens=max_new_tokens, source=source)
    with serving(explorer, port=port) as server:
        console.print(f"Explorer of {loaded!r}", soft_wrap=True)
        console.print(f"Open {server.address}", soft_wrap=True)
        console.print("Ctrl-C ends it.")
        if browser:
            webbrowser.open(server.address)
        try:
            server.run()
        except Stopped as stop:
            # The usual end of a server is no failure; that by another signal is reported as for all commands.
            if stop.exit_status != 128 + signal.SIGINT:
                raise
            console.print("The explorer has ended.")


def _options(loading: o.Loading, prepend_bos: bool) -> dict[str, Any]:
    options = {"device": loading.device, "device_map": loading.device_map, "dtype": loading.dtype}
    return {**{name: value for name, value in options.items() if value is not None}, "prepend_bos": prepend_bos}
