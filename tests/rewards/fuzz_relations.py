# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Rewrites that keep the meaning, of names, letters, relations, lists and choices: `RELATIONS`.

Each kind is a function of a `random.Random` that returns the content of the answer's box and that
of the reference's. What counts as the same follows the conventions at the head of
`rlvlm_jax/rewards/math/__init__.py`; nothing here knows the judge.
"""

from math import sqrt

from tests.rewards.fuzz_shapes import (
    CHOICES,
    CONSONANTS,
    GREEK,
    POINTS,
    SQUAREFREE,
    VARIABLES,
    Kind,
    core,
    decimal,
    either,
    ends,
    entering,
    exact,
    interval,
    length,
    line,
    nonzero,
    number,
    plus,
    point,
    polynomial,
    segment,
    shuffled,
    spelled,
    term,
    tex,
    two,
    values,
)

RELATIONS: dict[str, Kind] = {}
kind = entering(RELATIONS)


# --- names, chains, estimates ---------------------------------------------------------------------


@kind("names left out or added")
def _(rng):
    reference = exact(rng)
    name = rng.choice(
        (*VARIABLES, "AB", "S", r"\theta", r"\text{Area}", "x_1", "BC", "a_5", r"\alpha")
    )
    plain = core(reference)
    named = f"{plain}={name}" if rng.random() < 0.15 and len(name) == 1 else f"{name}={plain}"
    return (named, reference) if rng.random() < 0.6 else (plain, named)


@kind("named lengths and areas")
def _(rng):
    sides, amount = segment(rng), length(rng)
    corners = "".join(rng.sample(POINTS, 3))
    names = [f"|{sides}|", sides, rf"\overline{{{sides}}}", rf"|\overrightarrow{{{sides}}}|"]
    names += [rf"S_{{\triangle {corners}}}", rf"\text{{Area of }}\triangle {corners}"]
    name = rng.choice(names)
    if name == sides and rng.random() < 0.5:
        return f"{sides[::-1]}={amount}", f"{sides}={amount}"
    return either(rng, f"{name}={amount}", amount)


@kind("named angles and arcs")
def _(rng):
    a, b, c = rng.sample(POINTS, 3)
    size = str(rng.randint(1, 179))
    degrees = size + rng.choice((r"^\circ", "°", r"^{\circ}"))
    names = (rf"\angle {a}", rf"m\angle {a}", rf"\angle {a}{b}{c}", rf"m\angle {a}{b}{c}")
    names += (f"∠{a}{b}{c}", rf"\angle {rng.randint(1, 6)}")
    names += (rf"\widehat{{{a}{b}}}", rf"m\widehat{{{a}{b}}}", rf"\widehat{{{a}{b}{c}}}")
    if rng.random() < 0.2:
        return rf"\angle {c}{b}{a}={degrees}", rf"\angle {a}{b}{c}={degrees}"
    return either(rng, f"{rng.choice(names)}={degrees}", rng.choice((degrees, size)))


@kind("named ratios")
def _(rng):
    a, b, c, d = rng.sample(POINTS, 4)
    top, bottom = rng.sample((2, 3, 5, 7, 11, 13), 2)
    bottom += 60 * (bottom > 9)  # 2:13 would be a clock time
    fraction, colon = rf"\frac{{{top}}}{{{bottom}}}", f"{top}:{bottom}"
    named = (rf"\frac{{{a}{b}}}{{{c}{d}}}={fraction}", f"{a}{b}:{c}{d}={colon}", f"S_1:S_2={colon}")
    named += (rf"\frac{{S_1}}{{S_2}}={fraction}", f"{a}{b}/{c}{d}={top}/{bottom}")
    return either(rng, rng.choice(named), rng.choice((fraction, colon)))


@kind("ratios reduced")
def _(rng):
    parts, times = rng.sample(range(1, 14), rng.choice((2, 2, 3))), rng.randint(2, 6)
    scaled = [times * part for part in parts]
    one, other = (
        "AB:BC=" * (len(terms) == 2 and terms[0] < 25 and 9 < terms[1] < 60)  # else a clock time
        + ":".join(map(str, terms))
        for terms in (parts, scaled)
    )
    if len(parts) == 2 and rng.random() < 0.4:
        other = rng.choice((rf"\frac{{{parts[0]}}}{{{parts[1]}}}", f"{parts[0]}/{parts[1]}"))
    if rng.random() < 0.3:
        one, other = one.replace(":", rng.choice((r"\,:\,", " : ", "∶", r"\colon "))), one
    return either(rng, one, other)


@kind("named points and tuples")
def _(rng):
    at, name = point(rng), rng.choice(POINTS)
    names = ("x", "y", "z")[: at.count(",") + 1]
    named = [
        f"{name}{at}",
        f"{name}={at}",
        rf"{name}\left{at[:-1]}\right)",
        rf"\text{{{name}}}{at}",
    ]
    tuples = [f"({','.join(names)})={at}", rf"\left({', '.join(names)}\right)={at}"]
    return either(rng, rng.choice(named + tuples), at)


@kind("named sets and intervals")
def _(rng):
    inside = rng.choice(
        (interval(rng), rf"\{{{','.join(map(tex, values(rng, rng.randint(2, 4))))}\}}")
    )
    name = rng.choice((*"ABDMS", r"A\cup B", r"A\cap B"))
    names = [f"{name}={inside}"] + ([rf"x\in{inside}"] if inside[0] in "([" else [])
    return either(rng, rng.choice(names), inside)


@kind("equal names")
def _(rng):
    a, b, c = rng.sample(POINTS, 3)
    names = rng.choice(
        ([a + b, b + c], [a + b, a + c, b + c], rng.sample("abcxyzpq", rng.choice((2, 3))))
    )
    amount = core(number(rng)).lstrip("-")
    chained = "=".join((*shuffled(rng, names), amount))
    parts = ", ".join(f"{name}={amount}" for name in shuffled(rng, names))
    if len(names[0]) == 2 and rng.random() < 0.6:
        return either(rng, chained, amount)
    return either(rng, chained, parts)


@kind("true chains")
def _(rng):
    a, b = rng.randint(2, 40), rng.randint(2, 40)
    times, legs = (
        rng.choice(("*", r"\times ", r"\cdot ", "×")),
        rng.choice(((3, 4, 5), (5, 12, 13), (8, 15, 17))),
    )
    chains = (
        (f"{a}{times}{b}={a * b}", a * b),
        (f"{a}+{b}={a + b}", a + b),
        (f"{a + b} - {b} = {a}", a),
        (rf"\frac{{{a * b}}}{{{b}}}={a}", a),
        (f"x={a * b}/{b}={a}", a),
        (rf"S=\frac12\cdot {2 * a}\cdot {b}={a * b}", a * b),
        (f"{a}{times}{b}+{a}={a * b}+{a}={a * b + a}", a * b + a),
        (rf"\sqrt{{{a * a}}}={a}", a),
        (f"{a}^2={a * a}", a * a),
        (rf"\sqrt{{{legs[0]}^2+{legs[1]}^2}}={legs[2]}", legs[2]),
    )
    answer, reference = rng.choice(chains)
    return answer, str(reference)


@kind("estimate behind an exact value")
def _(rng):
    times, inside, bottom = (
        rng.randint(2, 30),
        rng.choice(SQUAREFREE),
        rng.choice((3, 7, 9, 11, 13)),
    )
    while times % bottom == 0:
        times = rng.randint(2, 30)
    reference, amount = rng.choice(
        (
            (rf"{times}\sqrt{{{inside}}}", times * sqrt(inside)),
            (rf"\frac{{{times}}}{{{bottom}}}", times / bottom),
            (rf"{times}\pi", times * 3.141592653589793),
            (rf"\frac{{\sqrt{{{inside}}}}}{{{bottom}}}", sqrt(inside) / bottom),
        )
    )
    sign, places = rng.choice((r"\approx ", r" \approx ", "≈")), rng.choice((1, 2, 3))
    name = rng.choice(("", "", "AB=", "x="))
    return f"{name}{reference}{sign}{amount:.{places}f}", reference


@kind("sign of an estimate")
def _(rng):
    reference = decimal(rng)
    return rng.choice((r"\approx ", r"\approx", "≈", "≈ ")) + reference, reference


@kind("equations between constants")
def _(rng):
    a, b = rng.sample(range(2, 60), 2)
    total, product = a + b, a * b
    sums = [f"{x}+{y}={total}" for x, y in ((a, b), (b, a))]
    sums += [f"{total}={x}+{y}" for x, y in ((a, b), (b, a))]
    products = [
        rf"{x}{sign}{y}={product}"
        for x, y in ((a, b), (b, a))
        for sign in (r"\times ", "×", r"\cdot ")
    ]
    products += [rf"{product}={a}\times {b}"]
    less = [f"{total}-{a}={b}", f"{b}={total}-{a}", f"{total} − {a} = {b}"]
    shared = [rf"{product}\div {a}={b}", f"{product}÷{a}={b}", rf"{b}={product}\div {a}"]
    squares = [f"{x}^2+{y}^2={z}" for x, y, z in ((a, b, a * a + b * b), (b, a, a * a + b * b))]
    more = [f"{total}>{a}", f"{a}<{total}", f"{total} > {a}"]
    return two(rng, *rng.choice((sums, products, less, shared, squares, more)))


# --- letters and expressions ----------------------------------------------------------------------


@kind("order of terms and factors")
def _(rng):
    letters = rng.sample(CONSONANTS, 2) + [rng.choice("RSTU")]
    powers = {}
    while len(powers) < 3:
        exponents = tuple(rng.choice((0, 1, 1, 2)) for _ in letters)
        powers[exponents] = nonzero(rng)

    def written():
        terms = []
        for exponents, times in shuffled(rng, powers.items()):
            factors = [
                f"{x}^{n}" if n > 1 else x for x, n in zip(letters, exponents, strict=True) if n
            ]
            terms.append(term(times, rng.choice(("", r"\cdot ")).join(shuffled(rng, factors))))
        return plus(*terms)

    return written(), written()


@kind("brackets multiplied out")
def _(rng):
    x, y = rng.sample(VARIABLES, 2)
    a, b, c = (nonzero(rng) for _ in range(3))
    forms = (
        (
            f"({x}{a:+d})({x}{b:+d})",
            plus(f"{x}^2", *([term(a + b, x)] if a + b else []), str(a * b)),
        ),
        (f"({x}{a:+d})^2", plus(f"{x}^2", term(2 * a, x), str(a * a))),
        (f"{abs(c)}({plus(x, term(a, y))})", plus(term(abs(c), x), term(abs(c) * a, y))),
        (f"({x}+{y})({x}-{y})", f"{x}^2-{y}^2"),
        (rf"\frac{{{x}}}{{{x}+{abs(a)}}}", rf"1-\frac{{{abs(a)}}}{{{x}+{abs(a)}}}"),
        (f"{abs(a) + 1}^{{n+1}}", rf"{abs(a) + 1}\cdot {abs(a) + 1}^n"),
    )
    return either(rng, *rng.choice(forms))


@kind("letters of both cases")
def _(rng):
    low = rng.choice("rsuvwxyz")
    high, times = low.upper(), rng.randint(2, 30)
    forms = (
        (rf"{times}\pi({high}^2-{low}^2)", rf"{times}\pi {high}^2-{times}\pi {low}^2"),
        (f"({high}+{low})({high}-{low})", f"{high}^2-{low}^2"),
        (f"{times}{high}+{low}", f"{low}+{times}{high}"),
        (
            rf"\frac{{{high}}}{{{times}{low}}}",
            rf"\frac{{{high}}}{{{times}}}\cdot\frac{{1}}{{{low}}}",
        ),
        (f"{times}({high}-{low})", f"{times}{high}-{times}{low}"),
    )
    return either(rng, *rng.choice(forms))


@kind("Greek letters")
def _(rng):
    one, other = rng.sample(list(GREEK), 2)
    a, b = nonzero(rng), nonzero(rng)
    terms = (term(a, one), term(b, other))
    letters = plus(*terms), plus(*reversed(terms))
    plain = letters[0].replace(one, GREEK[one]).replace(other, GREEK[other])
    squares = (rf"({one}+{other})^2", rf"{one}^2+2{one} {other}+{other}^2")
    return two(rng, *rng.choice(((*letters, plain), (*letters, plain), squares)))


@kind("roots and bars of real letters")
def _(rng):
    x, times = rng.choice(VARIABLES), rng.randint(2, 12)
    forms = (
        (rf"\sqrt{{\frac{{{times**2}}}{{{x}}}}}", rf"\frac{{{times}}}{{\sqrt{{{x}}}}}"),
        (rf"\sqrt{{1/{x}}}", rf"1/\sqrt{{{x}}}"),
        (rf"\sqrt{{{times**2}{x}^2}}", f"{times}|{x}|"),
        (rf"\sqrt{{({x}-{times})^2}}", f"|{x}-{times}|"),
        (rf"\sqrt{{{times**2}{x}^4}}", f"{times}{x}^2"),
        (f"|-{times}{x}|", f"{times}|{x}|"),
        (f"|{times}-{x}|", f"|{x}-{times}|"),
    )
    return either(rng, *rng.choice(forms))


@kind("runs of letters")
def _(rng):
    a, b, c, d = rng.sample(POINTS, 4)
    small = "".join(rng.sample(CONSONANTS, rng.choice((2, 3))))
    mixed = rng.choice("RSTU") + rng.choice(CONSONANTS)
    letters = "".join(rng.sample(POINTS, 3))
    forms = (
        (a + b, b + a),
        (rf"\overline{{{a}{b}}}", rf"\overline{{{b}{a}}}"),
        (rf"\angle {a}{b}{c}", rf"\angle {c}{b}{a}"),
        (rf"\cos\angle {a}{b}{c}", rf"\cos\angle {c}{b}{a}"),
        (rf"{a}{b}\cdot {c}{d}", rf"{d}{c}\cdot {b}{a}"),
        (f"{a}{b}={c}{d}", f"{d}{c}={a}{b}"),
        (rf"\angle {a}=\angle {b}{c}{d}", rf"\angle {d}{c}{b}=\angle {a}"),
        (small, small[::-1]),
        (mixed, mixed[::-1]),
        (rf"\text{{{letters}}}", letters),
        (rf"\mathrm{{{letters}}}", rf"\text{{{letters}}}"),
    )
    return either(rng, *rng.choice(forms))


@kind("plain-text functions")
def _(rng):
    a, b, x = rng.randint(2, 20), rng.randint(2, 12), rng.choice(VARIABLES)
    m, r = rng.choice(SQUAREFREE), rng.choice("rxR")
    forms = (
        (f"sqrt({m})/{b}", rf"\frac{{\sqrt{{{m}}}}}{{{b}}}"),
        (f"{a}*sqrt({m})", rf"{a}\sqrt{{{m}}}"),
        (f"{a}*pi*{r}", rf"{a}\pi {r}"),
        (f"pi/{b}", rf"\frac{{\pi}}{{{b}}}"),
        (f"{a}*pi/{b}", rf"\frac{{{a}\pi}}{{{b}}}"),
        (f"{x}**{b}", f"{x}^{{{b}}}"),
        (f"exp({a})", f"e^{{{a}}}"),
        (f"sin({x})", rf"\sin {x}"),
        (f"{a}*cos({b}*{x})", rf"{a}\cos({b}{x})"),
        (f"({x}+{a})/({x}-{b})", rf"\frac{{{x}+{a}}}{{{x}-{b}}}"),
        (f"{a}*{x}^2+{b}", f"{a}{x}^2+{b}"),
        (f"sqrt({x}^2+{a})", rf"\sqrt{{{x}^2+{a}}}"),
        (f"{b}^({x}+{a})", f"{b}^{{{x}+{a}}}"),
        (f"ln({a})", rf"\ln {a}"),
    )
    return either(rng, *rng.choice(forms))


@kind("plain-text and typed relations")
def _(rng):
    x, (low, high) = rng.choice(VARIABLES), ends(rng)
    sign, macros = rng.choice(
        (
            (">=", (r"\ge ", r"\geq ", "≥", r"\geqslant ")),
            ("<=", (r"\le ", r"\leq ", "≤", r"\leqslant ")),
        )
        + (("!=", (r"\ne ", r"\neq ", "≠")),)
    )
    if rng.random() < 0.4 and sign == "<=":
        inner = rng.choice(("<", "<="))
        ascii_form = f"{low}{sign}{x}{inner}{high}"
        latex = f"{low}{rng.choice(macros)}{x}{'<' if inner == '<' else rng.choice(macros)}{high}"
        return either(rng, ascii_form, latex)
    typed = f"{x} != {low}" if sign == "!=" else f"{x}{rng.choice((sign, f' {sign} '))}{low}"
    return either(rng, typed, f"{x}{rng.choice(macros)}{low}")  # n!=5 may be a factorial


@kind("typed characters")
def _(rng):
    x, a, b = rng.choice(VARIABLES), rng.randint(2, 60), rng.randint(2, 20)
    forms = (
        (f"{x}²+{a}{x}", f"{x}^2+{a}{x}"),
        (f"{a}{x}³-{b}", f"{a}{x}^3-{b}"),
        (f"{a}π", rf"{a}\pi"),
        (f"{a}√{b}", rf"{a}\sqrt{{{b}}}"),
        (f"{x}⁴", f"{x}^{{4}}"),
        (f"{a}×{x}", rf"{a}\times {x}"),
        (f"{a}·{x}", rf"{a}\cdot {x}"),
        (f"{x}÷{a}", rf"{x}\div {a}"),
        (f"({a}，{b})", f"({a},{b})"),
        (f"±{a}", rf"\pm {a}"),
        (f"(-∞,{a})", rf"(-\infty,{a})"),
    )
    return either(rng, *rng.choice(forms))


@kind("functions")
def _(rng):
    x, a, b = rng.choice(VARIABLES), rng.randint(2, 12), rng.randint(2, 12)
    name = rng.choice(("sin", "cos", "tan"))
    forms = (
        (rf"\{name} {x}", rf"\{name}({x})"),
        (rf"{a}\{name}({b}{x})", rf"{a}\{name} {b}{x}"),
        (rf"\{name}^2 {x}", rf"(\{name} {x})^2"),
        (rf"\sin {2 * a}{x}", rf"2\sin {a}{x}\cos {a}{x}"),
        (rf"\log_{b} ({b**2}{x})", rf"2+\log_{b} {x}") if b < 10 else (r"\ln e^2", "2"),
        (rf"\{name}\left({x}+{a}\right)", rf"\{name}({a}+{x})"),
        (rf"{a}-\{name} {x}", rf"-\{name} {x}+{a}"),
    )
    return either(rng, *rng.choice(forms))


@kind("y and f(x)")
def _(rng):
    body = rng.choice(
        (polynomial(rng, "x", 1), polynomial(rng, "x", 2), rf"\frac{{{nonzero(rng)}}}{{x}}")
    )
    return (
        either(rng, f"y={body}", f"f(x)={body}")
        if rng.random() < 0.7
        else either(rng, f"f(x)={body}", body)
    )


@kind("vectors and their arrows")
def _(rng):
    a, b = rng.sample("abcuvw", 2)
    one, other, times = nonzero(rng), nonzero(rng), rng.randint(2, 9)
    arrow, other_arrow = rng.choice(
        ((r"\vec{%s}", r"\overrightarrow{%s}"), (r"\vec %s", r"\vec{%s}"))
    )
    p, q = arrow % a, arrow % b
    linear = plus(term(one, p), term(other, q))
    forms = (
        (linear, plus(term(other, q), term(one, p))),
        (linear, plus(term(one, other_arrow % a), term(other, other_arrow % b))),
        (f"{times}({p}-{q})", f"{times}{p}-{times}{q}"),
        (rf"{p}\cdot{q}", rf"{q}\cdot{p}"),
        (rf"{times}{p}\cdot{q}", rf"{times}{other_arrow % a}\cdot{other_arrow % b}"),
    )
    return either(rng, *rng.choice(forms))


@kind("derivatives")
def _(rng):
    y, x, times, power = (
        rng.choice("yuvw"),
        rng.choice("xtz"),
        rng.randint(2, 30),
        rng.randint(2, 5),
    )
    body = rng.choice(
        (f"{times}{x}", f"{times}{y}", f"{times}{x}^{power}", rf"\frac{{{times}}}{{{x}}}")
    )
    left = [
        rf"\frac{{d{y}}}{{d{x}}}",
        rf"\frac{{\mathrm{{d}}{y}}}{{\mathrm{{d}}{x}}}",
        rf"\dfrac{{d{y}}}{{d{x}}}",
    ]
    return two(rng, *(f"{side}={body}" for side in left), f"{body}={left[0]}")


# --- relations, lists, sets, systems --------------------------------------------------------------


@kind("equations scaled and moved")
def _(rng):
    a, b, c, times = (nonzero(rng, 9) for _ in range(4))
    p, q, x = nonzero(rng, 9), nonzero(rng, 9), rng.choice(VARIABLES)
    straight = [
        line(a, b, c),
        line(times * a, times * b, times * c),
        line(a, b, -c, sign="+").replace("+-", "-") + "=0",
    ]
    straight += [
        f"{c}={plus(term(b, 'y'), term(a, 'x'))}",
        f"{term(b, 'y')}={plus(term(-a, 'x'), str(c))}",
    ]
    squares = [
        plus(term(k, f"{x}^2"), term(k * (a * 2 + 1), x), str(k * b)) + "=0" for k in (1, times)
    ]
    conics = [
        rf"\frac{{x^2}}{{{p * p}}}+\frac{{y^2}}{{{q * q}}}=1",
        f"{q * q}x^2+{p * p}y^2={p * p * q * q}",
    ]
    curve = [rf"y=\frac{{{a}}}{{x}}", f"xy={a}"]
    return two(rng, *rng.choice((straight, straight, squares, conics, curve)))


@kind("relations turned round")
def _(rng):
    x, (low, high) = rng.choice(VARIABLES), ends(rng)
    forms = (
        [f"{x}>{low}", f"{low}<{x}", f">{low}"],
        [f"{x}<{low}", f"{low}>{x}", f"<{low}"],
        [rf"{x}\ge {low}", rf"{low}\le {x}", rf"\ge {low}"],
        [f"{low}<{x}<{high}", f"{high}>{x}>{low}"],
        [rf"{low}\le {x}<{high}", rf"{high}>{x}\ge {low}"],
        [f"{x}={low}", f"{low}={x}"],
    )
    return two(rng, *rng.choice(forms))


@kind("intervals and inequalities")
def _(rng):
    low, high = ends(rng)
    left, right, x = rng.choice("(["), rng.choice(")]"), rng.choice("xxxty")
    under, over = (r"\le " if left == "[" else "<"), (r"\le " if right == "]" else "<")
    above = r"\ge " if left == "[" else ">"
    bounded = [
        f"{left}{low},{high}{right}",
        f"{low}{under}{x}{over}{high}",
        rf"{x}\in{left}{low},{high}{right}",
    ]
    bounded += [
        rf"{x}{above}{low}\text{{ and }}{x}{over}{high}",
        rf"\{{{x}\mid {low}{under}{x}{over}{high}\}}",
    ]
    ray = [rf"{left}{low},\infty)", f"{x}{above}{low}", rf"{x}\in{left}{low},+\infty)"]
    ray.append(rf"\{{{x}\mid {x}{above}{low}\}}")
    low_side, high_side = (r"\le " if right == "]" else "<"), above
    gap = [
        rf"(-\infty,{low}{right}\cup{left}{high},\infty)",
        rf"{left}{high},+\infty)\cup(-\infty,{low}{right}",
    ]
    gap += [
        rf"{x}{low_side}{low}\text{{ or }}{x}{high_side}{high}",
        f"{x}{high_side}{high} or {x}{low_side}{low}",
    ]
    return two(rng, *rng.choice((bounded, ray, gap)))


@kind("whole line, gaps and bars")
def _(rng):
    a, c = rng.randint(1, 40), rng.randint(-20, 20)
    real = [r"\mathbb{R}", r"(-\infty,\infty)", r"(-\infty,+\infty)", r"\text{all real numbers}"]
    real += ["all real numbers", r"x\in\mathbb{R}", r"\mathbb R"]
    hole = [
        rf"x\ne {c}",
        rf"(-\infty,{c})\cup({c},\infty)",
        rf"x\neq {c}",
        rf"(-\infty, {c}) \cup ({c}, +\infty)",
    ]
    near = [f"({c - a},{c + a})", f"|x{-c:+d}|<{a}" if c else f"|x|<{a}"]
    closed = [f"[-{a},{a}]", rf"|x|\le {a}", rf"|x|\leq {a}"]
    bars = [f"(-{a},{a})", f"|x|<{a}", rf"\left|x\right|<{a}"]
    return two(rng, *rng.choice((real, hole, hole, near, near, closed, bars)))


@kind("lists and their order")
def _(rng):
    parts = values(rng, rng.choice((2, 2, 3)))
    commas = rng.choice((", ", ",", r",\ "))
    plain = commas.join(spelled(rng, part) for part in shuffled(rng, parts))
    other = rng.choice((", ", r"\text{ or }", r"\text{ and }", " or ")).join(
        map(tex, shuffled(rng, parts))
    )
    if len(parts) == 3:
        other = ", ".join(map(tex, shuffled(rng, parts)))
    named = r" \text{ or } ".join(f"x={tex(part)}" for part in parts)
    numbered = ", ".join(f"x_{i}={tex(part)}" for i, part in enumerate(shuffled(rng, parts), 1))
    return rng.choice(
        ((plain, other), (plain, other), (plain, named), (numbered, named), (numbered, other))
    )


@kind("plus and minus")
def _(rng):
    a, inside, b = rng.randint(1, 99), rng.choice(SQUAREFREE), rng.randint(1, 30)
    forms = (
        [rf"\pm {a}", f"{a},-{a}", rf"-{a}\text{{ or }}{a}", f"±{a}", rf"x=\pm {a}"],
        [rf"{b}\pm\sqrt{{{inside}}}", rf"{b}+\sqrt{{{inside}}}, {b}-\sqrt{{{inside}}}"],
        [rf"\pm\sqrt{{{inside}}}", rf"-\sqrt{{{inside}}},\sqrt{{{inside}}}"],
        [rf"\pm\frac{{{a}}}{{{a + b}}}", rf"\frac{{{a}}}{{{a + b}}},-\frac{{{a}}}{{{a + b}}}"],
    )
    return two(rng, *rng.choice(forms))


@kind("sets: order and repetition")
def _(rng):
    parts = values(rng, rng.randint(2, 4))
    repeated = shuffled(rng, [*parts, *rng.choices(parts, k=rng.randint(0, 2))])
    reference = rf"\{{{','.join(map(tex, parts))}\}}"
    answer = rf"\{{{', '.join(spelled(rng, part) for part in repeated)}\}}"
    if rng.random() < 0.2:
        answer = ",".join(map(tex, shuffled(rng, parts)))
    if rng.random() < 0.3:
        answer = answer.replace(r"\{", r"\left\{").replace(r"\}", r"\right\}")
    return either(rng, answer, reference)


@kind("tuples and their entries")
def _(rng):
    parts = values(rng, rng.choice((2, 2, 3)))
    answer = rng.choice((",", ", ", r",\,")).join(spelled(rng, part) for part in parts)
    if rng.random() < 0.3:
        others = values(rng, len(parts))
        pairs = [f"({','.join(map(tex, at))})" for at in (parts, others)]
        return two(rng, ",".join(pairs), ", ".join(reversed(pairs)))
    return f"({answer})", f"({','.join(map(tex, parts))})"


@kind("systems")
def _(rng):
    names = rng.choice(("xy", "xy", "xyz"))
    parts = [tex(part) for part in values(rng, len(names))]
    equations = [f"{name}={part}" for name, part in zip(names, parts, strict=True)]
    rows = r"\\".join(equations)
    forms = [
        rf"\begin{{cases}}{rows}\end{{cases}}",
        r"\begin{cases}" + r",\\ ".join(equations) + r"\end{cases}",
        rf"\left\{{\begin{{array}}{{l}}{rows}\end{{array}}\right.",
        r"\begin{cases}" + r"\\".join(reversed(equations)) + r"\end{cases}",
        ", ".join(shuffled(rng, equations)),
        r"\text{ and }".join(equations),
        f"({','.join(names)})=({','.join(parts)})",
        f"({','.join(parts)})",
    ]
    return two(rng, *forms)


@kind("matrices and vectors")
def _(rng):
    rows, columns = rng.randint(1, 3), rng.randint(1, 3)
    if rows == columns == 1:
        rows = 2
    table = [values(rng, columns) for _ in range(rows)]
    frames = [(rf"\begin{{{name}}}", rf"\end{{{name}}}") for name in ("pmatrix", "bmatrix")]
    for left, right in (("(", ")"), ("[", "]")):
        frames.append(
            (rf"\left{left}\begin{{array}}{{{'c' * columns}}}", rf"\end{{array}}\right{right}")
        )
        frames.append((rf"\left{left}\begin{{matrix}}", rf"\end{{matrix}}\right{right}"))
    if rng.random() < 0.15:
        parts = values(rng, 3)
        spaced = [spelled(rng, part) for part in parts]
        forms = (
            rf"\langle {','.join(map(tex, parts))}\rangle",
            rf"\left\langle {', '.join(spaced)}\right\rangle",
        )
        return either(rng, *forms)

    def written(entry):
        begin, end = rng.choice(frames)
        cell, row = rng.choice((" & ", "&")), rng.choice((r"\\", r" \\ "))
        return begin + " " + row.join(cell.join(map(entry, line)) for line in table) + " " + end

    return written(lambda part: spelled(rng, part)), written(tex)


# --- choices --------------------------------------------------------------------------------------


@kind("a choice with its text")
def _(rng):
    letter, text = rng.choice(CHOICES), core(exact(rng))
    if rng.random() < 0.3:
        text = rng.choice(
            (f"{rng.randint(2, 99)}\\text{{ cm}}", point(rng), rf"{rng.randint(2, 99)}^\circ")
        )
    long = [rf"{letter}. {text}", rf"({letter}) {text}", rf"\textbf{{({letter})}}\ {text}"]
    long += [rf"{letter}) {text}", rf"\text{{{letter}. }}{text}", rf"{letter}: {text}"]
    short = [letter, f"({letter})", rf"\text{{{letter}}}", f"{letter}.", rf"\textbf{{{letter}}}"]
    if rng.random() < 0.2:
        return f"{letter} {rng.randint(2, 999)}", letter
    return either(rng, rng.choice(long), rng.choice(short))


@kind("choices in lower case")
def _(rng):
    letter = rng.choice(CHOICES)
    forms = (
        "#",
        "(#)",
        r"\text{#}",
        r"\textbf{#}",
        r"\mathrm{#}",
        "$#$",
        r"\(#\)",
        "#.",
        r"\text{(#)}",
    )
    answer, reference = rng.choice(forms), rng.choice(forms)
    return answer.replace("#", letter.lower()), reference.replace("#", letter)


@kind("several choices")
def _(rng):
    letters = sorted(rng.sample(CHOICES, rng.choice((3, 3, 4))))
    listed = ("{}, {}, {}" if len(letters) == 3 else "{}, {}, {}, {}").format(
        *shuffled(rng, letters)
    )
    run = "".join(letters)
    forms = (run, rf"\text{{{run}}}", rf"\mathrm{{{run}}}")
    return either(
        rng,
        rng.choice((listed, rf"\text{{{listed}}}", listed.replace(", ", ","))),
        rng.choice(forms),
    )


@kind("circled numbers")
def _(rng):
    chosen = sorted(rng.sample(range(1, 10), rng.choice((1, 2, 2, 3))))
    circles = [chr(ord("①") + n - 1) for n in chosen]
    macros = [rf"\textcircled{{{n}}}" for n in chosen]
    forms = [
        "".join(circles),
        ", ".join(circles),
        "、".join(circles),
        "".join(macros),
        ", ".join(macros),
    ]
    forms += [
        ", ".join(shuffled(rng, circles)),
        rf"\text{{{''.join(circles)}}}",
        "，".join(circles),
    ]
    return two(rng, *forms)
