"""Workers of Ray and Dask, by the path of processes; both packages are optional."""

import pytest

from onnxq.errors import FormatError
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.runtime import workers as module
from onnxq.runtime.workers import Workers
from tests.finished_work import content, decoder_samples, run_step
from tests.runtime.test_workers import die, run, tell

pytestmark = pytest.mark.slow


@pytest.fixture(params=["ray", "dask"])
def cluster(request):
    """Two workers, whose cluster ends with the test."""
    package = pytest.importorskip({"ray": "ray", "dask": "distributed"}[request.param])
    yield Workers(count=2, backend=request.param)
    module._cluster.cache_clear()
    if request.param == "ray":
        package.shutdown()
    else:
        package.default_client().shutdown()


def fail_once(problem, threads):
    if problem == 1:
        raise FormatError("it holds NaN")
    return problem


def test_pieces_come_back_in_order_and_failures_with_their_reason(cluster):
    kept, failed = run(cluster, tell, list(range(9)))
    assert [kept[n][:2] for n in range(9)] == [(n, 1) for n in range(9)]
    kept, failed = run(cluster, fail_once, list(range(4)))
    assert kept == {0: 0, 2: 2, 3: 3}
    assert str(failed[1]) == "it holds NaN"


def test_a_piece_whose_worker_dies_is_given_to_another(cluster, tmp_path):
    count = tmp_path / "deaths"
    count.write_text("1")
    kept, failed = run(cluster, die, [0, str(count), 2, 3])
    assert kept == {0: 0, 1: str(count), 2: 2, 3: 3} and not failed


def test_a_model_has_the_same_bytes(cluster, tiny_decoder):
    step = QuantizeWeights(format="int3_channel", solver="gptq", write="dequantize")
    one, two = (
        content(run_step(tiny_decoder(), decoder_samples(5), None, step, workers))
        for workers in (None, cluster)
    )
    assert one == two
