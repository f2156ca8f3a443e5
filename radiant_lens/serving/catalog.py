"""The steerings of a server: their names in vLLM's configuration, and what is read from their folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radiant_lens import _checks
from radiant_lens._files import write_errors
from radiant_lens.errors import InvalidArgumentError, ModelMismatchError
from radiant_lens.serving.versions import require_known, vllm_version
from radiant_lens.steering.steering import Steering

CONFIG_KEY = "radiant_lens"
"""Of the entry in vLLM's `additional_config`, which reaches every process of an engine."""

LAYERS_KEY = "layers"
"""Of the edited layers, which a worker adds to the entry."""

NO_STEERING = "none"
"""As the steering of a request: none, also where the server has a default."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
MOST = 16
"""Steerings of one server, unless it sets another limit."""

# Entries of a configuration that vLLM leaves as the checkpoint has them. `rope_parameters` and others are rewritten.
_COMPARED = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "hidden_act", "layer_norm_eps", "rms_norm_eps", "sliding_window"),
)


def engine_config(
    steerings: Mapping[str, str | Path],
    *,
    default: str | None = None,
    most: int = MOST,
    trace_file: str | Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the `additional_config` of an engine that serves steerings.

    Args:
        steerings: folder or Hub id of each steering, by the name that requests use.
        default: name of the steering of requests that name none; None: such requests are not edited.
        most: largest number of steerings, at least 1. Every row is computed for all steerings of a layer.
        trace_file: file to which votes and edits of requests with `trace` are added, one JSON object a line; the engine
            must run eagerly (`enforce_eager=True`). None: such requests are refused.

    Example:
        >>> engine_config({"truthful": "my-steering"}, default="truthful")["radiant_lens"]["default"]
        'truthful'

    Raises:
        InvalidArgumentError: no steerings, too many, or a name that is no word or stands for no steering.
        UnknownNameError: a default that is not among the names.
        MissingPackageError: vLLM is installed in a release that the plugin does not know.
    """
    installed = vllm_version()
    if installed is not None:
        # Here, since the plugin itself must not stop a vLLM that serves no steerings.
        require_known(installed)
    _checks.whole("most", most, 1)
    if not 1 <= len(steerings) <= most:
        raise InvalidArgumentError(
            f"`steerings` must hold between 1 and {most}; got {len(steerings)}: raise the limit (`most`, "
            "`--max-steerings`), or start another server."
        )
    for name in steerings:
        if name == NO_STEERING or not _NAME.fullmatch(name):
            raise InvalidArgumentError(
                f"The name of a steering must be letters, digits and . _ : - and not {NO_STEERING!r}; got "
                f"{_checks.shown(name)}."
            )
    if default is not None:
        _checks.known("steering", default, steerings)
    folders = {name: str(folder) for name, folder in steerings.items()}
    entry: dict[str, Any] = {"steerings": folders, "default": default, "most": most}
    if trace_file is not None:
        # Workers may have another working directory.
        entry["trace_file"] = str(Path(trace_file).absolute())
    return {CONFIG_KEY: entry}


@dataclass(frozen=True)
class Catalog:
    """The steerings of a server.

    Attributes:
        folders: folder or Hub id of each steering.
        steerings: by name, in the order of `folders`; the place of a steering is its number.
        default: steering of requests that name none, or None.
        trace_file: file for the traces of requests, or None.
    """

    folders: dict[str, str]
    steerings: dict[str, Steering]
    default: str | None
    trace_file: str | None = None

    def number(self, name: str) -> int:
        """Place of a steering."""
        return list(self.steerings).index(name)


def read_catalog(additional_config: object) -> Catalog | None:
    """Read the steerings that the configuration of an engine names; None where it names none.

    Raises:
        ArtefactError: a steering is missing or damaged.
        OutputError: the file for traces cannot be written.
        InvalidArgumentError, UnknownNameError: as `engine_config`.
    """
    entry = additional_config.get(CONFIG_KEY) if isinstance(additional_config, dict) else None
    if entry is None:
        return None
    _checks.instance(CONFIG_KEY, entry, dict, hint="`engine_config` makes it")
    unknown = set(entry) - {"steerings", "default", "most", "trace_file", LAYERS_KEY}
    if unknown or not isinstance(entry.get("steerings"), dict):
        raise InvalidArgumentError(
            f"`{CONFIG_KEY}` in the additional configuration must have the keys `steerings`, `default` and `most`; got "
            f"{', '.join(map(str, entry)) or 'none'}: `engine_config` makes it."
        )
    options = {"default": entry.get("default"), "most": entry.get("most", MOST), "trace_file": entry.get("trace_file")}
    checked = engine_config(entry["steerings"], **options)[CONFIG_KEY]
    if "trace_file" in checked:
        # At the start: later, a request would have to fail for it.
        with write_errors(Path(checked["trace_file"])), open(checked["trace_file"], "a", encoding="utf-8"):
            pass
    steerings = {name: Steering.from_pretrained(folder) for name, folder in checked["steerings"].items()}
    return Catalog(checked["steerings"], steerings, checked["default"], checked.get("trace_file"))


def require_model(catalog: Catalog, config: Any, d_head: int) -> None:
    """Check that every steering was made for a model of this configuration.

    The weights are not compared, since vLLM fuses them as it loads them: a steering of another checkpoint of the same
    architecture and sizes is not noticed.

    Args:
        catalog: the steerings.
        config: of the language model, as transformers has it.
        d_head: length of a head's activation.

    Raises:
        ModelMismatchError: names the first difference.
    """
    shape = (int(config.num_hidden_layers), int(config.num_attention_heads), d_head)
    for name, steering in catalog.steerings.items():
        made_for = tuple(steering.scores.weights.shape)
        if made_for != shape:
            raise ModelMismatchError(
                f"Steering {name!r} is for a model with {_shape(made_for)}; this one has {_shape(shape)}. Serve the "
                "model that it was fitted on, or fit it again."
            )
        recorded = steering.meta.get("model", {})
        _compare(name, recorded.get("name", "another model"), recorded.get("config", {}), config)


def _compare(name: str, model: str, recorded: Mapping[str, Any], config: Any) -> None:
    for key in _COMPARED:
        expected, actual = recorded.get(key), getattr(config, key, None)
        if expected is not None and actual is not None and expected != actual:
            raise ModelMismatchError(
                f"Steering {name!r} was fitted on {model!r}, whose `{key}` is {expected!r}; this model's is {actual!r}."
                " Serve the model that it was fitted on, or fit it again."
            )


def _shape(shape: tuple[int, ...]) -> str:
    n_layers, n_heads, d_head = shape
    return f"{n_layers} layers of {n_heads} heads of length {d_head}"
