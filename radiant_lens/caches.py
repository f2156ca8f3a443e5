"""`HeadCache`: the activations of every attention head at chosen positions, with their labels and groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._files import load_folder, save_folder
from radiant_lens.errors import ArtefactError, InvalidArgumentError, InvalidIndexError
from radiant_lens.splits import split_groups


@dataclass(frozen=True, eq=False)
class HeadCache:
    """Activations of every head at `hook_z`, one example for each chosen token position.

    Attributes:
        z: activations.
        labels: 1 undesirable, 0 desirable, one for each example.
        text_index: which of `texts` each example stands in.
        positions: its position there, counted from the text's first token (the BOS token where there is one).
        texts: the distinct texts.
        group_names: group of each text; examples of one group are never parted by a split.
        meta: provenance: model, data, positions, versions.
    """

    z: Float[Tensor, "example layer head d_head"]
    labels: Int[Tensor, " example"]
    text_index: Int[Tensor, " example"]
    positions: Int[Tensor, " example"]
    texts: tuple[str, ...]
    group_names: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Axes and lengths agree, and indices are in range."""
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

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.z)

    def __repr__(self) -> str:
        """Counts of everything, in one line."""
        n_layers, n_heads, d_head = self.z.shape[1:]
        share = float(self.labels.double().mean()) if len(self) else float("nan")
        return (
            f"HeadCache({len(self)} examples of {len(self.texts)} texts in {len(set(self.group_names))} groups, "
            f"{n_layers} layers x {n_heads} heads x {d_head}, {share:.0%} undesirable)"
        )

    @property
    def groups(self) -> Int[Tensor, " example"]:
        """Code of each example's group; equal codes mean equal names within this cache."""
        codes = {name: i for i, name in enumerate(sorted(set(self.group_names)))}
        by_text = torch.tensor([codes[name] for name in self.group_names], dtype=torch.long)
        return by_text[self.text_index]

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return self.z.shape[1]

    @property
    def n_heads(self) -> int:
        """Number of heads in each layer."""
        return self.z.shape[2]

    def select(self, examples: Int[Tensor, " chosen"] | Bool[Tensor, " example"] | Sequence[int] | slice) -> HeadCache:
        """The chosen examples in the given order; texts that no example stands in are dropped.

        Raises:
            InvalidIndexError: an example that is not there, or what chooses none.
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
        try:
            chosen = torch.as_tensor(examples)
            return torch.arange(len(self))[chosen.long() if chosen.numel() == 0 else chosen]
        except (IndexError, TypeError, ValueError) as error:
            raise InvalidIndexError(
                f"`examples` must be whole numbers in [-{len(self)}, {len(self)}), a mask of length {len(self)}, or a "
                f"slice: {error}."
            ) from error

    def split(self, fractions: Sequence[float], *, seed: int = 0) -> tuple[HeadCache, ...]:
        """Parts that share no group, with about these fractions of the groups.

        Raises:
            InvalidArgumentError: the fractions do not add up to 1, or there are fewer groups than parts.
        """
        parts = split_groups(self.group_names, fractions, seed=seed)
        names = [self.group_names[i] for i in self.text_index.tolist()]
        return tuple(self.select([i for i, name in enumerate(names) if name in part]) for part in parts)

    def with_labels(self, labels: Int[Tensor, " example"]) -> HeadCache:
        """The same activations with other labels, for instance shuffled ones as a control."""
        _checks.instance("labels", labels, Tensor)
        _checks.shape("labels", labels, (len(self),), "example")
        return replace(self, labels=labels)

    def with_shuffled_labels(self, *, seed: int = 0) -> HeadCache:
        """Control: labels permuted over texts, so that every token of a text keeps one label."""
        _checks.seed(seed)
        first = torch.zeros(len(self.texts), dtype=torch.long)
        first[self.text_index] = self.labels
        order = torch.randperm(len(self.texts), generator=torch.Generator().manual_seed(seed))
        return replace(self, labels=first[order][self.text_index])

    def save(self, path: str | Path) -> Path:
        """Write the cache as a folder of safetensors and JSON; returns its path."""
        tensors = {"z": self.z, "labels": self.labels, "text_index": self.text_index, "positions": self.positions}
        meta = {"texts": self.texts, "group_names": self.group_names, "meta": self.meta}
        return save_folder(path, "head cache", tensors, meta)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> HeadCache:
        """Read a cache; activations are memory-mapped, not copied.

        Args:
            path: of the folder.
            verify: read everything once and compare it with the hash it was saved with; False for a very large one.

        Raises:
            ArtefactError: the folder is missing, damaged, or no cache.
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


def _check_types(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """What was read from a file is of the kinds that a cache holds."""
    _checks.shape("z", tensors["z"], (None, None, None, None), "example layer head d_head")
    for name, floating in {"z": True, "labels": False, "text_index": False, "positions": False}.items():
        if tensors[name].is_complex() or tensors[name].is_floating_point() != floating:
            raise InvalidArgumentError(f"`{name}` must not be {tensors[name].dtype}.")
    for name in ("texts", "group_names"):
        _checks.each(name, meta[name], str)
    _checks.each("meta", [meta["meta"]], dict)
