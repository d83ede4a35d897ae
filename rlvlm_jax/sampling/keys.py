# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of step II, the sampling of responses."""

from rlvlm_jax.keys import Key

ROLLOUT = (
    Key("prompts", 16, "per step (N)", above=0),
    Key("samples", 8, "responses per prompt (G)", above=0),
    Key("max_tokens", 64, "limit of a response (R)", above=0, unit="tokens"),
    Key("temperature", 1.0, "of the policy, in sampling and training", least=0),
    Key("top_p", 1.0, "probability mass that is sampled from", least=0, most=1),
    Key("top_k", 0, "tokens that are sampled from; 0 = all", least=0),
    Key(
        "cache",
        "model",
        "dtype of the KV cache: model = model.dtype; int8 takes a quarter of float32's memory; "
        "every decode step converts keys and values to model.dtype",
    ),
    Key(
        "layout",
        "auto",
        "sharding of the weights for decoding: train = as in training, gathered for every token; "
        "replicated = whole on each device; tensor = by heads, MLP width and vocabulary over "
        "mesh.fsdp x mesh.tensor; auto = replicated up to 1 GiB of weights, else tensor",
        harmless=True,
    ),
)
