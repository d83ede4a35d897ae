# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Lowers a run's steps without weights or devices.

The steps come from `make_steps` and `lower_steps` of compiled_steps.py, `scheme.make_sampler` or
`sft.make_step`; the plan builds none of its own. The evaluations of a supervised run are left out.
"""

import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from rlvlm_jax import config as config_lib
from rlvlm_jax import optim, sft, sharding, startup
from rlvlm_jax.compiled_steps import lower_steps, make_steps, needs_reference
from rlvlm_jax.data.prompts import Media
from rlvlm_jax.errors import InputError
from rlvlm_jax.evaluation.scheme import make_sampler
from rlvlm_jax.models.families import FAMILIES
from rlvlm_jax.plan.predict import Sizes
from rlvlm_jax.validate import validate

MULTIPLE = 16  # of P and I, as in data.loader


class PublishedTokenizer(NamedTuple):
    """What the steps need from a tokenizer, for models without tokenizer files."""

    stop_ids: tuple[int, ...]
    pad_id: int

    def token_id(self, text: str) -> None:
        """Returns None: ids of vision tokens come from the model's configuration."""
        del text


class Planned(NamedTuple):
    """A run's steps, lowered for the devices of a topology."""

    sizes: Sizes
    steps: dict[str, Any]  # name in `compiled_steps.Steps`, or "evaluate" -> lowered
    state_bytes: dict[str, float]  # part of the state -> bytes per device, from its shardings
    source: str  # where the model's sizes come from
    attention: str
    lowering_s: float


def open_model(path: str) -> tuple[startup.Source, Any, str]:
    """Finds a model's sizes: in its directory if it exists, else among the published models.

    Returns:
        (source, tokenizer or None for the source's own, where the sizes come from).

    Raises:
        InputError: neither exists.
    """
    if path == startup.BUNDLED or Path(path).expanduser().is_dir():
        return startup.open_source(path), None, path
    name = path.rsplit("/", 1)[-1].lower().removesuffix("-instruct")
    published = {size: row for row in FAMILIES.values() for size in row.published}
    if name not in published:
        raise InputError(
            f"config.model.path={path!r} is neither a directory here nor a published model; known "
            f"models: {', '.join(published)}"
        )
    row = published[name]
    files = {"config.json": json.dumps(row.write_config(row.published[name]))}
    text = PublishedTokenizer(row.stop_ids, row.stop_ids[-1])
    return startup.Source(Path(path), False, files), text, f"published {name}"


def largest_bucket(
    config: ConfigDict, media: Media, prompt_tokens: int, patches: int
) -> tuple[int, int]:
    """Returns (P, I): the values passed, or the largest possible with one image per prompt.

    Args:
        config: `data.max_prompt_tokens` is read.
        media: of the model, with the configuration's limits applied.
        prompt_tokens: P, 0 for the largest.
        patches: I, 0 for the largest.
    """
    length = prompt_tokens or config.data.max_prompt_tokens
    room = length * media.patches_per_token
    sizes = (length, patches or min(media.max_patches, room))
    return tuple(math.ceil(size / MULTIPLE) * MULTIPLE for size in sizes)


def device_bytes(tree: Any) -> float:
    """Returns the bytes of ShapeDtypeStructs per device."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def lower_supervised(
    session: startup.Session, optimizer: Any, state: Any, bucket: tuple[int, int]
) -> Any:
    """Lowers the step of supervised training for prompts of (P, I); see `lower_steps`."""
    rows, most = session.config.train.minibatch, session.config.rollout.max_tokens
    batch = session.batch_shapes(rows, bucket)
    tokens, mask = (
        jax.ShapeDtypeStruct((rows, most), kind, sharding=sharding.batch_sharding(session.mesh))
        for kind in (np.int32, bool)
    )
    return sft.make_step(session, optimizer, state).lower(state, batch, tokens, mask)


def lower_evaluation(session: startup.Session, params: Any, bucket: tuple[int, int]) -> Any:
    """Lowers the sampler of the evaluation setting with the most responses per question.

    Args:
        session: of the run.
        params: ShapeDtypeStructs with their shardings.
        bucket: (P tokens, I patches) of a prompt.
    """
    config, rows = session.config, sharding.batch_sharding(session.mesh)
    prompts = config_lib.eval_batch(config)
    setting = max(config.eval.settings, key=partial(config_lib.eval_samples, config))
    ids = (prompts * config_lib.eval_samples(config, setting),)
    batch = session.batch_shapes(prompts, bucket)
    features, ids = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows),
        (
            jax.eval_shape(session.model.encode_images, params, batch),
            jax.ShapeDtypeStruct(ids, np.uint32),
        ),
    )
    sampler = make_sampler(session, config, setting)
    return sampler.lower(params, batch, features, jax.random.key(0), ids)


def lower(
    config: ConfigDict, devices: list[Any], prompt_tokens: int = 0, patches: int = 0
) -> Planned:
    """Lowers the steps of a run for devices that are not attached.

    Args:
        config: of the run; its mesh is resolved for these devices.
        devices: to compile for.
        prompt_tokens: P, 0 for the largest that the limits allow.
        patches: I, 0 for the largest that the limits allow.

    Raises:
        InputError: configuration, model and mesh do not fit each other.
    """
    validate(config, len(devices))
    if config.mode == "eval":
        raise InputError(
            "config.mode='eval' is not planned; set config.mode='rl', whose encode and sample "
            "steps are those of an evaluation"
        )
    if config.mode == "sft":  # one response per prompt, from the data
        config.rollout.prompts, config.rollout.samples = config.train.minibatch, 1
        config.train.epochs = 1
    source, text, origin = open_model(config.model.path)
    config.cache = ""  # otherwise compile times would be those of cached programs
    session = startup.open_session(config, source, devices, text)
    optimizer, _ = optim.make_optimizer(config.train, 1000, session.model.part)
    state = startup.state_shapes(session, optimizer)
    reference = session.shapes if needs_reference(config) else None
    bucket = largest_bucket(config, session.media, prompt_tokens, patches)
    start = time.perf_counter()
    if config.mode == "sft":
        lowered = {"update": lower_supervised(session, optimizer, state, bucket)}
    else:
        jitted = make_steps(session, optimizer, state)
        lowered = dict(vars(lower_steps(jitted, session, state, reference, bucket)))
        if config.eval_every and config.eval.settings:
            lowered["evaluate"] = lower_evaluation(session, state.params, bucket)
    seconds = time.perf_counter() - start
    trained, _ = optim.split(session.shapes, optim.make_trained(config.train, session.model.part))

    return Planned(
        sizes=Sizes(
            config=config,
            model=source.config,
            bucket=bucket,
            trained=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained)),
            reference=reference is not None,
            frozen=session.features_frozen and config.mode == "rl",
        ),
        steps={name: step for name, step in lowered.items() if step is not None},
        state_bytes={
            "parameters": device_bytes(state.params),
            "optimizer": device_bytes(state.opt_state),
            "reference": device_bytes(reference),
        },
        source=origin,
        attention=session.attention,
        lowering_s=seconds,
    )
