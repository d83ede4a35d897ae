# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Steps III and IV of the tiny model: each program compiled once for all tests of a worker."""

import functools

import jax

from rlvlm_jax import config as config_lib
from rlvlm_jax import optim, sharding
from rlvlm_jax.logprobs import make_logprobs_fn
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.trajectory import make_passes_fn, make_trajectory_fn
from rlvlm_jax.update import init_state, make_update_fn
from tests import tiny_model

POLICY = Policy(0.8, tiny_model.BANNED)
ONE = (1, 1, 1, 1)  # a mesh: devices along each of sharding.AXES
OF_THE_OLD = ("update__minibatch", "update__epochs", "algorithm__old_logprobs", "algorithm__kl_")
OF_THE_PASSES = ("update__logprob_", "algorithm__flat_positions")
NOT_OF_THE_UPDATE = (
    *("algorithm__advantage", "algorithm__filter", "algorithm__normalise"),
    *("algorithm__mask_truncated", "update__logprob_batch", "mesh__"),
)


@functools.cache
def defaults():
    return dict(config_lib.flatten(tiny_model.settings()))


def chosen(settings, prefixes=""):
    """Returns the settings that a program reads: others would compile the same program again."""
    return {
        key: settings[key]
        for key in sorted(settings)
        if key.startswith(prefixes) and settings[key] != defaults()[key.replace("__", ".")]
    }


def on_mesh(mesh, **settings):
    """Returns the configuration with the axes of the mesh."""
    axes = {f"mesh__{name}": size for name, size in zip(sharding.AXES, mesh, strict=True)}
    return tiny_model.settings(**settings, **axes)


def make_mesh(mesh):
    data, fsdp, sequence, tensor = mesh
    return sharding.make_mesh(data, fsdp, tensor, sequence=sequence)


def logprobs(chunk=4, **how):
    """Returns the jitted log-probabilities of rows."""
    return _logprobs(chunk, **how)


@functools.cache
def _logprobs(chunk, **how):
    return jax.jit(make_logprobs_fn(tiny_model.build()[0], POLICY, chunk, **how))


def passes(**settings):
    """Returns the jitted passes of step III."""
    read = chosen(settings, OF_THE_PASSES)
    if config_lib.old_logprobs(tiny_model.settings(**settings)) == "trainer":
        return _passes(**read, algorithm__old_logprobs="trainer")
    return _passes(**read, **chosen(settings, OF_THE_OLD))


@functools.cache
def _passes(**settings):
    config = tiny_model.settings(**settings)
    return jax.jit(make_passes_fn(tiny_model.build()[0], config, POLICY))


def trajectory(**settings):
    """Returns the rest of step III, jitted."""
    return _trajectory(**chosen(settings, (*OF_THE_OLD, "algorithm__")))


@functools.cache
def _trajectory(**settings):
    return jax.jit(make_trajectory_fn(tiny_model.settings(**settings)))


def update(mesh=ONE, **settings):
    """Returns step IV, jitted."""
    read = {key: x for key, x in settings.items() if not key.startswith(NOT_OF_THE_UPDATE)}
    return _update(mesh, **chosen(read))


@functools.cache
def _update(mesh, **settings):
    model, _ = tiny_model.build()
    config = on_mesh(mesh, **settings)
    optimizer, _ = optim.make_optimizer(config.update, 10, model.part)
    return jax.jit(make_update_fn(model, config, optimizer, POLICY, make_mesh(mesh)))


@functools.cache
def sharded_params(mesh=ONE):
    """Returns the parameters, on the mesh."""
    model, params = tiny_model.build()
    shapes = jax.eval_shape(lambda: params)
    shardings = sharding.param_shardings(shapes, model.param_rules, make_mesh(mesh))
    return jax.device_put(params, shardings)


def state(mesh=ONE, **settings):
    """Returns the state before the first update."""
    return _state(mesh, **chosen(settings, ("update__train_",)))


@functools.cache
def _state(mesh, **settings):
    model, _ = tiny_model.build()
    config = on_mesh(mesh, **settings)
    optimizer, _ = optim.make_optimizer(config.update, 10, model.part)
    trained = optim.make_trained(config.update, model.part)
    return jax.jit(lambda params: init_state(params, optimizer, trained))(sharded_params(mesh))
