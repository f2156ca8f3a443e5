"""The files of the front end: one ES module and one style sheet, used by the widget and by the page."""

from __future__ import annotations

import json
from pathlib import Path
from string import Template
from typing import Any

FOLDER = Path(__file__).parent
MODULE, STYLE, PAGE = FOLDER / "explorer.js", FOLDER / "explorer.css", FOLDER / "page.html"


def page(snapshot: dict[str, Any], token: str, nonce: str) -> str:
    """Return the page of the local server, with a first snapshot, so that it is painted without a further request."""
    # "<" would end the script element where a text of the data holds "</script>".
    state = json.dumps(snapshot).replace("<", "\\u003c")
    return Template(PAGE.read_text(encoding="utf-8")).substitute(state=state, token=token, nonce=nonce)
