# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The page: one HTML file with figures, tables and the rollout browser. Needs no network.

Everything from a model, a data set or a configuration is escaped: as text in the markup, and as
JSON without any tag in the browser's data.
"""

import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from rlvlm_jax.report.curves import Method
from rlvlm_jax.report.figures import Layout, panel_svg
from rlvlm_jax.report.tables import Table

_ASSETS = resources.files("rlvlm_jax.report")
# Allows only scripts, styles and images inside the page; nothing else may load.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def build(
    title: str,
    sections: Sequence[tuple[str, Sequence[Method], Sequence[Layout], Sequence[Table]]],
    notes: Sequence[str],
    configs: Mapping[str, Any],
    responses: Mapping[str, Any],
) -> str:
    """Returns the page.

    Args:
        title: of the page.
        sections: (heading, methods, figures, tables) in order.
        notes: what a reader must know about the runs, one sentence each.
        configs: label of a run -> its resolved configuration and environment.
        responses: from `browser.collect`.
    """
    parts = [
        "<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{html.escape(title)}</title><style>{_asset('page.css')}</style></head><body>",
        f"<header><h1>{html.escape(title)}</h1></header><main>",
    ]
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    for heading, methods, layouts, tables in sections:
        parts.append(f"<section><h2>{html.escape(heading)}</h2>")
        parts += [_figure(layout, methods) for layout in layouts]
        parts += [_table(table) for table in tables]
        parts.append("</section>")
    if responses["groups"]:
        parts.append(_asset("browser.html"))
    if configs:
        parts.append("<section><h2>Configuration</h2>")
        parts += [_config(label, content) for label, content in configs.items()]
        parts.append("</section>")
    parts.append("</main>")
    if responses["groups"]:
        parts.append(
            f'<script type="application/json" id="responses">{_json(responses)}</script>'
            f"<script>{_asset('browser.js')}</script>"
        )
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _figure(layout: Layout, methods: Sequence[Method]) -> str:
    panels = "".join(f"<div>{panel_svg(metric, methods)}</div>" for metric in layout.metrics)
    return (
        f'<figure id="figure-{layout.name}"><div class="panels columns-{layout.columns}">{panels}'
        f"</div><figcaption>{html.escape(layout.caption)}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in table.rows)
    return (
        f'<div class="scroll"><table id="table-{table.name}">'
        f"<caption>{html.escape(table.caption)}</caption>"
        f"<thead>{row(table.head, 'th')}</thead><tbody>{body}</tbody></table></div>"
    )


def _config(label: str, content: Any) -> str:
    text = html.escape(json.dumps(content, indent=1))
    return f"<details><summary>{html.escape(label)}</summary><pre>{text}</pre></details>"


def _json(value: Any) -> str:
    """Returns JSON for a script element, without characters that begin or end tags or comments."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
