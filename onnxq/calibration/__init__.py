"""Calibration: samples from data, observers, and the ranges of activations in ``value.meta``."""

from __future__ import annotations

from onnxq.calibration.audio import AudioSpec
from onnxq.calibration.checks import check_sample, checked_samples, input_specs
from onnxq.calibration.collect import Ranges, collect_ranges
from onnxq.calibration.course import unreachable_sites
from onnxq.calibration.images import ImageSpec
from onnxq.calibration.observers import Observer, ObserverSpec
from onnxq.calibration.ranges import (
    ChannelRange,
    Range,
    channel_range_of,
    check_ranges,
    drop_ranges,
    invalidate_ranges,
    range_of,
    ranges_of,
    set_range,
    stamp_ranges,
)
from onnxq.calibration.samples import Sample, Samples
from onnxq.calibration.site_statistics import (
    SiteWalk,
    SolveSite,
    walk_sites,
)
from onnxq.calibration.sources import open_data
from onnxq.calibration.text import tokenizer_beside
from onnxq.calibration.token_weights import (
    AttentionConcentration,
    AttentionShare,
    FirstTokens,
    GivenWeights,
    GroupWeights,
    TokenWeights,
)

__all__ = [
    "AttentionConcentration",
    "AttentionShare",
    "AudioSpec",
    "ChannelRange",
    "FirstTokens",
    "GivenWeights",
    "GroupWeights",
    "ImageSpec",
    "Observer",
    "ObserverSpec",
    "Range",
    "Ranges",
    "Sample",
    "Samples",
    "SiteWalk",
    "SolveSite",
    "TokenWeights",
    "channel_range_of",
    "check_ranges",
    "check_sample",
    "checked_samples",
    "collect_ranges",
    "drop_ranges",
    "input_specs",
    "invalidate_ranges",
    "open_data",
    "range_of",
    "ranges_of",
    "set_range",
    "stamp_ranges",
    "tokenizer_beside",
    "unreachable_sites",
    "walk_sites",
]
