# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The work that is timed: a model directory, a configuration and one batch of prompts.

A built-in case draws random weights and writes them as a Hugging Face directory. Both sides read
it, so they start from the same bits. With a run's configuration, the work is the run's model and
the first batch of its data. Every response is exactly `rollout.max_tokens` long, because the stop
token is a token that is never sampled.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from rlvlm_jax import config as config_lib
from rlvlm_jax import startup
from rlvlm_jax.data.prompts import Media, collate
from rlvlm_jax.errors import InputError
from rlvlm_jax.models import huggingface
from rlvlm_jax.models.families import FAMILIES
from rlvlm_jax.models.model import Config
from rlvlm_jax.run import Run
from rlvlm_jax.types import Params, Prompts
from rlvlm_jax.validate import validate

LARGE_IMAGE = 2**24  # pixels; the images of the cases are smaller
PAD, END, START_IMAGE, END_IMAGE = 504, 506, 507, 508  # of the bundled tokenizer
_ON_GPU = {  # for the cases that need a GPU
    "model.dtype": "bfloat16",
    "algorithm.old_logprobs": "trainer",
    "model.remat": "full",
    "train.microbatch": 16,
    "train.logprob_batch": 64,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A built-in case.

    Attributes:
        name: its name for `--case`.
        model: sizes, with the token ids of the bundled tokenizer.
        prompts: N.
        samples: G.
        length: P, tokens per prompt, image tokens included.
        image_tokens: tokens of the one square image of each prompt.
        new: R, tokens per response.
        keys: further changes to the default configuration.
    """

    name: str
    model: Config
    prompts: int
    samples: int
    length: int
    image_tokens: int
    new: int
    keys: tuple[tuple[str, Any], ...] = ()


class Workload(NamedTuple):
    """The input of both sides."""

    name: str
    config: ConfigDict
    session: startup.Session
    batch: Prompts  # on the host


_MODELS = {name: size for row in FAMILIES.values() for name, size in row.benchmark.items()}
_LORA = (("train.lora_rank", 64), ("train.lora_alpha", 128.0))
CASES = {
    case.name: case
    for case in (
        Case("4m-64", _MODELS["4m"], 16, 8, 64, 16, 64),
        Case("4m-320", _MODELS["4m"], 8, 8, 320, 256, 64),
        Case("84m-64", _MODELS["84m"], 4, 8, 64, 16, 64),
        Case("84m-320", _MODELS["84m"], 2, 8, 320, 256, 64),
        Case("3b", _MODELS["3b"], 64, 8, 320, 256, 512, tuple(_ON_GPU.items())),
        # Trains adapters: float32 moments would not fit next to parameters and reference.
        Case("7b", _MODELS["7b"], 64, 8, 320, 256, 512, (*_ON_GPU.items(), *_LORA)),
    )
}
ON_CPU, ON_GPU = ("4m-64", "4m-320", "84m-64", "84m-320"), ("3b",)


def find(names: str) -> list[Case]:
    """Returns the built-in cases of a comma-separated list.

    Raises:
        InputError: there is no such case.
    """
    for name in names.split(","):
        if name not in CASES:
            raise InputError(f"--case={names}: there is no {name!r}; use {', '.join(CASES)}")
    return [CASES[name] for name in names.split(",")]


def parameters(model: Config) -> int:
    """Returns the number of parameters, vision tower included."""
    return sum(int(np.prod(shape)) for shape in huggingface.param_shapes(model).values())


def random_weights(model: Config, seed: int) -> Params:
    """Draws float32 parameters on the host; matrices preserve the scale of their input.

    Args:
        model: sizes.
        seed: of all weights.
    """
    rng = np.random.default_rng(seed)
    tree: Params = {}
    for path, shape in huggingface.param_shapes(model).items():
        *levels, leaf = path.split("/")
        if leaf == "scale":
            value = np.ones(shape, np.float32)
        else:
            value = rng.standard_normal(shape, np.float32)
            value *= np.float32(0.02 if leaf == "bias" else shape[-1] ** -0.5)
        node = tree
        for level in levels:
            node = node.setdefault(level, {})
        node[leaf] = value
    return tree


def write_model(model: Config, directory: Path, dtype: str, seed: int) -> None:
    """Writes random weights as a Hugging Face directory with the bundled tokenizer.

    Args:
        model: sizes.
        directory: is created.
        dtype: of the tensors in the files: "float32" or "bfloat16".
        seed: of the weights.
    """
    names = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
    bundled = startup.open_source(startup.BUNDLED).files
    ids = {"bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD}
    files = {name: bundled[name] for name in names}
    files["config.json"] = json.dumps(FAMILIES[model.family].write_config(model) | ids)
    huggingface.save_hf(random_weights(model, seed), directory, files=files, dtypes=dtype)


def random_batch(case: Case, media: Media, seed: int) -> Prompts:
    """Returns prompts of random text around one random image each, as host arrays.

    Args:
        case: the sizes.
        media: of the model; its limits must not change the size of the images.
        seed: of text and pixels.
    """
    rng = np.random.default_rng(seed)
    side = media.side(case.image_tokens)
    before = (case.length - case.image_tokens - 2) // 2
    encoded = []
    for _ in range(case.prompts):
        text = rng.integers(0, PAD, case.length - case.image_tokens + 1)
        text[before : before + 3] = START_IMAGE, case.model.image_token_id, END_IMAGE
        image = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        encoded.append(media.encode(text.tolist(), [image], case.model.image_token_id))
    return collate(encoded, case.length, encoded[0].patches, PAD, media)


def configuration(case: Case) -> ConfigDict:
    """Returns MAYE's recipe at the case's sizes: REINFORCE++, a reference, two optimizer steps."""
    c = config_lib.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = (
        case.prompts,
        case.samples,
        case.new,
    )
    c.algorithm.advantage = "reinforce_pp"
    c.algorithm.kl_loss_coef = 1e-3
    c.train.minibatch = case.prompts * case.samples // 2
    c.train.final_lr, c.train.warmup, c.train.eps = 1.0, 0.0, 1e-5
    c.algorithm.old_logprobs = "sampler"  # exact in float32, so an old pass would be redundant
    for key, value in case.keys:
        group, name = key.split(".")
        c[group][name] = value
    return c


def built_in(case: Case, scratch: Path, devices: int, seed: int = 0) -> Workload:
    """Draws a case's weights and prompts.

    Args:
        case: from `CASES`.
        scratch: where its model directory is written.
        devices: number of devices.
        seed: of weights and prompts.
    """
    config = configuration(case)
    directory = scratch / case.name
    write_model(case.model, directory, config.model.dtype, seed)
    config.model.path = str(directory)
    validate(config, devices)
    source = startup.open_source(config.model.path)
    session = startup.open_session(config, source)
    batch = random_batch(case, startup.open_media(source, 1, LARGE_IMAGE), seed)
    return Workload(case.name, config, never_stopping(session), batch)


def of_run(config: ConfigDict, name: str, devices: int) -> Workload:
    """Takes the model of a run and the first batch of its data.

    Args:
        config: of a training run.
        name: for the table.
        devices: number of devices.

    Raises:
        InputError: the configuration is not for reinforcement learning, or is invalid.
    """
    if config.mode != "rl":
        raise InputError(f"config.mode={config.mode!r} cannot be timed; use config.mode='rl'")
    if config.train.pack_tokens:
        raise InputError(
            f"config.train.pack_tokens={config.train.pack_tokens} is for responses of different "
            "lengths, but all responses here have the full length; use "
            "--config.train.pack_tokens=0"
        )
    config.log.writers = ()
    validate(config, devices)
    with tempfile.TemporaryDirectory() as scratch, Run(config, scratch) as run:
        _, batch = run.loader.next()
        return Workload(name, config, never_stopping(run.session), batch)


class NeverStops(NamedTuple):
    """The part of a tokenizer that the sampler uses, with a stop token that is never sampled."""

    stop_ids: tuple[int, ...]
    pad_id: int


def never_stopping(session: startup.Session) -> startup.Session:
    """Returns the session with a tokenizer that lets every response reach the full length."""
    fixed = NeverStops(session.banned[:1], session.tokenizer.pad_id)
    return dataclasses.replace(session, tokenizer=fixed)
