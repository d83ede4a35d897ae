# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reinforcement learning for vision-language models in JAX.

`VLM` is imported on first use, so `import rlvlm_jax.rewards` in a worker process does not load JAX.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "VLM":
        from rlvlm_jax.vlm import VLM

        return VLM
    raise AttributeError(f"module 'rlvlm_jax' has no attribute {name!r}")
