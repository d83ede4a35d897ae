# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The mathematics of steps III and IV as pure functions of arrays, one formula a function.

`advantages`, `losses`, `kl` and `filtering` hold the formulas, `masked` the only masked reductions.
Everything is float32, a mask is True where something counts, and whatever lies outside the mask
(padding, infinities, NaN) changes neither a value nor a gradient. B = prompts * group_size rows,
the samples of one prompt adjacent; R columns, one a response token. Nothing here knows a model, an
optimizer, a mesh or a configuration.
"""
