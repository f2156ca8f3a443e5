"""`radiant-lens fit`: detectors, a steering of any policy and its certificate, in one folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radiant_lens.cli import options as o
from radiant_lens.cli.output import emit
from radiant_lens.errors import ArtefactError, NothingToEditError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from radiant_lens.datasets import Dataset
    from radiant_lens.studies import Fitted

MANY_UNKNOWN = 0.2
"""Share of a tokenizer's unknown tokens above which a model hardly reads the text."""


def fit(
    out: o.Out,
    model: o.Model = "tiny",
    data: o.Data = "tiny-facts",
    policy: Annotated[
        str,
        typer.Option(
            help="'radiant', 'iti', 'mean_shift', 'moment_matching', 'linear_act', 'leace', 'ablation' or 'least_kl'; "
            "its options are set by the flags below or by --option."
        ),
    ] = "radiant",
    option: Annotated[
        list[str] | None, typer.Option(help="Any option of the policy, such as trust=0.999; repeatable.")
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="'significant' (default of most), 'all', a number of heads of least risk, 'layer:I' or names such as "
            "'L0H3 L2H7'; without it, 'radiant' keeps those that act."
        ),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option(help="Of 'radiant': share that may stay flagged after the edit, in (0, 0.5); default 0.01."),
    ] = None,
    geometry: Annotated[
        str | None, typer.Option(help="Of 'radiant': 'mahalanobis' (default), 'wasserstein', 'output' or 'procrustes'.")
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(help="'head' (default of 'radiant'), 'vote', 'layer', 'joint' or 'none' (of the others)."),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Strength of 'iti' (default 2) or 'mean_shift' (1).")] = None,
    kl: Annotated[
        float | None, typer.Option(help="Of 'least_kl': KL in nats a token on desirable text; default 0.05.")
    ] = None,
    fnr_weight: Annotated[float, typer.Option(help="Weight of a miss against a false alarm.")] = 1.0,
    split: Annotated[str, typer.Option(help="Shares of the groups to fit, to choose heads and to certify.")] = (
        o.DEFAULT_SPLIT
    ),
    positions: o.Positions = "answer",
    seed: o.Seed = 0,
    as_json: o.Json = False,
    *,
    reading: o.Reading,
    loading: o.Loading,
) -> None:
    """Fit a steering on 60% of the groups, choose its heads on 20%, certify it on 20%; write it with a report.

    Where the groups are too few for a test of heads, detectors and report are written; `--heads` needs no test. Where
    'least_kl' was interrupted, the same command goes on from what it has measured.

    Example: radiant-lens fit --model ./my-gpt2 --data my.jsonl --gamma 0.05 --out my-steering

    Another policy: radiant-lens fit --policy mean_shift --alpha 2 --heads all --out my-shift

    A budget of KL: radiant-lens fit --policy least_kl --kl 0.05 --out my-shift
    """
    import radiant_lens as rl
    from radiant_lens import _checks, studies
    from radiant_lens._files import check_target
    from radiant_lens.cli.policies import policy_from_flags
    from radiant_lens.policies.policy import needs_joint

    # Everything that can be refused is refused before the model is loaded.
    check_target(out, "steering")
    flags = {"heads": heads, "gamma": gamma, "geometry": geometry, "gate": gate, "alpha": alpha, "kl": kl}
    unfitted, fractions = policy_from_flags(policy, flags, option or []), o.fractions(split)
    _checks.between("fnr_weight", fnr_weight, 0)
    dataset = reading.load(data, model=model)
    dataset.split(fractions, seed=seed)
    # Beside the steering, and hidden: it is of use until the steering is written.
    measured = out.with_name(f".{out.name}-measured") if isinstance(unfitted, rl.LeastKLPolicy) else None
    bridge = loading.load(model)
    note = _unknown_words(bridge, dataset)
    fitted = studies.fit(
        bridge,
        dataset,
        unfitted,
        detector=rl.RiskAwareDetector(fnr_weight=fnr_weight, seed=seed, joint=needs_joint(unfitted)),
        # Heads that were named stay; by default the significant ones are reduced to those that act.
        select="auto" if heads is None else None,
        positions=positions,
        fractions=fractions,
        seed=seed,
        out=measured,
        progress=True,
    )
    refusal = fitted.result if isinstance(fitted.result, NothingToEditError) else None
    try:
        path = fitted.save(out)
    except ArtefactError as error:
        if refusal is None:
            raise
        # Detectors alone do not replace a steering.
        raise NothingToEditError(f"{refusal} {str(out)!r} holds an earlier steering and stays as it was.") from error
    if measured is not None:
        shutil.rmtree(measured, ignore_errors=True)
    results = [] if refusal else [repr(fitted.result), str(fitted.certificate)]
    shown = [*note, str(fitted.detector), *results, f"written to {path}, with report.html and heads.csv"]
    emit(_summary(fitted, path, refusal), as_json=as_json, shown=shown)
    if refusal:
        # The reason counts groups of the part for validation; people know those of their file.
        groups = f"Validation is {fractions[1]:.0%} of the {len(dataset.groups)} groups of the data."
        raise NothingToEditError(f"{refusal} {groups} Detectors, heat map and report are written to {str(path)!r}.")


def _unknown_words(model: TransformerBridge, data: Dataset) -> list[str]:
    """A note for people, if the tokenizer does not know many of the words; else nothing."""
    tokenizer: Any = model.tokenizer
    texts = [statement.text for statement in data.statements[:200]]
    ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False).input_ids]
    share = sum(token == tokenizer.unk_token_id for token in ids) / max(len(ids), 1)
    if share < MANY_UNKNOWN:
        return []
    name = model.cfg.model_name
    return [
        f"{share:.0%} of the tokens of {data.name} are unknown to {name}, so its heads can tell little of them: name "
        "another model by --model."
    ]


def _summary(fitted: Fitted, path: Path, refusal: NothingToEditError | None) -> dict[str, Any]:
    certificate = fitted.certificate
    return {
        "path": str(path),
        "heads": [] if refusal else [str(site) for site in fitted.steering.sites],
        "significant_heads": int(fitted.detector.head_significant_.sum()),
        "certificate": None if certificate is None else certificate.to_dataframe().to_dict("records"),
        "refusal": refusal and str(refusal),
    }
