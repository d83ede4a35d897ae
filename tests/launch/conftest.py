# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The fixture that all tests of the launch scripts share."""

import pytest
from launch_cases import Cloud


@pytest.fixture
def cloud(tmp_path):
    made = Cloud(tmp_path / "cloud")
    yield made
    made.end()
