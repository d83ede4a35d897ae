# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step II: the sampler, and the arithmetic that turns logits into tokens."""
