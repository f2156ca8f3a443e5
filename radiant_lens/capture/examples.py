"""The examples of a collection, before any pass: which positions of which tokenized texts, and what they belong to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._files import sha256
from radiant_lens.capture.store import Column
from radiant_lens.capture.tokenized import TokenizedTexts, tokenize
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import Statement
from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.models.identity import signature
from radiant_lens.models.lengths import fit_context, long_rule

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

POSITIONS = ("answer", "last", "all")
# Columns are made for so many texts at once, so that their memory does not grow with the data.
_TEXTS_AT_ONCE = 4096


class Examples(NamedTuple):
    """Texts that activations are collected from, and the other fields of a head cache.

    Attributes:
        texts: tokenized, with the positions to keep of each.
        layers: layers to keep, ascending.
        columns: label, text and position of every example.
        fields: texts, names of their groups, and provenance.
    """

    texts: TokenizedTexts
    layers: tuple[int, ...]
    columns: dict[str, Column]
    fields: dict[str, Any]

    def plan(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Every setting on which the content of a store depends; `settings` are those of its passes and shards."""
        meta = self.fields["meta"]
        return {
            **{f"model {key}": value for key, value in meta["model"].items()},
            "positions": meta["positions"],
            "layers": list(self.layers),
            "data": _data_digest(self.fields["texts"], self.fields["group_names"], self.columns),
            "tokens": self.texts.digest,
            **settings,
        }


def read_examples(
    model: TransformerBridge,
    data: Dataset | Sequence[Statement],
    positions: str | Sequence[int],
    layers: Sequence[int] | None,
    on_long: str | None,
) -> Examples:
    """Tokenize labelled statements as a model reads them; the arguments are those of `collect`.

    Warns (UserWarning) if texts are skipped or cut.

    Raises:
        InvalidArgumentError: positions of another kind, an index outside a text, or an unknown layer.
        DataError: no statements, or all of them (or, with `on_long="error"`, one) longer than the context.
    """
    name, statements = (data.name, data.statements) if isinstance(data, Dataset) else ("statements", tuple(data))
    chosen = _kept_layers(layers, model.cfg.n_layers)
    # The caller of `collect` is three calls away from the warning, and `fit_context` counts itself.
    fitting = fit_context(model, statements, long_rule(data, on_long), stacklevel=4)
    statements = fitting.records
    fields: dict[str, Any] = {
        "texts": tuple(s.text for s in statements),
        "group_names": tuple(s.group for s in statements),
        "meta": {
            **_provenance(model, name, positions, layers),
            "too_long": {"skipped": fitting.n_skipped, "cut": fitting.n_cut},
        },
    }
    texts = tokenize(model, statements, positions)
    return Examples(texts, chosen, _columns(statements, texts), fields)


def check_arguments(data: Dataset | Sequence[Statement], positions: str | Sequence[int]) -> None:
    """Check the data and positions of a collection, before a model is loaded or read.

    Raises:
        InvalidArgumentError, DataError: as `read_examples`.
    """
    _checks.instance("data", data, (Dataset, list, tuple), hint="`load_dataset` makes a Dataset of a name or a table")
    statements = data.statements if isinstance(data, Dataset) else data
    if not statements:
        raise DataError("There are no statements to collect activations on.")
    for statement in statements:
        _checks.instance(
            "data", statement, Statement, hint="`collect` takes a Dataset, or Statements with their labels"
        )
    if isinstance(positions, str):
        _checks.choice("positions", positions, POSITIONS)
    elif not isinstance(positions, Sequence) or not positions or any(type(p) is not int for p in positions):
        raise InvalidArgumentError(f"`positions` must be one of {POSITIONS} or whole numbers; got {positions!r}.")


def _kept_layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(n_layers))
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise InvalidArgumentError(f"`layers` must name at least one layer, or be None for all; got {layers!r}.")
    for layer in layers:
        _checks.whole("layers", layer, 0, n_layers - 1)
    return tuple(sorted({int(layer) for layer in layers}))


def _provenance(
    model: TransformerBridge, name: str, positions: str | Sequence[int], layers: Sequence[int] | None
) -> dict[str, Any]:
    packages = ("radiant-lens", "transformer-lens", "transformers", "torch")
    return {
        "model": signature(model),
        "data": name,
        "positions": positions if isinstance(positions, str) else list(positions),
        **({} if layers is None else {"layers": [int(layer) for layer in layers]}),
        "versions": {package: version(package) for package in packages},
    }


def _columns(statements: Sequence[Statement], texts: TokenizedTexts) -> dict[str, Column]:
    """Label, text and position of every example."""

    def in_chunks(values: Callable[[Tensor], Tensor]) -> Column:
        return lambda: map(values, torch.arange(len(texts)).split(_TEXTS_AT_ONCE))

    def labels(chunk: Tensor) -> Tensor:
        # A label may also be True or 1.0.
        by_text = torch.tensor([statements[i].label for i in chunk.tolist()], dtype=torch.int64)
        return by_text.repeat_interleave(texts.counts[chunk])

    return {
        "labels": in_chunks(labels),
        "text_index": in_chunks(lambda chunk: chunk.repeat_interleave(texts.counts[chunk])),
        "positions": in_chunks(lambda chunk: torch.tensor([p for i in chunk.tolist() for p in texts.kept(i)])),
    }


def _data_digest(texts: Sequence[str], groups: Sequence[str], columns: Mapping[str, Column]) -> str:
    # Text by text: all of them as one string would be a second copy of the data.
    rows = (json.dumps(row).encode() for row in zip(texts, groups))
    return sha256(chain(rows, (chunk.numpy().data for chunks in columns.values() for chunk in chunks())))[:16]
