# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Image features on the host, so that a frozen vision tower sees each prompt's images once.

Within a step one encoding serves rollout, log-prob passes and update anyway; here it serves later
epochs and evaluations too. Only for features that stay what they are while the run lasts.

A batch takes its features from here where all its prompts are known, and is encoded whole
otherwise: the compiled program has one shape, so encoding some rows of it costs as much as all.

What is kept are the rows that came first, until the budget is used up; nothing is ever replaced.
In shuffled epochs every row is wanted once an epoch, so replacing the least recently used row
throws out the very ones that are wanted next and finds nothing, while rows that stay are found in
every epoch; and evaluation sets come in the same order each time, so the batches at their
beginning are found whole. Where not all training images fit, few whole batches are found.
"""

import hashlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlvlm_jax import sharding
from rlvlm_jax.types import Array, Batch, Params

GIB = 2**30


class _Encoded(NamedTuple):
    """A batch on its way to the host."""

    keys: list[bytes | None]
    sizes: np.ndarray  # int[N], image tokens
    features: Array  # [N, M, D] on the device


class FeatureCache:
    """Features [m, D] of prompts with m image tokens, without padding, by what was encoded.

    Attributes:
        used_bytes: of the rows kept; never more than the budget.
    """

    def __init__(self, budget_bytes: int, width: int, dtype: Any, merge_size: int, mesh: Any):
        """Makes an empty one.

        Args:
            budget_bytes: of host memory; 0 = off, every batch is encoded and nothing is kept.
            width: D.
            dtype: of the features.
            merge_size: patches along the side of the square that becomes one image token.
            mesh: on which features are placed, divided like a batch.
        """
        self._budget = budget_bytes
        self._width, self._dtype = width, jnp.dtype(dtype)
        self._block = merge_size**2
        self._mesh = mesh
        self._rows: dict[bytes, np.ndarray] = {}
        self._arriving: _Encoded | None = None
        self._full = False
        self._prompts = self._hits = 0
        self.used_bytes = 0

    def encode(
        self,
        encode: Callable[[Params, Batch], Array] | None,
        params: Params,
        batch: Batch,
        host_batch: Batch,
        counted: bool = True,
    ) -> Array | None:
        """Returns the features of a batch, from the host where all of them are there.

        Args:
            encode: compiled; runs where a prompt is missing. None where every pass computes its
                own, because they are trained.
            params: whose vision tower and connector are the same at every call.
            batch: on the device.
            host_batch: the same as NumPy arrays.
            counted: whether the batch counts in `metrics`.

        Returns:
            [N, M, D] on the mesh, with the bits that `encode` gives at this shape of batch; 0 at
            padding where they come from the host. None without `encode`.
        """
        if encode is None:
            return None
        if not self._budget:
            return encode(params, batch)
        self._settle()
        sizes = np.count_nonzero(host_batch.patch_image, axis=1)
        keys = [row_key(host_batch, row, size) for row, size in enumerate(sizes)]
        sizes //= self._block
        all_cached = all(key is None or key in self._rows for key in keys)
        if counted:
            self._prompts += len(keys)
            self._hits += len(keys) if all_cached else 0
        if all_cached:
            return sharding.put_batch(self._padded(keys, host_batch), self._mesh)
        features = encode(params, batch)
        if not self._full:
            features.copy_to_host_async()
            self._arriving = _Encoded(keys, sizes, features)
        return features

    def metrics(self) -> dict[str, float]:
        """Returns memory/feature_cache_hits and _gib, and counts anew; nothing where it is off.

        Hits are the share of the prompts since the last call whose features came from the host;
        those without an image need none, so they never keep a batch from being found.
        """
        self._settle()
        prompts, hits = self._prompts, self._hits
        self._prompts = self._hits = 0
        if not prompts:
            return {}
        return {
            "memory/feature_cache_hits": hits / prompts,
            "memory/feature_cache_gib": self.used_bytes / GIB,
        }

    def _settle(self) -> None:
        """Keeps the rows of the last batch that was encoded; its copy has long arrived."""
        if self._arriving is None:
            return
        keys, sizes, features = self._arriving
        self._arriving = None
        values = np.asarray(features)
        for key, size, row in zip(keys, sizes.tolist(), values, strict=True):
            if key is None or key in self._rows:
                continue
            unpadded = row[:size].copy()  # or the whole batch would stay in memory
            if self.used_bytes + unpadded.nbytes > self._budget:
                self._full = True
                logging.info(
                    "the features of %d prompts fill config.data.feature_cache_gib=%g; further "
                    "ones are computed each time",
                    *(len(self._rows), self._budget / GIB),
                )
                return
            self._rows[key] = unpadded
            self.used_bytes += unpadded.nbytes

    def _padded(self, keys: list[bytes | None], host_batch: Batch) -> np.ndarray:
        """Returns the features [N, M, D] of known prompts."""
        n, patches = host_batch.patch_image.shape
        features = np.zeros((n, patches // self._block, self._width), self._dtype)
        for row, key in enumerate(keys):
            if key is not None:
                unpadded = self._rows[key]
                features[row, : len(unpadded)] = unpadded
        return features


def row_key(batch: Batch, row: int, patches: int) -> bytes | None:
    """Returns what stands for the images of one prompt in a batch of this shape.

    It is a digest of all that the tower reads of the row, so that the same images are the same
    wherever they come from, and an image that has changed is another. The shape belongs to it
    because it decides the last bits of the features: the same row in a wider batch is summed in
    another order. Neither its place in the batch nor the other rows decide any.

    Args:
        batch: on the host.
        row: of the prompt.
        patches: how many of its patches count; the others are padding.

    Returns:
        32 bytes, or None without an image.
    """
    if not patches:
        return None
    digest = hashlib.blake2b(repr(batch.patches.shape[:2]).encode(), digest_size=32)
    for array in (batch.patches, batch.patch_coords, batch.patch_image, batch.patch_window):
        digest.update(np.ascontiguousarray(array[row, :patches]))
    return digest.digest()


def make_cache(session: Any) -> FeatureCache:
    """Returns the cache of a run: off where its vision side is trained.

    It is off in runs of several processes too, none of which sees all rows of a batch.

    Args:
        session: of the run, see startup.Session.
    """
    config, model = session.config, session.model
    enabled = session.features_frozen and jax.process_count() == 1
    return FeatureCache(
        int(config.data.feature_cache_gib * GIB) if enabled else 0,
        model.config.width,
        config.model.dtype,
        session.spec.merge_size,
        session.mesh,
    )
