# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A model directory with a byte tokenizer, and the real tokenizer where its builder is at hand."""

import contextlib
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from data_cases import SHARED, write_json, write_tokenizer

from rlvlm_jax.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """A directory with tokenizer and processor files; patches of 14, windows of 112 pixels."""
    directory = write_tokenizer(tmp_path_factory.mktemp("model"))
    write_json(directory / "preprocessor_config.json", {"min_pixels": 784, "max_pixels": 78_400})
    vision = {"patch_size": 14, "spatial_merge_size": 2, "window_size": 112}
    config = {"model_type": "qwen2_5_vl", "transformers_version": "4.49.0", "vision_config": vision}
    write_json(directory / "config.json", config)
    return directory


@pytest.fixture(scope="session")
def tokenizer(model_dir) -> Tokenizer:
    return Tokenizer.load(model_dir)


@pytest.fixture(scope="session")
def qwen_dir() -> Path:
    """The real tokenizer, built once into the temporary folder of the machine."""
    builder = SHARED / "tools/build_qwen_processor.py"
    if not builder.is_file():
        pytest.skip(f"no {builder}")
    if importlib.util.find_spec("pip") is None:
        pytest.skip("the builder of the real tokenizer needs pip")
    out = Path(tempfile.gettempdir()) / "rlvlm_jax_tests" / "qwen_processor"
    if not out.is_dir():
        out.parent.mkdir(exist_ok=True)
        mine = Path(tempfile.mkdtemp(dir=out.parent))
        subprocess.run([sys.executable, builder, mine], check=True, capture_output=True)
        with contextlib.suppress(OSError):  # another process was faster
            mine.rename(out)
    return out
