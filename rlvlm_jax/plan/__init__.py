# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Predicts what a run needs on other hardware; see `__main__`."""
