# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Qwen2-VL and Qwen2.5-VL: configuration, vision tower, language model, costs."""
