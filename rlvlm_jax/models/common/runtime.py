# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`Runtime`: how a model computes, as opposed to what it computes."""

from typing import Any, NamedTuple

from rlvlm_jax.models.common.activation_sharding import ActivationSharding
from rlvlm_jax.models.common.kernels import PLAIN, Kernel


class Runtime(NamedTuple):
    """Static settings of a model's functions.

    Attributes:
        dtype: compute dtype. Parameters, softmax, norms, rotary angles and logits are float32.
        remat: what the backward pass recomputes, a key of `layers.REMAT_POLICIES`.
        kernel: attention kernel for full sequences; decoding is plain.
        cache: how decoding stores keys and values, one of `cache.KINDS`.
        platform: JAX's name for the platform of the decoding devices.
        sharding: of activations and decoding weights.
    """

    dtype: Any
    remat: str = "none"
    kernel: Kernel = PLAIN
    cache: str = "model"
    platform: str = "cpu"
    sharding: ActivationSharding = ActivationSharding()

    @property
    def scans_layers(self) -> bool:
        """Whether decoding is a scan over layers.

        On CPU it is unrolled, because a scan there copies the weights and the cache of every layer
        for every token. Other platforms read a slice in place. For a large model, unrolled layers
        take minutes and gigabytes to compile.
        """
        return self.platform != "cpu"
