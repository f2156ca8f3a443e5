"""Mistakes at every public entry point: each raises its error, which names the value and the remedy.

Every row also shows that nothing is written: the folder of good and bad files is as it was before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import huggingface_hub
import pytest
import torch
from plain_models import random_steering
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import radiant_lens as rl
from radiant_lens import studies
from radiant_lens._files import FORMAT_VERSION
from radiant_lens.errors import (
    ArtefactError,
    DataError,
    GuaranteeError,
    InvalidArgumentError,
    InvalidIndexError,
    LeakageError,
    ModelLoadError,
    ModelMismatchError,
    NotFittedError,
    NothingToEditError,
    OutputError,
    RadiantError,
    UnknownNameError,
)
from radiant_lens.evaluation import generate_answers
from radiant_lens.tiny import model_folder


class Wrong(NamedTuple):
    """A mistake (`w` holds good objects to make it with), the class of its error, and words of the message."""

    what: str
    do: Callable[[Any], object]
    error: type[Exception]
    says: str


STATEMENTS = (rl.Statement("Q : what ? A : the soup .", 0, "a", 15), rl.Statement("the soup is awful .", 1, "b"))
SOUP = rl.Dataset("soup", STATEMENTS, (rl.Prompt("Q : what ? A :", ("soup",), ("stew",), "c"),))
LONG = "the " * 300


def write_bad_files(place: Path) -> None:
    """Files as people have them: one of each kind of damage."""
    rows = {
        "no-label": [{"text": "a"}],
        "label-typo": [{"text": "a", "label": "true"}, {"text": "b", "label": "flase"}],
        "label-two": [{"text": "a b c d", "label": 0}, {"text": "e f g h", "label": 2}],
        "one-class": [{"text": f"the soup {i}", "label": 0} for i in range(9)],
        "no-answers": [{"prompt": "who ?", "correct_answers": [], "incorrect_answers": []}],
        "surrogate": [{"text": "a \ud800", "label": 0}],
        "long": [{"text": LONG, "label": 0}, {"text": LONG, "label": 1}],
        "empty": [],
    }
    for name, records in rows.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    (place / "binary.csv").write_bytes(b"\xff\xfe\x00\x00")
    (place / "broken.json").write_text('[{"text": "a", ')
    studies_ = {
        "no-mapping": "- a",
        "arms-are-numbers": "arms: [1]",
        "arms-is-a-number": "arms: 1",
        "key-typo": "arm: []",
        "code": "arms: !!python/object/apply:os.getcwd []",
        "seeds": "grid: {gamma: [0.1]}\nseeds: 3",
    }
    for name, text in studies_.items():
        (place / f"{name}.yaml").write_text(text)


def write_bad_artefacts(place: Path, cache: rl.HeadCache, steering: rl.Steering) -> None:
    """A good artefact of each kind, and copies that are damaged in one way each."""
    steering.save(place / "steering")
    cache.save(place / "cache")
    (place / "file").write_text("mine")
    torch.save({"weights": torch.zeros(3)}, place / "steering.pt")
    for name in ("cut", "later", "climbing", "absolute", "pickled", "no-weights"):
        shutil.copytree(place / "steering", place / name)
    for name in ("flat", "cut-cache"):
        shutil.copytree(place / "cache", place / name)
    for name in ("cut", "cut-cache"):
        whole = (place / name / "tensors.safetensors").read_bytes()
        (place / name / "tensors.safetensors").write_bytes(whole[: len(whole) // 2])
    shutil.copy(place / "steering.pt", place / "pickled" / "tensors.safetensors")
    changed(place / "later", format=99)
    changed(place / "climbing", map_kind="../../../etc/passwd")
    changed(place / "absolute", hook="/etc/passwd")
    changed(place / "no-weights", sites=[[99, 0]])
    changed(place / "flat", texts=7)
    (place / "a-model").mkdir()
    (place / "a-model" / "config.json").write_text("{")
    (place / "evaluation.json").write_text('{"format": 1, "kind": "evaluation", "settings": {}')


def changed(folder: Path, **changes: object) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))


def files(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() if p.is_file() else b"" for p in place.rglob("*")}


@pytest.fixture(scope="module")
def place(tmp_path_factory, model, gaussian_cache) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_bad_files(folder)
    write_bad_artefacts(folder, gaussian_cache(4), steering_of(model))
    return folder


def steering_of(model) -> rl.Steering:
    return random_steering(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)


@pytest.fixture(scope="module")
def at_hand(place, model, facts, gaussian_cache):
    """The embedded model with a steering that fits it; a small cache and detector of another shape."""
    cache, validation = gaussian_cache(40), gaussian_cache(40, seed=1)
    return SimpleNamespace(
        place=place,
        model=model,
        facts=facts,
        steering=steering_of(model),
        foreign=random_steering(2, 4, 8),
        cache=cache,
        validation=validation,
        nan=replace(cache, z=cache.z.clone().index_fill(0, torch.tensor([3]), float("nan"))),
        detector=rl.RiskAwareDetector().fit(cache, validation),
        few=rl.RiskAwareDetector().fit(cache, gaussian_cache(8, seed=1)),
        evaluation=rl.evaluate(model, SOUP, metrics=["answers"]),
    )


def refused(wrong: Wrong, w: Any) -> None:
    before = files(w.place)
    with pytest.raises(wrong.error) as caught:
        wrong.do(w)
    assert caught.type is wrong.error
    assert wrong.says in str(caught.value)
    assert files(w.place) == before


def rows(table: list[Wrong]):
    return pytest.mark.parametrize("wrong", table, ids=[row.what for row in table])


def pass_through(w: Any, name: str, function: Any) -> object:
    return w.model.run_with_hooks(w.model.to_tokens("the soup"), fwd_hooks=[(name, function)])


def steered_pass(w: Any, steering: Any = None, **options: Any) -> None:
    with rl.steer(w.model, steering or w.steering, **options), torch.no_grad():
        w.model(w.model.to_tokens("the soup"))


def cache_of(**changes: Any) -> rl.HeadCache:
    index = torch.tensor([0, 1])
    parts = {"z": torch.zeros(2, 1, 1, 2), "labels": index, "text_index": index, "positions": index}
    return rl.HeadCache(**{**parts, "texts": ("a", "b"), "group_names": ("a", "b"), **changes})


CACHES = [
    Wrong("a cache without the head axis", lambda w: cache_of(z=torch.zeros(2, 3, 4)),
          InvalidArgumentError, "`z` must have axes `example layer head d_head`"),
    Wrong("a cache of an array", lambda w: cache_of(z=torch.zeros(2, 1, 1, 2).numpy()),
          InvalidArgumentError, "`z` must be a Tensor; got ndarray"),
    Wrong("a cache of whole numbers", lambda w: cache_of(z=torch.zeros(2, 1, 1, 2).long()),
          InvalidArgumentError, "`z` must hold real numbers in floating point; got torch.int64"),
    Wrong("labels as a list", lambda w: cache_of(labels=[0, 1]),
          InvalidArgumentError, "`labels` must be a Tensor; got list"),
    Wrong("labels that are shares", lambda w: cache_of(labels=torch.tensor([0.5, 1.0])),
          InvalidArgumentError, "`labels` must be whole numbers; got torch.float32"),
    Wrong("new labels as a list", lambda w: w.cache.with_labels([0] * 80),
          InvalidArgumentError, "`labels` must be a Tensor; got list"),
    Wrong("selecting an example that is not there", lambda w: w.cache.select([999]),
          InvalidIndexError, "`examples` must be whole numbers in [-80, 80)"),
    Wrong("selecting by a mask of another length", lambda w: w.cache.select(torch.ones(3, dtype=torch.bool)),
          InvalidIndexError, "a mask of length 80"),
    Wrong("selecting by name", lambda w: w.cache.select("all"),
          InvalidIndexError, "`examples` must be whole numbers"),
    Wrong("fractions as text", lambda w: w.cache.split("0.5"),
          InvalidArgumentError, "`fractions` must be a float or an int; got str '0'"),
    Wrong("splitting by a seed that is a word", lambda w: w.cache.split((0.5, 0.5), seed="x"),
          InvalidArgumentError, "`seed` must be a whole number between 0 and 4294967295; got 'x'"),
    Wrong("shuffling by a negative seed", lambda w: w.cache.with_shuffled_labels(seed=-1),
          InvalidArgumentError, "`seed` must be a whole number between 0 and 4294967295; got -1"),
]  # fmt: skip

COLLECTING = [
    Wrong("no statements", lambda w: rl.collect(w.model, []), DataError, "no statements"),
    Wrong("texts without labels", lambda w: rl.collect(w.model, ["a", "b"]),
          InvalidArgumentError, "`data` must be a Statement; got str 'a': "),
    Wrong("a label that is neither", lambda w: rl.collect(w.model, [rl.Statement("a b", 2, "g")]),
          DataError, "`label` must be 0 (desirable) or 1 (undesirable); got 2"),
    Wrong("a plain model", lambda w: rl.collect(w.model.original_model, STATEMENTS),
          InvalidArgumentError, "`model` must be a TransformerBridge; got LlamaForCausalLM: use `load_model(model)`"),
    Wrong("the name of a model", lambda w: rl.collect("tiny", STATEMENTS),
          InvalidArgumentError, "got str 'tiny': use `load_model(model)`"),
    Wrong("no layer", lambda w: rl.collect(w.model, STATEMENTS, layers=[]),
          InvalidArgumentError, "`layers` must name at least one layer"),
    Wrong("layers by a word", lambda w: rl.collect(w.model, STATEMENTS, layers="all"),
          InvalidArgumentError, "`layers` must name at least one layer, or be None for all; got 'all'"),
    Wrong("a layer too many", lambda w: rl.collect(w.model, STATEMENTS, layers=[0, 99]),
          InvalidArgumentError, "`layers` must be a whole number between 0 and"),
    Wrong("positions by a typo", lambda w: rl.collect(w.model, STATEMENTS, positions="first"),
          InvalidArgumentError, "`positions` must be one of 'answer', 'last', 'all'; got 'first'"),
    Wrong("no positions", lambda w: rl.collect(w.model, STATEMENTS, positions=[]),
          InvalidArgumentError, "`positions` must be one of"),
    Wrong("one position", lambda w: rl.collect(w.model, STATEMENTS, positions=3),
          InvalidArgumentError, "or whole numbers; got 3"),
    Wrong("a position beyond a text", lambda w: rl.collect(w.model, STATEMENTS, positions=[99]),
          InvalidArgumentError, "`positions` must lie in [-"),
    Wrong("batches of nothing", lambda w: rl.collect(w.model, STATEMENTS, max_tokens=0),
          InvalidArgumentError, "`max_tokens` must be a whole number of at least 1; got 0"),
    Wrong("a text beyond the context", lambda w: rl.collect(w.model, [rl.Statement(LONG, 0, "x")]),
          DataError, "context holds 256"),
    Wrong("half a character", lambda w: rl.collect(w.model, rl.load_dataset(w.place / "surrogate.jsonl")),
          DataError, "Text 0 is not valid Unicode: surrogates not allowed at character 2"),
    Wrong("activations that are not finite",
          lambda w: rl.collect(w.model, STATEMENTS, fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: z / 0)]),
          DataError, "`activations` must be finite"),
    Wrong("a hook at an unknown layer",
          lambda w: rl.collect(w.model, STATEMENTS, fwd_hooks=[("blocks.99.attn.hook_z", lambda z, hook: z)]),
          UnknownNameError, "'blocks.99.attn.hook_z' is not a known hook of this model: did you mean"),
    Wrong("under a steering of another shape", lambda w: rl.collect(w.model, STATEMENTS, steering=w.foreign),
          ModelMismatchError, "with n_layers = 2; 'tiny' has 4"),
    Wrong("under the name of a steering", lambda w: rl.collect(w.model, STATEMENTS, steering="mine"),
          InvalidArgumentError, "`steering` must be a Steering; got str 'mine': a policy's `fit` returns one"),
]  # fmt: skip

DATA = [
    Wrong("a typo", lambda w: rl.load_dataset("tiny-fact"), UnknownNameError, "did you mean 'tiny-facts'"),
    Wrong("another kind of file", lambda w: rl.load_dataset("mine.xlsx"),
          UnknownNameError, "A file must end in .csv, .json or .jsonl"),
    Wrong("no such file", lambda w: rl.load_dataset(w.place / "none.csv"), DataError, "There is no file"),
    Wrong("an empty file", lambda w: rl.load_dataset(w.place / "empty.jsonl"), DataError, "empty.jsonl has no rows"),
    Wrong("a missing column", lambda w: rl.load_dataset(w.place / "no-label.jsonl"),
          DataError, "missing column 'label'"),
    Wrong("a typo in a label", lambda w: rl.load_dataset(w.place / "label-typo.jsonl"),
          DataError, "line 2: `label` must be 0 (desirable) or 1 (undesirable); got 'flase'"),
    Wrong("a prompt without answers", lambda w: rl.load_dataset(w.place / "no-answers.jsonl"),
          DataError, "line 1: the prompt has no answers to compare with; a judge that needs none"),
    Wrong("a file that is no text", lambda w: rl.load_dataset(w.place / "binary.csv"),
          DataError, "binary.csv cannot be read as .csv"),
    Wrong("half a file", lambda w: rl.load_dataset(w.place / "broken.json"),
          DataError, "broken.json cannot be read as .json"),
    Wrong("a data set of nothing", lambda w: rl.Dataset("x", ()), DataError, "Data set 'x' is empty"),
    Wrong("more parts than groups", lambda w: w.facts.head(2).split((0.3, 0.3, 0.4)),
          InvalidArgumentError, "3 parts need as many groups; the data has 2"),
    Wrong("contexts of one length, not in a tuple", lambda w: rl.Contexts(n_pairs=2),
          InvalidArgumentError, "`n_pairs` must be a tuple or a list; got int 2"),
    Wrong("contexts by a word", lambda w: rl.Contexts(seed="x"), InvalidArgumentError, "`seed` must be a whole"),
    Wrong("few-shot examples by a word", lambda w: w.facts.with_few_shot(w.facts, k=2, seed="x"),
          InvalidArgumentError, "`seed` must be a whole"),
    Wrong("contexts of too few questions", lambda w: w.facts.head(2).statements,
          DataError, "Contexts of 2 other questions need 3 groups of each label; there are 2"),
]  # fmt: skip


def fit(w: Any, cache: Any = None, validation: Any = None, **options: Any) -> object:
    cache, validation = w.cache if cache is None else cache, w.validation if validation is None else validation
    return rl.RiskAwareDetector(**options).fit(cache, validation)


DETECTORS = [
    Wrong("activations without a cache", lambda w: fit(w, w.cache.z),
          InvalidArgumentError, "`cache` must be a HeadCache; got Tensor: `collect` makes one"),
    Wrong("one class", lambda w: fit(w, w.cache.select(w.cache.labels == 0)),
          DataError, "Both classes are needed; the training data has no undesirable (1) example"),
    Wrong("labels 0 and 2", lambda w: fit(w, w.cache.with_labels(2 * w.cache.labels)),
          DataError, "Labels must be 0 (desirable) or 1 (undesirable); the training data has [0, 2]"),
    Wrong("no examples", lambda w: fit(w, w.cache.select([])), DataError, "the training data has no examples"),
    Wrong("activations that are not numbers", lambda w: fit(w, w.nan),
          DataError, "`activations of the training data` must be finite; 24 values are not"),
    Wrong("validation on the training data", lambda w: fit(w, validation=w.cache),
          LeakageError, "training and validation must not share groups"),
    Wrong("validation of another shape", lambda w: fit(w, validation=w.validation.__class__(
              torch.zeros(1, 2, 3, 5), *[torch.zeros(1).long()] * 3, ("a",), ("a",))),
          InvalidArgumentError, "`validation.z` must have axes `example layer head d_head` of lengths (any, 2, 3, 4)"),
    Wrong("an unknown loss", lambda w: fit(w, loss="hinge"), InvalidArgumentError, "`loss` must be one of 'risk'"),
    Wrong("a seed that is a word", lambda w: fit(w, seed="x"), InvalidArgumentError, "`seed` must be a whole number"),
    Wrong("no seed", lambda w: fit(w, seed=None), InvalidArgumentError, "got None"),
    Wrong("a negative seed", lambda w: fit(w, seed=-1), InvalidArgumentError, "got -1"),
    Wrong("a promise on too few groups", lambda w: fit(w, vote_rule="certified", target_fnr=0.001),
          GuaranteeError, "groups"),
    Wrong("predicting before fitting", lambda w: rl.RiskAwareDetector().predict(w.cache),
          NotFittedError, "call `fit(cache, validation=...)` first"),
    Wrong("predicting at a layer that is not there", lambda w: w.detector.predict(w.cache, layer=9),
          InvalidArgumentError, "`layer` must be a whole number between 0 and 1; got 9"),
    Wrong("recording into nothing", lambda w: w.detector.hook(None),
          InvalidArgumentError, "`recorder` must be callable, such as a list's `append`; got None"),
    Wrong("a hook at a layer that the detector lacks",
          lambda w: pass_through(w, "blocks.3.attn.hook_z", w.detector.hook(print)),
          InvalidArgumentError, "`layer` must be a whole number between 0 and 1; got 3"),
    Wrong("a hook on heads of another shape",
          lambda w: pass_through(w, "blocks.0.attn.hook_z", w.detector.hook(print)),
          InvalidArgumentError, "of lengths (any, any, 3, 4); got shape (1, 3, 8, 24)"),
    Wrong("a hook that is no head's", lambda w: pass_through(w, "blocks.0.hook_mlp_out", w.detector.hook(print)),
          UnknownNameError, "is not the name of a head hook; these read 'blocks.0.attn.hook_z'"),
    Wrong("a classifier of one class", lambda w: rl.RiskAwareClassifier().fit([[0.0], [1.0]], [0, 0]),
          ValueError, "two classes are needed; got 1"),
    Wrong("a classifier of NaN", lambda w: rl.RiskAwareClassifier().fit([[0.0], [float("nan")]], [0, 1]),
          ValueError, "Input X contains NaN"),
    Wrong("a classifier that is not fitted", lambda w: rl.RiskAwareClassifier().predict([[0.0]]),
          SklearnNotFittedError, "is not fitted yet"),
]  # fmt: skip


def policy(w: Any, **options: Any) -> object:
    return rl.RadiantPolicy(**options).fit(w.cache, w.detector)


POLICIES = [
    Wrong("gamma beyond a half", lambda w: policy(w, gamma=0.7),
          InvalidArgumentError, "`gamma` must lie strictly between 0 and 0.5; got 0.7"),
    Wrong("gamma as text", lambda w: policy(w, gamma="0.1"), InvalidArgumentError, "`gamma` must lie"),
    Wrong("an unknown geometry", lambda w: policy(w, geometry="euclid"),
          InvalidArgumentError, "`geometry` must be one of 'mahalanobis', 'wasserstein', 'procrustes'; got 'euclid'"),
    Wrong("heads by a typo", lambda w: policy(w, heads="signficant"),
          InvalidArgumentError, "`heads` must be 'significant', 'all', 'layer'"),
    Wrong("a head beyond the model", lambda w: policy(w, heads=[(9, 0)]),
          InvalidArgumentError, "`layer` must be a whole number between 0 and 1; got 9"),
    Wrong("heads without their layers", lambda w: policy(w, heads=[1, 2]),
          InvalidArgumentError, "`heads` must be pairs (layer, head) or names such as 'L0H3 L2H7'; got [1, 2]"),
    Wrong("too few groups for a significant head", lambda w: rl.RadiantPolicy().fit(w.cache, w.few),
          NothingToEditError, "8 validation groups cannot show that a head is significant"),
    Wrong("no heads", lambda w: policy(w, heads=[]), InvalidArgumentError, "at least one head; got none"),
    Wrong("half a head", lambda w: policy(w, heads=2.5), InvalidArgumentError, "`heads` must be a whole number"),
    Wrong("more layers than there are", lambda w: policy(w, heads="layer", n_layers=9),
          InvalidArgumentError, "`n_layers` must be a whole number between 1 and 2; got 9"),
    Wrong("an unfitted detector", lambda w: rl.RadiantPolicy().fit(w.cache, rl.RiskAwareDetector()),
          NotFittedError, "The detector is not fitted yet: call `detector.fit"),
    Wrong("no detector", lambda w: rl.MeanShiftPolicy().fit(w.cache, None),
          InvalidArgumentError, "`detector` must be a RiskAwareDetector; got NoneType"),
    Wrong("activations that are not numbers", lambda w: rl.LEACEPolicy().fit(w.nan, w.detector),
          DataError, "`cache.z` must be finite"),
    Wrong("calibrating on the training data",
          lambda w: rl.RadiantPolicy(gamma=0.2).fit(w.cache, w.detector, calibrate=w.cache),
          LeakageError, "the fit and calibration must not share groups"),
    Wrong("ITI of no strength", lambda w: rl.ITIPolicy(alpha=0).fit(w.cache, w.detector),
          InvalidArgumentError, "`alpha` must lie strictly above 0; got 0"),
    Wrong("ITI of a seed that is a word", lambda w: rl.ITIPolicy(seed="x").fit(w.cache, w.detector),
          InvalidArgumentError, "`seed` must be a whole number"),
    Wrong("an unknown ablation", lambda w: rl.AblationPolicy(kind="cut").fit(w.cache, w.detector),
          InvalidArgumentError, "`kind` must be one of 'zero', 'mean', 'resample'; got 'cut'"),
    Wrong("an ablation of half a seed", lambda w: rl.AblationPolicy(seed=0.5).fit(w.cache, w.detector),
          InvalidArgumentError, "`seed` must be a whole number"),
    Wrong("moments by an unknown gate", lambda w: rl.MomentMatchingPolicy(gate="x").fit(w.cache, w.detector),
          InvalidArgumentError, "`gate` must be one of"),
    Wrong("linear act by an unknown gate", lambda w: rl.LinearActPolicy(gate="x").fit(w.cache, w.detector),
          InvalidArgumentError, "`gate` must be one of"),
    Wrong("a control of nothing", lambda w: rl.IdentityPolicy(None).fit(w.cache, w.detector),
          InvalidArgumentError, "`reference` must be a Steering; got NoneType"),
    Wrong("a control by a word", lambda w: rl.RandomDirectionPolicy(w.steering, seed="x").fit(w.cache, w.detector),
          InvalidArgumentError, "`seed` must be a whole number"),
    Wrong("a control in an unknown metric", lambda w: rl.RandomDirectionPolicy(w.steering, "l1").fit(w.cache, None),
          InvalidArgumentError, "`metric` must be one of 'mahalanobis', 'wasserstein', 'total'; got 'l1'"),
    Wrong("layer by layer, by the policy's name", lambda w: rl.fit_sequential(w.model, STATEMENTS, w.detector, "iti"),
          InvalidArgumentError, "`policy` must be a Policy; got str 'iti'"),
    Wrong("a solver's shapes", lambda w: rl.policies.solve_transport(
              torch.zeros(3), torch.eye(2), torch.ones(3), torch.tensor(0.0), 1.0),
          InvalidArgumentError, "`sigma`"),
]  # fmt: skip

STEERING = [
    Wrong("another shape", lambda w: steered_pass(w, w.foreign), ModelMismatchError, "n_layers = 2; 'tiny' has 4"),
    Wrong("another model", lambda w: steered_pass(w, replace(w.steering, meta={"model": {"architecture": "X"}})),
          ModelMismatchError, "with architecture = 'X'; 'tiny' has 'LlamaForCausalLM'"),
    Wrong("a folder", lambda w: steered_pass(w, "mine"), InvalidArgumentError, "`Steering.load(folder)` reads one"),
    Wrong("a policy that is not fitted", lambda w: steered_pass(w, rl.RadiantPolicy()),
          InvalidArgumentError, "`steering` must be a Steering; got RadiantPolicy: a policy's `fit` returns one"),
    Wrong("the name of a model", lambda w: rl.steer("tiny", w.steering).__enter__(),
          InvalidArgumentError, "got str: use `load_model(model)`"),
    Wrong("any module", lambda w: rl.steer(torch.nn.Linear(2, 2), w.steering).__enter__(),
          InvalidArgumentError, "must be a TransformerBridge or a PreTrainedModel; got Linear"),
    Wrong("from a word on", lambda w: steered_pass(w, start="last"),
          InvalidArgumentError, "`start` must be whole numbers of at least 0; got 'last'"),
    Wrong("from half a token on", lambda w: steered_pass(w, start=0.5), InvalidArgumentError, "got 0.5"),
    Wrong("from the end backwards", lambda w: steered_pass(w, start=-1), InvalidArgumentError, "got -1"),
    Wrong("from as many tokens as other rows", lambda w: steered_pass(w, start=[1, 2]),
          InvalidArgumentError, "`start` needs one position for each of the 1 rows; got 2"),
    Wrong("hooks from a word on", lambda w: w.steering.hooks(start="first"),
          InvalidArgumentError, "`start` must be one of 'newest'; got 'first'"),
    Wrong("a hook of a layer that is not there", lambda w: w.steering.hook(99),
          InvalidArgumentError, "`layer` must be a whole number between 0 and 3; got 99"),
    Wrong("a hook on heads of another shape", lambda w: pass_through(w, "blocks.0.attn.hook_z", w.foreign.hook(0)),
          InvalidArgumentError, "ending in (4, 8); got shape (1, 3, 8, 24)"),
    Wrong("a hook that is no head's", lambda w: pass_through(w, "blocks.0.hook_mlp_out", w.steering.hook(0)),
          InvalidArgumentError, "must be at a `hook_z`, axes `batch pos head d_head`"),
    Wrong("editing the wrong shape", lambda w: w.steering.edit(torch.zeros(3, 4), 0),
          InvalidArgumentError, "`... head d_head` ending in (8, 24); got (3, 4)"),
    Wrong("composing with nothing", lambda w: rl.compose(None),
          InvalidArgumentError, "Hook functions must be callable; got None"),
    Wrong("keeping heads that are not edited", lambda w: w.steering.select([(9, 9)]),
          InvalidArgumentError, "must be some of the 32 edited heads; got L9H9"),
    Wrong("keeping heads without their layers", lambda w: w.steering.select([1]),
          InvalidArgumentError, "`heads` must be pairs (layer, head) or names such as 'L0H3 L2H7'; got [1]"),
    Wrong("keeping none", lambda w: w.steering.select([]), InvalidArgumentError, "at least one head; got none"),
    Wrong("more than certain", lambda w: w.steering.certify(w.cache, confidence=1.5),
          InvalidArgumentError, "`confidence` must lie strictly between 0 and 1; got 1.5"),
    Wrong("certified on another shape", lambda w: w.steering.certify(w.cache),
          InvalidArgumentError, "ending in (8, 24); got (80, 3, 4)"),
    Wrong("certified on NaN", lambda w: w.steering.certify(w.nan), DataError, "`cache.z` must be finite"),
    Wrong("folded into a bridge", lambda w: replace(w.steering, gate="none").fold_into(w.model), InvalidArgumentError,
          "bridge"),
    Wrong("a trace that was not recorded", lambda w: rl.Trace(False).to_dataframe(),
          RadiantError, "Nothing was recorded: use `steer(model, steering, trace=True)`"),
]  # fmt: skip

EVALUATING = [
    Wrong("statements", lambda w: rl.evaluate(w.model, STATEMENTS),
          InvalidArgumentError, "`data` must be a Dataset; got tuple: `load_dataset` reads one"),
    Wrong("a plain model", lambda w: rl.evaluate(w.model.original_model, SOUP),
          InvalidArgumentError, "use `load_model(model)`"),
    Wrong("the folder of a steering", lambda w: rl.evaluate(w.model, SOUP, "mine"),
          InvalidArgumentError, "`steering` must be a Steering; got str 'mine'"),
    Wrong("a typo in the judge", lambda w: rl.evaluate(w.model, SOUP, judge="exakt"),
          UnknownNameError, "did you mean 'exact'"),
    Wrong("one family, not in a list", lambda w: rl.evaluate(w.model, SOUP, metrics="answers"),
          InvalidArgumentError, "`metrics` must be a list of families, at least one; got 'answers'"),
    Wrong("a temperature as text", lambda w: rl.evaluate(w.model, SOUP, temperature="hot"),
          InvalidArgumentError, "`temperature` must lie at or above 0; got 'hot'"),
    Wrong("a seed that is a word", lambda w: rl.evaluate(w.model, SOUP, seed="x"),
          InvalidArgumentError, "`seed` must be a whole number"),
    Wrong("a seed beyond all generators", lambda w: rl.evaluate(w.model, SOUP, seed=2**70),
          InvalidArgumentError, "between 0 and 4294967295"),
    Wrong("nothing to evaluate on", lambda w: rl.evaluate(w.model, rl.Dataset("x", STATEMENTS[1:])),
          DataError, "has neither prompts nor desirable statements"),
    Wrong("one prompt, not in a list", lambda w: generate_answers(w.model, "the soup"),
          InvalidArgumentError, "Texts must be given as a list; got the single text 'the soup'"),
    Wrong("prompts that are numbers", lambda w: generate_answers(w.model, [3]),
          InvalidArgumentError, "`text 0` must be a str or a Statement or a Prompt; got int 3"),
    Wrong("a prompt beyond the context", lambda w: generate_answers(w.model, [LONG]), DataError, "holds 256"),
    Wrong("a prompt that leaves no room", lambda w: generate_answers(w.model, ["the " * 250]),
          DataError, "with 20 new ones that is more than the 256 that the model's context holds: shorten it, or lower"),
    Wrong("another evaluation's prompts",
          lambda w: w.evaluation.difference(replace(w.evaluation, prompts=()), "correct"),
          InvalidArgumentError, "Paired differences need evaluations of the same prompts"),
    Wrong("effects on statements", lambda w: rl.head_effects(w.model, STATEMENTS, w.steering),
          InvalidArgumentError, "`data` must be a Dataset; got tuple: its prompts are needed"),
    Wrong("effects without answers", lambda w: rl.head_effects(w.model, rl.Dataset("x", STATEMENTS), w.steering),
          DataError, "has no prompt with both correct and incorrect answers"),
    Wrong("effects of another model's edits", lambda w: rl.head_effects(w.model, SOUP, w.foreign),
          ModelMismatchError, "n_layers = 2"),
    Wrong("writes of another model's edits", lambda w: rl.edit_writes(w.model, SOUP, w.foreign),
          ModelMismatchError, "n_layers = 2"),
    Wrong("writes by a word", lambda w: rl.edit_writes(w.model, SOUP, w.steering, seed="x"),
          InvalidArgumentError, "`seed` must be a whole number"),
    Wrong("two prompts to trace", lambda w: rl.trace_answer(w.model, ["a", "b"], w.steering),
          InvalidArgumentError, "`prompt` must be a str or a Statement or a Prompt; got list: trace one"),
    Wrong("tracing no tokens", lambda w: rl.trace_answer(w.model, "the soup", w.steering, max_new_tokens=0),
          InvalidArgumentError, "`max_new_tokens` must be a whole number of at least 1; got 0"),
    Wrong("nothing to report", lambda w: rl.report(), InvalidArgumentError, "There is nothing to report on"),
    Wrong("a figure of an unfitted detector", lambda w: rl.viz.head_risk(rl.RiskAwareDetector()),
          NotFittedError, "fit"),
]  # fmt: skip


def study(**options: Any) -> rl.Study:
    return rl.Study("mine", **{"arms": studies.grid(gamma=[0.1]), **options})


STUDIES = [
    Wrong("no arms", lambda w: study(arms=[]), InvalidArgumentError, "at least one arm and one seed; got 0 and 1"),
    Wrong("arms by their names", lambda w: study(arms=["radiant"]),
          InvalidArgumentError, "`arms` must be an Arm; got str 'radiant': `Arm(name, ...)` or `grid(...)`"),
    Wrong("two arms of one name", lambda w: study(arms=[studies.Arm("a"), studies.Arm("a")]),
          InvalidArgumentError, "got 'a' more than once"),
    Wrong("a typo in an axis", lambda w: studies.grid(gama=[0.1]), UnknownNameError, "did you mean 'gamma'"),
    Wrong("a value out of range", lambda w: study(arms=studies.grid(gamma=[0.7])), InvalidArgumentError, "got 0.7"),
    Wrong("a typo in the positions", lambda w: study(arms=studies.grid(positions="first")),
          InvalidArgumentError, "`positions` must be one of"),
    Wrong("one seed, not in a list", lambda w: study(seeds=3),
          InvalidArgumentError, "`seeds` must be a list or a tuple or a range; got int 3"),
    Wrong("seeds that are words", lambda w: study(seeds=["a"]), InvalidArgumentError, "`seeds` must be a whole number"),
    Wrong("two fractions", lambda w: study(fractions=(0.5, 0.5)),
          InvalidArgumentError, "`fractions` must be three, of training, validation and test"),
    Wrong("a typo in the judge", lambda w: study(judge="exakt"), UnknownNameError, "did you mean 'exact'"),
    Wrong("a folder that is a file", lambda w: study(out=w.place / "file").run(),
          OutputError, "cells/any.json' cannot be written (Not a directory)"),
    Wrong("a file that is no mapping", lambda w: studies.read_study(w.place / "no-mapping.yaml"),
          DataError, "must hold a mapping; it holds list"),
    Wrong("a file whose arms are numbers", lambda w: studies.read_study(w.place / "arms-are-numbers.yaml"),
          InvalidArgumentError, "`arms` must be a Mapping; got int 1: each arm is a mapping with a `name`"),
    Wrong("a file with one number for arms", lambda w: studies.read_study(w.place / "arms-is-a-number.yaml"),
          InvalidArgumentError, "`arms` must be a list; got int 1"),
    Wrong("a file with a typo", lambda w: studies.read_study(w.place / "key-typo.yaml"),
          UnknownNameError, "did you mean 'arms'"),
    Wrong("a file with code in it", lambda w: studies.read_study(w.place / "code.yaml"),
          DataError, "could not determine a constructor for the tag"),
    Wrong("a file with one seed", lambda w: studies.read_study(w.place / "seeds.yaml"),
          InvalidArgumentError, "`seeds` must be a list"),
]  # fmt: skip

ARTEFACTS = [
    Wrong("no folder", lambda w: rl.Steering.load(w.place / "none"), ArtefactError, "with a saved steering"),
    Wrong("no path", lambda w: rl.Steering.load(None), InvalidArgumentError, "`path` must be a str or a PathLike"),
    Wrong("half a steering", lambda w: rl.Steering.load(w.place / "cut"), ArtefactError, "cut' is damaged"),
    Wrong("half a cache", lambda w: rl.HeadCache.load(w.place / "cut-cache"), ArtefactError, "cut-cache' is damaged"),
    Wrong("half an evaluation", lambda w: rl.Evaluation.load(w.place / "evaluation.json"),
          ArtefactError, "The saved evaluation at"),
    Wrong("a pickle", lambda w: rl.Steering.load(w.place / "steering.pt"), ArtefactError, "is not a saved steering"),
    Wrong("a pickle from the Hub's place", lambda w: rl.Steering.from_pretrained(str(w.place / "steering.pt")),
          ArtefactError, "steering.pt"),
    Wrong("a pickle for an evaluation", lambda w: rl.Evaluation.load(w.place / "steering.pt"),
          ArtefactError, "cannot be read"),
    Wrong("a pickle by another name", lambda w: rl.Steering.load(w.place / "pickled"), ArtefactError, "is damaged"),
    Wrong("a later format", lambda w: rl.Steering.load(w.place / "later"),
          ArtefactError, f"has format 99; this version reads up to {FORMAT_VERSION}: update radiant-lens"),
    Wrong("a cache for a steering", lambda w: rl.Steering.load(w.place / "cache"),
          ArtefactError, "is not a saved steering"),
    Wrong("a path out of the folder", lambda w: rl.Steering.load(w.place / "climbing"),
          ArtefactError, "`map_kind` must be one of"),
    Wrong("an absolute path", lambda w: rl.Steering.load(w.place / "absolute"),
          ArtefactError, "it edits '/etc/passwd'; this version edits 'blocks.{layer}.attn.hook_z'"),
    Wrong("a name out of the Hub", lambda w: rl.Steering.from_pretrained("me/../../x"),
          ArtefactError, "'me/../../x' could not be downloaded"),
    Wrong("heads beyond its own model", lambda w: rl.Steering.load(w.place / "no-weights"),
          ArtefactError, "is incomplete: `layer` must be a whole number between 0 and 3; got 99"),
    Wrong("a cache whose texts are a number", lambda w: rl.HeadCache.load(w.place / "flat"),
          ArtefactError, "is incomplete"),
    Wrong("saving over one's own file", lambda w: w.steering.save(w.place / "file"),
          ArtefactError, "exists and is not a saved steering; it is left alone, choose another path"),
    Wrong("saving over another kind", lambda w: w.cache.save(w.place / "steering"),
          ArtefactError, "exists and is not a saved head cache"),
    Wrong("saving below a file", lambda w: w.cache.save(w.place / "file" / "cache"),
          OutputError, "cannot be written (File exists); what was there is unchanged. Free some space, or choose"),
    Wrong("saving where nobody may", lambda w: w.steering.save("/proc/steering"), OutputError, "cannot be written"),
    Wrong("a report where nobody may", lambda w: rl.Report("a", "b").save("/proc/report.html"),
          OutputError, "'/proc/report.html' cannot be written"),
    Wrong("a report in place of a folder", lambda w: rl.Report("a", "b").save(w.place),
          OutputError, "cannot be written (it is not an ordinary file)"),
    Wrong("an evaluation in place of a device", lambda w: w.evaluation.save("/dev/full"),
          OutputError, "'/dev/full' cannot be written (it is not an ordinary file)"),
    Wrong("figures that JSON cannot hold", lambda w: w.steering.save(w.place / "new", metrics={"a": object()}),
          InvalidArgumentError, "`metrics` must be what JSON can hold"),
]  # fmt: skip

MODELS = [
    Wrong("a typo", lambda w: rl.load_model("tinny"), UnknownNameError, "did you mean 'tiny'"),
    Wrong("a number", lambda w: rl.load_model(3), InvalidArgumentError, "`model` must be a name, a folder"),
    Wrong("a folder that is not there", lambda w: rl.load_model("./none"), ModelLoadError, "no folder './none'"),
    Wrong("a folder without a model", lambda w: rl.load_model(w.place), ModelLoadError, "it has no config.json"),
    Wrong("half a configuration", lambda w: rl.load_model(w.place / "a-model"), ModelLoadError, "cannot be read"),
    Wrong("out of the network's reach", lambda w: rl.load_model("some/model"),
          ModelLoadError, "download it elsewhere and pass its folder; 'tiny' needs none"),
    Wrong("an unknown device", lambda w: rl.load_model("tiny", device="gpu"),
          InvalidArgumentError, "`device` must be such as 'cpu' or 'cuda:0'; got 'gpu'"),
    Wrong("a device that is not there", lambda w: rl.load_model("tiny", device="cuda:99"),
          InvalidArgumentError, "`device` 'cuda:99' does not exist: torch sees"),
    Wrong("a model without a tokenizer", lambda w: rl.load_model(nameless()),
          InvalidArgumentError, "`tokenizer` must be given"),
]  # fmt: skip


def nameless() -> Any:
    model = AutoModelForCausalLM.from_pretrained(model_folder())
    model.config._name_or_path = ""
    return model


@rows(CACHES + COLLECTING + DATA + DETECTORS + POLICIES + STEERING + EVALUATING + STUDIES + ARTEFACTS + MODELS)
def test_mistakes_raise_their_error(wrong, at_hand):
    refused(wrong, at_hand)


BROKEN_OFF = [ConnectionResetError("reset by peer"), httpx.ReadError("peer closed connection"), TimeoutError("slow")]


@pytest.mark.parametrize("error", BROKEN_OFF, ids=lambda error: type(error).__name__)
def test_a_download_that_breaks_off(error, at_hand, monkeypatch):
    def broken(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(TransformerBridge, "boot_transformers", broken)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    monkeypatch.setattr("datasets.load_dataset", broken)
    for wrong in (
        Wrong("a model", lambda w: rl.load_model("tiny"), ModelLoadError, str(error)),
        Wrong("a steering", lambda w: rl.Steering.from_pretrained("me/mine"), ArtefactError, str(error)),
        Wrong("data", lambda w: rl.load_dataset("truthfulqa"), DataError, str(error)),
    ):
        refused(wrong, at_hand)


def test_a_folder_without_a_tokenizer(tmp_path):
    shutil.copytree(model_folder(), tmp_path / "bare", ignore=shutil.ignore_patterns("*token*"))
    with pytest.raises(ModelLoadError, match="token"):
        rl.load_model(tmp_path / "bare")


def test_a_tokenizer_without_padding_or_end_is_no_obstacle(model, foreign_folder):
    """Padding is masked, so its token does not matter."""
    tokenizer = AutoTokenizer.from_pretrained(foreign_folder)
    expected = rl.collect(rl.load_model(foreign_folder), STATEMENTS).z
    tokenizer.pad_token = tokenizer.eos_token = None
    bare = rl.load_model(AutoModelForCausalLM.from_pretrained(foreign_folder), tokenizer=tokenizer)
    torch.testing.assert_close(rl.collect(bare, STATEMENTS).z, expected, rtol=1e-4, atol=1e-5)
