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
steering = rl.Steering.load("PATH")  # or from_pretrained("OWNER/NAME")
with rl.steer(model, steering):
    print(model.generate("...", max_new_tokens=20))
```

In a shell: `radiant-lens generate --steering PATH "..."`."""

_AGAIN = """The fit took {n} groups of the data; the others are free to measure it on:

```python
data = rl.load_dataset("{data}", model=model)
test = data.only(data.groups - set(steering.meta["seen_groups"]))
print(steering.certify(rl.collect(model, test)))  # is it still flagged after the edit?
print(rl.evaluate(model, test).metrics)  # without
print(rl.evaluate(model, test, steering).metrics)  # with
```"""

_WORDS = {
    "head": "attention head; its output, before the output projection, is edited",
    "gate": "the rule that decides at each token whether a head is edited",
    "risk": "false alarm rate plus weighted miss rate of a head's detector; 0 is perfect",
    "FPR, FNR": "shares of desirable examples flagged and of undesirable ones missed, on validation data",
    "gamma": "share of edited activations that may still be flagged, if the fit's assumptions hold",
    "kappa": "standard deviations by which the mean score is moved below the detector's boundary",
}

_GATES = {
    "head": "an edit wherever the head itself flags the token",
    "vote": "an edit wherever the head and its layer's vote flag the token",
    "layer": "an edit wherever the layer's vote flags the token",
    "joint": "an edit wherever the joint score of the layer, and of those below, flags the token",
    "none": "an edit at every token",
}
_BY_EVIDENCE = "; a part of it grows with how surely the text looks undesirable to the layer and those below"


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
                "gate": _gate(steering),
                "data": f"{meta.get('data', 'not known')}, positions {meta.get('positions', 'not known')}, "
                f"hash {meta.get('data_hash', 'not known')}",
                "split seed": meta.get("split_seed", "not known"),
                "solver": _solver(steering),
            }
        ),
        "## Use",
        _USE.format(model=name),
        "It is refused on other weights; `allow_mismatch=True` forces it onto a model of the same shape.",
    ]
    if meta.get("seen_groups") and meta.get("data"):
        parts += ["## Measure it again", _AGAIN.format(n=len(meta["seen_groups"]), data=meta["data"])]
    parts += ["## Settings", _code({"policy": policy, "detector": meta.get("detector", {})})]
    parts += _metrics(steering, meta.get("metrics", {}))
    parts += ["## Words", "\n".join(f"- **{word}**: {meaning}." for word, meaning in _WORDS.items())]
    return "\n\n".join(parts) + "\n"


def _metrics(steering: SteeringParts, metrics: Mapping[str, Any]) -> list[str]:
    """Rates of the edited heads' detectors as a table, and other metrics as they are."""
    rates: Any = metrics.get("detector")
    names = [name for name in map(str, steering.sites) if isinstance(rates, Mapping) and name in rates]
    others = {name: value for name, value in metrics.items() if name != "detector" or not names}
    parts = ["## Metrics"] if metrics else []
    if names:
        lines = ["| head | FPR | FNR | risk |", "|-|-|-|-|"]
        columns = ("fpr", "fnr", "risk")
        lines += [f"| {n} | {' | '.join(str(rounded(rates[n].get(c, '?'))) for c in columns)} |" for n in names]
        parts += [f"Detectors of the edited heads; `meta.json` has all {len(rates)}.", "\n".join(lines)]
    return [*parts, _code(others)] if others else parts


def rounded(value: Any) -> Any:
    """A value of JSON with three significant digits; whole numbers, names and truth values stay."""
    if isinstance(value, float):
        return float(f"{value:.3g}")
    if isinstance(value, Mapping):
        return {name: rounded(inner) for name, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _gate(steering: SteeringParts) -> str:
    by_evidence = _BY_EVIDENCE if steering.head_maps.needs_joint else ""
    return f"{steering.gate}: {_GATES[steering.gate]}{by_evidence}"


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
    return f"```json\n{json.dumps(rounded(value), indent=1, ensure_ascii=False)}\n```"
