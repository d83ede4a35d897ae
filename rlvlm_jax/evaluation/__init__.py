# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of models: scores of samples here; `scheme` draws the samples.

`pass_at_k` and `reflection` are plain Python; importing this package loads no JAX.
"""

from rlvlm_jax.evaluation.scores import pass_at_k, reflection

__all__ = ["pass_at_k", "reflection"]
