"""Runs of a recipe with a work folder, and what is compared of them."""

import numpy as np

from onnxq.graph.weights import walk_weights, weight_tensor
from onnxq.passes.recipe import Recipe
from onnxq.passes.runner import run_recipe
from onnxq.runtime.work_folder import WorkFolder


def decoder_samples(count):
    """Inputs of the tiny decoder."""
    rng = np.random.default_rng(5)
    return [{"x": rng.standard_normal((2, 6, 16)).astype(np.float32)} for _ in range(count)]


def run_step(model, samples, folder, step, workers=None):
    """Run a recipe of one pass; without a folder nothing is kept."""
    recipe = Recipe(name="t", steps=(step,))
    how = {"samples": samples, "check": "off", "workers": workers}
    if folder is None:
        return run_recipe(model, recipe, **how)
    with WorkFolder(folder) as work:
        return run_recipe(model, recipe, work=work, **how)


def content(result):
    """Bytes of all weights, by name."""
    return {value.name: weight_tensor(value).tobytes() for _, value in walk_weights(result.model)}


def pieces(folder):
    """Files of finished pieces."""
    return sorted(folder.glob("pieces/*/*.npz"))
