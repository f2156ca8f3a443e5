"""Minutes that the paper's tables would take on one GPU: `python tests/benchmarks/paper_minutes.py --data FOLDER`.

FOLDER holds the published files TruthfulQA.csv, NQOpen.csv and TriviaQA.csv. The tokens that the protocol reads and
writes are counted in them, with the tokenizer of SmolLM2. A GPU reads at 1.6e14 floating-point operations a second, two
for each parameter and token, and writes a token of each of 16 answers in the time in which all parameters are read once
(3.35e12 bytes a second, two bytes a parameter). Both are assumed, for a large GPU of today; none was measured. The two
judges of TruthfulQA, of 7 billion parameters each, read every answer. Time of fits, of loading and of other metrics is
left out.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from growth import FLOPS, SHARE

import radiant_lens as rl
from radiant_lens.studies.paper_tables import PAPER_TABLES, PaperTable

FILES = {"truthfulqa": "TruthfulQA.csv", "nq_open": "NQOpen.csv", "trivia_qa": "TriviaQA.csv"}
PARAMETERS = {"llama-7b": 6.7e9, "llama3-8b": 8.0e9, "llama2-chat-13b": 13e9, "alpaca-7b": 6.7e9, "vicuna-7b": 6.7e9}
JUDGES, JUDGE_PARAMETERS = 2, 6.7e9
BYTES_A_SECOND, ANSWERS_AT_ONCE = 3.35e12, 16
NEW_TOKENS = 50
# No steering, ITI and RADIANT.
TESTED = 3


class Tokens(NamedTuple):
    """Tokens that a model reads and writes, and those that the judges read."""

    read: float
    written: float
    judged: float

    def times(self, factor: float) -> Tokens:
        return Tokens(*(factor * n for n in self))

    def plus(self, other: Tokens) -> Tokens:
        return Tokens(*(a + b for a, b in zip(self, other)))


class Counts(NamedTuple):
    """Tokens of a file: of its prompts, of its prompts with each of their answers, and of all statements."""

    n_prompts: int
    prompts: int
    answered: int
    statements: int


@cache
def count(file: Path, few_shot: int, model: str) -> Counts:
    data = rl.load_dataset(file, template="plain")
    tokenizer = rl.load_model(model, device="cpu").tokenizer
    questions = len(data.prompts)

    def n_tokens(texts: list[str]) -> int:
        return sum(len(ids) for ids in tokenizer(texts).input_ids)

    prompts = n_tokens([p.text for p in data.prompts])
    answered = [p.answered(a).text for p in data.prompts for a in (*p.correct_answers, *p.incorrect_answers)]
    # Each example is as long as a question with one answer.
    example = n_tokens([p.answered(p.correct_answers[0]).text for p in data.prompts if p.correct_answers]) / questions
    before = few_shot * example
    return Counts(
        questions,
        int(prompts + questions * before),
        int(n_tokens(answered) + len(answered) * before),
        n_tokens([s.text for s in data.statements]),
    )


def evaluation(counts: Counts) -> Tokens:
    """Answers, choices, and desirable text with and without the steering (about half of the statements)."""
    written = counts.n_prompts * NEW_TOKENS
    read = counts.prompts + counts.answered + 2 * counts.statements / 2
    return Tokens(read, written, JUDGES * (counts.prompts + written))


def tokens(table: PaperTable, folder: Path, model: str) -> Tokens:
    """What the protocol reads and writes over all folds."""
    protocol = table.protocol
    own = count(folder / FILES[table.data], protocol.few_shot, model)
    development = 1 - 1 / protocol.n_folds
    collected = Tokens(protocol.n_folds * development * own.statements, 0, 0)
    chosen = evaluation(own).times(protocol.n_folds * development * protocol.validation * protocol.n_candidates)
    if table.test_data is None:
        tested = evaluation(own).times(TESTED)
    else:
        other = count(folder / FILES[table.test_data], protocol.few_shot, model)
        tested = evaluation(other).times(TESTED * protocol.n_folds)
    return collected.plus(chosen).plus(tested)


def minutes(tokens: Tokens, parameters: float) -> float:
    reading = 2 * (parameters * tokens.read + JUDGE_PARAMETERS * tokens.judged) / (FLOPS * SHARE)
    writing = tokens.written / ANSWERS_AT_ONCE * 2 * parameters / BYTES_A_SECOND
    return (reading + writing) / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="whose tokenizer counts")
    arguments = parser.parse_args()
    print("An estimate: the docstring says what is assumed, and what is left out.\n")
    print("| table | tokens read, million | written, million | minutes on one GPU |\n|-|-|-|-|")
    for name, table in PAPER_TABLES.items():
        if table.data not in FILES:
            continue
        needed = tokens(table, arguments.data, arguments.model)
        (parameters,) = (size for model, size in PARAMETERS.items() if f"-{model}" in name)
        read, written = needed.read / 1e6, needed.written / 1e6
        print(f"| {name} | {read:.1f} | {written:.2f} | {minutes(needed, parameters):.0f} |", flush=True)


if __name__ == "__main__":
    main()
