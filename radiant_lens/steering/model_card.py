"""The model card of a saved steering: its model, data, heads, solver, metrics, and use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from radiant_lens.errors import InvalidArgumentError
from radiant_lens.steering.artefact import SteeringParts

_USE = """```python
import radiant_lens as rl

model = rl.load_model("{model}")  # or any transformers model of the same weights
steering = rl.Steering.{load}
with rl.steer(model, steering):
    print(model.generate("...", max_new_tokens=20))
```"""


def with_metrics(meta: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The meta data of a steering with additional metrics.

    Raises:
        InvalidArgumentError: metrics that JSON cannot hold.
    """
    joined = {**meta, "metrics": {**meta.get("metrics", {}), **metrics}}
    try:
        json.dumps(joined["metrics"], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"`metrics` must be what JSON can hold; {error}.") from error
    return joined


def model_card(steering: SteeringParts) -> str:
    """The card as Markdown, with the header that the Hugging Face Hub reads."""
    meta = steering.meta
    model, policy = meta.get("model", {}), meta.get("policy", {})
    name = model.get("name", "?")
    header = ["---", "library_name: radiant-lens", "tags: [steering, interpretability, attention-heads, RADIANT]"]
    # The Hub links this entry, so it must be the id of a repository and not a local path.
    if "/" in name and not name.startswith(("/", ".")):
        header.append(f"base_model: {name}")
    model_line = f"`{name}` ({model.get('architecture', '?')}), revision {model.get('revision') or 'not known'}"
    heads = ", ".join(map(str, steering.sites))
    parts = [
        "\n".join([*header, "---"]),
        f"# Steering of {name}: {policy.get('name', '?')}",
        "Edits of attention heads at the input of the attention output projection (`hook_z`), from the last prompt "
        "token on, made with radiant-lens (RADIANT, arXiv 2501.15758). No text of the training data is in these files, "
        "but the names of its groups are.",
        _table(
            {
                "model": model_line,
                "hook": f"`{steering.hook_site}`",
                "dtype of the activations": model.get("dtype", "not known"),
                "heads": heads,
                "gate": steering.gate,
                "data": f"{meta.get('data', 'not known')}, positions {meta.get('positions', 'not known')}, "
                f"hash {meta.get('data_hash', 'not known')}",
                "split seed": meta.get("split_seed", "not known"),
                "solver": _solver(steering),
            }
        ),
        "## Use",
        _USE.format(model=name, load='load("PATH")  # or from_pretrained("OWNER/NAME")'),
        "It is refused on other weights; `allow_mismatch=True` forces it onto a model of the same shape.",
        "## Settings",
        _code({"policy": policy, "detector": meta.get("detector", {})}),
    ]
    if meta.get("metrics"):
        parts += ["## Metrics", _code(meta["metrics"])]
    return "\n\n".join(parts) + "\n"


def _solver(steering: SteeringParts) -> str:
    methods = sorted({certificate.method for certificate in steering.certificates})
    # NaN is not equal to itself: maps that minimise nothing have no gap.
    gaps = [c.gap for c in steering.certificates if c.gap == c.gap]
    slacks = [c.slack for c in steering.certificates if c.slack == c.slack]
    pieces = [", ".join(methods)]
    pieces += [f"worst relative gap {max(gaps):.1e}"] if gaps else []
    pieces += [f"least slack {min(slacks):.1e}"] if slacks else []
    return "; ".join(pieces)


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|-|-|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _code(value: Any) -> str:
    return f"```json\n{json.dumps(value, indent=1, ensure_ascii=False)}\n```"
