"""Log-mel features against the reference implementation, and on a tone."""

import numpy as np
import pytest

from onnxq.models.log_mel import log_mel, mel_filters


def test_against_transformers():
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=80)
    generator = np.random.default_rng(0)
    envelope = np.abs(np.sin(np.arange(80_000) / 3000))
    clip = (0.1 * envelope * generator.standard_normal(80_000)).astype(np.float32)
    expected = extractor(clip, sampling_rate=16_000, return_tensors="np").input_features
    # Both end in float32 numbers of size 1; log10 turns a relative error into an absolute one.
    assert np.abs(log_mel(clip) - expected).max() < 1e-5


def test_a_tone_is_loudest_in_the_filter_over_it():
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000 * 2) / 16_000)
    features = log_mel(tone)
    assert features.shape == (1, 80, 3000)
    assert features.dtype == np.float32
    loudest = int(features[0, :, 50].argmax())
    assert loudest == int(mel_filters()[:, 25].argmax())  # bin 25 of 40 Hz each


def test_a_long_clip_is_cut_to_thirty_seconds():
    clip = np.random.default_rng(0).standard_normal(16_000 * 31).astype(np.float32)
    assert np.array_equal(log_mel(clip)[..., :2990], log_mel(clip[: 16_000 * 30])[..., :2990])
