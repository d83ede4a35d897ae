# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Rewrites that keep the meaning, of the page, of numbers and of quantities, by kind: `VALUES`.

Each kind is a function of a `random.Random` that returns the content of the answer's box and that
of the reference's. What counts as the same follows the conventions at the head of
`rlvlm_jax/rewards/math/__init__.py`; nothing here knows the judge.
"""

from fractions import Fraction
from math import gcd

from tests.rewards.fuzz_shapes import (
    GREEK,
    SQUAREFREE,
    VARIABLES,
    Kind,
    as_decimal,
    core,
    decimal,
    either,
    entering,
    exact,
    finite,
    interval,
    k12,
    length,
    maths,
    nonzero,
    number,
    plus,
    point,
    ratio,
    root,
    spelled,
    term,
    tex,
    two,
    unit,
    words,
)

VALUES: dict[str, Kind] = {}
kind = entering(VALUES)


# --- the page: delimiters, blanks, fonts, marks ---------------------------------------------------

_DELIMITERS = ("$#$", "$$#$$", r"\(#\)", r"\[#\]", "{#}", r"\displaystyle #", r"$\displaystyle #$")


@kind("delimiters")
def _(rng):
    reference = maths(rng)
    return rng.choice(_DELIMITERS).replace("#", core(reference)), reference


@kind("spacing")
def _(rng):
    reference = maths(rng)
    text, spaced, depth = core(reference), rng.choice(("", " ", r"\,", "~")), 0
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        gap = rng.choice(("", " ", r"\,", r"\;", r"\ ", "~", r"\:"))
        if depth == 0 and character in "+-=<>":
            spaced += f"{gap}{character}{gap}"
        elif depth == 0 and character == ",":
            spaced += character + rng.choice(("", " ", r"\ ", r"\;", r"\quad "))
        else:
            spaced += character
    return spaced + rng.choice(("", " ", r"\,", r"\ ")), reference


@kind("sizes of brackets")
def _(rng):
    x, y = rng.sample(VARIABLES, 2)
    brackets = [core(box) for box in k12() if "(" in box and r"\left" not in box]
    reference = rng.choice(
        [
            point(rng),
            interval(rng),
            f"({x}{nonzero(rng):+d})({x}{nonzero(rng):+d})",
            f"{rng.randint(2, 9)}({x}{rng.choice('+-')}{y})^{rng.randint(2, 4)}",
            rng.choice(brackets or (point(rng),)),
        ]
    )
    answer = reference
    before, after = rng.choice(
        ((r"\left", r"\right"), (r"\bigl", r"\bigr"), (r"\big", r"\big"), (r"\Bigl", r"\Bigr"))
    )
    for bracket in "([":
        answer = answer.replace(bracket, before + bracket)
    for bracket in ")]":
        answer = answer.replace(bracket, after + bracket)
    return either(rng, answer, reference)


_FONTS = (
    *(rf"\{name}{{#}}" for name in ("mathbf", "mathrm", "mathit", "mathsf", "text", "textbf")),
    *(rf"\{name}{{#}}" for name in ("textit", "textrm", "boldsymbol", "bold", "underline")),
    *(rf"\{name} #" for name in ("bf", "rm", "large", "Large", "displaystyle", "it")),
    *(rf"{{\{name} #}}" for name in ("bf", "rm", "large", "Huge", "it", "sf")),
    *(r"\textcolor{blue}{#}", r"{\color{red} #}", "**#**", r"\mathbf{\text{#}}"),
)


@kind("fonts around a number")
def _(rng):
    reference = number(rng)
    return rng.choice(_FONTS).replace("#", core(reference)), reference


@kind("marks before and behind")
def _(rng):
    reference = exact(rng)
    if rng.random() < 0.3:
        reference = f"{rng.choice(VARIABLES)}={core(reference)}"
    marks = (r"\therefore #", r"\Rightarrow #", "∴#", "⇒ #", "#.", "# .", "#。", r"#\tag{1}")
    if "=" not in reference:
        marks += ("= #", "=#", r"#\tag{7}", r"\therefore\ #")
    return rng.choice(marks).replace("#", core(reference)), reference


@kind("spelling of signs")
def _(rng):
    minus = rng.choice(("−", "–", "- ", r"-\,", "－", "−"))
    reference = rng.choice(
        (f"-{core(exact(rng)).lstrip('-')}", f"{rng.choice(VARIABLES)}-{number(rng)}")
    )
    if rng.random() < 0.2:
        positive = core(exact(rng)).lstrip("-")
        return rng.choice(("+", "＋")) + positive, positive
    if rng.random() < 0.2:
        top, bottom = rng.randint(1, 30), rng.randint(2, 20)
        forms = (rf"-\frac{{{top}}}{{{bottom}}}", rf"\frac{{-{top}}}{{{bottom}}}")
        return two(rng, *forms, rf"\frac{{{top}}}{{-{bottom}}}", f"-{top}/{bottom}")
    reference = reference.replace("--", "+")
    return core(reference).replace("-", minus), reference


@kind("words and their dress")
def _(rng):
    which = rng.choice(("isosceles", "right", "equilateral", "scalene", "regular", "convex", ""))
    shape = rng.choice(("triangle", "rhombus", "trapezoid", "pentagon", "hexagon", "polygon"))
    phrase = rng.choice(
        (f"{which} {shape}".strip(), "parallel", "perpendicular", "increasing", "decreasing")
    )
    forms = [phrase, phrase.capitalize(), rf"\text{{{phrase}}}", rf"\textbf{{{phrase}}}"]
    forms += [f"{phrase}.", rf"\text{{{phrase.capitalize()}.}}"]
    if phrase.endswith(shape):
        article = "an" if phrase[0] in "aei" else "a"
        forms += [f"{article} {phrase}", rf"\text{{{article.capitalize()} {phrase}}}"]
    if phrase == "parallel":
        forms.append(r"\parallel")
    if phrase == "perpendicular":
        forms.append(r"\perp")
    return two(rng, *forms)


@kind("no solution")
def _(rng):
    phrase = rng.choice(
        ("no solution", "no solutions", "no real solutions", "there is no solution")
    )
    phrases = [phrase, "no solution", "no solutions exist", "there are no solutions"]
    phrases += [word.capitalize() for word in phrases]
    forms = [rf"\text{{{word}}}" for word in phrases] + phrases + [rf"\textbf{{{phrase}}}"]
    forms += [r"\emptyset", r"\varnothing", "∅", r"\text{No solution.}", rf"\text{{{phrase}}}."]
    if rng.random() < 0.3:
        none = ("DNE", "does not exist", "Does not exist", "does not exist.", "DNE.")
        forms = [*none, *(rf"\text{{{word}}}" for word in none), r"\mathrm{DNE}", r"\textbf{DNE}"]
    return two(rng, *forms)


@kind("Chinese marks and counters")
def _(rng):
    a, b = rng.sample(range(1, 99), 2)
    full_width = str.maketrans("0123456789", "０１２３４５６７８９")
    pairs = (
        (f"{a}或{b}", rf"{a}\text{{ or }}{b}"),
        (f"{a}，{b}", f"{a},{b}"),
        (f"{a}、{b}", f"{a}, {b}"),
        (f"{a}；{b}", f"{a}; {b}"),
        (f"（{a}，{b}）", f"({a},{b})"),
        (f"（{a}，-{b}）", f"({a},-{b})"),
        (f"{a}∶{b}", f"{a}:{b}"),
        (f"{a}：{b}", f"{a}:{b}"),
        (f"x＝{a}", f"x={a}"),
        (f"x＞{a}", f"x>{a}"),
        (f"x＜-{a}", f"x<-{a}"),
        (f"{a}{rng.choice('个人只本张棵支条')}", str(a)),
        (f"{a}{rng.choice(('厘米', '平方厘米', '元', '千克', '分钟', '米'))}", str(a)),
        (f"{a}厘米", rf"{a}\text{{ cm}}"),
        (f"{a}度", rf"{a}^\circ"),
        (f"{a}。", str(a)),
        (str(a).translate(full_width), str(a)),
        (f"答案：{a}", str(a)),
    )
    answer, reference = rng.choice(pairs)
    return either(rng, answer, reference) if "案" not in answer else (answer, reference)


# --- numbers --------------------------------------------------------------------------------------


@kind("fraction styles")
def _(rng):
    if k12() and rng.random() < 0.2:
        reference = rng.choice([box for box in k12() if r"\frac{" in box or r"\dfrac{" in box])
        answer = core(reference).replace(r"\dfrac", r"\frac")
        return answer.replace(r"\frac", rng.choice((r"\dfrac", r"\tfrac", r"\cfrac"))), reference
    top = rng.choice((str(rng.randint(1, 99)), root(rng), rf"{rng.randint(2, 9)}\pi"))
    bottom, sign = rng.randint(2, 60), rng.choice(("", "", "-"))
    forms = [rf"{sign}\{name}{{{top}}}{{{bottom}}}" for name in ("frac", "dfrac", "tfrac", "cfrac")]
    forms += [f"{sign}{{{top} \\over {bottom}}}", f"{sign}{top}/{bottom}"]
    forms += [rf"{sign}\nicefrac{{{top}}}{{{bottom}}}"] if top.isdigit() else []
    if top.isdigit() and len(top) == 1:
        forms.append(
            rf"{sign}\frac{top}{bottom}" if bottom < 10 else rf"{sign}\frac{top}{{{bottom}}}"
        )
    return two(rng, *forms)


@kind("macros as arguments")
def _(rng):
    name, digit, other = rng.choice((r"\pi", *GREEK)), *rng.sample(range(2, 10), 2)
    up = (rf"\frac{name}{digit}", rf"\frac{{{name}}}{{{digit}}}", rf"{name}/{digit}")
    long = (rf"\frac{name}{{{10 * digit}}}", rf"\dfrac{{{name}}}{{{10 * digit}}}")
    down = (rf"\frac{digit}{name}", rf"\frac{{{digit}}}{{{name}}}", rf"\dfrac{digit}{{{name}}}")
    inside = (rf"\sqrt\frac{digit}{other}", rf"\sqrt{{\frac{{{digit}}}{{{other}}}}}")
    roots = (rf"\frac{{\sqrt{digit}}}{other}", rf"\frac{{\sqrt{{{digit}}}}}{{{other}}}")
    return two(rng, *rng.choice((up, long, down, inside, roots)))


@kind("fractions and decimals")
def _(rng):
    amount, times, sign = finite(rng), rng.randint(2, 6), rng.choice(("", "", "-"))
    top, bottom, ending = amount.numerator, amount.denominator, as_decimal(amount)
    forms = [tex(amount), ending, f"{ending}0", f"{top}/{bottom}"]
    forms.append(rf"\frac{{{times * top}}}{{{times * bottom}}}")
    if amount < 1:
        forms.append(ending.removeprefix("0"))
    return two(rng, *(sign + form for form in forms))


@kind("mixed numbers")
def _(rng):
    whole, part = rng.randint(1, 20), ratio(rng) % 1
    forms = [
        f"{whole}{tex(part)}",
        tex(whole + part),
        rf"{whole}\dfrac{{{part.numerator}}}{{{part.denominator}}}",
    ]
    forms.append(f"{whole} {part.numerator}/{part.denominator}")
    ending = as_decimal(whole + part)
    return two(rng, *forms, *([ending] if ending else []))


@kind("recurring decimals")
def _(rng):
    digits = rng.choice((1, 2, 3))
    top, whole = rng.randint(1, 10**digits - 2), rng.choice((0, 0, rng.randint(1, 9)))
    period = f"{top:0{digits}d}"
    dotted = (
        rf"\dot{{{period[0]}}}"
        if digits == 1
        else rf"\dot{{{period[0]}}}{period[1:-1]}\dot{{{period[-1]}}}"
    )
    amount = tex(whole + Fraction(top, 10**digits - 1))
    return two(rng, rf"{whole}.\overline{{{period}}}", f"{whole}.{dotted}", amount)


@kind("thousands")
def _(rng):
    amount = rng.randint(1000, 9_999_999)
    separator = rng.choice((",", "{,}", r"\,", " ", r",\!", r",\! "))
    tail = rng.choice(("", "", ".5", ".25"))
    return either(rng, f"{amount:,}".replace(",", separator) + tail, f"{amount}{tail}")


@kind("leading zeros")
def _(rng):
    digits = str(rng.randint(0, 999))
    return either(rng, "0" * rng.randint(1, 3) + digits, digits)


@kind("scientific notation")
def _(rng):
    mantissa = f"{rng.randint(1, 9)}.{rng.choice(('', '0', '4'))}{rng.randint(1, 9)}"
    power = rng.choice((rng.randint(3, 14), rng.randint(-6, -2)))
    times = (r"\times10^", r"\cdot 10^", " x 10^", "×10^", "*10^")
    forms = [f"{mantissa}{sign}{power}" for sign in times if 0 <= power < 10]
    forms += [rf"{mantissa}{sign}{{{power}}}" for sign in times]
    full = Fraction(mantissa) * Fraction(10) ** power
    return two(rng, *forms, as_decimal(full))


@kind("roots")
def _(rng):
    times, inside, bottom = rng.randint(2, 9), rng.choice(SQUAREFREE), rng.choice((2, 3, 5, 7))
    whole = (
        rf"{times}\sqrt{{{inside}}}",
        rf"\sqrt{{{times * times * inside}}}",
        f"{times}√{inside}",
        rf"\sqrt{{{inside}}}\cdot {times}",
    )
    under = (
        rf"\frac{{{times}}}{{\sqrt{{{bottom}}}}}",
        rf"\frac{{{times}\sqrt{{{bottom}}}}}{{{bottom}}}",
    )
    cubic = (rf"\sqrt[3]{{{times**3 * bottom}}}", rf"{times}\sqrt[3]{{{bottom}}}")
    sums = (rf"{times}+\sqrt{{{inside}}}", rf"\sqrt{{{inside}}}+{times}")
    square = (
        rf"({times}+\sqrt{{{inside}}})^2",
        rf"{times * times + inside}+{2 * times}\sqrt{{{inside}}}",
    )
    return two(rng, *rng.choice((whole, whole, under, cubic, sums, square)))


@kind("large exact numbers")
def _(rng):
    base, half, rest = rng.randint(2, 9), rng.randint(50, 110), rng.randint(1, 9)
    power = 2 * half
    forms = (
        (f"{base}^{{{power}}}-{rest}", f"{base * base}^{{{half}}}-{rest}"),
        (f"{base}^{{{power}}}", rf"{base}\cdot {base}^{{{power - 1}}}"),
        (f"{base}^{{{power}}}-{base}", f"{base}({base}^{{{power - 1}}}-1)"),
        (
            rf"1-\frac{{1}}{{{base}^{{{power}}}}}",
            rf"\frac{{{base}^{{{power}}}-1}}{{{base}^{{{power}}}}}",
        ),
    )
    return either(rng, *rng.choice(forms))


@kind("numbers in words")
def _(rng):
    if rng.random() < 0.7:
        amount = rng.randint(0, 100)
        text = words(amount)
        forms = (text, text.replace("-", " "), text.capitalize(), rf"\text{{{text}}}")
        return either(rng, rng.choice(forms), str(amount))
    parts = {2: "half", 3: "third", 4: "quarter", 5: "fifth", 6: "sixth", 8: "eighth", 10: "tenth"}
    bottom = rng.choice(list(parts))
    top = rng.choice([n for n in range(1, bottom) if gcd(n, bottom) == 1])
    text = f"{words(top)}{rng.choice(' -')}{parts[bottom]}{'s' if top > 1 else ''}"
    forms = (text, rf"\text{{{text}}}", text.capitalize(), rf"\textbf{{{text}}}")
    return either(rng, rng.choice(forms), spelled(rng, Fraction(top, bottom)))


@kind("thousand to trillion in words")
def _(rng):
    name, power = rng.choice((("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12)))
    count = rng.choice((str(rng.randint(2, 900)), f"{rng.randint(1, 99)}.{rng.randint(1, 9)}"))
    full = as_decimal(Fraction(count) * 10**power)
    forms = [full, f"{int(full):,}", rf"{count}\times10^{{{power}}}"]
    spoken = [f"{count} {name}", rf"{count}\text{{ {name}}}", rf"{count}\ \mathrm{{{name}}}"]
    if count.isdigit() and int(count) <= 100:
        spoken.append(rf"\text{{{words(int(count))} {name}}}")
    return either(rng, rng.choice(spoken), rng.choice(forms))


@kind("bases")
def _(rng):
    base = rng.randint(2, 9)
    digits = str(rng.randint(1, base - 1)) + "".join(
        str(rng.randint(0, base - 1)) for _ in range(rng.randint(1, 5))
    )
    forms = (
        f"{digits}_{base}",
        f"{digits}_{{{base}}}",
        f"({digits})_{base}",
        f"({digits})_{{{base}}}",
    )
    return two(rng, *forms)


@kind("complex numbers")
def _(rng):
    a, b = nonzero(rng, 9), nonzero(rng, 9)
    c, d, times = nonzero(rng, 5), nonzero(rng, 5), rng.randint(2, 9)
    plain = plus(str(a), term(b, "i"))
    product = plus(str(a * c - b * d), term(a * d + b * c, "i"))
    legs = rng.choice(((3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25), (20, 21, 29)))
    forms = (
        (plain, plus(term(b, "i"), str(a))),
        (product, f"({plain})({plus(str(c), term(d, 'i'))})"),
        (f"{times * a}i^2", str(-times * a)),
        (f"|{legs[0] * times}+{legs[1] * times}i|", str(legs[2] * times)),
        (
            rf"\frac{{{plain}}}{{{times}}}",
            plus(rf"\frac{{{a}}}{{{times}}}", rf"\frac{{{b}}}{{{times}}}i"),
        ),
        (rf"\pm {times}i", f"{times}i,-{times}i"),
    )
    return either(rng, *rng.choice(forms))


# --- numbers with something beside them -----------------------------------------------------------


@kind("percent sign, left out or added")
def _(rng):
    amount = Fraction(rng.randint(1, 999), rng.choice((1, 1, 10)))
    plain, share = as_decimal(amount), as_decimal(amount / 100)
    signs = (rf"{plain}\%", f"{plain}%", rf"{plain}\,\%", rf"{plain} \%")
    other = rng.choice((plain, share, tex(amount / 100)))
    return either(rng, rng.choice(signs), other)


@kind("percent in words")
def _(rng):
    plain = rng.choice((str(rng.randint(1, 100)), decimal(rng)))
    worded = (rf"{plain}\text{{ percent}}", f"{plain} percent", rf"{plain}\,\mathrm{{percent}}")
    return either(
        rng, rng.choice(worded), rng.choice((rf"{plain}\%", rf"{plain}\%", f"{plain}%", plain))
    )


@kind("degrees in words and signs")
def _(rng):
    plain = rng.choice((str(rng.randint(1, 359)), f"{rng.randint(1, 179)}.5"))
    forms = [rf"{plain}^\circ", rf"{plain}^{{\circ}}", f"{plain}°", rf"{plain}{{}}^\circ"]
    forms += [rf"{plain}\text{{ degrees}}", rf"{plain}\,\mathrm{{degrees}}", f"{plain} degrees"]
    forms += [
        rf"{plain}\textbf{{ degrees}}",
        rf"{plain}\text{{ deg}}",
        rf"{plain}\degree",
        f"{plain}度",
    ]
    return two(rng, *forms, plain)


@kind("minutes of arc")
def _(rng):
    degrees, minutes = (
        rng.randint(1, 179),
        rng.choice((3, 6, 9, 12, 15, 18, 24, 30, 36, 42, 45, 48, 54)),
    )
    whole = as_decimal(degrees + Fraction(minutes, 60))
    forms = [rf"{degrees}^\circ {minutes}'", f"{degrees}°{minutes}'", f"{degrees}°{minutes}′"]
    forms += [rf"{degrees}^{{\circ}}{minutes}^{{\prime}}", rf"{degrees}^\circ{minutes}^\prime"]
    return two(rng, *forms, rf"{whole}^\circ", f"{whole}°")


@kind("radians and degrees")
def _(rng):
    degrees = 5 * rng.randint(1, 72)
    turn = Fraction(degrees, 180)
    top = "" if turn.numerator == 1 else str(turn.numerator)
    radians = rf"\frac{{{top}\pi}}{{{turn.denominator}}}"
    if turn.denominator == 1:
        radians = rf"{top}\pi"
    forms = [radians, rf"{radians}\text{{ radians}}", rf"{radians}\text{{ rad}}"]
    return either(
        rng,
        rng.choice(forms),
        rng.choice((rf"{degrees}^\circ", f"{degrees}°", rf"{degrees}\text{{ degrees}}")),
    )


@kind("compound durations")
def _(rng):
    large, small, count = rng.choice((("hour", "minute", 60), ("minute", "second", 60)))
    a, b = rng.randint(2, 9), rng.randint(2, 59)
    short = {"hour": "h", "minute": "min", "second": "s"}
    total = count * a + b
    both = [rf"{a}\text{{ {large}s }}{b}\text{{ {small}s}}", f"{a} {large}s {b} {small}s"]
    both += [rf"{a}\text{{ {short[large]} }}{b}\text{{ {short[small]}}}"]
    both += [
        rf"\text{{{a} {large}s {b} {small}s}}",
        rf"{a}\text{{ {large}s and }}{b}\text{{ {small}s}}",
    ]
    one = [rf"{total}\text{{ {small}s}}", f"{total} {small}s", rf"{total}\text{{ {short[small]}}}"]
    one.append(rf"{tex(Fraction(total, count))}\text{{ {large}s}}")
    return rng.choice((two(rng, *both), either(rng, rng.choice(both), rng.choice(one))))


@kind("units left out or spelled otherwise")
def _(rng):
    plain, (one, other) = length(rng), rng.sample(unit(rng), 2)
    return rng.choice(((plain + one, plain), (plain, plain + one), (plain + one, plain + other)))


@kind("squared and cubed units")
def _(rng):
    amount, name = str(rng.randint(1, 999)), rng.choice(("mm", "cm", "dm", "km"))
    full = {"mm": "millimeter", "cm": "centimeter", "dm": "decimeter", "km": "kilometer"}[name]
    shape, short, past, power, raised = rng.choice(
        (("square", "sq", "squared", 2, "²"), ("cubic", "cu", "cubed", 3, "³"))
    )
    forms = [f"{amount} {name}^{power}", f"{amount} {name}{raised}", f"{amount} {shape} {full}s"]
    forms += [rf"{amount}\text{{ {name} {past}}}", rf"{amount}\text{{ {full}s {past}}}"]
    forms += [rf"{amount}\ (\text{{{name}}}^{power})", rf"{amount}\text{{ {short} {name}}}"]
    forms += [rf"{amount}\,\mathrm{{{name}^{power}}}", rf"{amount}\text{{ {name}}}^{{{power}}}"]
    return two(rng, *forms, rf"{amount}\text{{ {shape} {full}s}}")


@kind("bare unit letters")
def _(rng):
    plain, letter = rng.choice((str(rng.randint(1, 999)), decimal(rng))), rng.choice("msgh")
    if rng.random() < 0.3:
        top, bottom = rng.choice(("ms", "gs", "mh", "gL"))
        fraction = (rf"{plain} {top}/{bottom}", rf"{plain}\frac{{{top}}}{{{bottom}}}")
        marked = rf"{plain}\text{{ {top}/{bottom}}}"
        return two(rng, *fraction, marked, plain)
    bare = (f"{plain}{letter}", f"{plain} {letter}", rf"{plain}\,{letter}")
    if rng.random() < 0.2:
        letter = rng.choice("VAlt")
        bare = (f"{plain} {letter}",)
    marked = (rf"{plain}\text{{ {letter}}}", rf"{plain}\,\mathrm{{{letter}}}", plain)
    return either(rng, rng.choice(bare), rng.choice(marked))


@kind("unit letters as variables")
def _(rng):
    letter, times, other = rng.choice("msghNWJ"), rng.randint(2, 40), rng.choice((3, 5, 7))
    forms = (
        (f"y={times}{letter}", f"{times}{letter}=y"),
        (f"y={times}{letter}", rf"y={letter}\cdot {times}"),
        (f"{times}{letter}^2", rf"{times}{letter}\cdot {letter}"),
        (rf"\frac{{{times}}}{{{other}}} {letter}", rf"\frac{{{times}{letter}}}{{{other}}}"),
        (rf"{times}\pi {letter}", rf"{times}{letter}\pi"),
        (rf"\sqrt{{{other}}}{letter}", rf"{letter}\sqrt{{{other}}}"),
        (f"{times}{letter}+{other}", f"{other}+{times}{letter}"),
    )
    return either(rng, *rng.choice(forms))


@kind("counted nouns")
def _(rng):
    count = rng.randint(2, 999)
    nouns = (
        "apples",
        "students",
        "triangles",
        "books",
        "ways",
        "tickets",
        "people",
        "children",
        "boxes",
    )
    forms = [rf"{count}\text{{ {noun}}}" for noun in nouns] + [f"{count} {rng.choice(nouns)}"]
    forms += [
        rf"{count}\text{{ different {noun}}}" for noun in ("ways", "numbers", "triangles", "paths")
    ]
    forms += [rf"{count}\text{{ years old}}", f"{count} years old", f"{count} years"]
    return either(rng, rng.choice(forms), str(count))


@kind("currency")
def _(rng):
    amount = rng.choice((str(rng.randint(1, 2000)), f"{rng.randint(0, 99)}.{rng.randint(10, 99)}"))
    one, many = rng.choice(
        (
            ([rf"\${amount}", rf"\textdollar {amount}", rf"\text{{\$}}{amount}"], "dollars"),
            ([f"€{amount}", f"{amount}€"], "euros"),
            ([f"¥{amount}", f"{amount}元"], "yuan"),
            ([f"₹{amount}"], "rupees"),
            ([f"{amount}¢", rf"{amount}\text{{¢}}"], "cents"),
        )
    )
    forms = [*one, rf"{amount}\text{{ {many}}}", f"{amount} {many}", amount]
    forms += [f"{amount} USD", rf"{amount}\text{{ USD}}"] if many == "dollars" else []
    return two(rng, *forms)


@kind("times and dates")
def _(rng):
    if rng.random() < 0.4:
        months = ("January", "February", "March", "April", "May", "June", "July", "August")
        month, day = rng.choice((*months, "October", "December")), rng.randint(1, 28)
        forms = (f"{month} {day}", f"{day} {month}")
        return two(rng, *forms, *(rf"\text{{{form}}}" for form in forms))
    clock, half = f"{rng.randint(1, 12)}:{rng.randint(0, 59):02d}", rng.choice("ap")
    forms = [f"{clock} {half}.m.", f"{clock} {half.upper()}M", rf"{clock}\text{{ {half}.m.}}"]
    forms += [rf"{clock}\text{{ {half}m}}", rf"\text{{{clock} {half.upper()}M}}", f"{clock}{half}m"]
    return two(rng, *forms)
