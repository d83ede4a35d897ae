# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The networks: `build(config) -> Model`; a folder per family; `common/` is shared."""

from rlvlm_jax.models.model import Model
from rlvlm_jax.models.qwen2_vl.config import QwenVLConfig
from rlvlm_jax.models.qwen2_vl.model import build, part

__all__ = ["Model", "QwenVLConfig", "build", "part"]
