"""`Engine`: runs an explorer in slices, between which newer requests of the front end take the place of older ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from radiant_lens.errors import InvalidArgumentError, RadiantError
from radiant_lens.sites import HeadSite
from radiant_lens.viz.explorer.data_scores import DataScores
from radiant_lens.viz.explorer.explorer import Explorer
from radiant_lens.viz.explorer.messages import event_message, settings_message, snapshot

Message = dict[str, Any]
_KINDS = ("hello", "set", "head", "stop")


class Superseded(BaseException):
    """A newer request has come.

    Derives from `BaseException`, so that `except Exception` does not swallow it.
    """


class Engine:
    """Takes the messages of front ends, and does the work of an explorer in slices.

    A slice is a pass of the model, or the search for the strength at a budget, which a newer request ends at its next
    pass. Between slices the model carries no hook. `receive` may be called by any thread; `turn` by one at a time.

    Args:
        explorer: whose state is moved.
        send: sends a message to every front end.

    Messages of a front end have a "kind": "hello" asks for all there is to show, "set" changes settings ("changes"),
    "head" asks for one head ("site"), "stop" ends the present answer.
    """

    def __init__(self, explorer: Explorer, send: Callable[[Message], None]) -> None:
        self.explorer, self._send = explorer, send
        self._inbox: deque[Message] = deque()
        self._answer: Iterator[Message] | None = None
        self._reading: Iterator[int] | None = None
        self._head: HeadSite | None = None
        # What a front end that comes later must be shown of the present answers.
        self._shown: list[Message] = []
        self._run = 0

    def receive(self, message: object) -> None:
        """Take a message for the next `turn`; what is no message is ignored."""
        if isinstance(message, dict) and message.get("kind") in _KINDS:
            self._inbox.append(dict(message))

    def turn(self) -> bool:
        """Do one slice of work; returns False when there is nothing more to do."""
        while self._inbox:
            self._reporting(self._handle, self._inbox.popleft())
        if self._answer is not None:
            self._reporting(self._step, None)
            return True
        return self._read_on()

    def _reporting(self, work: Callable[[Any], None], argument: Any) -> None:
        """Do some work; an error becomes a message, and the explorer goes on."""
        try:
            work(argument)
        except Superseded:
            # The request that ended it is in the inbox.
            self._answer = None
        except (RadiantError, RuntimeError, MemoryError) as error:
            self._tell({"kind": "error", "message": str(error) or type(error).__name__, "run": self._run})

    def _tell(self, message: Message) -> None:
        self._shown.append(message)
        self._send(message)

    def _handle(self, message: Message) -> None:
        kind = message["kind"]
        if kind == "hello":
            self._greet()
        elif kind == "stop":
            self._answer = None
            self._tell({"kind": "stopped", "run": self._run})
        elif kind == "head":
            site = _site(message.get("site"))
            self._show_head(site)
            # After a refusal the head before stays.
            self._head = site
        else:
            self._set(message)

    def _greet(self) -> None:
        self._send(snapshot(self.explorer))
        for message in self._shown:
            self._send(message)
        if self._run == 0:
            self._begin()

    def _set(self, message: Message) -> None:
        changes = message.get("changes")
        if not isinstance(changes, dict):
            raise InvalidArgumentError(f"`changes` must be settings by their names; got {changes!r}.")
        try:
            self.explorer.set(**{str(name): value for name, value in changes.items()})
        finally:
            # After a refusal, too: controls go back to what is set.
            self._send(settings_message(self.explorer))
        if self._head is not None:
            self._show_head(self._head)
        self._begin()

    def _begin(self) -> None:
        self._run += 1
        self._shown.clear()
        self._answer = self._answers(self._run) if self.explorer.settings.prompt.strip() else None
        if self._answer is None:
            self._tell({"kind": "idle", "run": self._run})

    def _answers(self, run: int) -> Generator[Message]:
        if self.explorer.needs_strength:
            yield {"kind": "measuring", "run": run}
            with _ending_when(self.explorer, self._is_superseded):
                self.explorer.meet_budget()
        elif self.explorer.settings.budget is not None:
            self.explorer.meet_budget()
        self._send(settings_message(self.explorer))
        yield {"kind": "begin", "run": run}
        for event in self.explorer.answer():
            yield {**event_message(event), "run": run}

    def _step(self, _: object) -> None:
        # A generator that has raised an error has ended.
        message = None if self._answer is None else next(self._answer, None)
        if message is None:
            self._answer = None
        else:
            self._tell(message)

    def _is_superseded(self) -> bool:
        return any(message["kind"] in ("set", "stop") for message in self._inbox)

    def _read_on(self) -> bool:
        """Read on in the data while no answer is wanted."""
        scores = self.explorer.scores
        if scores is None or scores.complete or self._run == 0:
            return False
        self._reporting(self._read_pass, scores)
        return True

    def _read_pass(self, scores: DataScores) -> None:
        reading = self._reading = self._reading or scores.read(self.explorer.model)
        try:
            next(reading, None)
        except RadiantError:
            # It would fail again at each turn.
            scores.n_read = len(scores.statements)
            raise
        if scores.complete:
            self._send(snapshot(self.explorer))
            if self._head is not None:
                self._show_head(self._head)

    def _show_head(self, site: HeadSite) -> None:
        self._send({"kind": "head", "head": self.explorer.head(site).to_json()})


def _site(value: object) -> HeadSite:
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(type(number) is int for number in value):
        return HeadSite(*value)
    raise InvalidArgumentError(f"`site` must be a layer and a head; got {value!r}.")


@contextmanager
def _ending_when(explorer: Explorer, condition: Callable[[], bool]) -> Generator[None]:
    """Raise `Superseded` before the next pass of the model once a condition holds."""

    def check(module: object, arguments: object) -> None:
        if condition():
            raise Superseded

    handle = explorer.model.original_model.register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()
