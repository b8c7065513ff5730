"""Types of the native module; custom_ops/numerics/module.cpp holds it."""

from typing import Any

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Doubles = npt.NDArray[np.float64]
_Bytes = npt.NDArray[np.uint8]
_Counts = npt.NDArray[np.int64]

def instruction_set() -> str: ...
def round_groups(
    weight: _Floats,
    codes: _Bytes,
    scales: _Floats,
    zeros: _Bytes,
    squares: _Doubles,
    group: int,
    bits: int,
    symmetric: bool,
    positive: bool,
    half_scales: bool,
    shrink: _Floats,
    threads: int,
    /,
) -> int: ...
def pack_groups(
    weight: _Floats,
    blobs: npt.NDArray[Any],
    scales: _Floats,
    zeros: _Bytes,
    squares: _Doubles,
    group: int,
    bits: int,
    symmetric: bool,
    positive: bool,
    half_scales: bool,
    shrink: _Floats,
    threads: int,
    /,
) -> int: ...
def group_costs(
    weight: _Floats,
    scales: _Floats,
    zeros: _Floats,
    importance: _Floats,
    costs: _Doubles,
    group: int,
    bits: int,
    symmetric: bool,
    robust: bool,
    threads: int,
    /,
) -> None: ...
def group_moments(
    weight: _Floats,
    scales: _Floats,
    zeros: _Floats,
    importance: _Floats,
    moments: _Doubles,
    group: int,
    bits: int,
    symmetric: bool,
    threshold: float,
    threads: int,
    /,
) -> None: ...
def round_to(
    weight: _Floats,
    scales: _Floats,
    zeros: _Floats,
    codes: _Bytes,
    group: int,
    bits: int,
    symmetric: bool,
    threads: int,
    /,
) -> bool: ...
def find_range(values: _Floats, threads: int, /) -> tuple[float, float, bool]: ...
def add_to_bins(values: _Floats, inverse_width: float, bins: _Counts, threads: int, /) -> int: ...
def entropy_sweep(
    bins: _Counts, first: int, last: int, levels: int, divergence: _Doubles, threads: int, /
) -> None: ...
def rounding_costs(
    values: _Doubles,
    counts: _Doubles,
    scales: _Doubles,
    zeros: _Doubles,
    lowest: int,
    highest: int,
    costs: _Doubles,
    /,
) -> None: ...
def factor_hessian(
    hessian: npt.NDArray[Any],
    places: npt.NDArray[np.int64],
    diagonal: npt.NDArray[np.float64],
    alive: npt.NDArray[np.uint8],
    unit: float,
    upper: npt.NDArray[Any],
    variances: npt.NDArray[np.float64],
    least: npt.NDArray[np.float64],
    threads: int,
    set: str,
) -> int: ...
def add_feedback(
    weight: _Floats,
    upper: _Floats,
    state: _Floats,
    first: int,
    last: int,
    begin: int,
    end: int,
    threads: int,
    instruction_set: str,
    /,
) -> None: ...
def find_targets(
    weight: _Floats,
    upper: _Floats,
    state: _Floats,
    begin: int,
    end: int,
    targets: _Floats,
    threads: int,
    instruction_set: str,
    /,
) -> None: ...
def round_columns(
    weight: _Floats,
    upper: _Floats,
    state: _Floats,
    begin: int,
    end: int,
    scales: _Floats,
    zeros: _Floats,
    group: npt.NDArray[np.int32],
    lowest: int,
    highest: int,
    codes: _Bytes,
    threads: int,
    instruction_set: str,
    /,
) -> None: ...
def descend(
    target: _Floats,
    hessian: _Floats,
    codes: _Bytes,
    scales: _Floats,
    zeros: _Bytes,
    group: int,
    lowest: int,
    highest: int,
    sweeps: int,
    greedy: bool,
    threads: int,
    /,
) -> int: ...
def hadamard_rows(
    x: _Floats,
    factor: _Floats,
    y: _Floats,
    begin: int,
    end: int,
    kernel: str,
    threads: int,
    /,
) -> None: ...
def widen_halves(halves: npt.NDArray[np.uint16], singles: _Floats, kernel: str, /) -> None: ...
def narrow_to_halves(singles: _Floats, halves: npt.NDArray[np.uint16], kernel: str, /) -> None: ...
def hadamard_instruction_sets() -> list[str]: ...
def fit_tables(
    values: _Floats,
    importance: _Floats,
    group: int,
    most: int,
    tables: npt.NDArray[np.float64],
    masses: npt.NDArray[np.float64],
    threads: int,
    /,
) -> None: ...
def nearest_entries(
    values: _Floats,
    entries: _Floats,
    scales: _Floats,
    codes: _Bytes,
    group: int,
    threads: int,
    /,
) -> None: ...
def search_table_scales(
    values: _Floats,
    importance: _Floats,
    group: int,
    table: _Floats,
    factors: _Floats,
    signs: int,
    scales: _Floats,
    costs: npt.NDArray[np.float64],
    threads: int,
    /,
) -> None: ...
def descend_entries(
    hessian: _Floats,
    points: _Floats,
    group: int,
    sweeps: int,
    codes: _Bytes,
    residual: _Floats,
    threads: int,
    /,
) -> int: ...
def entry_sums(
    hessian: _Floats,
    codes: _Bytes,
    first: int,
    count: int,
    sums: npt.NDArray[np.float64],
    threads: int,
    /,
) -> None: ...
def search_codebooks(
    values: _Floats,
    weights: _Floats,
    books: _Floats,
    codes: npt.NDArray[np.uint16],
    beam: int,
    instruction_set: str,
    threads: int,
    /,
) -> None: ...
def find_paths(
    values: npt.NDArray[np.int16],
    targets: npt.NDArray[np.int16],
    states: npt.NDArray[np.uint16],
    step_bits: int,
    state_bits: int,
    window: int,
    weights: npt.NDArray[np.int16],
    feedback: npt.NDArray[np.int16],
    units: npt.NDArray[np.int16],
    threads: int,
    instruction_set: str,
    /,
) -> bool: ...
def viterbi_instruction_sets() -> list[str]: ...
def trellis_hybrid() -> tuple[list[int], int]: ...
def e8p_round(
    values: _Floats,
    scales: _Floats,
    codes: npt.NDArray[np.uint16],
    points: _Floats,
    bits: int,
    threads: int,
    instructions: str,
    /,
) -> None: ...
def e8p_costs(
    values: _Floats,
    scales: _Floats,
    importance: _Floats,
    costs: _Doubles,
    bits: int,
    threads: int,
    instructions: str,
    /,
) -> None: ...
