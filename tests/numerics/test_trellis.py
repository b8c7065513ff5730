"""The search through trellises against the same search in NumPy, and what codes look like."""

from statistics import NormalDist

import numpy as np
import pytest

from onnxq.numerics import _native
from onnxq.numerics.trellis import CODES, Trellis, _shaping, find_paths, states_of

SETS = _native.viterbi_instruction_sets()
SHAPES = [("1mad", bits) for bits in (1, 2, 3, 4)] + [("3inst", 2), ("3inst", 4)]
SHAPES += [("hyb", bits) for bits in (3, 4, 5)]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def spread_to_one(trellis):
    values = trellis.values()
    return values / np.sqrt(np.mean(np.square(values, dtype=np.float64)))


def fixed(numbers):
    return np.clip(np.rint(numbers * 8192), -32767, 32767).astype(np.int64)


def rounded_product(a, b):
    return (a * b + 2**14) >> 15


def clipped(numbers):
    return np.clip(numbers, -32768, 32767)


class Reference:
    """Viterbi's algorithm with whole numbers, one ring at a time, time running backwards."""

    def __init__(self, trellis, values):
        self.bits, self.size = trellis.step_bits, trellis.state_bits
        self.values = fixed(values)
        rate = trellis.step_bits / trellis.vector
        self.doublings = 2 if rate >= 3.5 else 1 if rate >= 2.5 else 0

    def distances(self, target):
        apart = np.clip(self.values - target, -32768, 32767)
        for _ in range(self.doublings):
            apart = np.clip(2 * apart, -32768, 32767)
        return ((apart * apart + 2**14) >> 15).T

    def search(self, targets, costs):
        """Costs of the states at the end, and of each step the branch that won by overlap."""
        floor, won = 0, []
        for step, target in enumerate(targets):
            branches = costs.reshape(2**self.bits, -1)
            won.append(branches.argmin(axis=0))
            least = np.maximum(branches.min(axis=0) - (0 if step % 2 else floor), 0)
            floor = least.min()
            costs = np.repeat(least, 2**self.bits)
            for distance in self.distances(target):
                costs = np.minimum(costs + distance, 65535)
        return costs, won

    search_around = search

    def before(self, state, won):
        overlap = state >> self.bits
        return overlap | int(won[overlap]) << (self.size - self.bits)

    def ring(self, targets, window):
        targets, steps = fixed(targets[::-1]), len(targets)
        around = targets[np.arange(-window, window) % steps]
        costs, won = self.search_around(around, np.zeros(2**self.size, np.int64))
        state = int(costs.argmin())
        for step in range(2 * window - 1, window, -1):
            state = self.before(state, won[step])
        joint = state >> self.bits
        costs = np.full((2**self.bits, 2 ** (self.size - self.bits)), 65535)
        costs[:, joint] = 0
        costs, won = self.search(targets, costs.reshape(-1))
        ends = costs.reshape(2**self.bits, -1)[:, joint]
        path = [joint | int(ends.argmin()) << (self.size - self.bits)]
        for step in range(steps - 1, 0, -1):
            path.append(self.before(path[-1], won[step]))
        return np.array(path)


class ShapedReference(Reference):
    """The same with errors that are carried to later columns of a row."""

    def __init__(self, trellis, values, metric):
        super().__init__(trellis, values)
        weights, feedback, units = _shaping(metric, trellis.step_bits / trellis.vector)
        self.weights, self.feedback, self.units = (
            part.astype(np.int64) for part in (weights, feedback, units)
        )
        self.steps = len(weights) // trellis.vector

    def search(self, targets, costs, place=0):
        floor, won, columns = 0, [], len(self.weights)
        carried = np.zeros((len(costs), columns), np.int64)
        for step, target in enumerate(targets):
            if (step + place) % self.steps == 0:
                carried[:] = 0
            branches = costs.reshape(2**self.bits, -1)
            won.append(branches.argmin(axis=0))
            least = np.maximum(branches.min(axis=0) - floor, 0)
            floor = least.min()
            of_branches = carried.reshape(*branches.shape, columns)
            carried = of_branches[won[-1], np.arange(branches.shape[1])]
            costs, carried = (np.repeat(x, 2**self.bits, axis=0) for x in (least, carried))
            column = columns - len(target) * ((step + place) % self.steps + 1)
            costs = self.add(costs, target, carried, column)
            carried = self.carry(carried, target, column)
        return costs, won

    def add(self, costs, target, carried, column):
        here = range(column, column + len(target))
        corrections = [(carried[:, c] + 128) % 256 - 128 for c in here]
        corrections = [part * self.units[c] for part, c in zip(corrections, here, strict=True)]
        for at in reversed(range(len(target))):
            error = clipped(target[at] - self.values[:, at])
            for to in range(at):
                factor = self.feedback[column + at, column + to]
                more = clipped(4 * rounded_product(error, factor))
                corrections[to] = clipped(corrections[to] + more)
            whole = clipped(error + corrections[at])
            apart = rounded_product(whole, self.weights[column + at])
            apart = clipped(apart * 2 ** (2 + self.doublings))
            costs = np.minimum(costs + rounded_product(apart, apart), 65535)
        return costs

    def carry(self, carried, target, column):
        factors = self.feedback[column : column + len(target), :column]
        unit = self.units[:column] << 13
        carried = carried.copy()
        carried[:, :column] += (target @ factors + unit // 2) // unit
        carried[:, :column] -= (self.values @ factors + unit // 2) // unit
        return carried

    def ring(self, targets, window):
        self.start = (len(targets) - window) % self.steps
        return super().ring(targets, window)

    def search_around(self, targets, costs):
        return self.search(targets, costs, self.start)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("state_bits", (10, 13))  # one step at a time, and two
@pytest.mark.parametrize(("code", "bits"), SHAPES)
def test_paths_are_those_of_the_reference(code, bits, state_bits, instruction_set):
    trellis = Trellis(code=code, step_bits=bits, state_bits=state_bits)
    values = spread_to_one(trellis)
    targets = draw(3, 48, trellis.vector)
    targets[0, 5] = 9  # beyond every value
    found = find_paths(
        trellis, values, targets, window=20, threads=2, instruction_set=instruction_set
    )
    reference = Reference(trellis, values)
    for ring, states in zip(targets, found, strict=True):
        assert np.array_equal(states, reference.ring(ring, 20))


def metric_of(columns, decay=0.15, seed=1):
    """What errors cost whose neighbours were correlated before a rotation."""
    root = draw(columns, 2 * columns, seed=seed) * np.exp(-decay * np.arange(2 * columns))
    return root @ root.T


def loss(errors, metric):
    rows = errors.reshape(-1, len(metric))
    return np.einsum("rc,cd,rd->", rows, metric, rows)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize(("code", "bits", "state_bits"), [
    ("1mad", 1, 10), ("1mad", 2, 11), ("3inst", 3, 10), ("1mad", 4, 10), ("hyb", 3, 10),
    ("hyb", 4, 11), ("hyb", 5, 10), ("hyb", 6, 12), ("hyb", 8, 13),
])  # fmt: skip
def test_shaped_paths_are_those_of_the_reference(code, bits, state_bits, instruction_set):
    trellis = Trellis(code=code, step_bits=bits, state_bits=state_bits)
    values, metric = spread_to_one(trellis), metric_of(16)
    targets = draw(2, 48 // trellis.vector, trellis.vector)
    targets[0, 5] = 9  # beyond every value
    window = 10  # begins within a row
    found = find_paths(
        trellis, values, targets, metric=metric, window=window, threads=2,
        instruction_set=instruction_set,
    )  # fmt: skip
    reference = ShapedReference(trellis, values, metric)
    for ring, states in zip(targets, found, strict=True):
        assert np.array_equal(states, reference.ring(ring, window))


@pytest.mark.parametrize(("code", "bits"), [("1mad", 2), ("hyb", 4), ("hyb", 6), ("hyb", 8)])
@pytest.mark.parametrize("decay", (0.02, 0.15))
def test_a_metric_lowers_what_errors_cost(code, bits, decay):
    trellis, metric = Trellis(code=code, step_bits=bits, state_bits=13), metric_of(16, decay)
    values, targets = spread_to_one(trellis), draw(8, 256 // trellis.vector, trellis.vector) / 1.1
    costs = [
        loss(targets - values[find_paths(trellis, values, targets, metric=m)], metric)
        for m in (None, metric)
    ]
    lowest = np.exp(np.linalg.slogdet(metric)[1] / 16) / (np.trace(metric) / 16)
    assert costs[1] < (0.3 + 0.8 * lowest) * costs[0]


def test_metrics_that_the_kernel_does_not_know_are_refused():
    trellis = Trellis(code="hyb", step_bits=4)
    with pytest.raises(ValueError, match="too many columns"):
        find_paths(trellis, trellis.values(), draw(1, 64, 2), metric=np.eye(32))
    with pytest.raises(ValueError, match="no whole number of steps"):
        find_paths(trellis, trellis.values(), draw(1, 64, 2), metric=np.eye(3))


@pytest.mark.parametrize(("code", "bits"), SHAPES)
def test_paths_close_to_rings_made_of_their_codes(code, bits):
    trellis = Trellis(code=code, step_bits=bits)
    states = find_paths(trellis, spread_to_one(trellis), draw(2, 32, trellis.vector), window=8)
    codes = states & (2**bits - 1)
    assert np.array_equal(states_of(trellis, codes), states)


def test_threads_and_instruction_sets_change_nothing():
    trellis = Trellis(code="1mad", step_bits=2)
    values, targets = spread_to_one(trellis), draw(5, 40, 1)
    wanted = find_paths(trellis, values, targets, threads=1, instruction_set=SETS[0])
    for threads, name in [(2, SETS[0]), (3, SETS[-1]), (16, SETS[0])]:
        found = find_paths(trellis, values, targets, threads=threads, instruction_set=name)
        assert np.array_equal(found, wanted)


def test_values_of_the_codes_are_whole_numbers_of_their_unit():
    for state in (0, 1, 4660, 65535):
        mixed = (state * 34038481 + 0x04910000) % 2**32
        found = Trellis(code="1mad", step_bits=2).whole_values()[state]
        assert found == sum(mixed.to_bytes(4, "little")) - 510
        mixed = (state * 89226354 + 0x03D40000) % 2**32
        halves = [((half & 0x8FFF) ^ 0x3B60) for half in (mixed & 0xFFFF, mixed >> 16)]
        numbers = np.array(halves, np.uint16).view(np.float16).astype(float)
        assert Trellis(code="3inst", step_bits=2).values()[state] == numbers.sum()
        mixed = (state * 0xBC91727F) % 2**32
        pair = Trellis(code="hyb", step_bits=4).whole_values()[state]
        for value, byte in zip(pair, (mixed >> 16 & 255, mixed >> 24), strict=True):
            quantile = NormalDist().inv_cdf(0.5 + ((byte & 63) + 0.5) / 128)
            assert value == (-1 if byte & 64 else 1) * round(44 * quantile)


@pytest.mark.parametrize("code", CODES)
def test_values_look_gaussian(code):
    values = spread_to_one(Trellis(code=code, step_bits=4)).astype(np.float64)
    assert abs(values.mean()) < 0.02
    # The kurtosis of a Gaussian is 3, of a sum of four even numbers 2.7.
    assert 2.5 < np.mean(values**4) < 3.5


def test_rings_that_the_kernel_does_not_know_are_refused():
    trellis = Trellis(code="1mad", step_bits=2)
    with pytest.raises(ValueError, match="shorter than a state"):
        find_paths(trellis, trellis.values(), draw(1, 6, 1))
    with pytest.raises(ValueError, match="an odd number of steps"):
        find_paths(trellis, trellis.values(), draw(1, 65, 1))
    with pytest.raises(ValueError, match="no such trellis"):
        find_paths(Trellis(code="1mad", step_bits=5), trellis.values(), draw(1, 64, 1))
    with pytest.raises(ValueError, match="no such instruction set"):
        find_paths(trellis, trellis.values(), draw(1, 64, 1), instruction_set="mmx")
