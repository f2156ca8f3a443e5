"""Gated edits of attention heads inside vLLM: one server, several steerings, chosen for each request.

A plugin of vLLM (entry point `vllm.general_plugins`), so vLLM itself is unchanged. It reads saved steerings and applies
them before the output projection of each edited layer, from the last prompt token on, as `radiant_lens.steer` does:

    from vllm import LLM, SamplingParams
    from radiant_lens.serving import engine_config

    llm = LLM("my-model", additional_config=engine_config({"truthful": "my-steering"}))
    steered = SamplingParams(temperature=0, extra_args={"steering": "truthful", "strength": 1.0})
    llm.generate(["..."], steered)

`radiant-lens serve` starts the OpenAI server of vLLM with it. Nothing here imports TransformerLens.
"""

from radiant_lens.serving.catalog import engine_config as engine_config
