# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A case that is timed in a moment."""

import dataclasses

from rlvlm_jax.bench import work

_MODEL = work.CASES["4m-64"].model
MODEL = dataclasses.replace(
    _MODEL,
    vocab_size=600,
    width=128,
    layers=2,
    heads=2,
    kv_heads=1,
    mlp_width=96,
    vision=dataclasses.replace(
        _MODEL.vision,
        depth=2,
        width=32,
        heads=2,
        mlp_width=48,
        out_width=128,
        window_size=56,
        full_attention_blocks=(1,),
    ),
)
TINY = work.Case("tiny", MODEL, prompts=2, samples=2, length=24, image_tokens=16, new=5)
