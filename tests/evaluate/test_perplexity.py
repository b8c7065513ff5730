"""Perplexity is exp of the mean loss under the protocol it prints, on any decoder's inputs."""

import math

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import CalibrationError, UnsupportedGraph
from onnxq.evaluate.perplexity import perplexity, token_losses
from onnxq.runtime import open_session

VOCABULARY = 11


def _bigram_model(table):
    """logits = table[input_ids]: a decoder whose perplexity can be written down."""
    values = ", ".join(repr(float(value)) for value in table.ravel())
    return ir.from_onnx_text(
        f"""
        <ir_version: 10, opset_import: ["" : 21]>
        bigram (int64[batch, length] input_ids, int64[batch, total] attention_mask)
            => (float[batch, length, {VOCABULARY}] logits)
            <float[{VOCABULARY}, {VOCABULARY}] table = {{{values}}}>
        {{
            logits = Gather<axis=0>(table, input_ids)
        }}
        """
    )


@pytest.fixture
def table():
    return np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)


def test_it_is_the_definition(table):
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (5, 7))
    log_softmax = table.astype(np.float64)
    log_softmax = log_softmax - np.log(np.exp(log_softmax).sum(axis=1, keepdims=True))
    expected = math.exp(-log_softmax[ids[:, :-1], ids[:, 1:]].mean())
    with open_session(_bigram_model(table)) as session:
        measured = perplexity(session, ids, batch=2)
    assert measured.perplexity == pytest.approx(expected, rel=1e-12)
    assert (measured.windows, measured.window, measured.tokens) == (5, 7, 35)
    assert measured.predictions == 30
    assert "30 predictions in 5 windows of 7 tokens" in str(measured)


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    with open_session(_bigram_model(np.zeros((VOCABULARY, VOCABULARY), np.float32))) as session:
        assert perplexity(session, np.arange(10), window=5).perplexity == pytest.approx(VOCABULARY)


def test_a_flat_text_is_cut_and_its_rest_dropped(table):
    ids = np.random.default_rng(2).integers(0, VOCABULARY, 23)
    with open_session(_bigram_model(table)) as session:
        flat = perplexity(session, ids, window=5)
        cut = perplexity(session, ids[:20].reshape(4, 5))
    assert flat == cut


def test_text_shorter_than_a_window_is_refused(table):
    with (
        open_session(_bigram_model(table)) as session,
        pytest.raises(CalibrationError, match="at least one full window"),
    ):
        perplexity(session, np.arange(4), window=5)


def test_a_model_without_logits_is_refused():
    model = ir.from_onnx_text(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        other (float[n] x) => (float[n] y) { y = Neg(x) }
        """
    )
    with (
        open_session(model) as session,
        pytest.raises(UnsupportedGraph, match="output named 'logits', and this model has y"),
    ):
        perplexity(session, np.arange(10), window=5)


def test_token_losses_do_not_overflow_and_show_what_is_not_finite():
    logits = np.array([[1e4, 0.0], [0.0, 1e4], [np.nan, 0.0]], np.float32)
    losses = token_losses(logits, np.array([0, 0, 1]))
    assert losses[:2].tolist() == [0.0, 1e4]
    assert np.isnan(losses[2])


def test_progress_counts_windows(table):
    seen = []
    with open_session(_bigram_model(table)) as session:
        ids = np.zeros((5, 4), np.int64)
        perplexity(session, ids, batch=2, progress=lambda *step: seen.append(step))
    assert seen == [("perplexity", 2, 5), ("perplexity", 4, 5), ("perplexity", 5, 5)]


def test_a_model_that_gives_nan_has_no_finite_perplexity(table):
    table[3] = np.nan
    with open_session(_bigram_model(table)) as session:
        measured = perplexity(session, np.array([[1, 2, 3, 4]]))
    assert measured.perplexity == math.inf
