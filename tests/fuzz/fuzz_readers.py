"""Coverage-guided fuzzing of every reader of files: `pip install atheris`, then

    PYTHONPATH=.:tests python tests/fuzz/fuzz_readers.py TARGET [-max_total_time=120 ...]

with one of the targets of `READERS`. What follows the target goes to libFuzzer, also files to try again. Anything
but a documented error (`RadiantError`) is a crash; what was found stands as a test in tests/test_fuzz_files.py.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

# The package is imported by the targets alone, so that it can be instrumented.
MC = {"mc1_targets": {"Me": 1, "You": 0}, "mc2_targets": {"Me": 1, "I;": 1, "You": 0}}
QA = {"correct_answers": ["Me"], "incorrect_answers": "You; They"}
TOXIC = {"prompt": {"text": "So", "toxicity": 0.1}, "continuation": {"text": " it", "toxicity": 0.9}}
ROWS = [
    {"text": "Q: who? A: me", "label": 1, "group": "g", "answer_start": 11, "question": "who?"},
    {"prompt": "Q: who? A:", **QA, "best_answer": "Me", "joint": " ", "mc1_incorrect": ["You"], "condition": "bare"},
    {"question": "Who?", **MC},
    {"question": "Who?", "mc1_targets": {"choices": ["Me"], "labels": [1]}, "mc2_targets": MC["mc2_targets"]},
    {"question": "Who?", **QA, "best_answer": "Me", "best_incorrect_answer": "You"},
    {"question": "Who?", "answer": ["Me"], "false_answer": "You"},
    {"question": "Who?", "choices": {"text": ["Me", "You"], "label": ["A", "B"]}, "answer": "B"},
    {"question": "Who?", "choices": {"text": ["Me", "You"], "label": ["A", "B"]}, "answerKey": "B"},
    {"question": "Who?", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"},
    {"prompt": "Who?", "chosen": "Me; I", "rejected": "You"},
    {
        "prompt": [{"role": "user", "content": "Who?"}],
        "chosen": "Me",
        "rejected": [{"role": "assistant", "content": "You"}],
    },
    {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me"}], "label": 0},
    {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me"}], "label": 0},
    {"prompt": "Who?", "completion": "Me", "label": 0},
    {"prompt": "Who?", "positive": "Me", "negative": "You"},
    {"chosen": "Q: who? A: me", "rejected": "Q: who? A: you"},
    {"question": "Who?", "correct": "Me", "incorrect": ["You"]},
    {"question": "Who?", "right_answer": "Me", "hallucinated_answer": "You"},
    {"text": "So it is", "score": 0, "toxicity": 1},
    {"id": "a", "comment_text": "rude", "toxic": 1},
    TOXIC,
]
CSVS = [
    "Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers\nWho? ,Me,You,Me; I;,You; They.\n",
    'id,comment_text,toxic,threat\na,"x\ny",1,0\nb,z,-1,-1\n',
    "text,label,group,answer_start\nA: x,1,t,3\n",
    "prompt,correct_answers,incorrect_answers\nwho?,me,you; they\n",
    "question,answer,false_answer\nwho?,me,you\n",
]
STUDY = """name: s
seeds: [0, 1]
n_samples: 2
metrics: [answers, text]
controls: reference
arms:
  - {name: RADIANT}
  - {name: I, policy: iti, options: {alpha: 2.5}, heads: "least_risk:4", detector: {fnr_weight: 0.5}}
grid: {policy: iti, heads: ["least_risk:8", all], alpha: [1, 2]}
"""


class Reader(NamedTuple):
    """Good input to start from, and what reads any other; the first bytes choose between files and formats."""

    seeds: Callable[[Path], Iterator[bytes]]
    read: Callable[[bytes, Path], object]


def _artefact(save: Callable[[Path], Path], load: Callable[[Path], object]) -> Reader:
    """A folder of which the first byte chooses the file that is replaced."""
    names = ("meta.json", "tensors.safetensors")

    def seeds(scratch: Path) -> Iterator[bytes]:
        from radiant_lens._files import UNHASHED

        folder = save(scratch / "good")
        meta = json.loads((folder / "meta.json").read_text())
        # Without its hash anything may stand in the tensors.
        meta["sha256"] = UNHASHED
        (folder / "meta.json").write_text(json.dumps(meta))
        for i, name in enumerate(names):
            yield bytes([i]) + (folder / name).read_bytes()

    def read(data: bytes, scratch: Path) -> object:
        replaced = scratch / "good" / names[data[0] % 2]
        good = replaced.read_bytes()
        try:
            replaced.write_bytes(data[1:])
            return load(scratch / "good")
        finally:
            replaced.write_bytes(good)

    return Reader(seeds, read)


def _cache() -> Reader:
    import torch

    import radiant_lens as rl

    index = torch.arange(4)
    z = torch.randn(4, 2, 2, 3)
    cache = rl.HeadCache(z, index % 2, index, index, tuple("abcd"), tuple("ggfh"), {"model": {"name": "none"}})

    def load(path: Path) -> object:
        loaded = rl.HeadCache.load(path)
        return repr(loaded), loaded.groups, loaded.select([0]) if len(loaded) else None

    return _artefact(cache.save, load)


def _steering() -> Reader:
    from plain_models import random_steering

    import radiant_lens as rl

    def load(path: Path) -> object:
        loaded = rl.Steering.load(path)
        n_layers, n_heads, d_head = loaded.scores.weights.shape
        z = loaded.scores.weights.new_zeros(2, n_heads, d_head)
        return repr(loaded), [loaded.edit(z, layer) for layer in loaded.layers], n_layers

    return _artefact(random_steering(2, 2, 3).save, load)


def _evaluation() -> Reader:
    import pandas as pd

    import radiant_lens as rl
    from radiant_lens.datasets.records import Prompt

    def seeds(scratch: Path) -> Iterator[bytes]:
        table = pd.DataFrame(
            {
                **{"prompt_index": [0, 0], "prompt": "who?", "condition": "bare", "group": "g", "sample": [0, 1]},
                **{"answer": ["me", "you"], "verdict": ["correct", "incorrect"], "score": [0.5, None]},
            }
        )
        columns = {"metric": ["kl", "kl"], "group": ["g", "h"], "numerator": [1.0, 2.0], "denominator": [1.0, 1.0]}
        prompt = Prompt("who?", ("me",), ("you",), "g")
        yield rl.Evaluation(table, pd.DataFrame(columns), (prompt,), {"seed": 0}).save(scratch / "e").read_bytes()

    def read(data: bytes, scratch: Path) -> object:
        (scratch / "e").write_bytes(data)
        loaded = rl.Evaluation.load(scratch / "e")
        return loaded.metrics, repr(loaded), loaded.to_markdown()

    return Reader(seeds, read)


def _study() -> Reader:
    import yaml

    from radiant_lens.studies import read_study

    def read(data: bytes, scratch: Path) -> object:
        (scratch / "s.yaml").write_bytes(data)
        return repr(read_study(scratch / "s.yaml"))

    # JSON is YAML, too, and its values can be changed one by one.
    return Reader(lambda _: iter([STUDY.encode(), json.dumps(yaml.safe_load(STUDY)).encode()]), read)


class Chats:
    """A tokenizer with a chat template."""

    def apply_chat_template(self, turns: list[dict[str, str]], **options: object) -> str:
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in turns)


def data_ways() -> list[dict[str, Any]]:
    """Options of `load_dataset` for a local file: by every name or none, in every format or a guessed one."""
    from radiant_lens.datasets.readers.parsing import ON_BAD_ROWS
    from radiant_lens.datasets.readers.published import FORMATS, PUBLISHED

    allowed = {None: tuple(FORMATS), **{name: published.formats for name, published in PUBLISHED.items()}}
    return [
        {"name": name, "format": format, "on_bad_rows": bad}
        for name, formats in allowed.items()
        for format in (None, *formats)
        for bad in ON_BAD_ROWS
    ]


def _data() -> Reader:
    import radiant_lens as rl
    from radiant_lens.datasets import ChatTemplate
    from radiant_lens.datasets.readers.rows import ENDINGS
    from radiant_lens.errors import RadiantError

    ways = data_ways()
    texts = [(0, text) for text in CSVS]
    texts += [(1, json.dumps([row])) for row in ROWS] + [(2, json.dumps(row) + "\n") for row in ROWS]

    def seeds(scratch: Path) -> Iterator[bytes]:
        for ending, text in texts:
            for way in range(len(ways)):
                data = bytes([ending, way]) + text.encode()
                with suppress(RadiantError):
                    read(data, scratch)
                    yield data

    def read(data: bytes, scratch: Path) -> object:
        path = scratch / f"data{ENDINGS[data[0] % 3]}"
        path.write_bytes(data[2:])
        way = dict(ways[data[1] % len(ways)])
        name = way.pop("name")
        way["undesirable"] = {"pairs": "negative", "completion": 0}.get(way["format"])
        if way["format"] in ("messages", "conversations", "preference", "pairs", "completion"):
            way["template"] = ChatTemplate(Chats())
        return repr(rl.load_dataset(path, **way) if name is None else rl.load_dataset(name, path=path, **way))

    return Reader(seeds, read)


READERS: dict[str, Callable[[], Reader]] = {
    "cache": _cache,
    "steering": _steering,
    "evaluation": _evaluation,
    "study": _study,
    "data": _data,
}


def loads(reader: Reader, data: bytes, scratch: Path) -> bool:
    """Try to read anything, and return whether it loaded; only a documented error may refuse it."""
    from radiant_lens.errors import RadiantError

    try:
        reader.read(data, scratch)
    except RadiantError:
        return False
    return True


ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 10**30, 0.5, -0.0, float("nan"), float("inf"), "", " ", "0", "1", "none"),
    *("\ud800", "\x00", "../..", [], {}, [[]], [None], {"a": 1}, [[0, 0]], [[0, 1], [0, 1]], [[0, 0, 0]], "auto"),
]


def changed(value: Any, random: Random) -> Any:
    """The same JSON with one value, somewhere, that is odd, gone, doubled or swapped."""
    if isinstance(value, (dict, list)) and value and random.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, new = random.choice(keys), type(value)(value)
        act = random.random()
        if act < 0.1:
            del new[key]
        elif act < 0.2:
            new[key] = new[random.choice(keys)]
        elif act < 0.3 and isinstance(new, list):
            new.append(new[key])
        else:
            new[key] = changed(new[key], random)
        return new
    return random.choice(ODD)


def changed_json(data: bytes, seed: int) -> bytes | None:
    """`changed` of the JSON after up to two leading bytes; None where there is none."""
    for n_leading in range(3):
        try:
            value = json.loads(data[n_leading:])
        except ValueError:
            continue
        return data[:n_leading] + json.dumps(changed(value, Random(seed))).encode()
    return None


def main() -> None:
    """Fuzz the target of the command line."""
    import atheris  # pyright: ignore[reportMissingImports] (it is installed for the occasion)

    target, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["radiant_lens"]):
        reader = READERS[target]()
    scratch, corpus = (Path(tempfile.mkdtemp(prefix=f"{target}-")) for _ in range(2))
    for i, seed in enumerate(reader.seeds(scratch)):
        (corpus / f"seed-{i}").write_bytes(seed)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        new = changed_json(data, seed) if seed % 2 else None
        return atheris.Mutate(data, max_size) if new is None or len(new) > max_size else new

    atheris.Setup(
        [sys.argv[0], *(options or ["-max_total_time=120"]), str(corpus)],
        lambda data: loads(reader, data, scratch) if len(data) > 2 else None,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
