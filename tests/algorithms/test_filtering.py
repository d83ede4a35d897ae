# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The accuracy filter and the overlong penalty, by hand."""

import functools

import jax
import numpy as np
import pytest

from rlvlm_jax.algorithms import filtering


@pytest.mark.parametrize("group_size", [3, 8, 10])
def test_keeps_exactly_the_groups_between_the_limits(group_size):
    """All counts 0..G at once; 1 of 10 and 9 of 10 lie on the limits and are kept."""
    accuracy = np.tril(np.ones((group_size + 1, group_size)), -1)  # row c has c right
    keep = jax.jit(functools.partial(filtering.keep_groups, group_size=group_size))(
        accuracy.ravel()
    )
    right = np.arange(group_size + 1)
    expected = (10 * right >= group_size) & (10 * right <= 9 * group_size)
    np.testing.assert_array_equal(keep, np.repeat(expected, group_size))


def test_limits_are_arguments():
    accuracy = [1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1]
    kept = filtering.keep_groups(accuracy, 4, low=0.5, high=1.0)
    np.testing.assert_array_equal(kept[::4], [False, True, True])


def test_a_group_of_one_is_all_or_nothing():
    np.testing.assert_array_equal(filtering.keep_groups([0.0, 1.0], 1), [False, False])


def test_overlong_penalty_by_hand():
    lengths = [0, 6, 7, 8, 9, 10, 11, 500]
    penalty = jax.jit(lambda x: filtering.overlong_penalty(x, 10, 4))(np.array(lengths))
    np.testing.assert_allclose(penalty, [0, 0, -0.25, -0.5, -0.75, -1, -1, -1])
    assert penalty.dtype == np.float32


def test_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="does not divide"):
        filtering.keep_groups(np.ones(5), 2)
    with pytest.raises(ValueError, match="low=0.9"):
        filtering.keep_groups(np.ones(4), 2, low=0.9, high=0.1)
    with pytest.raises(ValueError, match="accuracy has shape"):
        filtering.keep_groups(np.ones((2, 2)), 2)
    with pytest.raises(ValueError, match="cache_length=11"):
        filtering.overlong_penalty(np.ones(2), 10, 11)
