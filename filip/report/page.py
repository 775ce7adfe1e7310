"""The frame of every HTML page: self-contained, no script, no network, readable on paper and in the dark."""

from __future__ import annotations

import html

__all__ = ["page"]

STYLE = """
:root { --ink: #1d2129; --muted: #667085; --line: #d9dde4; --head: #f4f6f9; --paper: #ffffff; --mark: #0b57a4;
  --soft: #eef4fb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --muted: #98a1b0; --line: #363c47;
  --head: #22262e; --paper: #16181d; --mark: #7db4f0; --soft: #1c2530; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 28px 32px 40px; background: var(--paper); color: var(--ink);
  font: 14px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 21px; margin: 0 0 16px; } h2 { font-size: 16px; margin: 28px 0 8px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 4px; font-weight: 500; }
thead th { background: var(--head); font-weight: 600; } thead tr.groups th { text-align: center; }
tr.common td { color: var(--muted); font-size: 11px; line-height: 1.35; }
tr.section th { text-align: left; color: var(--mark); background: var(--soft); font-size: 12px; }
tr.paper td, tr.paper th { color: var(--muted); }
td b { color: var(--mark); }
td small { display: block; color: var(--muted); font-size: 11px; line-height: 1.3; }
td.run { text-align: left; color: var(--muted); font-size: 11px; }
td.empty { color: var(--muted); text-align: center; }
td.text, th.text { text-align: left; white-space: normal; }
.bar { display: inline-block; height: 9px; background: var(--mark); border-radius: 2px; vertical-align: middle; }
.notes { color: var(--muted); font-size: 12px; padding-left: 18px; max-width: 90ch; }
a { color: var(--mark); }
@media print { body { padding: 0; } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML document. title is escaped here; body is HTML already."""
    safe = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{safe}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body><h1>{safe}</h1>\n{body}\n</body></html>\n"
    )
