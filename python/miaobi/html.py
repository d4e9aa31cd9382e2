# SPDX-License-Identifier: MIT
"""Pages in one file that need no network: their frame, charts as SVG, and heat maps as embedded pictures."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Series", "chart", "escape", "heat_map", "page", "table"]

_WIDTH, _HEIGHT = 520, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 10, 26, 34
_MAX_POINTS: Final = 600  # of a line: more than a screen has columns for
_DOTTED: Final = 40  # a line of so few points shows each
_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#68727f;--line:#d8dde3;--card:#fff;--back:#f4f5f7;
--a:#b3261e;--b:#1a66b8}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#98a2ae;--line:#39424d;--card:#1c2229;--back:#12161b;
--a:#ff8a80;--b:#7db8ff}}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);font:15px/1.55 system-ui,
"Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif}
main{max-width:1140px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:17px;margin:32px 0 10px}p.sub{color:var(--soft);margin:0 0 18px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:14px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px;min-width:0}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px}
.facts div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 12px}
.facts b{display:block;font-size:19px;font-variant-numeric:tabular-nums}.facts span{color:var(--soft);font-size:13px}
svg{display:block;width:100%;height:auto}svg text{fill:var(--soft);font-size:11px}
svg .title{fill:var(--ink);font-size:13px;font-weight:600}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;padding:5px 10px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:500}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.prompt{color:var(--b)}.warn{color:var(--a)}.heat{image-rendering:pixelated}
.tokens span{display:inline-block;padding:1px 3px;margin:1px;border-radius:4px}
"""


class Series(NamedTuple):
    """A line of a chart: its name, its points, and whether it is the second kind of line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    second: bool = False


def escape(text: object) -> str:
    """Text as it can stand in a page."""
    return html.escape(str(text))


def page(title: str, body: str, refresh_seconds: int | None = None) -> str:
    """A whole page; a browser loads it again every `refresh_seconds`."""
    refresh = "" if refresh_seconds is None else f'<meta http-equiv="refresh" content="{refresh_seconds}">'
    return (
        f'<!doctype html>\n<html lang="zh"><head><meta charset="utf-8">{refresh}'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0) -> str:
    """A table of cells that are HTML already; the first `numbers` columns are numbers."""
    kinds = ['class="n"' if i < numbers else "" for i in range(len(head))]
    top = "".join(f"<th {kind}>{escape(name)}</th>" for name, kind in zip(head, kinds, strict=True))
    lines = ("".join(f"<td {kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def chart(title: str, series: Sequence[Series], x_name: str, log: bool = False) -> str:
    """A chart as an SVG element; values that are not finite, or not above 0 where it is logarithmic, are left out."""
    kept = []
    for line in series:
        pairs = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y) and (y > 0 or not log)]
        if pairs:
            kept.append((line, _thinned(pairs)))
    inside = f'<text class="title" x="{_LEFT}" y="15">{escape(title)}</text>'
    if kept:
        every = [pair for _, pairs in kept for pair in pairs]
        x_ticks = _ticks(min(x for x, _ in every), max(x for x, _ in every))
        values = [math.log10(y) if log else y for _, y in every]
        y_ticks = _ticks(min(values), max(values))
        x_span = (min(x_ticks[0], min(x for x, _ in every)), max(x for x, _ in every) or 1.0)
        y_span = (y_ticks[0], y_ticks[-1])
        inside += _axes(x_ticks, y_ticks, x_span, y_span, x_name, log)
        place = _WIDTH - _RIGHT
        for line, pairs in kept:
            color = "var(--b)" if line.second else "var(--a)"
            places = [(_at_x(x, x_span), _at_y(math.log10(y) if log else y, y_span)) for x, y in pairs]
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            inside += f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6"/>'
            if len(places) <= _DOTTED:
                inside += "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{color}"/>' for x, y in places)
        for line, _ in reversed(kept):  # names from right to left
            color = "var(--b)" if line.second else "var(--a)"
            inside += f'<text x="{place}" y="15" text-anchor="end" style="fill:{color}">{escape(line.name)}</text>'
            place -= 7 * sum(2 if ord(c) > 0x2E80 else 1 for c in line.name) + 14
    else:
        inside += f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">nothing yet</text>'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{inside}</svg>'


def heat_map(values: NDArray[np.float32], labels: Sequence[str], title: str) -> str:
    """A square matrix of values from 0 to 1 as an SVG element, rows from top to bottom, with a label for each."""
    n = len(values)
    cell = max(min(28.0, 400 / max(n, 1)), 2.0)
    font = min(11.0, 0.8 * cell)
    edge = max((sum(2 if ord(c) > 0x2E80 else 1 for c in label) for label in labels), default=1) * font * 0.55 + 8
    edge = edge if cell >= 8 else 6
    size = max(edge + n * cell, 400.0)  # a small one is not blown up
    height = n * cell + 22
    picture = base64.b64encode(_png(values)).decode()
    inside = f'<text class="title" x="4" y="13">{escape(title)}</text>'
    inside += (
        f'<image class="heat" x="{edge}" y="20" width="{n * cell:g}" height="{n * cell:g}" '
        f'preserveAspectRatio="none" href="data:image/png;base64,{picture}"/>'
    )
    if cell >= 8:
        for i, label in enumerate(labels):
            y = 20 + (i + 0.5) * cell + 3
            style = f'text-anchor="end" style="font-size:{font:.1f}px"'
            inside += f'<text x="{edge - 3}" y="{y:.1f}" {style}>{escape(label)}</text>'
    return f'<svg viewBox="0 0 {size:g} {height:g}" role="img" aria-label="{escape(title)}">{inside}</svg>'


def _png(values: NDArray[np.float32]) -> bytes:
    """A picture with a pixel for each value, from white to deep blue (PNG, RFC 2083)."""
    shade = np.sqrt(np.clip(values, 0, 1))[..., None]  # small weights are many: the root lets them be seen
    pixels = (255 - shade * (255 - np.array([16, 52, 120]))).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # 0: not filtered

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 0)  # 8 bits, red, green, blue
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows, 9)) + part(b"IEND", b"")


def _thinned(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points as can be seen: means over neighbours."""
    step = -(-len(pairs) // _MAX_POINTS)
    groups = (pairs[i : i + step] for i in range(0, len(pairs), step))
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _ticks(low: float, high: float) -> list[float]:
    """Round values around low and high, about five steps apart."""
    if high - low < 1e-12 * max(abs(high), 1e-300):
        margin = abs(high) / 10 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / 5
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 5, 10) if base * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    return [(first + i) * step for i in range(math.ceil(high / step - 1e-9) - first + 1)]


def _at_x(x: float, span: tuple[float, float]) -> float:
    return _LEFT + (x - span[0]) / ((span[1] - span[0]) or 1.0) * (_WIDTH - _LEFT - _RIGHT)


def _at_y(y: float, span: tuple[float, float]) -> float:
    return _HEIGHT - _BOTTOM - (y - span[0]) / ((span[1] - span[0]) or 1.0) * (_HEIGHT - _TOP - _BOTTOM)


def _axes(
    x_ticks: list[float],
    y_ticks: list[float],
    x_span: tuple[float, float],
    y_span: tuple[float, float],
    x_name: str,
    log: bool,
) -> str:
    drawn = ""
    for tick in y_ticks:
        y = _at_y(tick, y_span)
        drawn += f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
        name = f"{10**tick:.2g}" if log else _number(tick)
        drawn += f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{name}</text>'
    for tick in x_ticks:
        if x_span[0] <= tick <= x_span[1]:
            x, y = _at_x(tick, x_span), _HEIGHT - _BOTTOM + 15
            drawn += f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{_number(tick)}</text>'
    return drawn + f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escape(x_name)}</text>'


def _number(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.6g}" if abs(value) >= 1 else f"{value:.3g}"
