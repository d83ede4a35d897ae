# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The table of all families. To add one, write its folder and its row."""

from typing import Any

from rlvlm_jax.models.family import Family
from rlvlm_jax.models.model import Config, Model
from rlvlm_jax.models.qwen2_vl.family import QWEN2_5_VL, QWEN2_VL

FAMILIES: dict[str, Family] = {  # model_type of config.json -> family
    "qwen2_vl": QWEN2_VL,
    "qwen2_5_vl": QWEN2_5_VL,
}


def build(config: Config, **options: Any) -> Model:
    """Returns the functions of a model; see `Family.build`."""
    return FAMILIES[config.family].build(config, **options)
