# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Answers that mean something else than the reference, by kind: `MUTATIONS`.

Each kind is a function of a `random.Random` that returns the content of the answer's box and that
of the reference's. The answer is wrong by construction: what may be right by accident (0 and -0, a
product in another order, 12/12, 20 and 20 %) cannot be drawn. Nothing here knows the judge.
"""

from fractions import Fraction
from math import pi, sqrt
from random import Random

from tests.rewards.fuzz_shapes import (
    CHOICES,
    GREEK,
    LENGTHS,
    OTHER_UNITS,
    POINTS,
    SQUAREFREE,
    VARIABLES,
    Kind,
    as_decimal,
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
    ratio,
    root,
    segment,
    shuffled,
    spelled,
    term,
    tex,
    values,
    words,
)

MUTATIONS: dict[str, Kind] = {}
kind = entering(MUTATIONS)


def another_digit(rng: Random, text: str) -> str:
    """Changes one digit, to one that is not zero."""
    at = rng.choice([i for i, character in enumerate(text) if character.isdigit()])
    return text[:at] + rng.choice([d for d in "123456789" if d != text[at]]) + text[at + 1 :]


def swapped(rng: Random, letters: str, first: int = 0) -> str:
    """Exchanges two different letters, not before `first`."""
    while True:
        i, j = sorted(rng.sample(range(first, len(letters)), 2))
        if letters[i] != letters[j]:
            return letters[:i] + letters[j] + letters[i + 1 : j] + letters[i] + letters[j + 1 :]


# --- numbers --------------------------------------------------------------------------------------


@kind("one digit")
def _(rng):
    reference = exact(rng)
    return another_digit(rng, core(reference)), reference


@kind("sign")
def _(rng):
    if rng.random() < 0.3:
        a, tail = rng.randint(1, 60), rng.choice((root(rng), rf"{rng.randint(2, 9)}\pi", "x", "2y"))
        return either(rng, f"{a}+{tail}", f"{a}-{tail}")
    reference = exact(rng)
    text = core(reference)
    return text[1:] if text[0] == "-" else f"-{text}", reference


@kind("decimal point moved")
def _(rng):
    whole, part = rng.randint(1, 999), rng.randint(1, 9)
    forms = [f"{whole}.{part}", f"{whole}{part}", f"0.{whole}{part}", f"{whole}{part}00"]
    answer, reference = rng.sample(forms, 2)
    return answer, reference


@kind("fraction turned over")
def _(rng):
    amount, sign = ratio(rng), rng.choice(("", "-"))
    top, bottom = amount.numerator, amount.denominator
    answer = rf"\frac{{{bottom}}}{{{top}}}"
    return sign + rng.choice((answer, f"{bottom}/{top}")), sign + tex(amount)


@kind("mixed number read as a product")
def _(rng):
    whole, part = rng.randint(2, 20), ratio(rng) % 1
    reference = f"{whole}{tex(part)}"
    sums = (tex(whole * part), tex(part), f"{whole}", f"{whole + 1}{tex(part)}", f"-{reference}")
    return rng.choice(sums), reference


@kind("rounded value")
def _(rng):
    inside, times, bottom = (
        rng.choice(SQUAREFREE),
        rng.randint(1, 30),
        rng.choice((3, 7, 9, 11, 13)),
    )
    while times % bottom == 0:
        times = rng.randint(1, 30)
    reference, amount = rng.choice(
        (
            (rf"{times}\sqrt{{{inside}}}", times * sqrt(inside)),
            (rf"{times}\pi", times * pi),
            (rf"\frac{{{times}}}{{{bottom}}}", times / bottom),
        )
    )
    rounded = f"{amount:.{rng.randint(0, 3)}f}"
    while abs(float(rounded) / amount - 1) < 1e-5:
        rounded = f"{amount:.{rng.randint(0, 1)}f}"
    return either(rng, rounded, reference)


@kind("exact numbers close together")
def _(rng):
    base, power, rest = rng.randint(2, 9), rng.randint(100, 300), rng.randint(1, 9)
    big = f"{base}^{{{power}}}"
    forms = (
        (f"{big}-{rest}", f"{big}+{rest}"),
        (big, f"{big}-{rest}"),
        (f"{big}+{rest}", f"{big}+{rest + 1}"),
        ("1", rf"1-\frac{{1}}{{{big}}}"),
        (rf"\frac{{1}}{{{base}}}", rf"\frac{{{big}-1}}{{{base}^{{{power + 1}}}}}"),
        (f"{power}!", f"{power}!+{rest}"),
        (f"{big}-{rest}", f"({big}-{rest})-1"),
        (f"10^{{{power}}}", f"10^{{{power}}}+{rest}"),
        (rf"\sqrt{{{big}+{rest}}}", rf"\sqrt{{{big}+{rest + 1}}}"),
    )
    return either(rng, *rng.choice(forms))


@kind("number words")
def _(rng):
    amount = rng.randint(2, 99)
    if rng.random() < 0.5:
        other = rng.choice([n for n in range(100) if n != amount])
        if 13 <= amount <= 19 and rng.random() < 0.5:
            other = 10 * (amount - 10)  # seventy for seventeen
        text = words(other)
        return either(rng, rng.choice((text, rf"\text{{{text}}}")), str(amount))
    names = ["tenth", "hundredth", "thousandth", "millionth", "billionth", "quarter", "third"]
    names += ["fifth", "dozen", "hundred", "thousand", "million", "billion", "trillion"]
    name = rng.choice(names) + rng.choice(("s", "s", ""))
    return either(rng, rng.choice((rf"{amount}\text{{ {name}}}", f"{amount} {name}")), str(amount))


@kind("point or thousands separator")
def _(rng):
    whole, rest = rng.randint(1, 99), rng.randint(100, 999)
    rest += rest % 10 == 0
    joined, grouped = f"{whole}{rest}", f"{whole},{rest}"
    forms = (
        (f"({whole},{rest})", joined),
        (f"({whole}, {rest})", joined),
        (f"[{whole},{rest}]", joined),
        (f"{whole}.{rest}", joined),
        (f"{whole}.{rest}", grouped),
        (f"({whole},{rest})", f"({joined})"),
        (f"({whole},{rest},{whole})", f"({joined},{whole})"),
    )
    return either(rng, *rng.choice(forms))


@kind("bases")
def _(rng):
    base = rng.randint(3, 9)
    digits = rng.choice("12") + "".join(
        str(rng.randint(0, base - 1)) for _ in range(rng.randint(2, 4))
    )
    other = rng.choice([b for b in range(3, 10) if b != base])
    at = rng.randrange(1, len(digits))
    changed = digits[:at] + str((int(digits[at]) + 1) % base) + digits[at + 1 :]
    reference = f"{digits}_{rng.choice((str(base), f'{{{base}}}'))}"
    other = f"{digits}_{other}" if max(digits) < str(other) else f"{changed}_{base}"
    return rng.choice((f"{changed}_{base}", other, digits)), reference


@kind("plus-minus for one value")
def _(rng):
    text = length(rng)
    forms = ((rf"\pm {text}", text), (rf"\pm {text}", f"-{text}"), (rf"7\pm {text}", f"7+{text}"))
    return either(rng, *rng.choice(forms))


# --- units, degrees, percent ----------------------------------------------------------------------

_MARKED = [rf"\text{{ {name}}}" for name in (*LENGTHS, *OTHER_UNITS)]
_MARKED += [rf"\text{{ {name}}}^{power}" for name in LENGTHS for power in (2, 3)]


@kind("unit exchanged")
def _(rng):
    amount = length(rng)
    one, other = rng.sample(_MARKED, 2)
    if rng.random() < 0.2:
        small, large, times = rng.choice((("cm", "m", 100), ("mm", "cm", 10), ("g", "kg", 1000)))
        count = rng.randint(1, 99)
        return either(rng, rf"{count * times}\text{{ {small}}}", rf"{count}\text{{ {large}}}")
    return amount + one, amount + other


@kind("currency exchanged")
def _(rng):
    amount = rng.choice((str(rng.randint(1, 2000)), f"{rng.randint(1, 99)}.50"))
    forms = [rf"\${amount}", f"€{amount}", f"¥{amount}", rf"{amount}\text{{ cents}}", f"₹{amount}"]
    answer, reference = rng.sample(forms, 2)
    return answer, reference


@kind("unit letter that is a variable")
def _(rng):
    letter, times, other = rng.choice("msghLNWJV"), rng.randint(2, 60), rng.choice((2, 3, 5, 7))
    top = other * rng.randint(1, 9) + 1
    forms = (
        (f"y={times}", f"y={times}{letter}"),
        (f"{times}", f"x={times}{letter}"),
        (f"{times}", f"{times}{letter}^2"),
        (f"{times}", f"{times}{letter}^3"),
        (rf"\frac{{{top}}}{{{other}}}", rf"\frac{{{top}}}{{{other}}} {letter}"),
        (rf"{times}\pi", rf"{times}\pi {letter}"),
        (rf"{times}\sqrt{{{other}}}", rf"{times}\sqrt{{{other}}}{letter}"),
        (f"{times}+{other}", f"{times}{letter}+{other}"),
    )
    return either(rng, *rng.choice(forms))


@kind("degrees and other signs")
def _(rng):
    size = rng.randint(2, 89)
    degree = rng.choice((r"^\circ", "°", r"\text{ degrees}"))
    others = (r"\%", r"\text{ cm}", r"^\circ\text{C}", r"\text{ rad}", r"\pi", r"\text{ m}^2")
    name = rng.choice(("sin", "cos", "tan"))
    forms = (
        (f"{size}{degree}", f"{size}{rng.choice(others)}"),
        (f"{size}{degree}", f"{size}{rng.choice(others)}"),
        (rf"\{name} {size}^\circ", rf"\{name} {size}"),
        (rf"{size}\%", rf"{size}\text{{ kg}}"),
        (rf"{size}^\circ\text{{C}}", rf"{size}^\circ\text{{F}}"),
    )
    return either(rng, *rng.choice(forms))


@kind("percent moved")
def _(rng):
    amount = rng.randint(1, 99)
    share, tenth = as_decimal(Fraction(amount, 100)), as_decimal(Fraction(amount, 10))
    forms = (
        (share, str(amount)),
        (rf"{amount}\%", tenth),
        (rf"{amount}\%", rf"{tenth}\%"),
        (rf"{amount}\%", rf"{share}\%"),
        (rf"{amount}\%", as_decimal(Fraction(amount, 1000))),
        (rf"{amount}\%", rf"{amount + 1}\%"),
        (rf"{amount}\text{{ percent}}", str(10 * amount)),
        (tex(Fraction(amount, 100)), str(amount)),
    )
    return either(rng, *rng.choice(forms))


@kind("compounds")
def _(rng):
    large, small, count = rng.choice((("hour", "minute", 60), ("minute", "second", 60)))
    a, b = rng.randint(2, 9), rng.randint(10, 58)
    reference = rng.choice(
        (rf"{a}\text{{ {large}s }}{b}\text{{ {small}s}}", f"{a} {large}s {b} {small}s")
    )
    total = count * a + b
    wrong = [
        str(total),
        str(a),
        f"{a}.{b:02d}",
        rf"{a}.{b:02d}\text{{ {large}s}}",
        f"{total + 1} {small}s",
    ]
    wrong += [f"{total} {large}s", f"{b} {large}s {a} {small}s", f"{a} {large}s {b + 1} {small}s"]
    if rng.random() < 0.4:
        b = rng.choice((12, 15, 18, 24, 27, 33, 36, 45, 48, 54))
        reference = rng.choice((rf"{a}^\circ {b}'", f"{a}°{b}′", rf"{a}^{{\circ}}{b}^{{\prime}}"))
        wrong = [
            rf"{a}.{b:02d}^\circ",
            as_decimal(a + Fraction(b, 60)),
            rf"{b}^\circ {a}'",
            rf"{a}^\circ",
        ]
        wrong += [rf"{a}^\circ {b + 1}'", str(a), rf"{a + 1}^\circ {b}'"]
    return rng.choice(wrong), reference


@kind("counted nouns")
def _(rng):
    count = rng.randint(2, 99)
    colours, things = (
        rng.sample(("red", "white", "green", "blue", "black"), 2),
        ("balls", "cards", "cubes"),
    )
    thing, other = rng.sample(things, 2)
    forms = (
        (rf"{count}\text{{ {colours[0]} {thing}}}", str(count)),
        (rf"{count}\text{{ {colours[0]} {thing}}}", rf"{count}\text{{ {colours[1]} {thing}}}"),
        (f"{count} {thing}", f"{count} {other}"),
        (f"{count} {thing}", f"{count} cm"),
        (f"{count} {thing}", f"{count + 1} {thing}"),
    )
    return rng.choice(forms)  # the answer says more, or another thing


@kind("clock times")
def _(rng):
    hour, minute = rng.randint(1, 12), rng.randint(0, 59)
    clock = f"{hour}:{minute:02d}"
    others = [f"{hour}:{(minute + rng.randint(1, 59)) % 60:02d}", f"{hour % 12 + 1}:{minute:02d}"]
    if hour % 2 == 0 and minute % 2 == 0:
        others += [f"{hour // 2}:{minute // 2:02d}"] * 3
    if minute == 0 or rng.random() < 0.2:
        clock, others = f"{hour}:00", [f"{rng.choice([h for h in range(1, 13) if h != hour])}:00"]
    if rng.random() < 0.3:
        half, other_half = rng.sample((" AM", " PM"), 2)
        return rng.choice((f"{clock}{other_half}", rng.choice(others) + half)), f"{clock}{half}"
    return rng.choice(others), clock


@kind("scores")
def _(rng):
    won, other = rng.sample(range(1, 30), 2)
    forms = (
        (f"{won}:0", f"{other}:0"),
        (f"0:{won}", f"0:{other}"),
        (f"{won}:0", f"0:{won}"),
        (f"{won}:0", f"{won}:{other}"),
        (f"{won}:{other}", f"{won}:{other + won + 1}"),
    )
    return either(rng, *rng.choice(forms))


@kind("dates")
def _(rng):
    year, (month, day) = rng.randint(1950, 2050), rng.sample(range(1, 13), 2)
    months = ("January", "February", "March", "April", "May", "June", "July", "August")
    name, other = rng.sample(months, 2)
    iso = f"{year}-{month:02d}-{day:02d}"
    forms = (
        (f"{year}-{day:02d}-{month:02d}", iso),
        (str(year - month - day), iso),
        (f"{year + 1}-{month:02d}-{day:02d}", iso),
        (f"{year}/{day:02d}/{month:02d}", f"{year}/{month:02d}/{day:02d}"),
        (f"{day:02d}/{month:02d}/{year}", f"{month:02d}/{day:02d}/{year}"),
        (f"{name} {day}", f"{other} {day}"),
        (f"{name} {day}", f"{name} {month}"),
        (rf"\text{{{day} {name}}}", rf"\text{{{month} {name}}}"),
    )
    return rng.choice(forms)


# --- letters and points ---------------------------------------------------------------------------


@kind("letter case")
def _(rng):
    low, other = rng.sample("npqruvwxyz", 2)
    high, times = low.upper(), rng.randint(2, 30)
    forms = (
        (f"{high}+{other}", f"{low}+{other}"),
        (f"{times}{low}", f"{high}+{times - 1}{low}"),
        (rf"{times}\pi({high}^2-{low}^2)", rf"{times}\pi({low}^2-{low}^2)"),
        (rf"\frac{{{high}}}{{{low}}}", rf"\frac{{{low}}}{{{high}}}"),
        (rf"{times}", rf"\frac{{{times}{high}}}{{{low}}}"),
        (f"{high}-{times}{low}", f"{low}-{times}{high}"),
        (f"{other}={high}+{times}{low}", f"{other}={low}+{times}{high}"),
        (f"{low}^2+{times}", f"{high}^2+{times}"),
        (f"{times}{high}{low}", f"{times}{low}{low}"),
        (low, high),
    )
    return either(rng, *rng.choice(forms))


@kind("letters and constants that a library knows")
def _(rng):
    letter = rng.choice(
        (*GREEK, r"\Gamma", *"EINOQSCRLPTkdjagbcmtei", r"\zeta", r"\epsilon", r"\pi")
    )
    times, a = rng.randint(2, 12), rng.randint(2, 30)
    forms = (
        (
            plus(term(times, letter), str(-a)),
            plus(term(times, letter), str(-a - rng.randint(1, 9))),
        ),
        (f"{letter}^2-{a}", f"{letter}^2-{a + 1}"),
        (f"{letter}+{a}", str(a)),
        (f"{letter}+{a}", f"{letter}+{a + 1}"),
        (rf"\frac{{{letter}}}{{{a}}}", rf"\frac{{{letter}}}{{{a + 1}}}"),
    )
    return either(rng, *rng.choice(forms))


@kind("letters exchanged in a run")
def _(rng):
    capitals = "".join(rng.sample(POINTS, 3))
    coins = "".join(rng.choice("HT") for _ in range(rng.randint(1, 4))) + "HT"
    roman = rng.choice(("IV", "VI", "IX", "XI", "XIV", "XVI", "XIX", "XXI"))
    name = "".join(rng.sample("abcdeghiklmnoprstuvwy", rng.randint(3, 6)))
    word = rng.choice(("no", "on", "ten", "net", "cat", "act", "sin", "tan"))
    sides = rng.choice(("SAS", "AAS", "ASA"))
    frame, other = rng.choices(("#", r"\text{#}", r"\mathrm{#}"), k=2)
    in_text = rng.choice((r"\text{#}", r"\text{#}", r"\textbf{#}"))
    forms = (
        (frame, other, capitals, swapped(rng, capitals)),
        (frame, other, coins, swapped(rng, coins)),
        (frame, other, roman, swapped(rng, roman)),
        (frame, other, sides, swapped(rng, sides)),
        (in_text, in_text, name.title(), swapped(rng, name, first=1).title()),
        (in_text, r"\text{#}", word, swapped(rng, word)),
        (frame, other, name + "s", swapped(rng, name + "s")),
    )
    dress, other_dress, text, changed = rng.choice(forms)
    return dress.replace("#", changed), other_dress.replace("#", text)


@kind("points exchanged")
def _(rng):
    a, b, c, d = rng.sample(POINTS, 4)
    arrow = rng.choice((r"\overrightarrow", r"\vec"))
    forms = (
        (rf"\angle {a}{b}{c}", rf"\angle {a}{c}{b}"),
        (rf"\angle {a}{b}{c}", rf"\angle {b}{a}{c}"),
        (f"∠{a}{b}{c}", f"∠{a}{c}{b}"),
        (rf"\angle {a}=\angle {b}{c}{d}", rf"\angle {a}=\angle {b}{d}{c}"),
        (rf"\cos\angle {a}{b}{c}", rf"\cos\angle {a}{c}{b}"),
        (rf"{a}{b}\cdot {c}{d}", rf"{a}{c}\cdot {b}{d}"),
        (f"{a}{b}={c}{d}", f"{a}{c}={b}{d}"),
        (f"{a}{b}+{c}{d}", f"{a}{c}+{b}{d}"),
        (rf"{arrow}{{{a}{b}}}", rf"{arrow}{{{b}{a}}}"),
        (rf"\frac{{{a}{b}}}{{{c}{d}}}", rf"\frac{{{c}{d}}}{{{a}{b}}}"),
        (a + b, a + c),
    )
    return either(rng, *rng.choice(forms))


@kind("letters exchanged in an expression")
def _(rng):
    x, y = rng.sample(VARIABLES, 2)
    a, b = rng.sample(range(2, 20), 2)
    forms = (
        (f"{x}^2{y}", f"{x}{y}^2"),
        (f"{a}{x}+{b}{y}", f"{a}{y}+{b}{x}"),
        (rf"\frac{{{x}}}{{{y}}}", rf"\frac{{{y}}}{{{x}}}"),
        (f"{x}-{a}{y}", f"{y}-{a}{x}"),
        (f"{a}^{{{x}}}+{y}", f"{a}^{{{y}}}+{x}"),
        (f"{a}{x}", f"{a}{y}"),
        (
            rf"\frac{{{x}^2}}{{{a}}}+\frac{{{y}^2}}{{{b}}}=1",
            rf"\frac{{{y}^2}}{{{a}}}+\frac{{{x}^2}}{{{b}}}=1",
        ),
    )
    return either(rng, *rng.choice(forms))


@kind("name exchanged")
def _(rng):
    x, y = rng.sample(VARIABLES, 2)
    a, b, c, d = rng.sample(POINTS, 4)
    amount, high, body = core(number(rng)), rng.randint(3, 60), polynomial(rng, "x", 1)
    forms = (
        (f"{x}={amount}", f"{y}={amount}"),
        (f"{x}>{amount}", f"{y}>{amount}"),
        (f"{a}{b}={amount}", f"{c}{d}={amount}"),
        (f"{a}{b}={amount}", f"{a}{c}={amount}"),
        (rf"\angle {a}=35^\circ", rf"\angle {b}=35^\circ"),
        (rf"{x}\in[2,{high})", rf"{y}\in[2,{high})"),
        (f"f(x)={body}", f"g(x)={body}"),
        (f"I_p={body}", f"I_q={body}"),
        (f"{x}=2, {y}={amount}0", f"{y}=2, {x}={amount}0"),
    )
    return either(rng, *rng.choice(forms))


# --- expressions ----------------------------------------------------------------------------------


@kind("operands of minus exchanged")
def _(rng):
    x, y = rng.sample(VARIABLES, 2)
    a, b = rng.randint(1, 40), rng.choice(SQUAREFREE)
    forms = (
        (f"{x}-{y}", f"{y}-{x}"),
        (f"{x}-{a}", f"{a}-{x}"),
        (rf"{a}-\sqrt{{{b}}}", rf"\sqrt{{{b}}}-{a}"),
        (f"{x}^2-{y}^2", f"{y}^2-{x}^2"),
        (rf"\frac{{{x}-{y}}}{{{a}}}", rf"\frac{{{y}-{x}}}{{{a}}}"),
        (rf"\vec {x}-\vec {y}", rf"\vec {y}-\vec {x}"),
        (rf"{a}-{b}\pi", rf"{b}\pi-{a}"),
    )
    return either(rng, *rng.choice(forms))


@kind("operation exchanged")
def _(rng):
    x, y = rng.sample(VARIABLES, 2)
    a, b = rng.sample(range(2, 40), 2)
    forms = (
        (f"{a}{x}+{b}", f"{a}{x}-{b}"),
        (f"({x}+{a})({x}+{b})", f"({x}+{a})+({x}+{b})"),
        (rf"{x}\cdot {y}", f"{x}+{y}"),
        (rf"\frac{{{x}}}{{{y}}}", f"{x}{y}"),
        (rf"\sqrt{{{x}+{a}}}", rf"\sqrt{{{x}}}+{a}"),
        (rf"\frac{{{x}+{a}}}{{{b}}}", rf"{x}+\frac{{{a}}}{{{b}}}"),
        (f"{a}({x}+{b})", f"{a}{x}+{b}"),
        (f"{x}^{{{a}}}", f"{a}{x}"),
    )
    return either(rng, *rng.choice(forms))


@kind("exponent")
def _(rng):
    x, base, power = rng.choice(VARIABLES), rng.randint(2, 12), rng.randint(2, 12)
    forms = (
        (f"{x}^{{{power}}}", f"{x}^{{{power + 1}}}"),
        (f"{base}^{{{power}}}", f"{base}^{{{power + 1}}}"),
        (f"{base}^{{{x}+1}}", f"{base}^{{{x}-1}}"),
        (rf"{base}.5\times10^{{{power}}}", rf"{base}.5\times10^{{-{power}}}"),
        (f"{base}{x}^2-{power}", f"{base}{x}^3-{power}"),
        (f"({x}+{base})^2", f"{x}^2+{base}^2"),
        (rf"\sqrt[3]{{{base}{x}}}", rf"\sqrt{{{base}{x}}}"),
        (f"({base}{x})^{{{power}}}", f"{base}{x}^{{{power}}}"),
    )
    return either(rng, *rng.choice(forms))


@kind("coefficient")
def _(rng):
    x = rng.choice(VARIABLES)
    a, b, c = (nonzero(rng, 20) for _ in range(3))
    other = a + rng.choice((1, 2, 3)) if a > 0 else a - rng.choice((1, 2, 3))
    forms = (
        (plus(term(a, x), str(b)), plus(term(other, x), str(b))),
        (plus(f"{x}^2", term(a, x), str(b)), plus(f"{x}^2", term(other, x), str(b))),
        (line(a, b, c), line(other, b, c)),
        (line(a, b, c), line(a, -b, c)),
        (f"y={plus(term(a, 'x'), str(b))}", f"y={plus(term(a, 'x'), str(-b))}"),
        (f"{x}+{abs(b)}", f"2{x}+{2 * abs(b)}"),
    )
    return either(rng, *rng.choice(forms))


@kind("equation for expression")
def _(rng):
    a, b, c = (nonzero(rng, 20) for _ in range(3))
    whole = plus(term(a, "x"), term(b, "y"), str(c))
    return rng.choice(((whole, f"{whole}=0"), (f"{whole}=0", whole), (f"{whole}<0", f"{whole}=0")))


@kind("functions exchanged")
def _(rng):
    x, a = rng.choice(VARIABLES), rng.randint(2, 20)
    one, other = rng.sample(("sin", "cos", "tan", "ln"), 2)
    forms = (
        (rf"\{one} {x}", rf"\{other} {x}"),
        (rf"{a}\{one}({x}+{a})", rf"{a}\{other}({x}+{a})"),
        (rf"\log_2 {a}{x}", rf"\log_3 {a}{x}"),
        (rf"\sin {a}{x}", rf"{a}\sin {x}"),
        (rf"\{one} {x}+{a}", rf"\{one}({x}+{a})"),
        (rf"\{one} {x}", f"{a}{x}"),
    )
    return either(rng, *rng.choice(forms))


@kind("root of a square, bars left out")
def _(rng):
    x, a = rng.choice(VARIABLES), rng.randint(1, 40)
    forms = (
        (f"{a}{x}", rf"\sqrt{{{a * a}{x}^2}}"),
        (f"{x}-{a}", rf"\sqrt{{({x}-{a})^2}}"),
        (f"{x}", rf"\sqrt{{{x}^2}}"),
        (f"{x}+{a}", f"|{x}+{a}|"),
        (f"{a + 1}{x}", f"|{a + 1}{x}|"),
    )
    return either(rng, *rng.choice(forms))


@kind("vectors, dot and cross products")
def _(rng):
    a, b = rng.sample("abcuvw", 2)
    arrow, times = rng.choice((r"\vec{%s}", r"\vec %s", r"\overrightarrow{%s}")), rng.randint(2, 20)
    p, q = arrow % a, arrow % b
    ends_of = segment(rng)
    forms = (
        (rf"{p}\cdot{q}", rf"{p}\times{q}"),
        (rf"{p}\times{q}", rf"{q}\times{p}"),
        (rf"{times}{p}\cdot{q}", rf"{times}{p}\times{q}"),
        (r"\mathbf{A}\times\mathbf{F}", r"\mathbf{F}\times\mathbf{A}"),
        (rf"{p}\cdot{q}={times}", rf"{p}\times{q}={times}"),
        (f"{times}{p}", f"{times}{a}"),
        (f"{p}+{times}{q}", f"{a}+{times}{b}"),
        (f"|{p}|", p),
        (rf"\overrightarrow{{{ends_of}}}", ends_of),
        (f"{p}-{times}{q}", f"{p}+{times}{q}"),
    )
    return either(rng, *rng.choice(forms))


@kind("derivatives")
def _(rng):
    y, x, times = rng.choice("yuvw"), rng.choice("xtz"), rng.randint(2, 30)
    first, body = (
        rf"\frac{{d{y}}}{{d{x}}}",
        rng.choice((f"{times}{x}", f"{times}{y}", f"{x}^2+{times}")),
    )
    forms = (
        (rf"{rng.randint(2, 9)}{first}={body}", f"{first}={body}"),
        (f"-{first}={body}", f"{first}={body}"),
        (rf"\frac{{d^2{y}}}{{d{x}^2}}={body}", f"{first}={body}"),
        (rf"\frac{{d{x}}}{{d{y}}}={body}", f"{first}={body}"),
        (f"{y}={body}", f"{first}={body}"),
        (f"{y}''={body}", f"{y}'={body}"),
        (f"{first}={body}", f"{first}={body}+1"),
    )
    return either(rng, *rng.choice(forms))


# --- relations ------------------------------------------------------------------------------------


@kind("equations between constants")
def _(rng):
    a = rng.randint(3, 60)
    b = a + rng.randint(2, 40)
    total, product = a + b, a * b
    sums = f"{a}+{b}={total}"
    forms = (
        ("1=2", sums),
        ("0=0", sums),
        ("1=1", rf"{a}\times {b}={product}"),
        (f"{total}={total}", sums),
        (str(total), sums),
        (f"{a + 1}+{b - 1}={total}", sums),
        (f"{a}+{b}={total + 1}", sums),
        (rf"{a}\times {b}={product}", sums),
        (f"{total}-{b}={a}", f"{total}-{a}={b}"),
        (f"{total}-{a}={b}", sums),
        (rf"\sin {a}^\circ={b}", rf"\sin {a}^\circ=\frac{{{b}}}{{{total}}}"),
        (f"{a}^2={a * a}", f"{b}^2={b * b}"),
        (f"{total}>{a}", f"{total}>{b}"),
    )
    return rng.choice(forms)


@kind("equations without real solutions")
def _(rng):
    x = rng.choice("xyzpq")
    a, b = rng.sample(range(1, 60), 2)
    c, d = rng.sample(range(1, 9), 2)
    forms = (
        (f"{x}^2+{a}=0", f"{x}^2+{b}=0"),
        (f"{x}^2+{2 * c}{x}+{c * c + a}=0", f"{x}^2-{2 * c}{x}+{c * c + a}=0"),
        (f"{x}^2+{2 * c}{x}+{c * c + a}=0", f"{x}^2+{2 * d}{x}+{d * d + b}=0"),
        (f"{x}={x}+{a}", f"{x}^2+{b}=0"),
        (f"{x}^2<-{a}", f"{x}^2<-{b}"),
        (f"{x}^2>-{a}", f"{x}^2>-{b}"),
        (rf"{x}^2+{a}\ge 0", rf"{x}^2+{b}\ge 0"),
        (f"|{x}|=-{a}", f"|{x}|=-{b}"),
    )
    return either(rng, *rng.choice(forms))


@kind("relation reversed or its strictness")
def _(rng):
    x, (low, high) = rng.choice(VARIABLES), ends(rng)
    signs = ("<", ">", r"\le ", r"\ge ", r"\ne ")
    one, other = rng.sample(signs, 2)
    forms = (
        (f"{x}{one}{low}", f"{x}{other}{low}"),
        (f"{x}{one}{low}", f"{x}{other}{low}"),
        (f"{one}{low}", f"{other}{low}"),
        (f"{low}<{x}<{high}", rf"{low}\le {x}<{high}"),
        (rf"{low}<{x}\le {high}", f"{low}<{x}<{high}"),
        (f"2x+3y<{low}", f"2x+3y>{low}"),
        (f"{x}={low}", f"{x}{one}{low}"),
    )
    return either(rng, *rng.choice(forms))


@kind("question instead of the answer")
def _(rng):
    x, low, b, times = (
        rng.choice(VARIABLES),
        nonzero(rng, 40),
        rng.randint(1, 20),
        rng.randint(2, 9),
    )
    sign = rng.choice(("=", "=", ">", "<"))
    questions = (
        f"{x}+{b}{sign}{low + b}",
        f"{x}-{b}{sign}{low - b}",
        f"{times}{x}{sign}{times * low}",
    )
    questions += (f"{times}{x}+{b}{sign}{times * low + b}",)
    return rng.choice(questions), f"{x}{sign}{low}"


@kind("and, or, union, intersection")
def _(rng):
    x, (low, high) = rng.choice("xtyz"), ends(rng)
    outside = rf"{x}<{low}\text{{ or }}{x}>{high}"
    rays = rf"(-\infty,{low})\cup({high},\infty)"
    forms = (
        (rf"{x}<{low}\text{{ and }}{x}>{high}", outside),
        (f"{low}<{x}<{high}", outside),
        (rf"(-\infty,{low})\cap({high},\infty)", rays),
        (f"({low},{high})", rays),
        (rf"{x}>{low}\text{{ or }}{x}<{high}", rf"{x}>{low}\text{{ and }}{x}<{high}"),
        (rf"(-\infty,{low})", rays),
        (f"{x}>{high}", outside),
        (rf"{x}\ne {low}", outside),
    )
    return either(rng, *rng.choice(forms))


@kind("false chains and estimates")
def _(rng):
    a, b, times = rng.randint(3, 40), rng.randint(3, 40), rng.choice(("*", r"\times ", r"\cdot "))
    inside, places = rng.choice(SQUAREFREE), rng.choice((1, 2))
    off = sqrt(inside) * a + rng.choice((-1, 1)) * rng.randint(3, 9) / 10**places
    forms = (
        (f"{a}{times}{b + 1}={a * b}", str(a * b)),
        (f"{a}+{b}={a + b + 1}", str(a + b)),
        (f"{a}+{b + 1}={a + b}", str(a + b)),
        (f"x={a}{times}{b}={a * b + 1}={a * b}", str(a * b)),
        (f"{a}{times}{b}={a * b}", str(a * b + a)),
        (rf"{a}\sqrt{{{inside}}}\approx {off:.{places}f}", rf"{a}\sqrt{{{inside}}}"),
        (rf"{a + 1}\sqrt{{{inside}}}\approx {a * sqrt(inside):.1f}", rf"{a}\sqrt{{{inside}}}"),
        (rf"\approx {a}.{b}", f"{a}.{b + 1}" if b % 10 != 9 else f"{a + 1}.{b}"),
        (rf"\approx {a}.4", rf"\frac{{{10 * a + 5}}}{{10}}"),
    )
    return rng.choice(forms)


# --- several parts --------------------------------------------------------------------------------


@kind("part left out or added")
def _(rng):
    parts = [spelled(rng, part) for part in values(rng, rng.randint(3, 4))]
    fewer = [*parts]
    fewer.pop(rng.randrange(len(parts)))
    frames = ("#", r"\{#\}", "(#)", "x=#")
    frame, link = rng.choice(frames), rng.choice((", ", ",", r"\text{ or }"))
    if frame in ("(#)", r"\{#\}"):
        link = ","
    if frame == "x=#":
        link = rng.choice((", x=", " or x="))
    pair = (frame.replace("#", link.join(some)) for some in (fewer, parts))
    return either(rng, *pair)


@kind("one part changed")
def _(rng):
    parts = values(rng, rng.randint(2, 4))
    changed = [*parts]
    at = rng.randrange(len(parts))
    changed[at] = next(new for new in values(rng, 6) if new not in parts)
    frame = rng.choice(("#", r"\{#\}", "(#)"))
    return tuple(frame.replace("#", ", ".join(map(tex, some))) for some in (changed, parts))


@kind("order where it counts")
def _(rng):
    parts = values(rng, rng.choice((2, 2, 3)))
    moved = parts
    while moved == parts:
        moved = shuffled(rng, parts)
    one, other = (",".join(map(tex, some)) for some in (moved, parts))
    names = "xyz"[: len(parts)]
    frame = rng.choice(("(#)", "(#)", r"\langle #\rangle", f"{rng.choice(POINTS)}(#)"))
    if rng.random() < 0.3:
        rows = [
            ", ".join(f"{n}={tex(p)}" for n, p in zip(names, some, strict=True))
            for some in (moved, parts)
        ]
        return rows[0], rows[1]
    return frame.replace("#", one), frame.replace("#", other)


@kind("kind of brackets")
def _(rng):
    reference = interval(rng)
    if rng.random() < 0.4:
        low, high = ends(rng)
        frames = rng.choice((("(#)", "[#]", r"\{#\}"), ("(#)", "[#]", "[#)", "(#]")))
        one, other = rng.sample(frames, 2)
        return one.replace("#", f"{low},{high}"), other.replace("#", f"{low},{high}")
    answer = list(reference)
    left, right = reference.split(",")
    at = rng.choice([i for i, end in ((0, left), (-1, right)) if "infty" not in end])
    answer[at] = {"(": "[", "[": "(", ")": "]", "]": ")"}[answer[at]]
    return "".join(answer), reference


@kind("ratios")
def _(rng):
    a, b, c = rng.sample(range(1, 20), 3)
    forms = (
        (f"{a}:{b}", f"{b}:{a}"),
        (f"{a}:{b}", f"{a}:{c}"),
        (f"{a}:{b}:{c}", f"{a}:{c}:{b}"),
        (f"{a}:{b}:{c}", f"{a}:{b}"),
        (rf"\frac{{{a}}}{{{b}}}", f"{b}:{a}"),
        (f"AB:BC={a}:{b}", f"AB:BC={b}:{a}"),
        (f"{2 * a}:{2 * b}:{2 * c + 1}", f"{a}:{b}:{c}"),
    )
    return either(rng, *rng.choice(forms))


@kind("matrices")
def _(rng):
    (a, b, c), (d, e, f) = (values(rng, 3) for _ in range(2))
    if b == d:
        d = b + 1
    frame = rng.choice(("pmatrix", "bmatrix"))

    def matrix(*rows, name=frame):
        body = r" \\ ".join(" & ".join(map(tex, row)) for row in rows)
        return rf"\begin{{{name}}} {body} \end{{{name}}}"

    square = matrix((a, b), (d, e))
    forms = (
        (matrix((a, d), (b, e)), square),
        (matrix((a, b), (d, e + 1)), square),
        (matrix((a, b), (d, e), name="vmatrix"), square),
        (matrix((a,), (b,)), matrix((b,), (a,))),
        (matrix((a,), (b,)), matrix((a,), (b,), (c,))),
        (matrix((a, b, c)), matrix((b, a, c))),
        (matrix((a, b, c), (d, e, f)), matrix((b, a, c), (d, e, f))),
        (str(a.numerator), square),
    )
    return rng.choice(forms)


@kind("choices")
def _(rng):
    a, b, c = rng.sample(CHOICES, 3)
    text = core(exact(rng))
    forms = (
        (b, a),
        (a + b, a),
        (f"{a}, {b}", a),
        (f"{a} or {b}", a),
        (rf"\text{{not }}{a}", a),
        (f"{b}. {text}", a),
        (f"({b}) {text}", f"({a}) {text}"),
        (b.lower(), a),
        (a, f"{a}{b}"),
        ("".join(sorted(a + b)), "".join(sorted(a + b + c))),
        (f"{a}, {c}", f"{a}, {b}"),
        (b, f"{a}. {text}"),
    )
    return rng.choice(forms)


@kind("circled numbers")
def _(rng):
    chosen = rng.sample(range(9), rng.choice((2, 3)))
    circles = [chr(ord("①") + n) for n in sorted(chosen)]
    changed = [*circles]
    changed[rng.randrange(len(circles))] = chr(
        ord("①") + rng.choice([n for n in range(9) if n not in chosen])
    )
    wrong = ("".join(changed), "、".join(circles[1:]), "".join(changed[:1] + circles))
    if changed[0] == circles[0]:
        wrong = wrong[:2]
    return rng.choice(wrong), "".join(circles)


# --- words and hedges -----------------------------------------------------------------------------


@kind("words")
def _(rng):
    which, other = rng.sample(
        ("isosceles", "right", "equilateral", "scalene", "regular", "acute"), 2
    )
    shape, other_shape = rng.sample(("triangle", "rhombus", "trapezoid", "pentagon", "hexagon"), 2)
    phrase = f"{which} {shape}"
    opposite = (("parallel", "perpendicular"), ("increasing", "decreasing"), ("even", "odd"))
    opposite += (("yes", "no"), ("相等", "不相等"), ("true", "false"))
    forms = (
        (f"{which} {other_shape}", phrase),
        (f"{other} {shape}", phrase),
        (f"not a {phrase}", phrase),
        (f"{which} or {other} {shape}", phrase),
        (shape, phrase),
        (f"{phrase} or {other_shape}", phrase),
        rng.choice(opposite),
    )
    answer, reference = rng.choice(forms)
    frame, other_frame = rng.choices(("#", r"\text{#}", r"\textbf{#}"), k=2)
    return frame.replace("#", answer), other_frame.replace("#", reference)


@kind("hedges")
def _(rng):
    reference = length(rng)
    other = another_digit(rng, reference)
    forms = [
        "# or @",
        "#, @",
        r"#\text{ or }@",
        r"\{#, @\}",
        r"#\pm 1",
        r"# \to @",
        r"\text{about }#",
    ]
    forms += [
        r"\text{not }#",
        r"#\text{ not }@",
        r"#\text{ roughly}",
        r"#, \ldots",
        r"#\text{ (or }@)",
    ]
    forms += [r"[#, 1000+#]", r"\text{probably }#", r"@\text{ or }#", r"#? @?", r"#\text{ if }x>0"]
    forms += [r"x>#", r"x\ne #", r"#\text{ and }@", r"(#, @)", r"\sim #", r"#\text{ at least}"]
    forms += [r"\text{more than }#", r"#+@", "#; @", r"# \text{ or so}", r"#\text{ to }@"]
    return rng.choice(forms).replace("#", reference).replace("@", other), reference


@kind("invisible or padded")
def _(rng):
    reference = length(rng)
    forms = [
        r"\phantom{#}",
        r"\hphantom{#}",
        r"\vphantom{#}",
        r"\textcolor{white}{#}",
        r"{\color{white}#}",
    ]
    forms += [r"\hspace{#}", r"\vspace{#}", r"# #", r"#\phantom{1}1", r"\text{}"]
    return rng.choice(forms).replace("#", reference), reference


@kind("nothing, or another kind of thing")
def _(rng):
    reference = rng.choice(
        (length(rng), point(rng), interval(rng), f"{segment(rng)}={rng.randint(2, 99)}")
    )
    nothing = (
        "x",
        r"\text{the answer}",
        r"\text{no solution}",
        r"\emptyset",
        "?",
        "-",
        "n",
        r"\mathbb{R}",
    )
    nothing += (
        r"\infty",
        "A",
        r"\text{yes}",
        r"\text{DNE}",
        f"y={decimal(rng)}x",
        "()",
        r"\{\}",
        r"\frac{}{}",
    )
    return rng.choice(nothing), reference
