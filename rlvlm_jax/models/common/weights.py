# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tables from the tensors of a Hugging Face directory to our parameters; `convert` follows them."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Rule(NamedTuple):
    """One row of the table with its sizes."""

    name: str  # Hugging Face name of the first generation; {l} stands for the layer
    path: str  # ours, levels separated by "/"
    shape: tuple[int, ...]  # of one Hugging Face tensor
    layers: int | None  # how many are stacked; None without {l}

    @property
    def our_shape(self) -> tuple[int, ...]:
        """Shape of our parameter, layers first."""
        rows, *rest = self.shape
        inner = (rows, math.prod(rest)) if self.path.endswith("/weight") else self.shape
        return inner if self.layers is None else (self.layers, *inner)

    def names(self) -> list[str]:
        """Returns the Hugging Face names of the parameter's tensors, in layer order."""
        if self.layers is None:
            return [self.name]
        return [self.name.format(l=layer) for layer in range(self.layers)]


class WeightTable(NamedTuple):
    """All that `convert` knows about the weights of a model."""

    rules: tuple[Rule, ...]  # each tensor and each parameter exactly once
    tied: tuple[str, str] | None  # a tensor that may be stored although it equals a second one
    renamed: tuple[tuple[str, str], ...] = ()  # newer prefixes of names -> those in `rules`
    derived: str = r"(?!)"  # matches names of tensors that the configuration determines


def make_rules(
    rows: Iterable[tuple[str, str, str]], sizes: Mapping[str, int], layers: Mapping[str, int]
) -> tuple[Rule, ...]:
    """Returns the rules of a table.

    Args:
        rows: (Hugging Face name, our path, letters of the Hugging Face shape). {l} in a name runs
            over the layers, which we stack on a leading axis. A path that ends in "weight" is a
            matrix [out, in]; further axes are flattened into the second.
        sizes: of each letter.
        layers: first level of a path -> how many layers it stacks.
    """
    rules = []
    for name, path, letters in rows:
        shape = tuple(sizes[letter] for letter in letters.split())
        stacked = layers[path.partition("/")[0]] if "{l}" in name else None
        rules.append(Rule(name, path, shape, stacked))
    return tuple(rules)
