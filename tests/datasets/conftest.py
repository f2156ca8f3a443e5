"""Tiny tokenizers with chat templates."""

from __future__ import annotations

import pytest

from radiant_lens.datasets.world import make_fact_world, vocabulary
from radiant_lens.tiny.train import make_tokenizer

TURNS = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
TEMPLATES = {
    "plain": "{{ bos_token }}" + TURNS + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    # As Mistral and Llama 2 write: no header of the assistant, a blank before the answer, no system turn.
    "inst": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no system turn') }}{% endif %}{% endfor %}",
    # The header of an answer to come is not that of one given.
    "other": TURNS + "{% if add_generation_prompt %}<|bot|>{% endif %}",
    # As Qwen 3 writes: an option of the template adds an empty thought before the answer.
    "thinking": TURNS + "{% if add_generation_prompt %}<|assistant|>\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>\n{% endif %}{% endif %}",
    "none": None,
}
# Templates that lose a part of what they render.
LOSSY = {
    "no question": TURNS.replace("{{ m.content }}", "{% if m.role == 'assistant' %}{{ m.content }}{% endif %}"),
    "no answer": TURNS.replace("{{ m.content }}", "{% if m.role == 'user' %}{{ m.content }}{% endif %}"),
    "no system": "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}",
    "last turn": "{{ messages[-1].content }}",
    "upper case": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
}


@pytest.fixture(scope="session")
def tokenizers():
    """Tokenizers by the name of their chat template."""
    by_name = {}
    for name, template in {**TEMPLATES, **LOSSY}.items():
        by_name[name] = make_tokenizer(vocabulary(make_fact_world()))
        by_name[name].chat_template = template
    return by_name
