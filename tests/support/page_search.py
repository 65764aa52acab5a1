"""A search over the sections of the pages, as a reader's search box does it: no meaning, only words."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

from support.paths import DOCS

_STOP = {
    *(
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "can",
        "do",
        "does",
        "for",
        "from",
        "has",
        "how",
        "i",
        "if",
    ),
    *("in", "is", "it", "its", "me", "my", "of", "on", "or", "that", "the", "to", "what"),
}
_SKIPPED = ("internals/", "changelog", "index")
"""The first page is links; evidence and history are not where a question is answered."""


class Section(NamedTuple):
    """What stands between two headings.

    Attributes:
        address: Page and anchor, such as ``guides/pools.md#who-holds-the-lock``.
        headings: The words of the page's title and of its own heading.
        words: The words of its text.
    """

    address: str
    headings: Counter[str]
    words: Counter[str]


def words(text):
    """The words of a text in lower case, without endings, and without those that every text has."""
    found = re.findall(r"[a-z0-9]+", text.lower())
    return [
        re.sub(r"(ies|es|s|ing|ed)$", "", word) if len(word) > 4 else word
        for word in found
        if word not in _STOP
    ]


def sections():
    """Every section of the user's pages."""
    for page in sorted(DOCS.rglob("*.md")):
        name = page.relative_to(DOCS).as_posix()
        if not name.startswith(_SKIPPED):
            yield from _sections_of(name, page.read_text())


def _sections_of(name, text):
    title = heading = ""
    lines, fenced = [], False
    for line in [*text.splitlines(), "# end"]:
        fenced ^= line.startswith("```")
        marked = None if fenced else re.match(r"#+ (.*)$", line)
        if marked and title:
            anchor = (
                "" if heading == title else "#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            )
            yield Section(
                name + anchor, Counter(words(title + " " + heading)), Counter(words("\n".join(lines)))
            )
            lines = []
        if marked:
            title, heading = title or marked[1], marked[1]
        else:
            lines.append(line)


def search(question, every):
    """The addresses of the sections by how well they answer, the best first."""
    asked = set(words(question))
    known = Counter(word for each in every for word in {*each.headings, *each.words})
    rare = {word: math.log(1 + len(every) / known[word]) for word in asked if known[word]}

    def score(each):
        length = 0.5 + sum(each.words.values()) / 400
        return sum(
            weight * (4 * (word in each.headings) + each.words[word] / (each.words[word] + length))
            for word, weight in rare.items()
        )

    return [each.address for each in sorted(every, key=score, reverse=True)]
