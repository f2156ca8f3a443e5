"""Every head by itself: knocked out, or edited."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from radiant_lens import studies
from radiant_lens.errors import UnknownNameError
from radiant_lens.sites import hook_name


def test_detecting_is_not_doing(experiment):
    small = replace(experiment, validation=replace(experiment.validation.head(4), contexts=None))
    result = studies.detecting_and_doing(small)
    assert len(result.table) == 32
    assert result.table["measured"].notna().all()
    first = result.table.iloc[0]
    assert first["risk"] == pytest.approx(
        float(experiment.detector.head_risk_[int(first["layer"]), int(first["head"])])
    )
    correlations = result.correlations()
    assert correlations["estimate"] > 0.8 > correlations["detecting"]
    assert result.plot().data


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_knock_out_equals_a_hook_that_replaces_the_head(model, experiment, kind):
    data = replace(experiment.validation.head(2), contexts=None)
    result = studies.knock_out(experiment, kind=kind, data=data)
    assert len(result.table) == 32
    layout = result.plot().layout
    assert (layout.yaxis.dtick, layout.xaxis.dtick, layout.yaxis.autorange) == (1, 1, "reversed")
    worst = result.to_dataframe().iloc[0]
    layer, head = int(worst["layer"]), int(worst["head"])
    assert abs(worst["effect"]) == result.table["effect"].abs().max()
    by = torch.zeros(()) if kind == "zero" else experiment.train_cache.z[:, layer, head].double().mean(0).float()
    plain = knocked = 0.0
    for prompt in data.prompts:
        for answers, sign in ((prompt.correct_answers, 1), (prompt.incorrect_answers, -1)):
            for answer in answers:
                text = prompt.answered(answer)
                tokens = model.to_tokens(text.text)
                start = model.to_tokens(text.text[: text.answer_start].rstrip()).shape[1] - 1

                def replaced(z, hook, start=start):
                    z = z.clone()
                    z[:, start:, head] = by
                    return z

                weight = sign / len(answers)
                plain += weight * answer_log_prob(model(tokens)[0], tokens[0], start)
                hooked = model.run_with_hooks(tokens, fwd_hooks=[(hook_name(layer), replaced)])
                knocked += weight * answer_log_prob(hooked[0], tokens[0], start)
    assert worst["effect"] == pytest.approx((knocked - plain) / len(data.prompts), rel=1e-3, abs=1e-4)
    drawn = result.plot().data[0]
    assert drawn.z[layer][head] == pytest.approx(worst["effect"])


def answer_log_prob(logits, tokens, start) -> float:
    log_probs = logits.log_softmax(-1)
    return float(sum(log_probs[i, tokens[i + 1]] for i in range(start, len(tokens) - 1)).detach())


def test_knock_out_of_any_metric(experiment):
    few = replace(experiment.validation.head(2), contexts=None)
    named = studies.knock_out(experiment, metric="cross_entropy", data=replace(few, bare_prompts=()))
    own = studies.knock_out(
        experiment, metric=lambda e: e.metrics["cross_entropy"].value, data=replace(few, bare_prompts=())
    )
    assert named.table["effect"].tolist() == pytest.approx(own.table["effect"].tolist())
    assert ((named.table["low"] <= named.table["effect"]) & (named.table["effect"] <= named.table["high"])).all()
    with pytest.raises(UnknownNameError, match="'correkt' is not a known metric"):
        studies.knock_out(experiment, metric="correkt", data=few)
