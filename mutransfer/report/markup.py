"""HTML that cannot be injected into: a string is text unless it was built here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Markup(str):
    """A string that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Escaped, unless it is markup."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def join(parts: Iterable[object]) -> Markup:
    return Markup("".join(map(text, parts)))


def tag(name: str, *children: object, **attributes: str) -> Markup:
    """An element; children and attributes that are plain strings are escaped; `class_` is class.

    >>> print(tag("p", "1 < 2", class_="note"))
    <p class="note">1 &lt; 2</p>
    """
    inside = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items()
    )
    return Markup(f"<{name}{inside}>{join(children)}</{name}>")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], *, prose: bool = False) -> Markup:
    """A table that scrolls inside its own box where the page is narrow; cells of prose break their lines."""
    head = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in header)))
    body = tag("tbody", *(tag("tr", tag("th", row[0], scope="row"), *(tag("td", c) for c in row[1:])) for row in rows))
    return tag("div", tag("table", head, body), class_="scroll prose" if prose else "scroll", tabindex="0")


def items(lines: Iterable[object]) -> Markup:
    inner = [tag("li", line) for line in lines]
    return tag("ul", *inner) if inner else Markup("")
