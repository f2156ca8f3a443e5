"""Words of an answer as the rules compare them: without case and punctuation, but with every sign of meaning.

Words keep combining marks, signs (minus, plus, ±), symbols (currency, degree, arithmetic), percent, the points within
numbers, and the brackets of option letters: "-5" is not "5", and "(A)" is not the article "a". In scripts that put no
blanks between words (Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar) every character is a word of its own, so
that a run of words is a substring.
"""

from __future__ import annotations

import re
import unicodedata

# Blocks of the scripts without blanks between words. Their digits form numbers like any others (see `_kind`).
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\ua9e0-\ua9ff\uaa60-\uaa7f"  # Thai, Lao, Myanmar, Khmer
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana, iteration
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U0001aff0-\U0001b16f\U00020000-\U0003fffd]"  # Han, and rare kana
)
_MINUSES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"))
_KINDS = {
    **dict.fromkeys("\u200c\u200d", "m"),  # joiners: within a word
    **dict.fromkeys("-", "-"),
    **dict.fromkeys("+±∓", "+"),
    **dict.fromkeys("%‰‱°℃℉", "%"),
    **dict.fromkeys("&@§", "s"),
    **dict.fromkeys("`´¨", " "),  # symbols to Unicode, but used as quotation marks
    **dict.fromkeys("([{", "("),
    **dict.fromkeys(")]}", ")"),
    **{char: char for char in ".,:/#_"},
}

# Written for `_kinds`, which has one letter for each character of the text: W capital, w other letter, d digit, m mark,
# u character of an unspaced script, + and - signs, $ currency, % unit, s other symbol, ( and ) brackets of any form,
# and . , : / # themselves; a blank is all else.
_TOKEN = re.compile(
    r"""
    (?<![wWdmu]) \( [wWd] \)                      # (A): an option with both brackets
    | (?P<option> (?<![wWdmu(]) [wWd] \) )        # A): with one, unless it closes an earlier bracket
    | (?<![wWdm]) W [wW]? d* - (?![wWdmus+$%-])   # O-, Ca2-: a minus behind a blood group, a grade or an ion
    | (?: (?<![wWdmu).%+-]) [+-] \$? (?=\.?d|[wW](?![wWdm])) )?     # a sign before a number or a lone letter ...
      (?: (?<![wWdm.]) \. (?=d) )?                                  # ... a point that opens a number ...
      [wWd] [wWdm]* (?: (?<=d) (?:[.:/] | ,(?=ddd(?!d))) (?=d) [wWdm]+ )* \#?      # ... and a word or number: C#, 1,000
    | (?<![wWdmu).%+-]) - s m*                    # -∞
    | u m*
    | [s$%+] m*
    """,
    re.VERBOSE,
)


def words(text: str) -> list[str]:
    """Words, numbers and symbols of a text, in order, in Unicode's NFC form and without case.

    Example:
        >>> words("It's -3.5 °C.")
        ['it', 's', '-3.5', '°', 'c']
        >>> words("(A) a cat"), words("東京です")
        (['(a)', 'a', 'cat'], ['東', '京', 'で', 'す'])
    """
    text = unicodedata.normalize("NFC", text).translate(_MINUSES)
    kinds = "".join(map(_kind, text))
    return [_token(text, kinds, match) for match in _TOKEN.finditer(kinds)]


def _kind(char: str) -> str:
    """The letter that `_TOKEN` has for a character."""
    if char in _KINDS:
        return _KINDS[char].replace("_", "w")
    category = unicodedata.category(char)
    if category == "Nd":
        return "d"
    if category[0] == "M":
        return "m"
    if char.isalnum():
        return "u" if _UNSPACED.match(char) else "W" if char.isupper() else "w"
    return "$" if category == "Sc" else "s" if category[0] == "S" else " "


def _token(text: str, kinds: str, match: re.Match[str]) -> str:
    start, end = match.span()
    # In "(vitamin A)" the bracket belongs to the remark, not to the letter.
    if match["option"] and kinds.count("(", 0, start) > kinds.count(")", 0, start):
        end -= 1
    # Folding can take a character apart ("ǰ"): composed again, equal texts have equal tokens.
    return unicodedata.normalize("NFC", text[start:end].casefold())
