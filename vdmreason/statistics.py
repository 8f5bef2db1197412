"""From right and wrong answers to what may be said of them. numpy only, no files.

A *cell* is one (task, arm, control, n): for each training seed the values of its test examples, in their order. A *curve*
is the cells of one arm over n. Everything else is a function of curves.

**Intervals** are 95 % and have two stages, seeds and then test examples, by 4,000 draws from fixed names. Resampling three
seeds and their examples by index covers the truth in 85 % of sweeps whose seeds differ (by 0.5 in log odds) and in 77 % where
they differ much, for three numbers drawn again spread too little. So the
draws are multipliers (a Gaussian "wild" bootstrap, Mammen 1993) in place of counts:

    over seeds     mean + t / 1.96 * sum_s e_s g_s / sqrt(S (S - 1))     e_s: a seed's mean less the mean of all
    over answers   mean + the like sum over each seed's test examples, seeds held fixed

The first has the variance of a mean of S seeds, test examples included, and its 95 % end is Student's, t with S - 1 degrees of
freedom; a rate is moved on the scale of log odds, on which seeds near 0 and 1 lie less askew. The second is all there is where
there is one seed. An interval of anything (an accuracy, an n, a ratio, an area) is the hull of what the two
sets of draws say of it, so that three seeds that agree by chance do not pass for certainty. The multiplier g of a seed and
of a test example is one for all n and arms: arms that were tested on the same examples stay paired (on the scale of log odds
nearly so).

What they cover was measured on 1,000 synthetic sweeps each (`tests/test_statistics.py`: two arms, five n, 100 test examples):

    seeds   they differ by    accuracies      n for 50 %   ratio   area
    3       0.5 in log odds   96 to 98 %      96 %         97 %    96 %
    3       0                 98 to 99 %      98 %         99 %    99 %     the price of not knowing that they do not differ
    3       1                 93 to 97 %      95 %         98 %    96 %
    3       1.5               89 to 96 %      95 %         99 %    95 %     89 % near 1, where the mean of three is most askew
    3       2                 84 to 95 %      96 %         99 %    94 %
    5       0.5               95 to 98 %      95 %         96 %    95 %
    2       0.5               95 to 98 %      96 %         98 %    92 %     t with one degree of freedom: very wide
    1       0                 93 to 96 %      95 %         95 %    95 %     of new test examples only, not of other seeds

Of seeds that are all wrong or all right nothing is known of how they differ: that interval is over test examples alone.

**Censoring.** An n that was not reached is a bound, never left out. A quantity that may be bounded is kept as the range of
values that the data allow: [300, inf) for "not reached at 300", (0, 10] for "already there at the smallest n, 10".
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 4000  # even: each multiplier comes with its negative
FLIPS = 10_000  # sign flips of a permutation test
LEVELS = (0.025, 0.975)
Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
TARGETS = (0.5, 0.9)

Array = np.ndarray
Cell = Mapping[int, Sequence[float] | Array]  # seed -> values of its test examples, in order


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def within(self, low: float, high: float) -> Interval:
        """Cut to what the value can be."""
        return Interval(self.value, max(low, self.low), min(high, self.high))


@dataclass(frozen=True)
class Bound:
    """A quantity that may be known only as a bound: it lies in [low, high] (equal where it is known), and the 95 % interval
    of that statement is [ci_low, ci_high]. 0 and inf are ends that nothing bounds."""

    low: float
    high: float
    ci_low: float
    ci_high: float

    @property
    def known(self) -> bool:
        return self.low == self.high

    @property
    def unbounded(self) -> bool:
        """Whether the data say nothing at all."""
        return self.low <= 0 and math.isinf(self.high)


# ---------------------------------------------------------------------------------------------------------------------
# Draws


@dataclass(frozen=True)
class Curve:
    """One arm's accuracy (or any mean) over n, with its draws."""

    task: str
    n: Array  # (N,) ascending
    mean: Array  # (N,) mean over seeds of the mean over test examples
    answers: Array  # (N,) how many test answers stand behind each
    seeds: tuple[tuple[int, ...], ...]  # of each n
    deviation: Array  # (N,) standard error of the mean over seeds; 0 where there is one
    moves: Array  # (DRAWS, N) how far a mean may be off by its seeds, on its own scale; 0 where there is one
    over_seeds: Array | None  # (DRAWS, N) the means so moved; None where every n has one seed
    over_answers: Array  # (DRAWS, N)
    within: tuple[float, float]  # what a mean can be; draws may lie outside, intervals do not

    def at(self, ns: Sequence[int]) -> Curve:
        """The same curve at some of its n."""
        kept = np.flatnonzero(np.isin(self.n, ns))
        seeds = tuple(self.seeds[i] for i in kept)
        over_seeds = None if self.over_seeds is None else self.over_seeds[:, kept]
        return dataclasses.replace(
            self, n=self.n[kept], mean=self.mean[kept], answers=self.answers[kept], seeds=seeds,
            deviation=self.deviation[kept], moves=self.moves[:, kept], over_seeds=over_seeds,
            over_answers=self.over_answers[:, kept],
        )  # fmt: skip

    @property
    def wilson(self) -> tuple[Array, Array]:
        """(N,) twice: Wilson's interval over all answers, for a curve of rates."""
        low, high = np.array([wilson(r * c, int(c)) for r, c in zip(self.mean, self.answers, strict=True)]).T
        return low, high

    @property
    def doubted(self) -> tuple[Array, Array]:
        """(N,) twice: the means, but where all answers are alike Wilson's lower or upper end. The draws see no doubt there."""
        if self.within != (0.0, 1.0):
            return self.mean, self.mean
        low, high = self.wilson
        return np.where(self.mean >= 1, low, self.mean), np.where(self.mean <= 0, high, self.mean)


def curve(task: str, cells: Mapping[int, Cell], within: tuple[float, float] = (0.0, 1.0)) -> Curve:
    """The curve of {n: {seed: values}}; values lie `within` these ends. Cells may have different seeds.

    `task` names the draws: curves of one task share them, and so stay paired by seed and test example.
    Raises ValueError where there is no cell or a cell has no value.
    """
    if not cells or not all(cell and all(len(v) for v in cell.values()) for cell in cells.values()):
        raise ValueError("a curve needs at least one cell, and a cell at least one answer")
    ns = sorted(cells)
    columns = [{seed: np.asarray(cells[n][seed], dtype=float) for seed in sorted(cells[n])} for n in ns]
    mean = np.array([np.mean([values.mean() for values in cell.values()]) for cell in columns])
    answers = np.array([sum(len(values) for values in cell.values()) for cell in columns])
    over_answers = np.stack([_over_answers(task, cell) for cell in columns], axis=1)
    moves = np.stack([_over_seeds(task, cell) for cell in columns], axis=1)
    over_seeds = None
    if any(len(cell) > 1 for cell in columns):
        over_seeds = over_answers.copy()  # all there is where there is one seed
        for i, cell in enumerate(columns):
            rate, count, by = float(mean[i]), int(answers[i]), moves[:, i]
            if len(cell) > 1:
                over_seeds[:, i] = rate + (
                    _moved(rate, count, by) - _moved(rate, count, 0) if within == (0.0, 1.0) else by
                )
    seeds = tuple(tuple(cell) for cell in columns)
    deviation = np.array([_deviation(cell) for cell in columns])
    return Curve(task, np.array(ns), mean, answers, seeds, deviation, moves, over_seeds, over_answers, within)


def _over_answers(task: str, cell: Mapping[int, Array]) -> Array:
    """(DRAWS,) means of one cell, its seeds held fixed."""
    draws = np.full(DRAWS, np.mean([values.mean() for values in cell.values()]))
    for seed, values in cell.items():
        size = len(values)
        if size > 1:
            weights = (values - values.mean()) / math.sqrt(size * (size - 1)) / len(cell)
            draws += _normals(f"{task}/{seed}/answers", size) @ weights
    return draws


def _over_seeds(task: str, cell: Mapping[int, Array]) -> Array:
    """(DRAWS,) how far the mean of one cell may lie from the true one, by its seeds; 0 where there is one."""
    if len(cell) == 1:
        return np.zeros(DRAWS)
    count, means = len(cell), np.array([values.mean() for values in cell.values()])
    multipliers = np.stack([_normals(f"{task}/{seed}/seed", 1)[:, 0] for seed in cell], axis=1)
    spread = multipliers @ (means - means.mean()) / math.sqrt(count * (count - 1))
    return np.asarray(spread * student(count - 1) / Z95)


def _deviation(cell: Mapping[int, Array]) -> float:
    """The standard error of a cell's mean over its seeds; 0 where there is one."""
    means = [values.mean() for values in cell.values()]
    return float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0


def _moved(rate: float, count: int, by: Array | float) -> Array:
    """A rate of `count` answers moved by so much, on the scale of log odds: rates of few seeds near 0 or 1 lie askew and end
    there. 0.02, 0.01 and 0.29 may stand for 0.5, and not for less than 0."""
    middle = (rate * count + 2) / (count + 4)  # never quite 0 or 1 (Agresti and Coull, 1998)
    odds = math.log(middle / (1 - middle)) + np.asarray(by) / (middle * (1 - middle))
    return np.asarray(1 / (1 + np.exp(-odds.clip(-50, 50))))


@functools.lru_cache(maxsize=16)  # 16 MB each for 1,000 tests; curves of one task follow one another
def _normals(name: str, count: int) -> Array:
    """(DRAWS, count) standard normal numbers that `name` fixes; the second half is the negative of the first."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    half = np.random.default_rng(seed).standard_normal((DRAWS // 2, count), dtype=np.float32)
    return np.concatenate([half, -half])


@functools.cache
def student(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t: t = sqrt(freedom) tan(a), where the density of a is cos(a)^(freedom - 1)."""
    angle = np.linspace(-math.pi / 2, math.pi / 2, 200_001)
    mass = np.cumsum(np.cos(angle) ** (freedom - 1))
    return math.sqrt(freedom) * math.tan(float(np.interp(LEVELS[1], mass / mass[-1], angle)))


Functional = Callable[..., tuple[Array, Array]]


def bound(of: Functional, *curves: Curve) -> Bound:
    """A bound and its interval for `of(*means)`, a function of the curves' values, (..., N) each, that gives the ends
    (..., ) of the allowed range."""
    low, high = of(*(c.mean for c in curves))
    ends: list[tuple[float, float]] = [(float(low), float(high))]
    for draws in _sets(curves):
        lows, highs = of(*draws)
        # whole order statistics: between two infinities there is nothing to interpolate
        ends.append(
            (
                float(np.quantile(lows, LEVELS[0], method="lower")),
                float(np.quantile(highs, LEVELS[1], method="higher")),
            )
        )
    return Bound(float(low), float(high), min(e[0] for e in ends), max(e[1] for e in ends))


def interval(of: Callable[..., Array], *curves: Curve) -> Interval:
    """The value and interval of `of(*means)`, a number that is never censored."""
    found = bound(lambda *values: (of(*values),) * 2, *curves)
    return Interval(found.low, found.ci_low, found.ci_high)


def _sets(curves: Sequence[Curve]) -> list[list[Array]]:
    """The draws of all curves over answers, and over seeds where a curve has several."""
    found = [[c.over_answers for c in curves]]
    if any(c.over_seeds is not None for c in curves):
        found.append([c.over_answers if c.over_seeds is None else c.over_seeds for c in curves])
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Accuracy, the n that a target takes, areas


def wilson(hits: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a rate: `hits` of `n`. (0, 1) where nothing was counted.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if n == 0:
        return 0.0, 1.0
    rate, z2 = hits / n, Z95 * Z95
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(max(0.0, rate * (1 - rate)) / n + z2 / (4 * n * n))
    # At 0 and n hits the exact bound is 0 and 1; rounding must not say otherwise.
    return (0.0 if rate <= 0 else centre - half), (1.0 if rate >= 1 else centre + half)


def accuracy(of: Curve) -> list[Interval]:
    """An interval for each n of a curve of rates: the mean over seeds, with the hull of

    - Student's t over seeds on the scale of log odds (`_moved`), and
    - Wilson's interval over all answers, which sees doubt where all answers are alike.
    """
    found = []
    for i, seeds in enumerate(of.seeds):
        rate, count = float(of.mean[i]), int(of.answers[i])
        ends = [*wilson(rate * count, count), rate]
        if len(seeds) > 1:
            far = student(len(seeds) - 1) * of.deviation[i]
            ends += _moved(rate, count, np.array([-far, far])).tolist()
        found.append(Interval(rate, min(ends), max(ends)))
    return found


def means(of: Curve) -> list[Interval]:
    """An interval for each n of any curve, from both stages. Shares that are all alike are no certainty: of them Wilson's ends,
    as if they were right and wrong answers."""
    found = []
    for i, seeds in enumerate(of.seeds):
        mean, count = float(of.mean[i]), int(of.answers[i])
        far = student(len(seeds) - 1) * of.deviation[i] if len(seeds) > 1 else 0.0
        ends = [*np.quantile(of.over_answers[:, i], LEVELS).tolist(), mean - far, mean + far]
        if of.within == (0.0, 1.0) and max(ends) - min(ends) < 1e-9:
            ends += wilson(mean * count, count)
        found.append(Interval(mean, min(ends), max(ends)).within(*of.within))
    return found


def isotonic(values: Array, weights: Array) -> Array:
    """The non-decreasing sequence nearest to `values` (..., N) in weighted squares; weights (N,), above 0.

    What pool-adjacent-violators finds, by the max-min formula (Robertson, Wright and Dykstra, Order Restricted Statistical
    Inference, 1988, section 1.4), which does many curves at once: fit_i = max over j <= i of min over k >= i of mean(j..k).
    """
    values = np.asarray(values, dtype=float)
    weights = np.asarray(weights, dtype=float)
    size = values.shape[-1]
    zero = np.zeros((*values.shape[:-1], 1))
    sums, total = np.concatenate([zero, np.cumsum(values * weights, axis=-1)], axis=-1), np.cumsum([0, *weights])
    best = np.full(values.shape, -np.inf)
    for j in range(size):
        means = (sums[..., j + 1 :] - sums[..., j : j + 1]) / (total[j + 1 :] - total[j])  # of j..k, for each k >= j
        least = np.minimum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]  # over k >= i, for each i >= j
        best[..., j:] = np.maximum(best[..., j:], least)
    return best


def crossing(n: Array, fitted: Array, target: float) -> tuple[Array, Array]:
    """The range of log n at which non-decreasing curves `fitted` (..., N) reach `target`: two arrays (...,).

    Between two n by linear interpolation in log n. Reached at the smallest n already: (-inf, log n_min]. Not reached:
    [log n_max, inf).
    """
    x = np.log(np.asarray(n, dtype=float))
    reached = fitted >= target - 1e-12
    first = np.argmax(reached, axis=-1)
    before = np.maximum(first - 1, 0)
    here, there = (np.take_along_axis(fitted, i[..., None], axis=-1)[..., 0] for i in (before, first))
    rise = np.where(there > here, there - here, 1.0)
    between = x[before] + np.clip((target - here) / rise, 0, 1) * (x[first] - x[before])
    none, at_once = ~reached.any(axis=-1), reached[..., 0]
    low = np.where(none, x[-1], np.where(at_once, -np.inf, between))
    high = np.where(none, np.inf, np.where(at_once, x[0], between))
    return low, high


def n_needed(of: Curve, target: float) -> Bound:
    """How many examples the arm needs for accuracy `target` (0..1): isotonic fit over log n, weighted by answers.

    Limits: accuracy is taken to grow with n (a dip counts as noise), and to be linear in log n between two tested n. The
    interval is no narrower than what the ends of `Curve.doubted` need.
    """
    low, high = of.doubted
    return _exp(
        _wider(bound(lambda values: _needed(of, values, target), of), [_needed(of, v, target) for v in (low, high)])
    )


def efficiency(language: Curve, video: Curve, target: float) -> Bound:
    """The data-efficiency ratio n_language / n_video at accuracy `target`: above 1 the video arm needs fewer examples.

    From the same draws for both, over the n that both have: an arm that was asked at fewer n would seem to need more. A target
    that one arm missed gives a bound on the ratio; one that both missed (or both had at the smallest n) gives the range
    (0, inf), which says that nothing is known, and not that the ratio is 1. So does a pair without an n in common.
    """
    common = sorted({int(n) for n in language.n} & {int(n) for n in video.n})
    if not common:
        return Bound(0.0, math.inf, 0.0, math.inf)
    language, video = language.at(common), video.at(common)

    def ratio(of_language: Array, of_video: Array) -> tuple[Array, Array]:
        a, b = _needed(language, of_language, target), _needed(video, of_video, target)
        return a[0] - b[1], a[1] - b[0]

    ends = [ratio(x, y) for x, y in itertools.product(language.doubted, video.doubted)]
    return _exp(_wider(bound(ratio, language, video), ends))


def _wider(found: Bound, ranges: Sequence[tuple[Array, Array]]) -> Bound:
    """`found` with an interval that holds these ranges too."""
    low, high = min(float(a) for a, _ in ranges), max(float(b) for _, b in ranges)
    return dataclasses.replace(found, ci_low=min(found.ci_low, low), ci_high=max(found.ci_high, high))


def _needed(of: Curve, values: Array, target: float) -> tuple[Array, Array]:
    return crossing(of.n, isotonic(values, of.answers), target)


def _exp(found: Bound) -> Bound:
    def up(value: float) -> float:
        return math.exp(value) if value < 700 else math.inf

    return Bound(up(found.low), up(found.high), up(found.ci_low), up(found.ci_high))


def area(of: Curve, among: Sequence[int] | None = None) -> Interval:
    """The area under the learning curve over log n by trapezoids, as a mean accuracy (divided by the range of log n).

    `among` keeps only these n. With one n it is the accuracy there.
    """
    chosen, weights = _trapezoid(of, among)
    found = interval(lambda values: values[..., chosen] @ weights, of)
    return _doubted(found, [(of, chosen, weights)])


def area_difference(first: Curve, second: Curve, among: Sequence[int] | None = None) -> Interval | None:
    """`area` of the first less that of the second over the n that both have, paired by seed and test example; None where
    they have no n in common. With one n in `among` it is the paired difference of two accuracies.

    Where no example tells the two apart the draws see no doubt, and Wilson's interval for 0 of so many answers does."""
    common = {int(n) for n in first.n} & {int(n) for n in second.n}
    among = sorted(common if among is None else common & set(among))
    if not among:
        return None
    (a, weights), (b, _) = _trapezoid(first, among), _trapezoid(second, among)
    found = interval(lambda x, y: x[..., a] @ weights - y[..., b] @ weights, first, second)
    if any(len(of.seeds[i]) == 2 for of, chosen in ((first, a), (second, b)) for i in chosen):
        # All draws of two seeds lie on one line: two arms that run to the same end of the scale would seem to agree.
        far = Z95 * float(np.std(first.moves[:, a] @ weights - second.moves[:, b] @ weights))
        found = Interval(found.value, min(found.low, found.value - far), max(found.high, found.value + far))
    apart = np.ptp(first.over_answers[:, a] - second.over_answers[:, b], axis=0)
    certain = (first.mean[a] <= 0) | (first.mean[a] >= 1)  # `_doubted` knows those
    alike = [
        weight * wilson(0, int(first.answers[i]))[1]
        for i, weight, spread, known in zip(a, weights, apart, certain, strict=True)
        if spread < 1e-9 and not known and first.within == (0.0, 1.0)
    ]
    return _doubted(found, [(first, a, weights), (second, b, -weights)], math.hypot(*alike))


def _doubted(found: Interval, parts: Sequence[tuple[Curve, Array, Array]], more: float = 0.0) -> Interval:
    """`found`, a weighted sum of accuracies, with the doubt of those cells that are all wrong or all right: the draws see
    none there, Wilson's interval does. Its ends are recovered as sums of squares (MOVER, Zou and Donner 2008). `more` is a
    further doubt on both sides."""
    below, above = (found.value - found.low) ** 2 + more**2, (found.high - found.value) ** 2 + more**2
    low_end = high_end = 0.0
    for of, chosen, weights in parts:
        low_end += sum(min(w * of.within[0], w * of.within[1]) for w in weights)
        high_end += sum(max(w * of.within[0], w * of.within[1]) for w in weights)
        for i, weight in zip(chosen, weights, strict=True):
            rate = float(of.mean[i])
            if of.within == (0.0, 1.0) and rate in (0.0, 1.0):
                ends = sorted(weight * (end - rate) for end in wilson(rate * of.answers[i], int(of.answers[i])))
                below, above = below + min(0.0, ends[0]) ** 2, above + max(0.0, ends[1]) ** 2
    low, high = found.value - math.sqrt(below), found.value + math.sqrt(above)
    return Interval(found.value, max(low, low_end), min(high, high_end))


def _trapezoid(of: Curve, among: Sequence[int] | None) -> tuple[Array, Array]:
    """(which n, their weights, which sum to 1)."""
    chosen = np.flatnonzero(np.isin(of.n, of.n if among is None else np.asarray(among)))
    if len(chosen) == 1:
        return chosen, np.ones(1)
    steps = np.diff(np.log(of.n[chosen].astype(float)))
    weights = np.zeros(len(chosen))
    weights[:-1] += steps / 2
    weights[1:] += steps / 2
    return chosen, weights / steps.sum()


def pooled(parts: Sequence[Interval]) -> Interval:
    """The mean over tasks, with the interval for tasks drawn like these: the outermost stage of the draws.

    Student's t over the tasks' own values (their seeds and examples are inside that spread), and no narrower than for these
    very tasks, taken as independent. One task: its own interval. Limit: four tasks are few, and were not drawn at random.
    """
    if len(parts) == 1:
        return parts[0]
    values = np.array([part.value for part in parts])
    mean, far = float(values.mean()), student(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    these = together(parts)
    return Interval(mean, min(mean - far, these.low), max(mean + far, these.high))


def together(parts: Sequence[Interval]) -> Interval:
    """The mean over these very tasks, taken as independent (MOVER, as in `_doubted`): of others it says nothing."""
    mean = float(np.mean([part.value for part in parts]))
    below = math.sqrt(sum((p.value - p.low) ** 2 for p in parts)) / len(parts)
    above = math.sqrt(sum((p.high - p.value) ** 2 for p in parts)) / len(parts)
    return Interval(mean, mean - below, mean + above)


def pooled_ratio(parts: Sequence[Bound]) -> Bound:
    """The geometric mean of the tasks' ratios with the interval of `pooled`, on the logarithms. One task that gives a bound
    makes it a bound; one that gives nothing leaves nothing on the side that it leaves open."""

    def end(name: str) -> tuple[float, float, float]:
        """(the mean of this end, and its interval)."""
        ends = [(getattr(p, name), p.ci_low, p.ci_high) for p in parts]
        if any(value <= 0 or math.isinf(value) for value, _, _ in ends):
            return (0.0, 0.0, math.inf) if name == "low" else (math.inf, 0.0, math.inf)
        # An end that is open opens the mean's on its side; the other side keeps what the tasks say of it.
        open_low, open_high = any(low <= 0 for _, low, _ in ends), any(math.isinf(high) for _, _, high in ends)
        closed = [(v, v if open_low else low, v if open_high else high) for v, low, high in ends]
        found = pooled([Interval(*(math.log(x) for x in end)) for end in closed])
        low, high = 0.0 if open_low else math.exp(found.low), math.inf if open_high else math.exp(found.high)
        return math.exp(found.value), low, high

    low, high = end("low"), end("high")
    return Bound(low[0], high[0], low[1], high[2])


# ---------------------------------------------------------------------------------------------------------------------
# Tests of two arms on the same test examples


def sign_flip(differences: Cell) -> float:
    """Two-sided p that two arms are alike, from paired differences {seed: value of one arm less the other's, by example}.

    Each difference keeps or changes its sign with equal chance, 10,000 times; p = (1 + as extreme) / (1 + flips).
    Limits: it speaks of these trained adapters and of new test examples, not of other training seeds (see
    `sign_flip_seeds`); equal answers carry no weight.
    """
    values = np.concatenate([np.asarray(v, dtype=float) for v in differences.values()])
    values = values[values != 0]
    if not len(values):
        return 1.0
    rng = np.random.default_rng(0)
    observed, extreme, done = abs(values.sum()), 0, 0
    while done < FLIPS:  # in parts, so that many answers stay small
        part = min(FLIPS - done, max(1, 4_000_000 // len(values)))
        signs = 2.0 * rng.integers(0, 2, size=(part, len(values)), dtype=np.int8) - 1
        extreme += int((np.abs(signs @ values) >= observed - 1e-9).sum())
        done += part
    return (1 + extreme) / (1 + FLIPS)


def sign_flip_seeds(differences: Cell) -> float:
    """The same with whole seeds, all 2^S patterns: p for other training seeds. S seeds cannot go below 2 / 2^S: 0.25 for 3.

    Up to 16 seeds; more are flipped 65,536 times at random.
    """
    means = np.array([np.mean(np.asarray(v, dtype=float)) for v in differences.values()])
    count = len(means)
    if count <= 16:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], size=(2**16, count))
    return float((np.abs(signs @ means) >= abs(means.sum()) - 1e-12).mean())


def mcnemar(first: Sequence[float] | Array, second: Sequence[float] | Array) -> tuple[int, int, float]:
    """(only the first right, only the second right, exact two-sided p) of two arms with one seed on the same examples.

    McNemar's test in its exact form, a sign test of the examples on which they differ. Limit: discrete, so conservative.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    count, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(count, i) for i in range(least + 1))
    return only_first, only_second, min(1.0, 2 * tail / 2**count)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: below a, the family of tests errs at most with chance a (S. Holm, 1979). Needs no
    independence."""
    order = np.argsort(p, kind="stable")
    adjusted, running = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = running
    return adjusted


# ---------------------------------------------------------------------------------------------------------------------
# What the paper reports besides


def overlap(video: Mapping[str, bool], language: Mapping[str, bool]) -> dict[str, Any]:
    """Which puzzles who solved: {"n", "video only", "both", "language only", "neither"} over the puzzles that both tried,
    {"one arm only"}: how many others, and McNemar's "p" (arXiv 2510.24448, table 1 and its page)."""
    names = sorted(set(video) & set(language))
    first, second = (np.array([solved[name] for name in names], dtype=bool) for solved in (video, language))
    only_video, only_language, p = mcnemar(first, second)
    both = int((first & second).sum())
    return {
        "n": len(names),
        "video only": only_video,
        "both": both,
        "language only": only_language,
        "neither": len(names) - only_video - only_language - both,
        "one arm only": len(set(video) ^ set(language)),
        "p": p,
    }


def threshold(of: Curve, level: float = 0.9) -> Bound:
    """The smallest tested n whose mean accuracy is at least `level` (arXiv 2510.24448 section 5, cellular automata); a bound
    where none is. No interval: it is the largest tested n or bust, and `n_needed` is the smoother estimate."""
    reached = of.n[of.mean >= level - 1e-12]
    low, high = (float(reached[0]),) * 2 if len(reached) else (float(of.n[-1]), math.inf)
    return Bound(low, high, low, high)
