"""`radiant-lens evaluate`: judged answers and measurements on desirable text, with intervals."""

from __future__ import annotations

from radiant_lens.cli import options as o
from radiant_lens.cli.output import emit, table
from radiant_lens.distributed import launched


def evaluate(
    model: o.SteeredModel = None,
    data: o.Data = "tiny-facts",
    steering: o.SteeringFolder = None,
    metrics: o.Metrics = None,
    judge: o.Judge = None,
    fluency_model: o.FluencyModel = None,
    out: o.OutFile = None,
    samples: o.Samples = 1,
    max_new_tokens: o.NewTokens = 20,
    temperature: o.Temperature = 1.0,
    seed: o.Seed = 0,
    as_json: o.Json = False,
    *,
    reading: o.Reading,
    part: o.TestPart,
    loading: o.Loading,
) -> None:
    """Judge generated answers and measure KL and cross entropy on desirable text; other metrics on request.

    Example: radiant-lens evaluate --steering my-steering --data my.jsonl --samples 4 --metrics answers --metrics choice
    """
    import radiant_lens as rl
    from radiant_lens._files import check_target
    from radiant_lens.evaluation import get_judge

    part.check()
    if out is not None:
        check_target(out)
    loaded = None if steering is None else rl.Steering.load(steering)
    dataset = part.of(reading.load(data, model=o.model_name(loaded, model)), seed)
    result = rl.evaluate(
        loading.load_for(loaded, model),
        dataset,
        loaded,
        n_samples=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        judge=None if judge is None else get_judge(judge, device=loading.device),
        metrics=metrics,
        fluency_model=fluency_model,
    )
    # All ranks have the whole result; one writes it.
    if out is not None and launched().number == 0:
        result.save(out)
    rows = result.to_dataframe().to_dict("records")
    emit({"metrics": result.metrics, "settings": result.settings}, as_json=as_json, shown=[table(repr(dataset), rows)])
