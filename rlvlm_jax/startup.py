# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What training, supervised training and evaluation do before their first step.

A model directory of either kind becomes a `Source`. A configuration and a source become a
`Session`: mesh, model, tokenizer, and how to read prompts. Parameters come last; each is loaded
directly into its shards on the mesh.
"""

import dataclasses
import importlib.resources
import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from rlvlm_jax import checkpoint, optim, sharding
from rlvlm_jax import config as config_lib
from rlvlm_jax.data import loader, prompts, tokenizer
from rlvlm_jax.errors import InputError
from rlvlm_jax.features import GIB, FeatureCache
from rlvlm_jax.models import families, huggingface
from rlvlm_jax.models.common import kernels, lora
from rlvlm_jax.models.common.activation_sharding import choose as choose_activation_sharding
from rlvlm_jax.models.family import Family
from rlvlm_jax.models.model import Config, Model
from rlvlm_jax.types import Params, Prompts, TrainState
from rlvlm_jax.update import init_state

BUNDLED = "bundled"


@dataclasses.dataclass(frozen=True)
class Source:
    """The origin of a model: a Hugging Face directory or an orbax directory."""

    directory: Path
    is_orbax: bool
    files: Mapping[str, str]  # name -> text of config.json, tokenizer and processor files

    @property
    def config(self) -> Config:
        """The model's sizes and token ids."""
        return huggingface.read_config(self.files)

    @property
    def family(self) -> Family:
        """The model's row in the table of families."""
        return families.FAMILIES[self.config.family]


def open_source(path: str) -> Source:
    """Opens the model at `model.path`.

    Args:
        path: "bundled", a Hugging Face directory or repository, or an orbax directory (written by
            `rlvlm_jax.convert`, or a run's checkpoints).

    Raises:
        InputError: there is no such model.
    """
    if path == BUNDLED:
        path = str(importlib.resources.files("rlvlm_jax") / "assets" / "tiny")
    if checkpoint.is_checkpoint(path):
        return Source(checkpoint.absolute(path), True, checkpoint.read_model_files(path))
    directory = huggingface.resolve(path)
    return Source(directory, False, huggingface.read_side_files(directory))


def load_tokenizer(source: Source) -> tokenizer.Tokenizer:
    """Returns the source's tokenizer; writes its files out, because transformers reads files.

    Raises:
        InputError: it cannot be read, or its image token differs from config.json's.
    """
    if source.is_orbax:
        with tempfile.TemporaryDirectory() as scratch:
            for name, text in source.files.items():
                (Path(scratch) / name).write_text(text, encoding="utf-8")
            loaded = tokenizer.Tokenizer.load(scratch)
    else:
        loaded = tokenizer.Tokenizer.load(source.directory)
    text = source.family.media(source.files, 0, 0).image_token
    image, expected = loaded.token_id(text), source.config.image_token_id
    if image != expected:
        raise InputError(
            f"{source.directory}: config.json has image_token_id={expected}, but its tokenizer "
            f"gives {text} the id {image}; the files belong to different models"
        )
    return loaded


def open_media(source: Source, min_pixels: int = 0, max_pixels: int = 0) -> prompts.Media:
    """Returns how the source's model takes images; limits other than 0 replace its own."""
    return source.family.media(source.files, min_pixels, max_pixels)


def banned_ids(source: Source, text: tokenizer.Tokenizer) -> tuple[int, ...]:
    """Returns the ids of the vision tokens, which must never be sampled."""
    media, config = open_media(source), source.config
    names = (media.image_token, media.video_token, *media.reserved_tokens)
    ids = {text.token_id(name) for name in names} | set(config.vision_token_ids)
    return tuple(sorted(i for i in ids if i is not None and 0 <= i < config.vocab_size))


@dataclasses.dataclass(frozen=True)
class Session:
    """What every program of a run shares."""

    config: ConfigDict
    source: Source
    mesh: Any
    model: Model
    shapes: Params  # ShapeDtypeStructs with shardings
    tokenizer: tokenizer.Tokenizer
    media: prompts.Media
    banned: tuple[int, ...]
    attention: str  # the kernel that config.model.attention resolved to

    def batch_shapes(self, count: int, bucket: loader.Bucket) -> Prompts:
        """Returns ShapeDtypeStructs of `count` prompts of (P tokens, I patches) on the mesh."""
        empty = prompts.collate([None], *bucket, self.tokenizer.pad_id, self.media)
        return sharding.batch_shapes(empty, count, self.mesh)

    @property
    def features_frozen(self) -> bool:
        """Whether image features stay the same during training, so they are computed only once."""
        return not config_lib.trains_vision(self.config)


def make_feature_cache(session: Session) -> FeatureCache:
    """Returns the cache of a run; it is off if the run trains the vision side.

    It is also off in runs of several processes, because none of them has all rows of a batch.
    """
    config, model = session.config, session.model
    enabled = session.features_frozen and jax.process_count() == 1
    return FeatureCache(
        int(config.data.feature_cache_gib * GIB) if enabled else 0,
        session.media,
        model.config.image_token_id,
        partial(jax.eval_shape, model.encode_images, session.shapes),
        session.mesh,
    )


def with_mesh_shardings(shapes: Params, model: Model, mesh: Any) -> Params:
    """Returns parameter shapes with their shardings on the mesh."""
    shardings = sharding.param_shardings(shapes, model.param_rules, mesh)
    return sharding.with_shardings(shapes, shardings)


def add_adapters(config: ConfigDict, model: Model, params: Params, key: Any) -> Params:
    """Returns the parameters with the configured adapters, if any.

    Raises:
        InputError: no weight is selected.
    """
    train = config.train
    if not train.lora_rank:
        return params
    chosen = optim.make_trained(train, model.part)
    adapted = lora.add(
        params,
        key,
        train.lora_rank,
        train.lora_alpha or train.lora_rank,
        lambda path: chosen(path.removesuffix("weight") + "lora_a"),
    )
    if not lora.has_adapters(adapted):
        raise InputError(
            f"config.train.lora_rank={train.lora_rank} finds no weight to adapt; check "
            f"config.train.parts={train.parts}"
        )
    return adapted


def restore_merged(directory: Any, model: Model, mesh: Any) -> Params:
    """Reads the parameters of an orbax directory; merges adapters into their weights.

    Raises:
        InputError: the checkpoint is damaged, or holds another model.
    """
    base = jax.eval_shape(model.init, jax.random.key(0))
    shapes = with_mesh_shardings(
        lora.shapes_like(base, checkpoint.param_shapes(directory)), model, mesh
    )
    params = checkpoint.restore_params(directory, shapes)
    if not lora.has_adapters(params):
        return params
    shardings = jax.tree.map(lambda s: s.sharding, lora.drop(shapes))
    return jax.jit(lora.merge, out_shardings=shardings)(params)


def cache_programs(cache: str) -> None:
    """Caches compiled programs in `config.cache`; "" and CPUs change nothing.

    Programs for a CPU are for one machine, and home directories may be shared. A directory that the
    user has set in JAX_COMPILATION_CACHE_DIR stays in use.
    """
    if cache and not jax.config.jax_compilation_cache_dir and jax.default_backend() != "cpu":
        keep_compiled(f"{cache}/xla")


def keep_compiled(where: str) -> None:
    """Makes JAX cache compiled programs on disk for the next start.

    Call it before the first compilation to be cached. If the directory cannot be created, that is
    a warning, and nothing is cached.

    Args:
        where: a directory, which is created.
    """
    directory = Path(where).expanduser().absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.warning(
            "compiled programs cannot be kept in %s (%s); name another directory in config.cache, "
            "or none",
            *(directory, error.strerror),
        )
        return
    if jax.config.jax_compilation_cache_dir == str(directory):
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a run has few programs
    compilation_cache.reset_cache()  # JAX reads the directory only at its first compilation


def open_session(
    config: ConfigDict,
    source: Source,
    devices: Sequence[Any] | None = None,
    text: Any = None,
) -> Session:
    """Builds mesh, model functions and tokenizer; reads no weights.

    Args:
        config: validated for these devices.
        source: the model.
        devices: devices of the programs, possibly of another machine; None for JAX's own.
        text: a tokenizer, or an equivalent object; None for the source's own.

    Raises:
        InputError: there are too few devices, or they do not support config.model.attention.
    """
    cache_programs(config.cache)
    mesh = sharding.make_mesh(
        config.mesh.data,
        config.mesh.fsdp,
        config.mesh.tensor,
        devices,
        sequence=config.mesh.sequence,
    )
    sizes, costs = source.config, source.family.costs
    kernel = kernels.choose(
        config.model.attention,
        dtype=config.model.dtype,
        head_sizes=sizes.head_sizes,
        mesh=mesh,
        packed=config.train.pack_tokens > 0,
    )
    model = families.build(
        sizes,
        dtype=config.model.dtype,
        remat=config.model.remat,
        attention=kernel,
        cache=config.rollout.cache,
        platform=mesh.devices.flat[0].platform,
        sharding=choose_activation_sharding(
            config.rollout.layout,
            mesh,
            (costs.layer_weights(sizes) + costs.head_weights(sizes))
            * jnp.dtype(config.model.dtype).itemsize,
        ),
    )
    shapes = jax.eval_shape(
        lambda key: add_adapters(config, model, model.init(key), key), jax.random.key(0)
    )
    text = text or load_tokenizer(source)
    return Session(
        config=config,
        source=source,
        mesh=mesh,
        model=model,
        shapes=with_mesh_shardings(shapes, model, mesh),
        tokenizer=text,
        media=open_media(source, config.data.min_pixels, config.data.max_pixels),
        banned=banned_ids(source, text),
        attention=kernel.name,
    )


def load_params(session: Session, source: Source) -> Params:
    """Reads a source's weights, each parameter directly into its shards on the mesh.

    Raises:
        InputError: the weights are damaged or are not this model's.
    """
    if source.is_orbax:
        return restore_merged(source.directory, session.model, session.mesh)
    shardings = {
        sharding.path_name(path): leaf.sharding
        for path, leaf in jax.tree_util.tree_leaves_with_path(session.shapes)
    }

    def place(name: str, shape: tuple[int, ...], read: Callable[[Any], np.ndarray]) -> jax.Array:
        parts: dict[Any, np.ndarray] = {}

        def once(index: tuple[slice, ...]) -> np.ndarray:
            """Reads a shard that several local devices share only once."""
            ends = tuple((axis_slice.start, axis_slice.stop) for axis_slice in index)
            if ends not in parts:
                parts[ends] = read(index)
            return parts[ends]

        return jax.make_array_from_callback(shape, shardings[name], once)

    params, _ = huggingface.load_hf(source.directory, session.model.config, place=place)
    return params


def random_params(session: Session, seed: int) -> Params:
    """Draws new parameters, already sharded."""
    shardings = jax.tree.map(lambda s: s.sharding, lora.drop(session.shapes))
    return jax.jit(session.model.init, out_shardings=shardings)(jax.random.key(seed))


def initial_params(session: Session) -> Params:
    """Returns the parameters that a run starts from."""
    config, key = session.config, jax.random.key(session.config.seed)
    if config.model.random_init:
        params = random_params(session, config.seed)
    else:
        params = load_params(session, session.source)
    if not config.train.lora_rank:
        return params
    shardings = jax.tree.map(lambda s: s.sharding, session.shapes)
    adapt = jax.jit(
        lambda params, key: add_adapters(config, session.model, params, key),
        out_shardings=shardings,
        donate_argnums=0,
    )
    return adapt(params, key)


def state_shapes(session: Session, optimizer: Any) -> TrainState:
    """Returns the train state as ShapeDtypeStructs with shardings.

    Args:
        session: of the run.
        optimizer: its state is sharded like the parameters.

    Raises:
        InputError: no parameter would be trained.
    """
    train = session.config.train
    is_trained = optim.make_trained(train, session.model.part)
    trained, _ = optim.split(session.shapes, is_trained)
    if not jax.tree.leaves(trained):
        raise InputError(
            f"config.train.parts={train.parts} selects no parameter of this model, so nothing "
            "would be trained"
        )
    shapes = jax.eval_shape(lambda p: init_state(p, optimizer, is_trained), session.shapes)
    scalar = sharding.replicated(session.mesh)
    trained_shardings = jax.tree.map(lambda s: s.sharding, trained)
    shardings = TrainState(
        params=jax.tree.map(lambda s: s.sharding, session.shapes),
        opt_state=optim.state_shardings(optimizer, trained, trained_shardings, scalar),
        step=scalar,
        bad_steps=scalar,
    )
    return sharding.with_shardings(shapes, shardings)


def initial_state(session: Session, optimizer: Any) -> TrainState:
    """Returns the state before the first update, with the shardings of `state_shapes`."""
    is_trained = optim.make_trained(session.config.train, session.model.part)
    init = jax.jit(
        lambda params: init_state(params, optimizer, is_trained),
        out_shardings=jax.tree.map(lambda s: s.sharding, state_shapes(session, optimizer)),
        donate_argnums=0,
    )
    return init(initial_params(session))


def resolved_config(config: ConfigDict) -> dict[str, Any]:
    """Returns the configuration as in JSON: a nested dict, with tuples as lists."""
    return json.loads(config.to_json())
