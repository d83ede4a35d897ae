# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The mathematics of steps III and IV as pure functions of arrays, one formula per function.

`advantages`, `losses`, `kl` and `filtering` have the formulas, `masked` all masked reductions.
Everything is float32. A mask is True where something counts; values outside the mask (padding,
infinities, NaN) affect neither results nor gradients. B = prompts * group_size rows, with the
samples of a prompt adjacent; R columns, one per response token. Nothing here knows about models,
optimizers, meshes or configurations.
"""
