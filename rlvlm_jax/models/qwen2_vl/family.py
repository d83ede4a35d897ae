# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The rows of Qwen2-VL and Qwen2.5-VL in the table of families."""

from rlvlm_jax.models.family import Family
from rlvlm_jax.models.qwen2_vl import config, media, published
from rlvlm_jax.models.qwen2_vl.costs import COSTS
from rlvlm_jax.models.qwen2_vl.model import build
from rlvlm_jax.models.qwen2_vl.weights import weight_table

END_OF_TURN, END_OF_TEXT = 151645, 151643


def _family(model_type: str, **more) -> Family:
    sizes = {n: c for n, c in published.PUBLISHED.items() if c.family == model_type}
    return Family(
        read_config=config.from_hf,
        write_config=config.to_hf,
        build=build,
        weights=weight_table,
        media=media.ImageSpec.from_files,
        costs=COSTS,
        architecture=config.ARCHITECTURE[model_type],
        hf_inputs=media.hf_inputs,
        stop_ids=(END_OF_TURN, END_OF_TEXT),
        published=sizes,
        **more,
    )


QWEN2_VL = _family("qwen2_vl")
QWEN2_5_VL = _family("qwen2_5_vl", benchmark=published.BENCHMARK)
