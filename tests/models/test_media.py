"""Sound and pictures: what is read, what is refused, and crops that come out upright."""

import wave

import numpy as np
import pytest

from onnxq.errors import ZooError
from onnxq.models.audio import noise, read_wave
from onnxq.models.images import crop_quadrilateral, read_image, rendered_page, resize
from onnxq.models.ppocr import ctc_text

pytest.importorskip("PIL")


def _write_wave(path, samples, rate=16_000):
    with wave.open(str(path), "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(rate)
        clip.writeframes(samples.astype("<i2").tobytes())


def test_read_wave_scales_to_one(tmp_path):
    _write_wave(tmp_path / "a.wav", np.array([0, 16384, -32768]))
    samples = read_wave(tmp_path / "a.wav")
    assert samples.dtype == np.float32
    assert samples.tolist() == [0.0, 0.5, -1.0]


def test_another_rate_is_refused(tmp_path):
    _write_wave(tmp_path / "a.wav", np.zeros(4), rate=8_000)
    with pytest.raises(ZooError, match=r"a\.wav has 8000 Hz, 16 bits and 1 channels"):
        read_wave(tmp_path / "a.wav")


def test_what_is_no_wave_is_refused(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no sound")
    with pytest.raises(ZooError, match=r"a\.wav is not a WAV file"):
        read_wave(tmp_path / "a.wav")


def test_noise_repeats_and_has_its_level():
    assert np.array_equal(noise(1.0, seed=3), noise(1.0, seed=3))
    assert not np.array_equal(noise(1.0, seed=3), noise(1.0, seed=4))
    # The deviation of 16000 draws is within five of its own standard errors, σ / √(2n).
    assert noise(1.0, seed=3).std() == pytest.approx(0.05, abs=5 * 0.05 / np.sqrt(32_000))


def test_a_file_that_is_no_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ZooError, match=r"a\.png' is not an image"):
        read_image(tmp_path / "a.png")


def test_a_crop_of_whole_pixels_is_the_slice():
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    corners = np.array([[10, 5], [50, 5], [50, 25], [10, 25]])
    assert np.array_equal(crop_quadrilateral(image, corners), image[5:25, 10:50])


def test_a_tall_crop_is_laid_down():
    image = np.zeros((60, 40, 3), np.uint8)
    corners = np.array([[10, 5], [20, 5], [20, 45], [10, 45]])
    assert crop_quadrilateral(image, corners).shape == (10, 40, 3)


def test_resize_keeps_a_flat_image():
    image = np.full((30, 50, 3), 77, np.uint8)
    assert np.array_equal(resize(image, 12, 20), np.full((12, 20, 3), 77, np.uint8))


def test_a_rendered_page_has_ink_where_the_lines_are():
    page = rendered_page(["Alice", "Rabbit"], height=64, width=200, size=16, seed=0)
    blank = rendered_page([], height=64, width=200, size=16, seed=0)
    darker = (blank.astype(int) - page).max(axis=(1, 2)) > 60
    assert page.shape == (64, 200, 3)
    assert darker[10:22].any()
    assert darker[36:48].any()
    assert not darker[:4].any()


@pytest.mark.parametrize(
    ("path", "text"),
    [([1, 1, 0, 1, 2, 2], "aab"), ([0, 0], ""), ([0, 3, 0, 3], "  "), ([2], "b")],
)
def test_ctc_drops_repeats_then_blanks(path, text):
    scores = np.full((len(path), 4), 0.1)
    scores[np.arange(len(path)), path] = 0.7
    decoded, confidence = ctc_text(scores, ("", "a", "b", " "))
    assert decoded == text
    assert confidence == pytest.approx(0.7 if text else 0.0)
