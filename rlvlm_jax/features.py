# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A host cache of image features, so that a frozen vision tower encodes each prompt's images once.

Within a step, rollout, log-prob passes and update share one encoding anyway; the cache shares it
with later epochs and evaluations. Only for features that do not change during the run.

A batch uses the cache only if all its prompts are cached. Otherwise the whole batch is encoded: the
compiled program has one shape, so encoding some of its rows costs as much as all.

The cache keeps the first rows until the budget is used up, and never replaces any. In shuffled
epochs every row is used once per epoch. Replacing the least recently used row would discard exactly
the rows needed next and never hit, while rows that stay hit in every epoch. Evaluation sets always
have the same order, so their first batches hit as a whole. If not all training images fit, few
whole batches hit.
"""

import hashlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlvlm_jax import sharding
from rlvlm_jax.types import Array, Params, Prompts

GIB = 2**30


class _Encoded(NamedTuple):
    """A batch that is being copied to the host."""

    keys: list[bytes | None]
    sizes: np.ndarray  # int[N], image tokens
    features: Array  # [N, M, D] on the device


class FeatureCache:
    """Features [m, D] of prompts with m image tokens, without padding, by a digest of the images.

    Attributes:
        used_bytes: of the cached rows; never more than the budget.
    """

    def __init__(self, budget_bytes: int, width: int, dtype: Any, merge_size: int, mesh: Any):
        """Makes an empty cache.

        Args:
            budget_bytes: of host memory; 0 = off: every batch is encoded and nothing is cached.
            width: D.
            dtype: of the features.
            merge_size: patches along the side of the square that becomes one image token.
            mesh: of the returned features, which are sharded like a batch.
        """
        self._budget = budget_bytes
        self._width, self._dtype = width, jnp.dtype(dtype)
        self._block = merge_size**2
        self._mesh = mesh
        self._rows: dict[bytes, np.ndarray] = {}
        self._pending: _Encoded | None = None
        self._full = False
        self._prompts = self._hits = 0
        self.used_bytes = 0

    def encode(
        self,
        encode: Callable[[Params, Prompts], Array] | None,
        params: Params,
        batch: Prompts,
        host_batch: Prompts,
        counted: bool = True,
    ) -> Array | None:
        """Returns the features of a batch, from the host if all of them are cached.

        Args:
            encode: compiled; runs if a prompt is missing. None if every pass computes its own
                features, because they are trained.
            params: with the same vision tower and connector at every call.
            batch: on the device.
            host_batch: the same as NumPy arrays.
            counted: whether the batch counts in `metrics`.

        Returns:
            [N, M, D] on the mesh, with the bits that `encode` gives for this batch shape, except
            that padding is 0 if they come from the host. None without `encode`.
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
            self._pending = _Encoded(keys, sizes, features)
        return features

    def metrics(self) -> dict[str, float]:
        """Returns memory/feature_cache_hits and _gib, and resets the counts; {} if it is off.

        Hits are the share of the prompts since the last call whose features came from the host.
        Prompts without an image need no features, so they never cause a miss.
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
        """Caches the rows of the last encoded batch; its copy to the host has long finished."""
        if self._pending is None:
            return
        keys, sizes, features = self._pending
        self._pending = None
        values = np.asarray(features)
        for key, size, row in zip(keys, sizes.tolist(), values, strict=True):
            if key is None or key in self._rows:
                continue
            unpadded = row[:size].copy()  # a copy, or the whole batch would stay in memory
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

    def _padded(self, keys: list[bytes | None], host_batch: Prompts) -> np.ndarray:
        """Returns the padded features [N, M, D] of cached prompts."""
        n, patches = host_batch.patch_image.shape
        features = np.zeros((n, patches // self._block, self._width), self._dtype)
        for row, key in enumerate(keys):
            if key is not None:
                unpadded = self._rows[key]
                features[row, : len(unpadded)] = unpadded
        return features


def row_key(batch: Prompts, row: int, patches: int) -> bytes | None:
    """Returns the cache key for the images of one prompt in a batch of this shape.

    The key is a digest of everything that the tower reads of the row: it does not depend on the
    source of an image, and a changed image has another key. It includes the batch shape, which
    affects the last bits of the features: a wider batch sums the same row in another order. The
    row's position in the batch and the other rows do not affect them.

    Args:
        batch: on the host.
        row: of the prompt.
        patches: number of its patches without padding.

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
    """Returns the cache of a run; it is off if the run trains the vision side.

    It is also off in runs of several processes, because none of them has all rows of a batch.

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
