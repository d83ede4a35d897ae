# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A reward function of the user's own, named `module:function` in the configuration.

The worker processes call it as `function(response: str, example: dict) -> float`. This file finds
and calls it; it does not know about scores.
"""

import importlib
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from rlvlm_jax.errors import InputError
from rlvlm_jax.rewards.pool import limited_memory


class CustomReward(NamedTuple):
    """How to find a user's function, also from another process."""

    name: str  # module:function
    directory: str  # put first on the module search path


def load_custom(name: str) -> CustomReward:
    """Checks that a user's reward function exists.

    Looks for the module in the current directory first, then on Python's search path.

    Args:
        name: `module:function`; the module may be dotted.

    Raises:
        InputError: the name is malformed, the module cannot be imported, or it has no such
            function.
    """
    custom = CustomReward(name, str(Path.cwd()))
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(
            f"config.rewards.custom={name!r} must name a function as 'module:function'"
        )
    if module == "__main__":
        raise InputError(
            f"config.rewards.custom={name!r} is in the running script, which the reward workers "
            "do not run; move the function into its own module"
        )
    try:
        _find(custom)
    except ImportError as error:
        raise InputError(
            f"config.rewards.custom={name!r}: the module {module!r} cannot be imported ({error}); "
            f"it was looked for in {custom.directory} and on PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise InputError(
            f"config.rewards.custom={name!r}: the module {module!r} has no {function!r}"
        ) from error
    except TypeError as error:
        raise InputError(f"config.rewards.custom={name!r}: {error}") from error
    return custom


def call(
    custom: CustomReward, response: str, example: Mapping[str, Any], memory: int
) -> float | str:
    """Calls a user's function, limited to `memory` bytes; runs in a worker.

    Returns:
        Its value, or a text with the error, including the traceback if there is one. (The exception
        itself might not be picklable.)
    """
    with limited_memory(memory):
        try:
            value = _find(custom)(response, dict(example))
            if isinstance(value, str) or not hasattr(value, "__float__"):
                return f"it returned {value!r:.200}, not a number"
            number = float(value)
        except BaseException:
            return traceback.format_exc()
    return number if math.isfinite(number) else f"it returned {number}, which is not finite"


@lru_cache(maxsize=8)
def _find(custom: CustomReward) -> Callable[..., Any]:
    if custom.directory not in sys.path:
        sys.path.insert(0, custom.directory)
    module, _, path = custom.name.partition(":")
    function = importlib.import_module(module)
    for part in path.split("."):
        function = getattr(function, part)
    if not callable(function):
        raise TypeError(f"{path!r} is a {type(function).__name__}, not a function")
    return function
