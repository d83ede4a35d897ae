# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m rlvlm_jax.report`: one page about runs, built only from their directories."""
