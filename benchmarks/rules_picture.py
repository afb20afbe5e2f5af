"""Draws how many requests each release rule costs, as SVG text: the picture of docs/explanation/canary.md."""

from collections.abc import Collection, Mapping, Sequence
from math import log10

_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 520, 40, 360
_LEAST, _MOST = 0.1, 100_000.0
_DASHES = ("none", "7 3", "2 3", "9 3 2 3", "none", "7 3", "2 3", "9 3 2 3")


def svg(
    extra: Mapping[str, Sequence[float]], rates: Sequence[float], incumbent: float, thick: Collection[str]
) -> str:
    """Mean extra failures of each rule by the candidate's error rate, in the order of `rates`; `incumbent` is
    the other's rate, `thick` the rules that are drawn so."""
    at_x = [_LEFT + 30 + k * (_RIGHT - _LEFT - 60) / (len(rates) - 1) for k in range(len(rates))]
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 420" font-family="sans-serif" '
        'font-size="12">',
        "<title>Extra failures until the decision, by the candidate's error rate</title>",
        '<rect width="780" height="420" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="14">Extra failures that clients saw until the decision, '
        "mean</text>",
    ]
    for power in range(int(log10(_LEAST)), int(log10(_MOST)) + 1):
        y = _height(10.0**power)
        name = f"{10**power:,}" if power >= 0 else "0.1 or less"
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}" stroke="#ccc"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
    parts.append(f'<path d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}" fill="none" stroke="black"/>')
    for x, rate in zip(at_x, rates, strict=True):
        parts.append(f'<text x="{x:.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{100 * rate:g} %</text>')
    middle = (_LEFT + _RIGHT) / 2
    words = f"error rate of the candidate; the incumbent has {100 * incumbent:g} %"
    parts.append(f'<text x="{middle:.0f}" y="{_BOTTOM + 40}" text-anchor="middle">{words}</text>')
    for index, (name, means) in enumerate(extra.items()):
        # Ours are thick, the others thin; the dashes tell those of a kind apart without colours.
        dash = _DASHES[index % len(_DASHES)]
        stroke = f'stroke="black" stroke-width="{2.6 if name in thick else 1.1}" stroke-dasharray="{dash}"'
        line = " ".join(f"{x:.1f},{_height(mean):.1f}" for x, mean in zip(at_x, means, strict=True))
        parts.append(f'<polyline points="{line}" fill="none" {stroke}/>')
        y = _TOP + 20 + 22 * index
        parts.append(f'<path d="M{_RIGHT + 16} {y}h34" fill="none" {stroke}/>')
        parts.append(f'<text x="{_RIGHT + 56}" y="{y + 4}">{name}</text>')
    return "\n".join((*parts, "</svg>")) + "\n"


def _height(extra: float) -> float:
    share = log10(max(extra, _LEAST) / _LEAST) / log10(_MOST / _LEAST)
    return _BOTTOM - share * (_BOTTOM - _TOP)
