# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What every command shares: reading `--config`, and exit codes.

Exit codes: 0 done; 2 something the user can fix, in one sentence on stderr; 75 preempted after a
complete checkpoint was written, or before the run began; 1 anything else, with its traceback.
Imports no JAX.
"""

import sys
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from rlvlm_jax import distributed, old_keys
from rlvlm_jax.config import KEYS
from rlvlm_jax.errors import InputError

DONE, BAD_INPUT, PREEMPTED = 0, 2, distributed.PREEMPTED


def _check_keys(argv: Sequence[str]) -> None:
    """Refuses an unknown `--config.KEY`; the message says what to use instead."""
    for argument in argv:
        name = argument.split("=", 1)[0].lstrip("-")
        for prefix in ("config.", "noconfig."):
            if argument.startswith("-") and name.startswith(prefix):
                key = name.removeprefix(prefix)
                if key not in KEYS:
                    raise InputError(old_keys.explain(key))


def parse_config(argv: Sequence[str], command: str) -> tuple[ConfigDict, str]:
    """Reads `--config=FILE[:ARG] --workdir=DIR [--config.key=value ...]`.

    Args:
        argv: without the program name.
        command: for the usage line, such as "rlvlm_jax.main".

    Returns:
        (configuration, work directory).

    Raises:
        InputError: a flag, key or file is missing or unknown, or a value has the wrong type.
    """
    usage = (
        f"usage: python -m {command} --config=configs/X.py[:ARG] --workdir=DIR "
        "[--config.key=value ...]"
    )
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", lock_config=True, flag_values=values, sys_argv=[command, *argv]
    )
    flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values)
    config_args = [
        a for a in argv if a.lstrip("-").split("=", 1)[0] == "config" and a.startswith("-")
    ]
    if not config_args:
        raise InputError(f"--config is missing; {usage}")
    _check_keys(argv)
    try:
        rest = values([command, *argv])
        config = values.config
        _ = config.mode  # a file that failed to load raises here
    except flags.Error as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        where = (
            f"{config_args[0].lstrip('-')}: "
            if "Error whilst parsing config file" in lines[0]
            else ""
        )
        raise InputError(f"{where}{lines[-1].strip()}; {usage}") from error
    except OSError as error:
        path = config_args[0].split("=", 1)[-1].split(":")[0]
        raise InputError(
            f"--config={path}: no such config file could be loaded; {usage}"
        ) from error
    except (AttributeError, ImportError, KeyError, SyntaxError, TypeError) as error:
        problem = old_keys.explain_attribute(str(error)) or f"{error}; {usage}"
        raise InputError(f"{config_args[0].lstrip('-')}: {problem}") from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; {usage}")
    if not values.workdir:
        raise InputError(f"--workdir is missing; {usage}")
    return config, values.workdir


def exit_with(program: Callable[[Sequence[str]], int]) -> None:
    """Runs `program(argv)` and exits with the status it returns; InputError gives status 2."""
    try:
        status = program(sys.argv[1:])
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        status = BAD_INPUT
    except Exception:
        distributed.leave_after_failure()
        raise
    sys.exit(status)
