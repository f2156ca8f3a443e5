"""The hash by which version 0.1 knew a model: of a sample of its weights. Artefacts of that version hold no other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor, nn

from radiant_lens._files import sha256
from radiant_lens.models.fingerprint import COPYING
from radiant_lens.sites import walk


def sample_hashes(model: nn.Module) -> Iterator[str]:
    """Yield two hashes of the first 64 values of each parameter, rounded as those of `content_hashes` are."""
    sampled = _sampled(model)
    for rounded in (Tensor.bfloat16, lambda values: values.half().bfloat16()):
        pieces = [piece for values, sizes in sampled for piece in _split(rounded(values).float(), sizes)]
        yield sha256(sorted(pieces))[:16]


@torch.no_grad()
def _sampled(model: nn.Module) -> list[tuple[Float[Tensor, " value"], list[int]]]:
    """Samples of all weights, those of one device and precision as one tensor, with their sizes."""
    samples: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for sample in _samples(model):
        samples[sample.device, sample.dtype].append(sample)
    return [(torch.cat(rows).cpu().float(), [row.numel() for row in rows]) for rows in samples.values()]


def _split(values: Tensor, sizes: Sequence[int]) -> list[bytes]:
    content, ends = values.numpy().tobytes(), [4 * end for end in accumulate(sizes)]
    return [content[begin:end] for begin, end in zip([0, *ends], ends)]


def _samples(model: nn.Module) -> Iterator[Tensor]:
    """The first 64 values of every parameter that is not a bridge's copy, each once."""
    tied: set[str] = set(getattr(model, "all_tied_weights_keys", None) or ())
    seen: set[int] = set()
    offloaded = defaultdict[nn.Module, list[str]](list)
    for _, module in walk(model):
        # A bridge's copies come after the module that holds them.
        for kind, parts in COPYING.items():
            if isinstance(module, kind):
                seen.update(id(p) for part in parts for p in getattr(module, part).parameters())
        for key, parameter in vars(module)["_parameters"].items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                if parameter.is_meta:
                    offloaded[module].append(key)
                else:
                    yield parameter.flatten()[:64]
    if offloaded:
        yield from _fetched_samples(model, offloaded, tied)


def _fetched_samples(model: nn.Module, offloaded: dict[nn.Module, list[str]], tied: set[str]) -> Iterator[Tensor]:
    from accelerate.utils import align_module_device

    paths = {module: name.removesuffix("._original_component") for name, module in model.named_modules()}
    for module, keys in offloaded.items():
        with align_module_device(module, torch.device("cpu")):
            # Copies: views would keep whole parameters in memory.
            yield from [getattr(module, k).flatten()[:64].clone() for k in keys if f"{paths[module]}.{k}" not in tied]
