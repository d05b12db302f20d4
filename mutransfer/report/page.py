"""The page around the sections: one file, nothing fetched, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from mutransfer.figures.style import dark_variables
from mutransfer.report.markup import Markup, tag, text

DARK = (
    "--page:#0f1216;--card:#171b21;--ink:#e6e9ee;--soft:#9aa4b2;--line:#2b323b;--code:#0f1317;"
    "--good:#3fb950;--bad:#ff7b72;--open:#e3b341;--good-soft:#12261a;--bad-soft:#2b1716;--open-soft:#2a2112;--shade:#000000d0;"
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing is loaded and no script runs, whatever a record may say."""


def page(title: str, sections: Sequence[Markup]) -> str:
    css = files("mutransfer.report").joinpath("style.css").read_text(encoding="utf-8")
    dark = f"@media (prefers-color-scheme:dark){{:root{{{DARK}{dark_variables()}}}.sign{{color:#0f1216}}}}"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{text(title)}</title><style>{css}{dark}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{tag("main", *sections)}</body></html>\n'
