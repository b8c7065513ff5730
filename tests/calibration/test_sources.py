import itertools
import json

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.calibration import AudioSpec, ImageSpec, open_data
from onnxq.errors import CalibrationError
from onnxq.runtime import TensorSpec

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
VECTOR = [TensorSpec("x", F32, ("N", 2))]
PICTURE = [TensorSpec("pixels", F32, ("N", 3, 8, 6))]
ENCODER = [
    TensorSpec("input_ids", I64, ("batch", "length")),
    TensorSpec("attention_mask", I64, ("batch", "length")),
    TensorSpec("token_type_ids", I64, ("batch", "length")),
]
DECODER = [
    TensorSpec("input_ids", I64, ("batch", "length")),
    TensorSpec("attention_mask", I64, ("batch", "total_length")),
    TensorSpec("position_ids", I64, ("batch", "length")),
    TensorSpec("past_0_key", F32, ("batch", 3, "past_length", 16)),
    TensorSpec("past_key_values.0.value", F32, ("batch", 3, "past_length", 16)),
]


@pytest.fixture
def tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "the": 3, "cat": 4, "sat": 5, "on": 6, "mat": 7}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("the cat sat\n\non the mat the cat\n")
    return path


# -- NumPy files


def test_npz_folder(tmp_path):
    for index in (1, 0):
        np.savez(tmp_path / f"{index}.npz", x=np.full((1, 2), index, np.float32))
    samples = open_data(tmp_path, VECTOR)
    assert [sample["x"][0, 0] for sample in samples] == [0, 1]
    assert len(list(open_data(tmp_path, VECTOR, limit=1))) == 1
    assert next(iter(open_data(tmp_path, VECTOR, batch=2)))["x"].shape == (2, 2)


@pytest.mark.parametrize(("batch", "sizes"), [("N", [1] * 6), (2, [2, 2, 2])])
def test_one_array_file_is_cut_along_its_first_axis(tmp_path, batch, sizes):
    data = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.save(tmp_path / "x.npy", data)
    np.savez(tmp_path / "x.npz", x=data)
    specs = [TensorSpec("x", F32, (batch, 2))]
    for name in ("x.npy", "x.npz"):
        samples = list(open_data(tmp_path / name, specs))
        assert [len(sample["x"]) for sample in samples] == sizes
        np.testing.assert_array_equal(np.concatenate([s["x"] for s in samples]), data)


def test_arrays_of_different_length_are_one_sample(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 2), np.float32), rate=np.array(5))
    specs = [*VECTOR, TensorSpec("rate", I64, ())]
    [sample] = open_data(tmp_path / "x.npz", specs)
    assert sample["x"].shape == (3, 2)


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_a_damaged_array_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 no arrays here")
    with pytest.raises(CalibrationError, match=f"'{name}' cannot be read as arrays"):
        list(open_data(tmp_path / name, VECTOR))


def test_one_array_for_many_inputs(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 2)))
    with pytest.raises(CalibrationError, match=r"store them by name with numpy.savez"):
        open_data(tmp_path / "x.npy", ENCODER)


# -- text


def test_text_for_an_encoder(tokenizer, text):
    first, second = open_data(text, ENCODER, tokenizer=tokenizer, length=6)
    assert first["input_ids"].tolist() == [[0, 3, 4, 5, 1]]
    assert second["input_ids"].tolist() == [[0, 6, 3, 7, 3, 1]]  # cut to 6, [SEP] kept
    assert first["attention_mask"].tolist() == [[1] * 5]
    assert first["token_type_ids"].tolist() == [[0] * 5]
    assert first["input_ids"].dtype == np.int64


def test_text_for_an_encoder_of_static_length_is_padded(tokenizer, text):
    specs = [TensorSpec(spec.name, I64, (1, 8)) for spec in ENCODER]
    first, _ = open_data(text, specs, tokenizer=tokenizer.parent)
    assert first["input_ids"].tolist() == [[0, 3, 4, 5, 1, 0, 0, 0]]
    assert first["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]


def test_text_for_a_decoder_is_windows_and_an_empty_past(tokenizer, text):
    first, second = open_data(text, DECODER, length=4)  # the tokenizer lies beside the text
    assert first["input_ids"].tolist() == [[3, 4, 5, 6]]
    assert second["input_ids"].tolist() == [[3, 7, 3, 4]]
    assert first["position_ids"].tolist() == [[0, 1, 2, 3]]
    assert first["attention_mask"].tolist() == [[1, 1, 1, 1]]
    assert first["past_0_key"].shape == (1, 3, 0, 16)


@pytest.fixture
def counted(tmp_path):
    """A text of lines of five words that nobody knows, each line numbered, and its decoder."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0} | {f"n{i:04}é": i for i in range(1, 1001)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    lines = [f"n{i:04}é" + " x" * 5 for i in range(1, 1001)]
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "text.txt"


def windows(path, limit, length=12):
    return [
        s["input_ids"][0].tolist() for s in open_data(path, DECODER, length=length, limit=limit)
    ]


@pytest.mark.parametrize("count", [1, 2, 7, 100, 200])
def test_few_windows_are_spread_over_a_long_text(counted, count):
    found = windows(counted, count)
    assert found == windows(counted, count)
    assert len(found) == count
    begins = [window[0] for window in found]  # they begin with a line
    assert begins[0] == 1 and begins == sorted(set(begins))
    for number, (begin, window) in enumerate(zip(begins, found, strict=True)):
        assert begin == pytest.approx(1000 * number / count, abs=3)
        assert window == [begin, *[0] * 5, begin + 1, *[0] * 5]
    assert all(after - before >= 2 for before, after in itertools.pairwise(begins))


def test_many_windows_or_a_text_without_lines_are_read_from_the_beginning(counted):
    everything = windows(counted, None)
    assert len(everything) == 500
    assert windows(counted, 400) == everything[:400]
    counted.write_text(counted.read_text(encoding="utf-8").replace("\n", " "), encoding="utf-8")
    assert windows(counted, 3) == everything[:3]


def test_a_long_text_that_is_none(counted):
    counted.write_bytes(counted.read_bytes() + b"\n" + b"\xff\xfe \n" * 5000)
    with pytest.raises(CalibrationError, match=r"'text.txt' cannot be read as UTF-8 text"):
        windows(counted, 9)


def test_a_static_past_is_masked(tokenizer, text):
    specs = [
        TensorSpec(s.name, s.dtype, (1, 3, 2, 16) if "past" in s.name else s.shape) for s in DECODER
    ]
    first, _ = open_data(text, specs, tokenizer=tokenizer, length=4)
    assert first["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1]]
    assert first["position_ids"].tolist() == [[2, 3, 4, 5]]


def test_a_past_with_dynamic_heads(tokenizer, text):
    specs = [*DECODER[:3], TensorSpec("past_0_key", F32, ("batch", "h", "past", 16))]
    with pytest.raises(CalibrationError, match="axis 1 is dynamic where a static size is needed"):
        open_data(text, specs, tokenizer=tokenizer)


def test_an_input_that_text_cannot_make(tokenizer, text):
    specs = [*ENCODER, TensorSpec("pixel_values", F32, (1, 3))]
    with pytest.raises(CalibrationError, match="Input 'pixel_values' cannot be made from text"):
        open_data(text, specs, tokenizer=tokenizer)


def test_text_without_a_tokenizer(text):
    with pytest.raises(CalibrationError, match="text needs a tokenizer: give the path"):
        open_data(text, ENCODER)


def test_a_damaged_tokenizer(text, tmp_path):
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(CalibrationError, match=r"'bad.json' cannot be read as a tokenizer"):
        open_data(text, ENCODER, tokenizer=tmp_path / "bad.json")


def test_bytes_that_are_no_text(tokenizer, tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(CalibrationError, match=r"'binary.txt' cannot be read as UTF-8 text"):
        list(open_data(tmp_path / "binary.txt", ENCODER, tokenizer=tokenizer))


# -- images


@pytest.fixture
def images(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.zeros((16, 12, 3), np.uint8)
    pixels[...] = (255, 0, 51)
    pillow.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path


def test_images_are_normalized(images):
    spec = ImageSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.5))
    [sample] = open_data(images, PICTURE, preprocess=spec)
    assert sample["pixels"].shape == (1, 3, 8, 6)
    np.testing.assert_allclose(sample["pixels"][0, :, 0, 0], [1, -2, -0.6], rtol=1e-6)


def test_images_in_other_layouts(images):
    spec = ImageSpec(layout="NHWC", channels="BGR", dtype="uint8")
    specs = [TensorSpec("pixels", np.dtype(np.uint8), (1, 8, 6, 3))]
    [sample] = open_data(images, specs, preprocess=spec)
    assert sample["pixels"][0, 0, 0].tolist() == [51, 0, 255]
    grey = [TensorSpec("pixels", F32, (1, 1, 8, 6))]
    [sample] = open_data(images, grey, preprocess=ImageSpec(channels="L"))
    assert sample["pixels"].shape == (1, 1, 8, 6)


def test_the_shorter_side_is_scaled_and_the_centre_cropped(images):
    from PIL import Image

    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 20:] = 255
    Image.fromarray(wide).save(images / "a.png")
    specs = [TensorSpec("pixels", F32, (1, 3, 10, 10))]
    [sample] = open_data(images, specs, preprocess=ImageSpec(resize=10))
    np.testing.assert_array_equal(sample["pixels"][0, 0, 5], [0] * 5 + [1] * 5)


def test_specs_from_files(images):
    (images / "preprocess.toml").write_text("size = [8, 6]\nmean = [1.0, 0.0, 0.0]\n")
    [sample] = open_data(images, PICTURE)
    assert sample["pixels"][0, 0].max() == 0
    processor = {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": 12},
        "crop_size": {"height": 8, "width": 6},
        "do_center_crop": True,
        "resample": 3,
    }
    (images / "processor.json").write_text(json.dumps(processor))
    [sample] = open_data(images, PICTURE, preprocess=images / "processor.json")
    np.testing.assert_allclose(sample["pixels"][0, :, 0, 0], [1, -1, -0.6], rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("sizes = [8, 6]", "unknown key 'sizes'; did you mean 'size'?"),
        ("size = [", "cannot be read as TOML"),
        ('layout = "CHW"', "layout = 'CHW': choose one of NCHW, NHWC"),
        ("std = [0.0]", "has a std of 0"),
    ],
)
def test_bad_specs(images, content, sentence):
    (images / "preprocess.toml").write_text(content)
    with pytest.raises(CalibrationError) as error:
        open_data(images, PICTURE)
    assert sentence in str(error.value)


def test_images_without_a_spec(images):
    with pytest.raises(CalibrationError, match="give an image spec"):
        open_data(images, PICTURE)


def test_a_dynamic_size_where_a_static_one_is_needed(images):
    specs = [TensorSpec("pixels", F32, ("N", 3, "height", "width"))]
    with pytest.raises(CalibrationError, match="height and width are dynamic where a static size"):
        open_data(images, specs, preprocess=ImageSpec())


def test_an_image_for_one_of_several_inputs(images):
    specs = [*PICTURE, TensorSpec("other", F32, (1,))]
    with pytest.raises(CalibrationError, match="set input to one of 'pixels', 'other'"):
        open_data(images, specs, preprocess=ImageSpec())


def test_a_file_that_is_no_image(images):
    (images / "b.png").write_bytes(b"no image")
    with pytest.raises(CalibrationError, match=r"'b.png' cannot be read as an image"):
        list(open_data(images, PICTURE, preprocess=ImageSpec()))


# -- sound


@pytest.fixture
def sounds(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    time = np.arange(8000) / 8000
    wave = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "tone.wav", np.stack([wave, wave], axis=1), 8000, subtype="FLOAT")
    return tmp_path


VAD = [
    TensorSpec("input", F32, ("N", 512)),
    TensorSpec("state", F32, (2, "N", 128)),
    TensorSpec("sr", I64, ()),
]


def test_sound_is_cut_into_the_windows_of_the_model(sounds):
    samples = list(open_data(sounds, VAD, preprocess=AudioSpec(rate=8000)))
    assert len(samples) == 8000 // 512
    assert samples[0]["input"].shape == (1, 512)
    assert samples[0]["state"].shape == (2, 1, 128)
    assert samples[0]["sr"].item() == 8000
    overlapping = open_data(sounds, VAD, preprocess=AudioSpec(rate=8000, hop=256))
    np.testing.assert_array_equal(list(overlapping)[2]["input"], samples[1]["input"])


def test_sound_is_resampled(sounds):
    specs = [TensorSpec("wave", F32, (1, 1, "T"))]
    [sample] = open_data(sounds, specs)
    assert sample["wave"].shape == (1, 1, 16000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    # A tone of whole periods is resampled exactly up to float32 rounding.
    np.testing.assert_allclose(sample["wave"][0, 0], expected, atol=1e-6)


def test_a_short_file_is_padded_with_silence(sounds):
    specs = [TensorSpec("wave", F32, (1, 20000))]
    [sample] = open_data(sounds, specs)
    assert not sample["wave"][0, 16000:].any()


@pytest.mark.parametrize(
    ("specs", "sentence"),
    [
        ([TensorSpec("a", F32, (1, 9)), TensorSpec("b", F32, (1, 9))], "set input to one of 'a'"),
        ([TensorSpec("ids", I64, (1, 9))], "The model has no float input"),
        ([VAD[0], TensorSpec("ids", I64, (1, 9))], "Input 'ids' of shape .* cannot be made from"),
    ],
)
def test_inputs_that_sound_cannot_make(sounds, specs, sentence):
    with pytest.raises(CalibrationError, match=sentence):
        open_data(sounds, specs)


def test_a_file_that_is_no_sound(sounds):
    (sounds / "zz.wav").write_bytes(b"no sound")
    with pytest.raises(CalibrationError, match=r"'zz.wav' cannot be read as sound"):
        list(open_data(sounds, VAD))


@pytest.mark.parametrize("settings", [{"rate": 0}, {"window": 0}, {"hop": -1}])
def test_bad_audio_specs(settings):
    with pytest.raises(CalibrationError, match="it must be positive"):
        AudioSpec(**settings)


# -- anything


def test_a_model_and_an_iterable():
    model = ir.from_onnx_text("""<ir_version: 9, opset_import: ["" : 19]>
    g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }""")
    samples = open_data(({"x": np.zeros((1, 2), np.float32)} for _ in range(3)), model, batch=2)
    assert [len(sample["x"]) for sample in samples] == [2, 1]


def test_nothing_there(tmp_path):
    with pytest.raises(CalibrationError, match="There are no calibration data at"):
        open_data(tmp_path / "missing", VECTOR)
    with pytest.raises(CalibrationError, match=r"holds no .npz files, images or sound files"):
        open_data(tmp_path, VECTOR)


def test_a_cache_of_open_head_size_gets_the_one_the_model_runs_with(tmp_path):
    """genai's builder leaves the last dimension of its caches open."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(["[UNK]", "a", "b", "c"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("a b c a b c\n")
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>\n'
        "main (int64[batch, length] input_ids, float[batch, 2, past, width] past_0_key)"
        " => (float[batch, 2, total, width] present_0_key)"
        "{ shape = Shape(input_ids) one = Constant<value_ints = [1]>() "
        "two = Constant<value_ints = [2]>() length = Slice(shape, one, two) "
        "heads = Constant<value_ints = [1, 2]>() width = Constant<value_ints = [48]>() "
        "wanted = Concat<axis = 0>(heads, length, width) new = ConstantOfShape(wanted) "
        "present_0_key = Concat<axis = 2>(past_0_key, new) }"
    )
    (sample,) = list(open_data(tmp_path / "text.txt", model, length=6))
    assert sample["past_0_key"].shape == (1, 2, 0, 48)
