"""Statistics against simulations, brute force and identities. Nothing here compares with a stored number."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdmreason import statistics
from vdmreason.statistics import Bound, Interval

NS = np.array([10, 30, 100, 300, 1000])
SLOPE, N50 = 1.2, (40.0, 160.0)  # true curves: logistic in log n; the second arm needs four times as many examples
SWEEPS = 1000


def cells(values: np.ndarray, ns=NS) -> dict[int, dict[int, np.ndarray]]:
    """{n: {seed: answers}} of answers (seeds, tests, n)."""
    return {int(n): {s: values[s, :, j] for s in range(len(values))} for j, n in enumerate(ns)}


def chances(effects: np.ndarray) -> np.ndarray:
    """(2, seeds, n): the chance of a right answer of both arms, whose seeds differ by `effects` (2, seeds) in logits."""
    logits = SLOPE * np.log(NS / np.array(N50)[:, None])
    return 1 / (1 + np.exp(-(logits[:, None, :] + effects[:, :, None])))


def trapezoid(values: np.ndarray) -> np.ndarray:
    x = np.log(NS)
    return np.sum((values[..., 1:] + values[..., :-1]) / 2 * np.diff(x), axis=-1) / (x[-1] - x[0])


def simulate(seeds: int, spread: float, tests: int = 100, sweeps: int = SWEEPS) -> dict[str, np.ndarray]:
    """Synthetic sweeps of two arms: for each whether its intervals hold the truth, and its estimate of the ratio."""
    rng = np.random.default_rng(seeds)
    truth = chances(spread * np.random.default_rng(99).standard_normal((2, 50_000))).mean(axis=1)
    found: dict[str, list] = {"accuracy": [], "n": [], "ratio": [], "area": [], "log ratio": [], "half": []}
    for i in range(sweeps):
        chance = chances(spread * rng.standard_normal((2, seeds)))
        answers = (rng.random((2, seeds, tests, len(NS))) < chance[:, :, None, :]).astype(float)
        # names fix the draws; forty of them show what one set of draws does not
        first, second = (statistics.curve(f"task {i % 40}", cells(arm)) for arm in answers)
        near = zip(statistics.accuracy(first), truth[0], strict=True)
        found["accuracy"].append([one.low <= true <= one.high for one, true in near])
        needed = statistics.n_needed(first, 0.5)
        found["n"].append(needed.ci_low <= N50[0] <= needed.ci_high)
        ratio = statistics.efficiency(second, first, 0.5)
        found["ratio"].append(ratio.ci_low <= N50[1] / N50[0] <= ratio.ci_high)
        found["log ratio"].append(math.log(ratio.low) if ratio.known else math.nan)
        found["half"].append(math.log(ratio.ci_high / ratio.ci_low) / 2 if ratio.ci_low > 0 else math.inf)
        area = statistics.area_difference(first, second)
        assert area is not None
        found["area"].append(area.low <= trapezoid(truth[0]) - trapezoid(truth[1]) <= area.high)
    return {name: np.array(values) for name, values in found.items()}


@pytest.fixture(scope="module")
def three_seeds() -> dict[str, np.ndarray]:
    return simulate(seeds=3, spread=0.5)


def error(sweeps: int = SWEEPS) -> float:
    """How far a coverage of 95 % may be off by chance in so many sweeps: 2.6 standard errors, for ten looks at it."""
    return 2.6 * math.sqrt(0.95 * 0.05 / sweeps)


def test_intervals_cover_the_truth_with_three_seeds(three_seeds) -> None:
    """Seeds that differ as trained adapters do. Never too seldom; in mid-range too often by what the hull of two costs."""
    accuracy = three_seeds["accuracy"].mean(axis=0)
    assert (accuracy >= 0.95 - error()).all(), accuracy
    assert (accuracy[1:4] <= 0.965 + error()).all(), accuracy
    for name in ("n", "ratio", "area"):
        assert three_seeds[name].mean() >= 0.95 - error(), (name, three_seeds[name].mean())


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.0), (5, 0.5), (2, 0.5)])
def test_intervals_cover_the_truth_elsewhere(seeds: int, spread: float) -> None:
    """Seeds that do not differ at all (covered too often: the price of not knowing that), more of them, fewer."""
    found = simulate(seeds, spread, sweeps=200)
    for name in ("accuracy", "n", "ratio", "area"):
        assert (found[name].mean(axis=0) >= 0.95 - error(200)).all(), (name, found[name].mean(axis=0))


def test_seeds_that_differ_much_are_covered_nearly_as_often() -> None:
    """By 1.5 in log odds, as some cells of the structured sweep do. An accuracy near 1 is covered in 89 %, all else in 92 and
    more."""
    found = simulate(3, 1.5, sweeps=200)
    for name, least in (("accuracy", 0.88), ("n", 0.94), ("ratio", 0.95), ("area", 0.94)):
        assert (found[name].mean(axis=0) >= least - error(200)).all(), (name, found[name].mean(axis=0))


@pytest.mark.parametrize("rates", [(0.1, 0.74), (0.03, 0.4)])
def test_low_rates_of_seeds_that_differ_are_covered(rates) -> None:
    """Linear intervals of such a mean cover it in 83 to 89 %: three seeds of 2, 1 and 29 % do not lie around their mean."""
    rng, spread, hits = np.random.default_rng(1), 1.5, np.zeros(2)
    logits = np.log(np.array(rates) / (1 - np.array(rates)))
    truth = (1 / (1 + np.exp(-(logits[:, None] + spread * rng.standard_normal((2, 100_000)))))).mean(axis=1)
    for i in range(200):
        chance = 1 / (1 + np.exp(-(logits[:, None] + spread * rng.standard_normal((2, 3)))))
        answers = (rng.random((2, 3, 100)) < chance[:, :, None]).astype(float)
        low, high = (statistics.curve(f"task {i % 40}", {10: dict(enumerate(arm))}) for arm in answers)
        area, apart = statistics.area(low), statistics.area_difference(high, low)
        assert apart is not None
        hits += area.low <= truth[0] <= area.high, apart.low <= truth[1] - truth[0] <= apart.high
    assert (hits / 200 >= 0.93 - error(200)).all(), hits / 200


def test_student() -> None:
    """Its quantiles with one and two degrees of freedom have a closed form; with many it is the normal one."""
    assert statistics.student(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-4)
    assert statistics.student(2) == pytest.approx(0.95 * math.sqrt(2 / (4 * 0.975 * 0.025)), rel=1e-4)
    assert statistics.student(10_000) == pytest.approx(statistics.Z95, rel=1e-3)


def test_intervals_are_student_s_whatever_the_task_is_called() -> None:
    """Names fix the draws; a name must not make an interval wide or narrow."""
    rng, compared = np.random.default_rng(0), 0
    for i in range(40):
        rates = 0.5 + 0.03 * rng.standard_normal((2, 3))  # near the middle, so that log odds are a straight line
        arms = [{30: {s: np.arange(400) < rate * 400 for s, rate in enumerate(arm)}} for arm in rates]
        first, second = (statistics.curve(f"name {i}", arm) for arm in arms)
        by_seed = [np.mean(arms[0][30][s]) - np.mean(arms[1][30][s]) for s in range(3)]
        far = statistics.student(2) * np.std(by_seed, ddof=1) / math.sqrt(3)
        found = statistics.area_difference(first, second)
        if far > 0.08:  # the seeds say more than the answers
            assert found is not None and (found.high - found.low) / 2 == pytest.approx(far, rel=0.15)
            compared += 1
    assert compared > 10
    parts = [Interval(value, value, value) for value in (0.1, 0.3, -0.2, 0.25)]
    pooled = statistics.pooled(parts)
    far = statistics.student(3) * np.std([0.1, 0.3, -0.2, 0.25], ddof=1) / 2
    assert (pooled.low, pooled.high) == (pytest.approx(pooled.value - far), pytest.approx(pooled.value + far))


@pytest.mark.parametrize("rates", [((0.9, 0.5), (0.3, 0.1)), ((0.9, 0.3), (0.6, 0.4)), ((0.9, 0.3), (0.4, 0.6))])
def test_of_two_seeds_a_difference_is_as_wide_as_student_s(rates) -> None:
    """On the scale of log odds two arms that both run to the same end would seem to agree there."""
    arms = [{30: {s: np.arange(100) < 100 * rate for s, rate in enumerate(arm)}} for arm in rates]
    found = statistics.area_difference(*(statistics.curve("t", arm) for arm in arms))
    apart = np.subtract(*np.array(rates))
    far = statistics.student(1) * np.std(apart, ddof=1) / math.sqrt(2)
    assert found is not None
    assert found.low <= max(-1, apart.mean() - 0.9 * far) and found.high >= min(1, apart.mean() + 0.9 * far)


def test_what_an_accuracy_may_be_an_n_may_be() -> None:
    """Seeds of 2, 1 and 29 % at 100 examples may stand for more than half, so 100 examples may be enough."""
    rates = {30: (0.0, 0.0, 0.0), 100: (0.02, 0.01, 0.29), 300: (0.75, 0.24, 0.92)}
    of = statistics.curve(
        "t", {n: {s: np.arange(100) < 100 * r for s, r in enumerate(of_n)} for n, of_n in rates.items()}
    )
    accuracy, needed = statistics.accuracy(of)[1], statistics.n_needed(of, 0.5)
    assert accuracy.high > 0.5 and needed.ci_low < 100 < needed.low and math.isinf(needed.ci_high)


def test_shares_that_are_all_alike_are_no_certainty() -> None:
    for share in (0.0, 1.0):
        one = statistics.means(flat([share]))[0]
        assert one.value == share and one.high - one.low > 0.01


def test_one_seed_covers_what_it_speaks_of() -> None:
    """New test examples for the same adapter, which is all that one seed can tell. 93 %: Wilson's interval dips between two
    counts near 1, and an n is no straight line of its accuracies."""
    found = simulate(seeds=1, spread=0.0, sweeps=400)
    for name in ("accuracy", "n", "ratio", "area"):
        assert (found[name].mean(axis=0) >= 0.93 - error(400)).all(), (name, found[name].mean(axis=0))


def test_ratios_are_unbiased_within_their_stated_error(three_seeds) -> None:
    known = np.isfinite(three_seeds["log ratio"])
    assert known.mean() > 0.97  # the rest are bounds
    off = three_seeds["log ratio"][known] - math.log(N50[1] / N50[0])
    assert abs(off.mean()) <= 3 * off.std() / math.sqrt(known.sum()) + 0.02, (
        off.mean()
    )  # 2 %: lines for an S between two n
    assert abs(off.mean()) < 0.1 * np.median(three_seeds["half"])


def test_plain_resampling_of_three_seeds_would_not_do() -> None:
    """Why draws are multipliers: three seeds resampled by index cover far less than they say."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(300):
        seeds = rng.standard_normal(3)
        means = seeds[rng.integers(3, size=(500, 3))].mean(axis=1)
        low, high = np.quantile(means, statistics.LEVELS)
        hits += low <= 0 <= high
    assert hits / 300 < 0.85


# ---------------------------------------------------------------------------------------------------------------------
# Isotonic fits


def brute_force(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The best of all ways to cut a sequence into blocks whose means do not fall."""
    size, best, least = len(values), None, math.inf
    for cuts in itertools.product([0, 1], repeat=size - 1):
        ends = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), size]
        means = [np.average(values[a:b], weights=weights[a:b]) for a, b in itertools.pairwise(ends)]
        fit = np.repeat(means, np.diff(ends))
        loss = float(weights @ (values - fit) ** 2)
        if all(x <= y + 1e-12 for x, y in itertools.pairwise(means)) and loss < least - 1e-12:
            best, least = fit, loss
    assert best is not None
    return best


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5)), min_size=1, max_size=7))
def test_isotonic_equals_brute_force(pairs) -> None:
    values, weights = (np.array(x, dtype=float) for x in zip(*pairs, strict=True))
    fit = statistics.isotonic(values / 20, weights)
    assert fit == pytest.approx(brute_force(values / 20, weights), abs=1e-9)
    many = statistics.isotonic(np.stack([values / 20, -values]), weights)  # many at once, each as if alone
    assert many[0] == pytest.approx(fit) and many[1] == pytest.approx(statistics.isotonic(-values, weights))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_a_crossing_is_where_the_curve_has_the_target(values, target) -> None:
    n = 10 * 2 ** np.arange(len(values))
    fitted = np.sort(np.array(values))
    low, high = statistics.crossing(n, fitted, target)
    assert low <= high
    if np.isinf(low):
        assert fitted[0] >= target - 1e-9 and high == pytest.approx(np.log(n[0]))
    elif np.isinf(high):
        assert fitted[-1] < target and low == pytest.approx(np.log(n[-1]))
    else:
        assert low == high and (fitted[-1] - fitted[0] < 1e-6 or np.interp(low, np.log(n), fitted) >= target - 1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Bounds


def flat(rates, tests: int = 60, seeds: int = 3, name: str = "t") -> statistics.Curve:
    """A curve whose seeds have exactly these rates."""
    ns = NS[: len(rates)]
    one = np.stack([np.arange(tests) < round(rate * tests) for rate in rates], axis=1).astype(float)
    return statistics.curve(name, cells(np.stack([one] * seeds), ns))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]), min_size=1, max_size=5), st.sampled_from(statistics.TARGETS)
)
def test_no_target_is_dropped(rates, target) -> None:
    """Whatever the curve, there is a statement, its interval holds it, and nothing is nan."""
    found = statistics.n_needed(flat(rates), target)
    assert not any(map(math.isnan, (found.low, found.high, found.ci_low, found.ci_high)))
    assert found.ci_low <= found.low <= found.high <= found.ci_high
    if max(rates) < target:
        assert math.isinf(found.high) and found.low == pytest.approx(NS[len(rates) - 1])
    if rates[0] >= target and min(rates) >= target:
        assert found.low == 0 and found.high == pytest.approx(NS[0])


def test_ratios_of_bounds() -> None:
    fast, slow, never, at_once = (flat(r) for r in ([0, 0.5, 1], [0, 0.25, 0.5], [0, 0, 0.1], [1, 1, 1]))
    doubtful = flat([0.1, 0.5, 0.9])
    same = statistics.efficiency(doubtful, doubtful, 0.5)
    assert same == Bound(1, 1, pytest.approx(1), pytest.approx(1))  # one's own equal in every draw
    known = statistics.efficiency(slow, fast, 0.5)
    assert known.known and known.low == pytest.approx(100 / 30)
    least = statistics.efficiency(never, fast, 0.5)  # the language arm did not get there: at least
    assert least.low == pytest.approx(100 / 30) and math.isinf(least.high) and math.isinf(least.ci_high)
    most = statistics.efficiency(fast, never, 0.5)
    assert most.low == 0 and most.high == pytest.approx(30 / 100)
    assert statistics.efficiency(never, never, 0.5).unbounded and statistics.efficiency(at_once, at_once, 0.5).unbounded
    both = statistics.efficiency(never, at_once, 0.5)
    assert both.low == pytest.approx(100 / 10) and math.isinf(both.high)


def test_ratios_are_of_the_n_that_both_arms_have() -> None:
    """An arm that was asked at two n of four needs no more examples for it."""
    rng = np.random.default_rng(0)
    answers = (rng.random((3, 100, 5)) < np.array([0.02, 0.05, 0.5, 0.85, 0.95])).astype(float)
    whole = statistics.curve("t", cells(answers))
    part = statistics.curve("t", {n: cell for n, cell in cells(answers).items() if n in (30, 300)})
    for one, other in ((whole, part), (part, whole)):
        found = statistics.efficiency(one, other, 0.5)
        assert (found.low, found.high) == (pytest.approx(1), pytest.approx(1)) and found.ci_low <= 1 <= found.ci_high
    assert statistics.efficiency(whole, part, 0.5) == statistics.efficiency(whole.at([30, 300]), part, 0.5)
    assert whole.at([30, 300]).mean == pytest.approx(part.mean) and whole.at([30, 300]).seeds == part.seeds
    alone = statistics.curve("t", {7: {0: [1.0, 0.0]}})
    assert statistics.efficiency(whole, alone, 0.5).unbounded


def test_few_answers_alike_are_no_certainty_of_an_n() -> None:
    """Five wrong at 10 and five right at 30: by Wilson's ends the n lies anywhere below 100, and so does a ratio."""
    few, many = flat([0, 1], tests=5, seeds=1), flat([0, 1], tests=5000, seeds=1)
    wide, narrow = statistics.n_needed(few, 0.5), statistics.n_needed(many, 0.5)
    assert wide.low == wide.high == narrow.low == pytest.approx(math.sqrt(10 * 30))
    assert wide.ci_low < 17 and wide.ci_high > 18 and narrow.ci_high / narrow.ci_low < 1.01
    ratio = statistics.efficiency(flat([0, 0, 1], tests=5, seeds=1), flat([0, 1, 1], tests=5, seeds=1), 0.5)
    assert ratio.known and ratio.ci_low < ratio.low < ratio.ci_high
    sure = statistics.n_needed(flat([1, 1], tests=20, seeds=1), 0.9)  # 20 of 20 may be 84 %
    assert sure.high == pytest.approx(10) and sure.ci_high > 30


def test_equal_answers_are_no_certainty_of_a_difference() -> None:
    alike = statistics.area_difference(flat([0.2], 10, 1), flat([0.2], 10, 1), [10])
    assert alike == Interval(0, pytest.approx(-statistics.wilson(0, 10)[1]), pytest.approx(statistics.wilson(0, 10)[1]))


def test_pooled_ratios_keep_bounds() -> None:
    known, least, nothing = Bound(4, 4, 2, 8), Bound(9, math.inf, 3, math.inf), Bound(0, math.inf, 0, math.inf)
    one = statistics.pooled_ratio([known, known])
    assert (one.low, one.high) == (pytest.approx(4), pytest.approx(4)) and one.ci_low < 4 < one.ci_high
    two = statistics.pooled_ratio([known, least])
    assert two.low == pytest.approx(6) and math.isinf(two.high) and two.ci_low <= 6 and math.isinf(two.ci_high)
    assert statistics.pooled_ratio([known, nothing]).unbounded
    # An open end opens its own side only: the other is as wide as with closed ones.
    wide, least = Bound(3, 3, 0.5, 9), Bound(3, 3, 0.5, math.inf)
    closed, opened = statistics.pooled_ratio([wide, wide]), statistics.pooled_ratio([wide, least])
    assert opened.ci_low == pytest.approx(closed.ci_low) and closed.ci_low < 1 and math.isinf(opened.ci_high)
    assert statistics.pooled_ratio([Bound(30, math.inf, 8, math.inf)] * 4).ci_low < 30
    assert statistics.pooled_ratio([known]) == Bound(*(pytest.approx(x) for x in (4, 4, 2, 8)))


def test_pooled_tasks_cover_their_mean() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        values = rng.normal(0.3, 0.1, size=4)
        found = statistics.pooled([Interval(v, v - 0.01, v + 0.01) for v in values])
        hits += found.low <= 0.3 <= found.high
    assert 0.95 - error(400) <= hits / 400 <= 0.95 + error(400)


# ---------------------------------------------------------------------------------------------------------------------
# Curves, areas, ragged seeds


def test_same_cells_same_numbers_whatever_the_order() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, size=(3, 20, 5)).astype(float)
    one = statistics.curve("t", cells(values))
    turned = {n: dict(reversed(cell.items())) for n, cell in reversed(cells(values).items())}
    assert statistics.accuracy(one) == statistics.accuracy(statistics.curve("t", turned))


def test_a_missing_seed_is_not_a_zero() -> None:
    rng = np.random.default_rng(0)
    whole = cells(rng.integers(0, 2, size=(3, 40, 5)).astype(float))
    holes = {n: {s: v for s, v in cell.items() if (n, s) != (100, 2)} for n, cell in whole.items()}
    found = statistics.curve("t", holes)
    assert found.mean[2] == pytest.approx(np.mean([whole[100][0], whole[100][1]]))
    assert found.seeds[2] == (0, 1) and found.answers.tolist() == [120, 120, 80, 120, 120]
    one = statistics.curve("t", {n: {0: v[0]} if n == 100 else v for n, v in whole.items()})
    assert np.isfinite(one.over_seeds).all()
    with pytest.raises(ValueError):
        statistics.curve("t", {10: {0: []}})


def test_area_is_a_mean_accuracy() -> None:
    assert statistics.area(flat([0.5] * 5)).value == pytest.approx(0.5)
    ramp = flat([0, 0.25, 0.5, 0.75, 1], tests=60)
    assert statistics.area(ramp).value == pytest.approx(trapezoid(ramp.mean))
    assert statistics.area(ramp, [30]).value == pytest.approx(0.25)
    same = statistics.area_difference(ramp, ramp, [30, 100, 300])
    assert same is not None and same.value == 0 and same.low == pytest.approx(-same.high)
    assert statistics.area_difference(ramp, statistics.curve("t", {7: {0: [1.0]}})) is None


def test_agreement_is_not_certainty() -> None:
    """All 180 right: the draws see no doubt, Wilson's interval does."""
    first, *_, last = statistics.accuracy(flat([0, 0, 0, 0, 1]))
    assert last.low <= statistics.wilson(180, 180)[0] and last.high == 1
    assert first.high >= statistics.wilson(0, 180)[1] and first.low == 0
    nothing, all_right = flat([0, 0, 0]), flat([1, 1, 1])
    assert statistics.area(nothing).high > 0.01 and statistics.area(nothing).low == 0
    assert statistics.area(all_right).low < 0.99 and statistics.area(all_right).high == 1
    apart = statistics.area_difference(all_right, nothing, [10])
    assert apart is not None and 0.95 < apart.low < 0.98 and apart.high == 1
    alike = statistics.area_difference(nothing, nothing, [10])
    assert alike is not None and alike.low == -alike.high and alike.high > 0.01


def test_threshold() -> None:
    assert statistics.threshold(flat([0, 0.5, 0.9, 0.8, 1])).low == 100  # the paper's: the first, dips or not
    assert math.isinf(statistics.threshold(flat([0, 0.5, 0.85])).high)


# ---------------------------------------------------------------------------------------------------------------------
# Tests of hypotheses


def test_permutation_p_is_uniform_under_the_null() -> None:
    rng = np.random.default_rng(0)
    p = np.sort([statistics.sign_flip({s: rng.standard_normal(8) for s in range(3)}) for _ in range(300)])
    assert np.abs(p - (np.arange(300) + 0.5) / 300).max() < 1.63 / math.sqrt(300)  # Kolmogorov-Smirnov, 1 %
    binary = [statistics.sign_flip({0: rng.integers(-1, 2, size=60)}) for _ in range(300)]
    for level in (0.05, 0.2):  # right or wrong is discrete: at most the level
        assert np.mean(np.array(binary) <= level) <= level + 2.6 * math.sqrt(level * (1 - level) / 300)


def test_permutation_sees_a_difference_and_knows_its_limits() -> None:
    better = {s: np.array([1.0] * 20 + [0] * 20) for s in range(3)}
    assert statistics.sign_flip(better) < 0.001
    assert statistics.sign_flip_seeds(better) == 0.25  # three seeds cannot say more
    assert statistics.sign_flip({0: [0.0, 0.0]}) == 1
    assert statistics.sign_flip_seeds({s: [1.0] for s in range(20)}) < 0.001


def test_permutation_of_right_and_wrong_is_mcnemar() -> None:
    """Signs of plus and minus ones are a binomial: the flips must find the exact p."""
    first, second = np.array([1] * 14 + [0] * 5 + [1] * 30), np.array([0] * 14 + [1] * 5 + [1] * 30)
    only_first, only_second, p = statistics.mcnemar(first, second)
    assert (only_first, only_second) == (14, 5)
    assert statistics.sign_flip({0: first - second}) == pytest.approx(p, abs=4 * math.sqrt(p / statistics.FLIPS))


def test_seed_flips_are_exact_under_the_null() -> None:
    rng = np.random.default_rng(0)
    p = np.array([statistics.sign_flip_seeds({s: rng.standard_normal(4) for s in range(5)}) for _ in range(600)])
    for level in (2 / 32, 8 / 32):
        assert abs((p <= level + 1e-9).mean() - level) < 2.6 * math.sqrt(level * (1 - level) / 600)


def test_mcnemar_by_hand() -> None:
    assert statistics.mcnemar([1, 1, 1, 0], [0, 0, 0, 0]) == (3, 0, 0.25)
    assert statistics.mcnemar([1, 0], [0, 1]) == (1, 1, 1.0)
    assert statistics.mcnemar([1, 0], [1, 0]) == (0, 0, 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm(p) -> None:
    adjusted = statistics.holm(p)
    assert all(a >= x for a, x in zip(adjusted, p, strict=True)) and max(adjusted) <= 1
    assert min(adjusted) == pytest.approx(min(1, len(p) * min(p)))
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_overlap_counts_each_puzzle_once() -> None:
    found = statistics.overlap(
        {"a": True, "b": True, "c": False, "d": False, "e": True}, {"a": True, "b": False, "c": True, "d": False}
    )
    assert [found[k] for k in ("video only", "both", "language only", "neither", "one arm only")] == [1, 1, 1, 1, 1]
    assert found["n"] == 4


def test_statistics_needs_numpy_only() -> None:
    code = "import sys; from vdmreason import statistics; assert not {'torch', 'tasks', 'adapters', 'scipy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
