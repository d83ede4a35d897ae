# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How long a step takes, beside PyTorch on the same work and beside the device's limit."""
