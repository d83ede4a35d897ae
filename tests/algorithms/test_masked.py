# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The masked reductions: against numpy on ragged masks, and on what numpy cannot do."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax.algorithms import masked

MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], bool)
VALUES = np.random.default_rng(0).normal(3.0, 2.0, MASK.shape).astype(np.float32)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_reductions_equal_numpy_over_the_valid_values(wrap):
    valid = VALUES[MASK]
    assert wrap(masked.sum)(VALUES, MASK) == pytest.approx(valid.sum(), rel=1e-6)
    assert wrap(masked.count)(MASK) == 6
    assert wrap(masked.mean)(VALUES, MASK) == pytest.approx(valid.mean(), rel=1e-6)
    assert wrap(masked.var)(VALUES, MASK) == pytest.approx(valid.var(ddof=1), rel=1e-6)
    biased = wrap(lambda v, m: masked.var(v, m, ddof=0))(VALUES, MASK)
    assert biased == pytest.approx(valid.var(), rel=1e-6)


def test_reductions_along_an_axis():
    rows = [row[keep] for row, keep in zip(VALUES, MASK, strict=True)]
    means = [row.mean() if row.size else 0.0 for row in rows]
    variances = [row.var(ddof=1) if row.size > 1 else 0.0 for row in rows]
    np.testing.assert_allclose(masked.mean(VALUES, MASK, 1), means, rtol=1e-6)
    np.testing.assert_allclose(masked.var(VALUES, MASK, 1), variances, rtol=1e-6)
    np.testing.assert_allclose(masked.mean(VALUES, MASK, 1, keepdims=True)[:, 0], means, rtol=1e-6)


def test_axis_reduction_equals_vmap_over_rows():
    np.testing.assert_array_equal(masked.mean(VALUES, MASK, 1), jax.vmap(masked.mean)(VALUES, MASK))
    np.testing.assert_allclose(
        masked.centre(VALUES, MASK, 1), jax.vmap(masked.centre)(VALUES, MASK), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 3e38])
def test_garbage_under_the_mask_changes_no_value_and_no_gradient(garbage):
    dirty = np.where(MASK, VALUES, np.float32(garbage))
    clean = np.where(MASK, VALUES, 0)
    for function in (masked.sum, masked.mean, masked.var, masked.centre, masked.whiten):
        np.testing.assert_array_equal(function(dirty, MASK), function(clean, MASK))
    gradient = jax.grad(lambda v: masked.mean(jnp.exp(masked.fill(v, MASK)), MASK))(dirty)
    np.testing.assert_allclose(gradient, np.where(MASK, np.exp(VALUES) / 6, 0), rtol=1e-6)


def test_nothing_valid_gives_zero():
    nothing = np.zeros_like(MASK)
    for function in (masked.sum, masked.mean, masked.var, masked.centre, masked.whiten):
        np.testing.assert_array_equal(
            function(VALUES, nothing), np.zeros_like(function(VALUES, MASK))
        )


def test_whiten_has_zero_mean_and_unit_variance_or_keeps_the_mean():
    whitened = np.asarray(masked.whiten(VALUES, MASK))
    assert whitened[MASK].mean() == pytest.approx(0.0, abs=1e-6)
    assert whitened[MASK].var(ddof=1) == pytest.approx(1.0, rel=1e-5)
    kept = np.asarray(masked.whiten(VALUES, MASK, keep_mean=True))
    np.testing.assert_allclose(kept[MASK], whitened[MASK] + VALUES[MASK].mean(), rtol=1e-6)
    assert not whitened[~MASK].any()
    assert not kept[~MASK].any()


@pytest.mark.parametrize("value", [0.1, -0.7, 1 / 3, 1e6 + 0.1])
def test_equal_values_are_exactly_centred(value):
    """The rounding error of a plain mean, divided by a deviation near 0, would be noise."""
    equal = np.where(MASK, np.float32(value), 7.0)
    assert not np.any(masked.centre(equal, MASK))
    assert not np.any(masked.var(equal, MASK))
    assert not np.any(masked.whiten(equal, MASK))


def test_is_last_marks_one_token_a_row():
    ragged = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0]], bool)
    expected = np.array([[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]], bool)
    np.testing.assert_array_equal(masked.is_last(ragged), expected)


def test_check_shape_names_the_array_and_both_shapes():
    masked.check_shape("scores", np.zeros((3, 2)), (3, None))
    with pytest.raises(ValueError, match=r"scores has shape \(3, 2\), expected \(any, 4\)"):
        masked.check_shape("scores", np.zeros((3, 2)), (None, 4))
    with pytest.raises(ValueError, match="scores"):
        masked.check_shape("scores", np.zeros(3), (3, 1))


def test_no_other_file_divides_by_a_sum_of_a_mask():
    """Two masked means with different guards is the classic bug; there is one library."""
    source = Path(masked.__file__).parents[1]
    pattern = re.compile(r"/\s*\(?\s*(jnp\.sum\()?\w*mask\w*\.?(sum|mean)?\(")
    offenders = [
        str(path)
        for path in source.rglob("*.py")
        if path.name != "masked.py" and pattern.search(path.read_text())
    ]
    assert not offenders
