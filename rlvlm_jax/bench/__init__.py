# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Times a step, next to PyTorch on the same work and next to the device's limit."""
