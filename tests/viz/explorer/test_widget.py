from __future__ import annotations

import asyncio
import threading

import radiant_lens as rl
from radiant_lens.viz.explorer import ExplorerWidget


def test_the_widget_answers_between_the_cells_of_its_loop(model, edits, facts, monkeypatch):
    async def cells() -> tuple[ExplorerWidget, list[str], list[str]]:
        widget = rl.explore(model, edits, facts, max_new_tokens=4)
        sent: list[str] = []
        monkeypatch.setattr(widget._engine, "_send", lambda message: sent.append(message["kind"]))
        # Messages may come in another thread while a cell runs.
        for message in ({"kind": "hello"}, {"kind": "set", "changes": {"strength": 2}}):
            thread = threading.Thread(target=widget._receive, args=(widget, message, []))
            thread.start()
            thread.join()
        during_cell = list(sent)
        while sent.count("answer") < 2 or widget._scheduled:
            await asyncio.sleep(0.01)
        return widget, during_cell, sent

    widget, during_cell, sent = asyncio.run(cells())
    assert during_cell == []
    assert sent.count("begin") == 1 and sent.count("answer") == 2
    assert widget.steering.meta["strength"] == 2


def test_without_a_loop_a_message_is_answered_at_once(model, edits):
    widget = rl.explore(model, edits, max_new_tokens=2)
    widget._receive(widget, {"kind": "set", "changes": {"prompt": "Q : what", "off": [str(edits.sites[0])]}}, [])
    assert edits.sites[0] not in widget.steering.sites
    assert widget.snapshot["sites"] == [str(site) for site in edits.sites]
