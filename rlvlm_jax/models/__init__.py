# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The networks: a folder per family; `common/` is shared, `families` has the table of them."""
