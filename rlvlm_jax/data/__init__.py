# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step I, on the host: turns problems, images and text into batches of static shape."""
