# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How responses are measured, and the evaluation of whole question sets inside a run."""

from rlvlm_jax.evaluation.scores import pass_at_k, reflection

__all__ = ["pass_at_k", "reflection"]
