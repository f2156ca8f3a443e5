"""`HeadCache`: the activations of every attention head at chosen positions, with their labels and groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._files import load_folder, save_folder
from radiant_lens.errors import ArtefactError, InvalidArgumentError, InvalidIndexError
from radiant_lens.notebook import card, html_table
from radiant_lens.splits import classes_by_group, split_groups


@dataclass(frozen=True, eq=False)
class HeadCache:
    """Activations of every head at `hook_z`, one example for each chosen token position.

    Attributes:
        z: activations.
        labels: 1 undesirable, 0 desirable, one for each example.
        text_index: index in `texts` of the text of each example.
        positions: position of each example in its text, counted from the first token (the BOS token if there is one).
        texts: the distinct texts.
        group_names: group of each text; a split never separates examples of one group.
        meta: provenance: model, data, positions, versions; and `layers`, if only some layers were collected.
    """

    z: Float[Tensor, "example layer head d_head"]
    labels: Int[Tensor, " example"]
    text_index: Int[Tensor, " example"]
    positions: Int[Tensor, " example"]
    texts: tuple[str, ...]
    group_names: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that axes and lengths agree, and that indices are in range."""
        for name in ("z", "labels", "text_index", "positions"):
            _checks.instance(name, getattr(self, name), Tensor)
        _checks.shape("z", self.z, (None,) * 4, "example layer head d_head")
        if not self.z.is_floating_point():
            raise InvalidArgumentError(f"`z` must hold real numbers in floating point; got {self.z.dtype}.")
        n = len(self.z)
        for name in ("labels", "text_index", "positions"):
            value = getattr(self, name)
            _checks.shape(name, value, (n,), "example")
            if value.is_floating_point():
                raise InvalidArgumentError(f"`{name}` must be whole numbers; got {value.dtype}.")
        if len(self.group_names) != len(self.texts):
            raise InvalidArgumentError(
                f"`group_names` needs one name for each of the {len(self.texts)} texts; got {len(self.group_names)}."
            )
        if n and not 0 <= int(self.text_index.min()) <= int(self.text_index.max()) < len(self.texts):
            raise InvalidArgumentError(f"`text_index` must lie in [0, {len(self.texts)}).")
        if "layers" in self.meta:
            _checks.each("meta['layers']", self.meta["layers"], int)
            for layer in self.meta["layers"]:
                _checks.whole("meta['layers']", layer, 0, self.n_layers - 1)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.z)

    def __repr__(self) -> str:
        """Show all counts in one line."""
        n_layers, n_heads, d_head = self.z.shape[1:]
        share = float(self.labels.double().mean()) if len(self) else float("nan")
        return (
            f"HeadCache({len(self)} examples of {len(self.texts)} texts in {len(set(self.group_names))} groups, "
            f"{n_layers} layers x {n_heads} heads x {d_head}, {share:.0%} undesirable)"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row for each example: its `text`, `position`, `label` and `group`, without activations."""
        index = self.text_index.tolist()
        return pd.DataFrame(
            {
                "text": [self.texts[i] for i in index],
                "position": self.positions.numpy(),
                "label": self.labels.numpy(),
                "group": [self.group_names[i] for i in index],
            }
        )

    def _repr_html_(self) -> str:
        rows = []
        for label, name in enumerate(("desirable", "undesirable")):
            texts = self.text_index[self.labels == label].unique().tolist()
            groups = {self.group_names[i] for i in texts}
            n_examples = int((self.labels == label).sum())
            rows.append({"class": name, "examples": n_examples, "texts": len(texts), "groups": len(groups)})
        return card("HeadCache", repr(self), html_table(rows))

    @property
    def groups(self) -> Int[Tensor, " example"]:
        """Code of each example's group; equal codes mean equal names within this cache."""
        # Sorted, so that codes do not depend on the order of texts.
        codes = {name: i for i, name in enumerate(sorted(set(self.group_names)))}
        by_text = torch.tensor([codes[name] for name in self.group_names], dtype=torch.long)
        return by_text[self.text_index]

    @property
    def collected_layers(self) -> tuple[int, ...]:
        """Layers whose activations were collected, sorted; in all others `z` is zero."""
        return tuple(sorted(self.meta.get("layers", range(self.n_layers))))

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return self.z.shape[1]

    @property
    def n_heads(self) -> int:
        """Number of heads in each layer."""
        return self.z.shape[2]

    def select(self, examples: Int[Tensor, " chosen"] | Bool[Tensor, " example"] | Sequence[int] | slice) -> HeadCache:
        """Select examples, in the order of `examples`; texts without a selected example are dropped.

        Raises:
            InvalidIndexError: an index out of range, or something that is not an index.
        """
        index = self._index(examples)
        used, text_index = self.text_index[index].unique(return_inverse=True)
        return replace(
            self,
            z=self.z[index],
            labels=self.labels[index],
            text_index=text_index,
            positions=self.positions[index],
            texts=tuple(self.texts[i] for i in used.tolist()),
            group_names=tuple(self.group_names[i] for i in used.tolist()),
        )

    def _index(self, examples: Tensor | Sequence[int] | slice) -> Int[Tensor, " chosen"]:
        if isinstance(examples, slice):
            return torch.arange(len(self))[examples]
        # torch's own indexing decides what is an index; an empty list would become a float tensor, which is not.
        try:
            chosen = torch.as_tensor(examples)
            return torch.arange(len(self))[chosen.long() if chosen.numel() == 0 else chosen]
        except (IndexError, TypeError, ValueError) as error:
            raise InvalidIndexError(
                f"`examples` must be whole numbers in [-{len(self)}, {len(self)}), a mask of length {len(self)}, or a "
                f"slice: {error}."
            ) from error

    def split(self, fractions: Sequence[float], *, seed: int = 0) -> tuple[HeadCache, ...]:
        """Split into parts that share no group, with about these fractions of the groups of each class.

        Raises:
            InvalidArgumentError: the fractions do not add up to 1, or there are fewer groups than parts.
        """
        strata = group_classes(self.group_names, self.text_index, self.labels)
        parts = split_groups(self.group_names, fractions, seed=seed, strata=strata)
        names = [self.group_names[i] for i in self.text_index.tolist()]
        return tuple(self.select([i for i, name in enumerate(names) if name in part]) for part in parts)

    def with_labels(self, labels: Int[Tensor, " example"]) -> HeadCache:
        """Return the same activations with other labels, for instance shuffled ones as a control."""
        _checks.instance("labels", labels, Tensor)
        _checks.shape("labels", labels, (len(self),), "example")
        return replace(self, labels=labels)

    def with_shuffled_labels(self, *, seed: int = 0) -> HeadCache:
        """Permute labels over texts, as a control; all tokens of a text have one label."""
        _checks.seed(seed)
        # Of a text with both labels, some token decides: which one does not matter for labels without meaning.
        by_text = torch.zeros(len(self.texts), dtype=torch.long)
        by_text[self.text_index] = self.labels
        order = torch.randperm(len(self.texts), generator=torch.Generator().manual_seed(seed))
        return replace(self, labels=by_text[order][self.text_index])

    def save(self, path: str | Path) -> Path:
        """Write the cache as a folder of safetensors and JSON, and return its path."""
        tensors = {"z": self.z, "labels": self.labels, "text_index": self.text_index, "positions": self.positions}
        meta = {"texts": self.texts, "group_names": self.group_names, "meta": self.meta}
        return save_folder(path, "head cache", tensors, meta)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> HeadCache:
        """Read a cache; activations are memory-mapped, not copied.

        Args:
            path: of the folder.
            verify: read everything once and compare it with the saved hash; False for a very large cache.

        Raises:
            ArtefactError: the folder is missing, damaged, or not a cache.
        """
        tensors, meta = load_folder(path, "head cache", verify=verify)
        try:
            _check_types(tensors, meta)
            return cls(
                **{name: tensors[name] for name in ("z", "labels", "text_index", "positions")},
                texts=tuple(meta["texts"]),
                group_names=tuple(meta["group_names"]),
                meta=meta["meta"],
            )
        except (KeyError, TypeError, RecursionError, InvalidArgumentError) as error:
            raise ArtefactError(f"The saved head cache at {str(path)!r} is incomplete: {error}.") from error


def group_classes(
    group_names: Sequence[str], text_index: Int[Tensor, " example"], labels: Int[Tensor, " example"]
) -> dict[str, tuple[int, ...]]:
    """Classes that each group holds; see `splits.classes_by_group`."""
    pairs: list[list[int]] = torch.stack([text_index, labels], dim=1).unique(dim=0).tolist()
    return classes_by_group(group_names, ((group_names[text], label) for text, label in pairs))


def _check_types(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Check the types of everything that was read from a file."""
    _checks.shape("z", tensors["z"], (None, None, None, None), "example layer head d_head")
    for name, floating in {"z": True, "labels": False, "text_index": False, "positions": False}.items():
        if tensors[name].is_complex() or tensors[name].is_floating_point() != floating:
            raise InvalidArgumentError(f"`{name}` must not be {tensors[name].dtype}.")
    for name in ("texts", "group_names"):
        _checks.each(name, meta[name], str)
    _checks.each("meta", [meta["meta"]], dict)
