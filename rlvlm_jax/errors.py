# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Raised for anything the user can fix: a config, a data file, weights, a checkpoint."""


class InputError(ValueError):
    """Says in one sentence what was given, what was expected, and what to change.

    Commands print the message without a traceback and exit with status 2.
    """
