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
import numpy as np
from jax.sharding import Mesh

from rlvlm_jax import sharding
from rlvlm_jax.data.prompts import Media
from rlvlm_jax.types import Params, Prompts

GIB = 2**30
Features = Any  # a pytree of the model family, each array [N, M, ...]


class _Encoded(NamedTuple):
    """A batch that is being copied to the host."""

    keys: list[bytes | None]
    sizes: np.ndarray  # int[N], image tokens
    features: Features  # on the device


class FeatureCache:
    """Features of prompts, without padding, by a digest of their images.

    Attributes:
        used_bytes: of the cached rows; never more than the budget.
    """

    def __init__(
        self,
        budget_bytes: int,
        media: Media,
        image_token_id: int,
        shapes: Callable[[Prompts], Features],
        mesh: Mesh,
    ):
        """Makes an empty cache.

        Args:
            budget_bytes: of host memory; 0 = off: every batch is encoded and nothing is cached.
            media: of the model.
            image_token_id: of the model; a prompt has a feature for each.
            shapes: prompts -> ShapeDtypeStructs of their features.
            mesh: of the returned features, which are sharded like a batch.
        """
        self._budget = budget_bytes
        self._media, self._image_token_id = media, image_token_id
        self._shapes_of = shapes
        self._shapes: dict[Any, Features] = {}  # by the shape of the batch
        self._mesh = mesh
        self._rows: dict[bytes, list[np.ndarray]] = {}
        self._pending: _Encoded | None = None
        self._full = False
        self._prompts = self._hits = 0
        self.used_bytes = 0

    def encode(
        self,
        encode: Callable[[Params, Prompts], Features] | None,
        params: Params,
        batch: Prompts,
        host_batch: Prompts,
        counted: bool = True,
    ) -> Features | None:
        """Returns the features of a batch, from the host if all of them are cached.

        Args:
            encode: compiled; runs if a prompt is missing. None if every pass computes its own
                features, because they are trained.
            params: with the same vision tower and connector at every call.
            batch: on the device.
            host_batch: the same as NumPy arrays.
            counted: whether the batch counts in `take_counts`.

        Returns:
            A pytree [N, M, ...] on the mesh, with the bits that `encode` gives for this batch
            shape, except that padding is 0 if they come from the host. None without `encode`.
        """
        if encode is None:
            return None
        if not self._budget:
            return encode(params, batch)
        self._settle()
        is_image = (host_batch.tokens == self._image_token_id) & host_batch.mask
        sizes = np.count_nonzero(is_image, axis=1)
        shape = sharding.shape_key(host_batch.media)
        keys = [
            row_key(shape, row) if size else None
            for row, size in zip(self._media.rows(host_batch.media), sizes, strict=True)
        ]
        all_cached = all(key is None or key in self._rows for key in keys)
        if counted:
            self._prompts += len(keys)
            self._hits += len(keys) if all_cached else 0
        if all_cached:
            if shape not in self._shapes:
                self._shapes[shape] = self._shapes_of(host_batch)
            return sharding.put_batch(self._padded(keys, self._shapes[shape]), self._mesh)
        features = encode(params, batch)
        if not self._full:
            for leaf in jax.tree.leaves(features):
                leaf.copy_to_host_async()
            self._pending = _Encoded(keys, sizes, features)
        return features

    def take_counts(self) -> tuple[int, int, float]:
        """Returns (prompts looked up since the last call, those from the host, GiB used)."""
        self._settle()
        counts = self._prompts, self._hits, self.used_bytes / GIB
        self._prompts = self._hits = 0
        return counts

    def _settle(self) -> None:
        """Caches the rows of the last encoded batch; its copy to the host has long finished."""
        if self._pending is None:
            return
        keys, sizes, features = self._pending
        self._pending = None
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(features)]
        for row, (key, size) in enumerate(zip(keys, sizes.tolist(), strict=True)):
            if key is None or key in self._rows:
                continue
            # Copies, or the whole batch would stay in memory.
            unpadded = [leaf[row, :size].copy() for leaf in leaves]
            num_bytes = sum(part.nbytes for part in unpadded)
            if self.used_bytes + num_bytes > self._budget:
                self._full = True
                logging.info(
                    "the features of %d prompts fill config.data.feature_cache_gib=%g; further "
                    "ones are computed each time",
                    *(len(self._rows), self._budget / GIB),
                )
                return
            self._rows[key] = unpadded
            self.used_bytes += num_bytes

    def _padded(self, keys: list[bytes | None], shapes: Features) -> Features:
        """Returns the features of cached prompts, padded to these shapes."""
        leaves, structure = jax.tree.flatten(shapes)
        leaves = [np.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
        for row, key in enumerate(keys):
            for leaf, unpadded in zip(leaves, self._rows.get(key, ()), strict=False):
                leaf[row, : len(unpadded)] = unpadded
        return structure.unflatten(leaves)


def row_key(shape: Any, row: Any) -> bytes:
    """Returns the cache key for the images of one prompt in a batch.

    The key is a digest of everything that the tower reads of the row: it does not depend on the
    source of an image, and a changed image has another key. It includes the batch shape, which
    affects the last bits of the features: a wider batch sums the same row in another order. The
    row's position in the batch and the other rows do not affect them.

    Args:
        shape: `sharding.shape_key` of the batch's media.
        row: the prompt's media without padding.
    """
    digest = hashlib.blake2b(repr(shape).encode(), digest_size=32)
    for array in jax.tree.leaves(row):
        digest.update(np.ascontiguousarray(array))
    return digest.digest()
