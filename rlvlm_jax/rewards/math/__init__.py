# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""The strict judge: is the answer in a box equal to the reference?

`spelling` and `tokens` cut LaTeX, `parse`, `literals` and `expression` make a typed `tree` of it,
`compare` compares two trees kind by kind, with `relations`, `values`, `ratio` and `algebra`;
`units` knows units and words.

The conventions. Each pair is a reference and an answer that is right (~) or wrong (!); the tests
read them here.

Numbers: exact; a decimal to 1e-6 of the reference; nothing is rounded unless `Rules` say so.
    `1/2` ~ `0.5`; `6\sqrt5` ! `13.4`; `2^{100}` ! `2^{100}-1`

Percent: the sign may be left out or added; 20 % is also 0.2.
    `20` ~ `20\%`; `20\%` ~ `20`; `20\%` ~ `0.2`; `20` ! `0.2`

Chains: a true chain of numbers is its last value, an exact value with its estimate the exact one.
    `576` ~ `24*24=576`; `5\pi` ~ `5\pi\approx15.7`; `576` ! `24*25=576`

Estimates: an estimate alone matches a decimal reference only.
    `13.4` ~ `\approx 13.4`; `20` ! `\approx 20`

Number sentences: a reference without variables is compared as written, operands and sides in any
    order.
    `7+2=9` ~ `9=2+7`; `7+2=9` ! `1=1`; `7+2=9` ! `9`

Names: a name before a value may be left out or added; another one is another answer.
    `20` ~ `x=20`; `x=20` ! `y=20`; `\frac{AD}{DB}=\frac25` ~ `2/5`; `2x=20` ! `20`

Solved: a solved reference asks for a solved answer; other relations are equal where they have the
    same real solutions, some but not all numbers.
    `x=5` ! `x+7=12`; `x^2=4` ~ `2x^2=8`; `x^2+4=0` ! `x^2+9=0`

Expressions: letters are real; two are equal where they are real for the same values, and equal
    there.
    `\sqrt{1/n}` ~ `1/\sqrt n`; `\sqrt{x^2}` ~ `|x|`; `\sqrt{x^2}` ! `x`; `1` ! `\frac{x}{x}`

Units: one side may omit its unit; two must be the same, nothing is converted.
    `5` ~ `5\text{ cm}`; `5\text{ m}` ! `5\text{ cm}`

Compounds: equal to their value in any one of their units, and to no bare number.
    `1\text{ hour }20\text{ minutes}` ~ `80\text{ minutes}`; `40^\circ30'` ~ `40.5^\circ`;
    `40^\circ30'` ! `40.5`

Radians: equal to degrees where one side has a pi.
    `45^\circ` ~ `\frac{\pi}{4}`; `45^\circ` ! `0.7853981634`

Nouns: what is counted may be left out; an answer may not narrow it.
    `14` ~ `14\text{ different ways}`; `5` ! `5\text{ red balls}`; `5\text{ red balls}` ~ `5`

Unit letters: a bare letter is a unit after a plain number (V, A, l, t: after a blank), where
    nothing else stands; a variable after `name =`, with an exponent, or after a fraction, root or
    pi.
    `40m` ~ `40`; `12 m/s` ~ `12`; `y=4m` ! `4`; `6m^2` ! `6`; `\frac32 W` ! `1.5`;
    `6\text{ m}^2` ~ `6`

Text: letters set as text are compared as written.
    `\text{SAS}` ~ `SAS`; `\text{ab}` ! `ba`

Capitals: two are a segment, unless both orders are Roman or an arrow stands above; more are in
    order, but for the letters of choices in a list.
    `AB` ~ `BA`; `IX` ! `XI`; `\vec{AB}` ! `\vec{BA}`; `SAS` ! `SSA`; `\angle ABC` ~ `\angle CBA`;
    `ACD` ~ `C, D, A`

Small letters: two or three are a product, unless they are a word in some order; more are a word.
    `ab` ~ `ba`; `no` ! `on`

Choices: A to J, with or without their text, alone in lower case too.
    `C` ~ `c`; `C` ~ `C. 15`; `C. 15` ~ `C`; `C. 15` ! `C. 16`

Times: h:mm with two digits for minutes is a clock time, never reduced; a ratio with a zero is
    compared by its terms.
    `2:4` ~ `1:2`; `12:00` ! `6:00`; `4:30\text{ PM}` ~ `16:30`; `3:0` ! `1:0`

Scores, dates: two numbers with a hyphen, three with hyphens or slashes, are no arithmetic.
    `3-1` ! `2`; `3-1` ! `4-2`

Parts: separated by commas, "or", "and", or in a set: in any order; by lines or semicolons, in
    tuples: in order; a set may repeat an element.
    `2, 3` ~ `3 \text{ or } 2`; `(1,2)` ! `(2,1)`; `\{4,9\}` ~ `\{9,4,4\}`; `2, 3` ! `2`

Commas: a comma parts thousands or answers, whichever agrees; never a decimal; in brackets it
    parts coordinates.
    `2500` ~ `2,500`; `2500` ! `(2,500)`; `2.5` ! `2,5`

Words: up to case and a leading article.
    `\text{a rhombus}` ~ `Rhombus`; `\text{no solution}` ~ `\emptyset`
"""

from rlvlm_jax.rewards.math.compare import explain, problem, quick, strict, warm_up
from rlvlm_jax.rewards.math.parse import readings
from rlvlm_jax.rewards.math.spelling import Unreadable
from rlvlm_jax.rewards.math.tree import Tree
from rlvlm_jax.rewards.math.verdict import DEFAULT_RULES, NeedsAlgebra, Rounding, Rules, Verdict

# The version of the conventions above; 1 was not written down.
JUDGE_VERSION = 2

__all__ = [
    "DEFAULT_RULES",
    "JUDGE_VERSION",
    "NeedsAlgebra",
    "Rounding",
    "Rules",
    "Tree",
    "Unreadable",
    "Verdict",
    "explain",
    "problem",
    "quick",
    "readings",
    "strict",
    "warm_up",
]
