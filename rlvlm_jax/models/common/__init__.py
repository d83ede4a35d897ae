# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What model families share: layers, attention, caches, adapters, sharding, exactness on CPU."""
