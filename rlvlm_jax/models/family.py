# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`Family`: all that the rest of the program knows about a kind of model.

`families.FAMILIES` is the table of families; nothing else names one. docs/adding-a-model.md tells
how to add a row.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rlvlm_jax.data.prompts import Media
from rlvlm_jax.models.common.costs import Costs
from rlvlm_jax.models.common.weights import WeightTable
from rlvlm_jax.models.model import Config, Model


class Family(NamedTuple):
    """One row of `families.FAMILIES`.

    Attributes:
        read_config: (contents of config.json, of preprocessor_config.json or None) -> Config;
            raises InputError for anything that the model does not compute.
        write_config: Config -> contents of a config.json.
        build: (Config, dtype, remat, attention, cache, platform, sharding) -> Model, all but the
            first by name.
        weights: Config -> names and shapes of its tensors.
        media: ({name: text} of the model's files, least pixels or 0, most pixels or 0) -> Media.
        costs: FLOPs and bytes of its passes.
        architecture: name of its class in transformers.
        hf_inputs: (Config, media of one prompt) -> {name: array} that this class takes.
        stop_ids: ids that end a turn and a text, for published models without tokenizer files.
        published: name -> Config, the sizes on the hub.
        benchmark: name -> Config of what the benchmark times.
    """

    read_config: Callable[[Any, Any], Config]
    write_config: Callable[[Config], dict[str, Any]]
    build: Callable[..., Model]
    weights: Callable[[Config], WeightTable]
    media: Callable[[Mapping[str, str], int, int], Media]
    costs: Costs
    architecture: str = ""
    hf_inputs: Callable[[Config, Any], dict[str, np.ndarray]] | None = None
    stop_ids: tuple[int, ...] = ()
    published: Mapping[str, Config] = {}
    benchmark: Mapping[str, Config] = {}
