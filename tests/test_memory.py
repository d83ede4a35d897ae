# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Host memory stays what it is, however long a run is."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.run_cases import arguments, read_lines

STEPS, WARM = 500, 100  # by then caches, prefetched batches and the allocator's arenas are full
BOUND_MIB = 64  # over 400 steps; a batch of rollouts kept a step would be more


@pytest.mark.slow
def test_host_memory_stays_flat(tmp_path):
    """Rollouts, TensorBoard, evaluations and checkpoints included; in a process of its own."""
    keys = {"eval__limit": 8, "eval_every": 100, "checkpoint_every": 50}
    argv = arguments(tmp_path / "run", "bundled:train", total_steps=STEPS, **keys)
    argv = [a.replace("data.val=bundled:train", "data.val=bundled:val") for a in argv]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    environment = {**os.environ, "XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-m", "rlvlm_jax.main", *argv], env=environment, check=True)
    lines = [x for x in read_lines(tmp_path / "run" / "metrics.jsonl") if x["phase"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    used = np.array([line["memory/host_rss_gib"] for line in lines[WARM:]]) * 1024
    slope = np.polyfit(np.arange(len(used)), used, 1)[0]
    assert slope * len(used) < BOUND_MIB, f"{slope * 1024:.1f} KiB a step"
