"""Samples, and the figures made of them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CHUNKS = 5
"""A ratio's range is that of so many consecutive parts of the run: how far it moves with the machine."""


def quantile(samples: Sequence[float], share: float) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, and between what the middle eight tenths lie."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        return cls(statistics.median(samples), quantile(samples, 0.1), quantile(samples, 0.9))

    def text(self, unit: str) -> str:
        return f"{_short(self.median)} {unit} [{_short(self.low)}–{_short(self.high)}]"


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the result. `ok` None: there is no target, it is only told."""

    name: str
    bare: str
    ours: str
    ratio: str
    target: str
    ok: bool | None = None
    blocks: bool = False
    """Whether the run fails when this target is missed."""


def compare(
    name: str,
    unit: str,
    bare: Sequence[float],
    ours: Sequence[float],
    *,
    most: float | None = None,
    least: float | None = None,
    share: float = 0.5,
) -> Figure:
    """Ours over bare, at the median or at another quantile."""
    ratio = quantile_ratio(bare, ours, share)
    parts = [
        quantile_ratio(b, o, share)
        for b, o in zip(_chunks(bare), _chunks(ours), strict=True)
        if len(b) and len(o)
    ]
    shown = f"{ratio:.2f}× ({min(parts):.2f}–{max(parts):.2f})"
    ok, target = None, ""
    if most is not None:
        ok, target = ratio <= most, f"≤ {most:g}×"
    elif least is not None:
        ok, target = ratio >= least, f"≥ {least:g}×"
    return Figure(name, _at(bare, unit, share), _at(ours, unit, share), shown, target, ok)


def added(name: str, alone: Sequence[float], ours: Sequence[float], most_ms: float) -> Figure:
    """How many milliseconds ours comes later than the agent alone."""
    later = statistics.median(ours) - statistics.median(alone)
    parts = [
        statistics.median(o) - statistics.median(a)
        for a, o in zip(_chunks(alone), _chunks(ours), strict=True)
        if len(a) and len(o)
    ]
    ratio = f"{later:+.1f} ms ({min(parts):+.1f} to {max(parts):+.1f})"
    bare, own = Spread.of(alone).text("ms"), Spread.of(ours).text("ms")
    return Figure(name, bare, own, ratio, f"≤ +{most_ms:g} ms", later <= most_ms)


def quantile_ratio(bare: Sequence[float], ours: Sequence[float], share: float) -> float:
    if share == 0.5:
        return statistics.median(ours) / statistics.median(bare)
    return quantile(ours, share) / quantile(bare, share)


def _at(samples: Sequence[float], unit: str, share: float) -> str:
    if share == 0.5:
        return Spread.of(samples).text(unit)
    return f"{_short(quantile(samples, share))} {unit}"


def _chunks(samples: Sequence[float]) -> list[Sequence[float]]:
    count = min(CHUNKS, len(samples))
    size = len(samples) / count
    return [samples[int(i * size) : int((i + 1) * size)] for i in range(count)]


def _short(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
