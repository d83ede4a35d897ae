# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`config.mode="eval"`: evaluates a model on data sets, without training."""

from ml_collections import ConfigDict

from rlvlm_jax import startup
from rlvlm_jax.errors import InputError
from rlvlm_jax.evaluation import scheme
from rlvlm_jax.run import Run


def evaluate(config: ConfigDict, workdir: str) -> bool:
    """Evaluates `model.path` on those of `data.val`, `data.test` and `data.test_ood` that are set.

    Returns:
        True; False if a signal asked to stop.

    Raises:
        InputError: something the user can fix.
    """
    if not (config.data.val or config.data.test or config.data.test_ood):
        raise InputError(
            "config.mode='eval' needs questions: set config.data.val, config.data.test or "
            "config.data.test_ood"
        )
    run = Run(config, workdir)
    params = startup.initial_params(run.session)
    evaluate_set = scheme.make_evaluate_fn(run.session, config)
    with run:
        run.record_evaluations(evaluate_set, params)
    return not run.stopped
