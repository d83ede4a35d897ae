# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Steps III and IV of the tiny model: each program compiled once for all tests of a worker."""

import functools

import jax
import numpy as np

from rlvlm_jax import config as config_lib
from rlvlm_jax import logprobs as logprobs_lib
from rlvlm_jax import optim, sharding
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.trajectory import make_trajectory, run_passes
from rlvlm_jax.update import (
    Setup,
    cut,
    init_state,
    put_minibatches,
    rl_loss,
    train_step,
    update_metrics,
)
from tests import tiny_model

POLICY = Policy(0.8, tiny_model.BANNED)
ONE = (1, 1, 1, 1)  # a mesh: devices along each of sharding.AXES
OF_THE_OLD = ("train__minibatch", "train__epochs", "algorithm__old_logprobs", "algorithm__kl_")
OF_THE_PASSES = ("train__logprob_", "algorithm__flat_positions")
NOT_OF_THE_UPDATE = (
    *("algorithm__advantage", "algorithm__filter", "algorithm__whiten"),
    *("algorithm__mask_truncated", "train__logprob_batch", "mesh__"),
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
    model, _ = tiny_model.build()
    return jax.jit(functools.partial(logprobs_lib.logprobs, model, POLICY, chunk, **how))


def passes(**settings):
    """Returns the jitted passes of step III."""
    read = chosen(settings, OF_THE_PASSES)
    if config_lib.old_logprobs(tiny_model.settings(**settings)) == "trainer":
        return _passes(**read, algorithm__old_logprobs="trainer")
    return _passes(**read, **chosen(settings, OF_THE_OLD))


@functools.cache
def _passes(**settings):
    model, config = tiny_model.build()[0], tiny_model.settings(**settings)
    return jax.jit(functools.partial(run_passes, model, config, POLICY))


def trajectory(**settings):
    """Returns the rest of step III, jitted."""
    return _trajectory(**chosen(settings, (*OF_THE_OLD, "algorithm__")))


@functools.cache
def _trajectory(**settings):
    return jax.jit(functools.partial(make_trajectory, tiny_model.settings(**settings)))


def step(mesh=ONE, **settings):
    """Returns the update, jitted: ((state, trajectory), minibatches) -> (the same, stats)."""
    read = {key: x for key, x in settings.items() if not key.startswith(NOT_OF_THE_UPDATE)}
    return _step(mesh, **chosen(read))


@functools.cache
def _step(mesh, **settings):
    model, _ = tiny_model.build()
    config = on_mesh(mesh, **settings)
    optimizer, _ = optim.make_optimizer(config.train, 10, model.part)
    setup = Setup(model, config, POLICY, optimizer, make_mesh(mesh))
    return jax.jit(functools.partial(jax.lax.scan, functools.partial(train_step, setup, rl_loss)))


def update(mesh=ONE, **settings):
    """Returns step IV: (state, trajectory, order, plans) -> (state, metrics), as in `train`."""
    return functools.partial(_update, step(mesh, **settings), on_mesh(mesh, **settings), mesh)


def _update(step, config, mesh, state, trajectory, order, plans=None):
    order = np.asarray(order)
    minibatches = put_minibatches(cut(config, order, jax.device_get(plans)), make_mesh(mesh))
    (state, _), stats = step((state, trajectory), minibatches)
    stats = jax.device_get(stats)
    in_update = np.asarray(trajectory.sampled).any(axis=1)
    metrics, diffs = update_metrics(stats, order, in_update)
    return state, metrics if diffs is None else metrics | {"logprob_diffs": diffs}


@functools.cache
def sharded_params(mesh=ONE):
    """Returns the parameters, on the mesh."""
    model, params = tiny_model.build()
    shapes = jax.eval_shape(lambda: params)
    shardings = sharding.param_shardings(shapes, model.param_rules, make_mesh(mesh))
    return jax.device_put(params, shardings)


def state(mesh=ONE, **settings):
    """Returns the state before the first update."""
    return _state(mesh, **chosen(settings, ("train__parts",)))


@functools.cache
def _state(mesh, **settings):
    model, _ = tiny_model.build()
    config = on_mesh(mesh, **settings)
    optimizer, _ = optim.make_optimizer(config.train, 10, model.part)
    trained = optim.make_trained(config.train, model.part)
    return jax.jit(lambda params: init_state(params, optimizer, trained))(sharded_params(mesh))
