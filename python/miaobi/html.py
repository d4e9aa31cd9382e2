# SPDX-License-Identifier: MIT
"""Pages in one file that need no network: their frame, charts as SVG, and heat maps as embedded pictures."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Series", "chart", "escape", "heat_map", "page", "table"]

_WIDTH, _HEIGHT = 440, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 32, 36  # room for the tick names of a phone, which are larger
_MAX_POINTS: Final = 600  # of a line: more than a screen has columns for
_SMOOTHED: Final = 25  # neighbours in a running mean
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
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:10px}
.facts div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 12px}
.facts b{display:block;font-size:19px;font-variant-numeric:tabular-nums}.facts span{color:var(--soft);font-size:13px}
.facts span{word-break:keep-all}
svg{display:block;width:100%;height:auto}svg text{fill:var(--soft);font-size:10px}
svg .title{fill:var(--ink);font-size:12px;font-weight:600}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{white-space:nowrap}th:last-child,td:last-child{width:100%;padding-right:0}
th{color:var(--soft);font-weight:500}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.prompt{color:var(--b)}.warn{color:var(--a)}.heat{image-rendering:pixelated}
.tokens span{display:inline-block;padding:1px 3px;margin:1px;border-radius:4px}
@media(max-width:640px){main{padding:20px 12px 40px}svg text{font-size:12.5px}svg .title{font-size:13.5px}
th,td{padding-right:9px}table{font-size:13px}}
"""


class Series(NamedTuple):
    """A line of a chart: its name, its points, its colour, and whether a running mean stands out from it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    second: bool = False
    noisy: bool = False


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
    """A chart as an SVG element; values that are not finite, or not above 0 where it is logarithmic, are left out.

    Where no x is negative, it begins at 0.
    """
    kept = []
    for line in series:
        pairs = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y) and (y > 0 or not log)]
        if pairs:
            kept.append((line, _thinned(pairs)))
    inside = f'<text class="title" x="4" y="16">{escape(title)}</text>'
    if kept:
        every = [pair for _, pairs in kept for pair in pairs]
        x_span = (min(0.0, *(x for x, _ in every)), max(x for x, _ in every) or 1.0)
        y_ticks = _log_ticks if log else _ticks
        ticks = y_ticks(min(y for _, y in every), max(y for _, y in every))
        y_span = (_scaled(ticks[0], log), _scaled(ticks[-1], log))
        inside += _axes(_ticks(*x_span), ticks, x_span, y_span, x_name, log)
        inside += "".join(_line(line, pairs, x_span, y_span, log) for line, pairs in kept)
        place = _WIDTH - _RIGHT
        for line, _ in reversed(kept):  # names from right to left
            inside += (
                f'<text x="{place}" y="16" text-anchor="end" style="fill:{_color(line)}">{escape(line.name)}</text>'
            )
            place -= 7 * sum(2 if ord(c) > 0x2E80 else 1 for c in line.name) + 12
    else:
        inside += f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">nothing yet</text>'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{inside}</svg>'


def _line(
    line: Series, pairs: list[tuple[float, float]], x_span: tuple[float, float], y_span: tuple[float, float], log: bool
) -> str:
    """A line of a chart; each of a few points is shown, and tells its values when it is pointed at."""

    def drawn(values: list[tuple[float, float]], style: str) -> str:
        points = " ".join(f"{_at_x(x, x_span):.1f},{_at_y(_scaled(y, log), y_span):.1f}" for x, y in values)
        return f'<polyline points="{points}" fill="none" stroke="{_color(line)}" {style}/>'

    if line.noisy and len(pairs) > 2 * _SMOOTHED:
        return drawn(pairs, 'stroke-width="1" opacity="0.35"') + drawn(_smooth(pairs), 'stroke-width="1.8"')
    shown = drawn(pairs, 'stroke-width="1.6"')
    if len(pairs) <= _DOTTED:
        for x, y in pairs:
            place = f'cx="{_at_x(x, x_span):.1f}" cy="{_at_y(_scaled(y, log), y_span):.1f}"'
            told = f"<title>{_number(x)}: {_number(y)}</title>"
            shown += f'<circle {place} r="2.6" fill="{_color(line)}">{told}</circle>'
    return shown


def heat_map(values: NDArray[np.float32], labels: Sequence[str], title: str) -> str:
    """A square matrix of values from 0 to 1, nothing above its diagonal, as an SVG element.

    Each label stands before its row and, on the diagonal, above its column.
    """
    n = len(values)
    cell = max(min(28.0, 400 / max(n, 1)), 2.0)
    font = min(11.0, 0.8 * cell)
    widths = [sum(2 if ord(c) > 0x2E80 else 1 for c in label) * font * 0.6 for label in labels]
    edge = max(widths, default=0.0) + 8 if cell >= 8 else 6.0
    ends = [edge + (i + 1) * cell + 4 + width for i, width in enumerate(widths)] if cell >= 8 else []
    size = max(edge + n * cell, 400.0, *ends)  # a small one is not blown up
    height = n * cell + 24
    picture = base64.b64encode(_png(values)).decode()
    inside = f'<text class="title" x="4" y="13">{escape(title)}</text>'
    inside += (
        f'<image class="heat" x="{edge:.1f}" y="20" width="{n * cell:g}" height="{n * cell:g}" '
        f'preserveAspectRatio="none" href="data:image/png;base64,{picture}"/>'
    )
    if cell >= 8:
        for i, label in enumerate(labels):
            y = 20 + (i + 0.5) * cell + 0.35 * font
            for x, anchor in ((edge - 3, "end"), (edge + (i + 1) * cell + 3, "start")):
                style = f'text-anchor="{anchor}" style="font-size:{font:.1f}px"'
                inside += f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(label)}</text>'
    return f'<svg viewBox="0 0 {size:g} {height:g}" role="img" aria-label="{escape(title)}">{inside}</svg>'


def _png(values: NDArray[np.float32]) -> bytes:
    """A picture with a pixel for each value, from transparent to blue (PNG, RFC 2083): it fits light and dark pages."""
    shade = np.sqrt(np.clip(values, 0, 1))[..., None]  # small weights are many: the root lets them be seen
    blue = np.broadcast_to(np.array([36, 112, 214], np.uint8), (*values.shape, 3))
    pixels = np.concatenate((blue, (255 * shade).astype(np.uint8)), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # 0: not filtered

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 6, 0, 0, 0)  # 8 bits; red, green, blue, alpha
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows, 9)) + part(b"IEND", b"")


def _color(line: Series) -> str:
    return "var(--b)" if line.second else "var(--a)"


def _scaled(y: float, log: bool) -> float:
    return math.log10(y) if log else y


def _thinned(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points as can be seen: means over neighbours."""
    step = -(-len(pairs) // _MAX_POINTS)
    groups = (pairs[i : i + step] for i in range(0, len(pairs), step))
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _smooth(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means over neighbours on both sides, as many as there are on either."""
    sums = [0.0, *accumulate(y for _, y in pairs)]
    smooth = []
    for i, (x, _) in enumerate(pairs):
        reach = min(_SMOOTHED // 2, i, len(pairs) - 1 - i)
        smooth.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return smooth


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values around low and high, both above 0: 1, 2, 5, 10, or powers of 10 where they are far apart."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first > 3:
        step = -(-(last - first) // 6)
        return [10.0 ** min(first + i * step, 308) for i in range(-(-(last - first) // step) + 1)]
    places = [factor * 10.0**decade for decade in range(first, last + 1) for factor in (1, 2, 5)]
    begin = max(i for i, place in enumerate(places) if place <= low * (1 + 1e-9))
    end = next((i for i, place in enumerate(places) if place >= high * (1 - 1e-9)), begin)
    return places[begin : max(end, begin + 1) + 1]


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
        y = _at_y(_scaled(tick, log), y_span)
        drawn += f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
        drawn += f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
    for tick in x_ticks:
        if x_span[0] <= tick <= x_span[1]:
            x, y = _at_x(tick, x_span), _HEIGHT - _BOTTOM + 15
            drawn += f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{_number(tick)}</text>'
    return drawn + f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escape(x_name)}</text>'


def _number(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.6g}" if abs(value) >= 1 else f"{value:.3g}"
