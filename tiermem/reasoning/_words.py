"""The words of a lesson, and the guard against words that were recalled and come back as new ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeAlias

from tiermem.errors import InvalidArgument
from tiermem.reasoning._ledger import Version
from tiermem.reasoning.distill import Situation, Text, in_words

Write: TypeAlias = Callable[[Situation], Text | str]

_WORD: Final = re.compile(r"\w+")
_SHINGLE: Final = 3
"""Words that are compared together."""
_REPEATED: Final = 0.8
"""The share of shingles found in another lesson from which a text is a repetition of it."""
_TITLE: Final = 80


class Worded(NamedTuple):
    """The words, and the lesson that a callable had repeated, if it had: then they are those of the template."""

    text: Text
    repeated: str | None = None


def worded(write: Write, situation: Situation, lesson: str | None, known: Iterable[Version]) -> Worded:
    """What `write` says of `situation`, unless it repeats what a lesson of `known` other than `lesson` says.

    An agent acts on what it recalled, and a model that is told what the agent did finds the lesson there: its words are
    no evidence for another situation.

    Raises:
        InvalidArgument: `write` returned neither a `Text` nor a str. Whatever `write` raises.
    """
    plain = in_words(situation)
    if write is in_words:
        return Worded(plain)
    given = write(situation)
    if isinstance(given, str):
        lines = given.strip().splitlines()
        given = Text(lines[0][:_TITLE] if lines else "", plain.description, given.strip())
    if not isinstance(given, Text) or not all(isinstance(part, str) for part in given):
        raise InvalidArgument(f"the words of a lesson are a Text or a str, not {type(given).__name__}")
    if not given.content:
        return Worded(plain)
    shingles = _shingles(given.content)
    for version in known:
        if version.lesson != lesson and len(shingles & _shingles(version.content)) >= _REPEATED * len(shingles):
            return Worded(plain, version.lesson)
    return Worded(given)


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    """The runs of words in a text (Broder 1997, "On the resemblance and containment of documents")."""
    words = _WORD.findall(text.casefold())
    return frozenset(tuple(words[start : start + _SHINGLE]) for start in range(max(1, len(words) - _SHINGLE + 1)))
