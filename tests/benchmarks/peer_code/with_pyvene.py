"""The tasks with pyvene, whose interventions are declared by layer and component."""

from __future__ import annotations

from benchmarks.peer_code.answer_tokens import answer_tokens

CAPTURES = "all heads"
PACKAGES = ("pyvene", "transformers")


def load(folder, dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval(), AutoTokenizer.from_pretrained(folder)


def capture(model, tokenizer, batches):
    import pyvene
    import torch

    places = [
        {
            "layer": layer,
            "component": "attention_value_output",
            "intervention": pyvene.CollectIntervention(keep_last_dim=True),
        }
        for layer in range(model.config.num_hidden_layers)
    ]
    collector = pyvene.IntervenableModel(places, model=model)
    results = []
    for texts, starts in batches:
        tokens, answers = answer_tokens(tokenizer, texts, starts)
        with torch.no_grad():
            (_, values), _ = collector(tokens)
        results.append(torch.stack([value[answers] for value in values], 1))
    return torch.cat(results)


def generate(model, tokenizer, prompts, vectors, options):
    import pyvene

    places = [
        {
            "layer": layer,
            "component": "block_output",
            "intervention_type": pyvene.AdditionIntervention,
            "source_representation": vector,
        }
        for layer, vector in vectors.items()
    ]
    steered = pyvene.IntervenableModel(places, model=model)
    _, tokens = steered.generate(tokenizer(prompts, return_tensors="pt"), intervene_on_prompt=True, **options)
    return tokens
