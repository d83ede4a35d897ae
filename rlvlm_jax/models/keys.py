# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of the model."""

from rlvlm_jax.keys import Key

MODEL = (
    Key("path", "bundled", "Hugging Face directory or repository, or an orbax directory"),
    Key(
        "dtype",
        "float32",
        "of computation; parameters and log-probs are always float32",
        choices=("float32", "bfloat16"),
    ),
    Key(
        "remat",
        "elementwise",
        "what the backward pass recomputes: elementwise = everything in a layer except products; "
        "dots = everything except products with weights; full = everything",
        harmless=True,
    ),
    Key(
        "attention",
        "auto",
        "kernel for full sequences: cudnn (GPU, bfloat16), splash (TPU); auto = cudnn on GPUs if "
        "possible, splash on TPUs, plain on CPU",
        harmless=True,
    ),
    Key("random_init", False, "start from random weights with the sizes of model.path"),
)
