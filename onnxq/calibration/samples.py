"""Calibration samples: read lazily, read again as often as needed, one mapping of arrays each."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import CalibrationError

__all__ = ["Sample", "Samples", "few_samples", "samples_hash", "samples_within"]

Sample = Mapping[str, np.ndarray]


class Samples:
    """A re-iterable of samples; nothing is read before it is iterated.

    Attributes:
        label: where the samples come from, for messages.
    """

    def __init__(self, read: Callable[[], Iterator[Sample]], *, label: str) -> None:
        """Wrap ``read``, which starts a new pass over the data each time it is called."""
        self._read = read
        self.label = label

    @classmethod
    def of(cls, iterable: Iterable[Any], *, limit: int | None = None) -> Samples:
        """Samples from any Python iterable of mappings.

        An iterable that can be read only once (a generator) is written to a temporary folder now,
        so that it takes disk and not memory; the folder goes when the samples are no longer used.

        Args:
            iterable: yields dicts of arrays by input name.
            limit: read no more than this many; needed for a generator that never ends.

        Raises:
            CalibrationError: a generator yields something that is no dict of arrays.
        """
        if isinstance(iterable, Samples):
            return iterable if limit is None else iterable.take(limit)
        label = f"the given {type(iterable).__name__}"
        if iter(iterable) is iterable:
            return cls(_Spool(itertools.islice(iterable, limit), label).read, label=label)
        return cls(lambda: itertools.islice(iter(iterable), limit), label=label)

    def __iter__(self) -> Iterator[Sample]:
        """Start a new pass over the samples."""
        return self._read()

    def take(self, count: int) -> Samples:
        """The first ``count`` samples."""
        return Samples(lambda: itertools.islice(self._read(), count), label=self.label)

    def batched(self, size: int) -> Samples:
        """Samples joined ``size`` at a time along their first axis; the last may be smaller.

        Raises:
            CalibrationError: while iterating, when shapes differ beyond the first axis.
        """
        if size < 1:
            raise CalibrationError(f"A batch of {size} samples holds nothing: batch 1 or more.")
        return self if size == 1 else Samples(lambda: self._batches(size), label=self.label)

    def _batches(self, size: int) -> Iterator[Sample]:
        source = self._read()
        start = 0
        while group := list(itertools.islice(source, size)):
            yield {name: self._join(name, group, start) for name in group[0]}
            start += len(group)

    def _join(self, name: str, group: Sequence[Sample], start: int) -> np.ndarray:
        arrays = [sample[name] for sample in group]
        shapes = [array.shape for array in arrays]
        if any(not shape or shape[1:] != shapes[0][1:] for shape in shapes):
            raise CalibrationError(
                f"Samples {start} to {start + len(group) - 1} of {self.label} cannot be joined "
                f"into one batch: input {name!r} has the shapes {sorted(set(shapes))}, and a "
                "batch needs static sizes beyond its first axis. Use batches of 1, or cut all "
                "samples to one size."
            )
        return np.concatenate(arrays)


def samples_hash(samples: Iterable[Sample] | None, *, limit: int | None = None) -> str | None:
    """SHA-256, in hexadecimal, of what samples hold; None of none.

    Args:
        samples: read once.
        limit: look at the first ones only.
    """
    if samples is None:
        return None
    digest = hashlib.sha256()
    for sample in itertools.islice(iter(samples), limit):
        for name in sorted(sample):
            array = np.ascontiguousarray(sample[name])
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


class _Spool:
    """Samples of a generator, kept in a temporary folder, one file each."""

    def __init__(self, source: Iterator[Any], label: str) -> None:
        """Write all of ``source``."""
        self._folder = tempfile.TemporaryDirectory(prefix="onnxq-samples-")
        self._names: list[tuple[str, ...] | None] = []
        for index, sample in enumerate(source):
            self._write(index, sample, label)

    def read(self) -> Iterator[Any]:
        """Read the samples back in their order."""
        for index, names in enumerate(self._names):
            with self._path(index).open("rb") as file:
                arrays = [np.load(file) for _ in (names if names is not None else ("",))]
            yield arrays[0] if names is None else dict(zip(names, arrays, strict=True))

    def _path(self, index: int) -> Path:
        return Path(self._folder.name) / f"{index}.npy"

    def _write(self, index: int, sample: Any, label: str) -> None:
        is_mapping = isinstance(sample, Mapping)
        items = dict(sample) if is_mapping else {"": sample}
        with self._path(index).open("wb") as file:
            for name, value in items.items():
                array = np.asarray(value)
                if array.dtype == object:
                    raise CalibrationError(
                        f"Sample {index} of {label} is no dict of arrays: {name or 'it'!r} is a "
                        f"{type(value).__name__}. Yield {{input name: numpy array}}."
                    )
                np.save(file, array)
        self._names.append(tuple(items) if is_mapping else None)


def few_samples(samples: Sequence[Sample], *, most: int, tokens: int) -> list[Sample]:
    """A few samples, spread over all, for what takes long on each.

    Args:
        samples: all of them.
        most: samples.
        tokens: that all together may have; one sample is taken however long.
    """
    spread = np.linspace(0, len(samples) - 1, min(most, len(samples))).round().astype(int)
    return samples_within([samples[at] for at in dict.fromkeys(spread.tolist())], tokens)


def samples_within(samples: Sequence[Sample], tokens: int) -> list[Sample]:
    """The first of these samples that have so many tokens together; at least one."""
    found, seen = list[Sample](), 0
    for sample in samples:
        ids = [a.size for a in sample.values() if a.dtype.kind == "i" and a.ndim == 2]
        seen += max(ids, default=1)
        if found and seen > tokens:
            break
        found.append(sample)
    return found
