# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reads tokens by precedence: sums, products, powers, functions.

Part of reading an answer, for what `parse` does not find to be anything else. A tree has every
function's argument and every product explicit.
"""

import re
from fractions import Fraction

from rlvlm_jax.rewards.math.spans import closing, split
from rlvlm_jax.rewards.math.spelling import Unreadable
from rlvlm_jax.rewards.math.tokens import FUNCTIONS, SPELLED, Token, Tokens, flat
from rlvlm_jax.rewards.math.tree import NOTHING, Tree, exact, negative, number, product, symbol

MAX_CHAIN = 30  # of divisions in a row: each is a level of its tree
MAX_FUNCTIONS = 8  # in one another, and powers of one another


# Runs of two or three letters that are words, so that their order counts; products otherwise
_WORD_LIST = """no on up or so to it is in at by do go we me us he an as if of am pm my ok not
    ton ten net one two six sin cos tan log cot sec csc max min mod gcd lcm exp cat act tac odd
    add dad yes day may was saw now won own tip pit top pot opt ear are era eat tea ate dog god
    end den arc car rat art tar bat tab tub but bus sub cub big gib red set all non and dan the
    any few low owl pin gum bin bag run dim who raw gel nap pat nut its sap pea dab dam lap map
    lip rim oat ram rot lit tie use ago gas ii iii iv vi ix xi kg bud tug pay pen bed boy her
    him our out sum son sun hot off fed hay tax wet rob tin bag"""
_WORDS = frozenset(_WORD_LIST.split())
_ROMAN = frozenset({"IV", "VI", "IX", "XI"})


def letters(run: str) -> tuple[Tree, ...]:
    """Reads a run of letters in mathematics: a segment, points in order, or a product."""
    if re.fullmatch("[xyz]?d[xyztuvrs]", run):
        return tuple(map(symbol, filter(None, (run[:-2], run[-2:]))))  # a differential
    if run.isupper() and len(run) == 2:
        return (symbol(run if run in _ROMAN else "".join(sorted(run))),)
    if run.isupper() and len(run) > 2 or run in _WORDS:
        return (symbol(run),)
    if len(run) > 3:
        raise Unreadable(f"the word {run!r} in a formula")
    return tuple(symbol(letter) for letter in run)


def is_word(run: str) -> bool:
    """Whether a short run, or its letters in another order, is a word."""
    return any(sorted(word) == sorted(run.lower()) for word in _WORDS)


def is_vector(tree: Tree) -> bool:
    """Whether a factor is a vector, so that a cross product is none of numbers."""
    if tree.kind == "symbol":
        return tree.parts[0].startswith(("vec ", "hat ", "mathbb ", "reals"))
    if tree.mark == "cross":
        return True
    return tree.kind in ("sum", "product") and any(map(is_vector, tree.parts))


def _as_vector(tree: Tree) -> Tree:
    """A capital letter beside a vector and a cross is a vector as well."""
    capital = tree.kind == "symbol" and re.fullmatch("[A-Z]", tree.parts[0])
    return symbol(f"vec {tree.parts[0]}") if capital else tree


_DERIVATIVE = r"(?:d(?![_+-])|\\partial).*/(?:d\\?[A-Za-z]|\\partial).*"
_END = Token("end")
_CALLED_OF_ALL = frozenset(("f", "F", "P", "Gamma", "Phi", "zeta"))  # functions before a bracket
_CALLED = _CALLED_OF_ALL | {"p", "q", "Q", "phi", "psi", "Psi"}  # before a letter in brackets


class _Expression:
    """Reads tokens by precedence; `whole` gives the tree of all of them."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens
        self.at = self.functions = self.bars = 0

    def whole(self) -> Tree:
        if not self.tokens:
            raise Unreadable("an empty group or argument")
        tree = self.sum()
        self.check(self.at == len(self.tokens))
        return tree

    def check(self, readable: bool) -> None:
        if not readable:
            rest = flat(self.tokens[self.at :]) or "its end"
            raise Unreadable(f"{flat(self.tokens):.60} from {rest:.30} on")

    def next(self) -> Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else _END

    def take(self, *values: str) -> str:
        """Takes the next token if it is one of these signs, and returns it."""
        token = self.next()
        if token.kind == "sign" and token.value in values:
            self.at += 1
            return token.value
        return ""

    def sum(self) -> Tree:
        terms = []
        while True:
            minus = False
            while sign := self.take("+", "-"):
                minus ^= sign == "-"
            term = self.term()
            terms.append(negative(term) if minus else term)
            if self.next().value not in ("+", "-"):
                return terms[0] if len(terms) == 1 else Tree("sum", tuple(terms))

    def term(self) -> Tree:
        value = self.factor()
        chained = 0
        while True:
            self.check(chained < MAX_CHAIN)
            if sign := self.take("times", "cdot", "*"):
                factor = self.signed()
                if sign == "times" and (is_vector(value) or is_vector(factor)):
                    value, factor = _as_vector(value), _as_vector(factor)
                vectors = is_vector(value) and is_vector(factor)
                chained += vectors
                if vectors and sign == "times":
                    value = Tree("call", (value, factor), "cross")
                elif vectors:
                    value = Tree("call", tuple(sorted((value, factor), key=repr)), "dot")
                else:
                    value = product(value, factor)
            elif self.take("/", "div"):
                chained += 1
                value = Tree("quotient", (value, self.signed()))
            elif self.starts_factor():
                self.check(self.next().kind != "number" or self.after_power())
                value = product(value, self.factor())
            else:
                return value

    def signed(self) -> Tree:
        return negative(self.factor()) if self.take("-") else self.factor()

    def starts_factor(self) -> bool:
        token = self.next()
        if token.kind == "sign":
            return token.value in ("(", "[", "angle", "triangle", "lfloor", "lceil", "odot") or (
                token.value in ("|", "norm") and not self.bars
            )
        return token.kind not in ("end", "sup", "sub", "han", "circled")

    def after_power(self) -> bool:
        """Whether a number may be a factor here: 2^n 3^m, but not 2 3."""
        before = self.tokens[self.at - 1]
        return before.kind in ("sup", "root", "group") or before.value in ("!", ")", "]")

    def factor(self) -> Tree:
        """A factor with its powers; of a run of letters, the last one has them."""
        *before, base = self.base()
        for _ in range(MAX_FUNCTIONS):
            token = self.next()
            if token.kind == "sup":
                self.at += 1
                base = Tree("power", (base, _Expression(token.args[0]).whole()))
            elif token.kind == "sub" and base.kind == "symbol":
                self.at += 1
                base = symbol(f"{base.parts[0]}_{flat(token.args[0])}")
            elif self.take("!"):
                self.check(self.next().value != "!")  # a double factorial
                base = Tree("call", (base,), "factorial")
            elif self.take("°"):
                base = Tree("call", (base,), "degree")
            elif self.take("%"):
                base = Tree("quotient", (base, number("100")))
            elif base.kind == "symbol" and (primes := self.take("'", '"')):
                base = symbol(base.parts[0] + ("''" if primes == '"' else "'"))
            else:
                return product(*before, base)
        raise Unreadable(f"more than {MAX_FUNCTIONS} powers in a row")

    def base(self) -> tuple[Tree, ...]:
        token = self.next()
        self.at += 1
        if token.kind == "number":
            return (self.decimal(token.value),)
        if token.kind == "group":
            return (grouped(token.args[0]),)
        argument = flat(self.tokens[self.at + 1 : self.at + 3])
        called = _CALLED if re.fullmatch(r"[a-z]\)", argument) else _CALLED_OF_ALL
        if token.value in called and self.next().value == "(":
            return (self.called(token.value, closing(self.tokens, self.at)),)
        if token.kind == "run":
            return self.run(token)
        if token.value == "Delta" and re.fullmatch("[A-Z]{3}|[a-z]", self.next().value):
            name = self.next().value
            self.at += 1
            return (symbol(f"triangle {name}" if name.isupper() else f"Delta {name}"),)
        if token.value == "nabla":  # an operator takes its argument along
            sign = self.take("times", "cdot")
            start = self.at
            self.factor()
            return (symbol(f"nabla {sign}{flat(self.tokens[start : self.at])}"),)
        if token.kind == "symbol":
            return (symbol(token.value),)
        if token.kind in ("function", "series"):
            return (getattr(self, token.kind)(token.value),)
        if token.kind == "frac":
            above, below = (flat(part).replace(" ", "") for part in token.args)
            if re.fullmatch(_DERIVATIVE, f"{above}/{below}"):
                return (self.derivative(f"{above}/{below}", above),)
            return (Tree("quotient", tuple(_Expression(part).whole() for part in token.args)),)
        if token.kind in ("binom", "root"):
            parts = tuple(_Expression(part).whole() for part in token.args if part)
            self.check(bool(token.args[0]))
            return (Tree("call", parts, token.kind),)
        if token.kind == "table" and "matrix" in token.value and "v" not in token.value.lower():
            rows = tuple(tuple(grouped(cell) for cell in row) for row in token.args)
            return (Tree("matrix", rows),)
        if token.kind == "accent":
            return (_accented(token.value, token.args[0]),)
        if token.kind == "sign":
            return (self.enclosed(token.value),)
        raise Unreadable(f"{flat(self.tokens):.60}")

    def derivative(self, name: str, above: str) -> Tree:
        """A derivative; an operator such as d/dx takes the factors after it along."""
        if re.fullmatch(r"d(?:\^\{\d\})?|\\partial(?:\^\{\d\})?", above):
            start = self.at
            while self.starts_factor():
                self.factor()
            name += flat(self.tokens[start : self.at])
        return symbol(name)

    def decimal(self, digits: str) -> Tree:
        value = number(digits)
        token = self.next()
        ahead = flat(self.tokens[self.at : self.at + 3])
        self.check("." not in digits or not re.fullmatch(r"\(\d+\)", ahead))  # 0.1(6)
        if token.kind == "accent" and "." in digits:  # 0.1\overline{6}
            period = ""
            while self.next().kind in ("accent", "number"):
                token = self.next()
                period += flat(token.args[0]) if token.kind == "accent" else token.value
                self.at += 1
            self.check(period.isdecimal())
            places = len(digits.partition(".")[2])
            repeated = Fraction(int(period), 10 ** len(period) - 1) / 10**places
            return exact(value.parts[0] + repeated)
        part, after = [], 0
        rest = self.tokens[self.at : self.at + 3]
        if token.kind == "frac" and "." not in digits:
            part, after = [flat(arg) for arg in token.args], 1
        elif (
            token.kind == "number" and token.space and flat(rest[1:2]) == "/" and "." not in digits
        ):
            part, after = [rest[0].value, flat(rest[2:])], 3  # 1 1/4
        if part and all(map(str.isdecimal, part)) and 0 < int(part[0]) < int(part[1]):
            self.at += after
            return exact(value.parts[0] + Fraction(int(part[0]), int(part[1])))
        return value

    def run(self, token: Token) -> tuple[Tree, ...]:
        run = token.value
        if run in FUNCTIONS and (run not in ("min", "max", "sec") or self.next().value == "("):
            return (self.function(run),)
        if run in SPELLED:
            return (symbol(run),)
        if token.text and len(run) > 1:
            raise Unreadable(f"the word {run!r} in a formula")
        if run in ("C", "A", "P") and (count := self.combinations(run)):
            return (count,)
        inverse = self.next().kind == "sup"
        start = self.at + inverse
        if run in ("f", "g", "h", "F", "G") and flat(self.tokens[start : start + 1]) == "(":
            end = closing(self.tokens, start)
            if inverse or end == start + 2:  # g(x), but not g(m + M)
                return (self.called(run, end),)
        if run.isupper() and (points := self.points(run)):
            return (symbol(points),)
        if self.next().kind == "sub" and len(run) > 1:
            return (*letters(run[:-1]), symbol(run[-1]))
        return letters(run)

    def combinations(self, name: str) -> Tree | None:
        """C_{10}^3 chosen, A_5^2 arranged, where both are numbers."""
        scripts = {t.kind: flat(t.args[0]) for t in self.tokens[self.at :][:2] if t.args}
        both = [scripts.get(kind, "") for kind in ("sub", "sup")]
        if not all(re.fullmatch(r"\d{1,3}", n) for n in both) or int(both[0]) < int(both[1]):
            return None
        self.at += 2
        chosen = Tree("call", (number(both[0]), number(both[1])), "binom")
        order = Tree("call", (number(both[1]),), "factorial")
        return chosen if name == "C" else product(chosen, order)

    def called(self, name: str, end: int) -> Tree:
        """The value of a function that is not known, up to its closing bracket."""
        self.check(end > 0)
        start, self.at = self.at, end + 1
        return symbol(name + flat(self.tokens[start : end + 1]))

    def points(self, run: str, least: int = 2) -> str:
        """The name of a segment or figure by points such as A' or B_1; empty for anything else."""
        points, at = list(run), self.at
        while at < len(self.tokens):
            token = self.tokens[at]
            if token.kind == "sub" or token.value in ("'", '"'):
                points[-1] += flat((token,))
            elif token.kind == "run" and token.value.isupper() and not token.text:
                points += token.value
            else:
                break
            at += 1
        if len(points) < least or all(len(point) == 1 for point in points):
            return ""
        self.at = at
        either_way = sorted(points) if len(points) == 2 else min(points, points[::-1])
        return "".join(either_way if len(points) == 2 or least == 1 else points)

    def enclosed(self, sign: str) -> Tree:
        """What stands in brackets or bars, or what an angle is named by."""
        start = self.at
        if sign in ("(", "[", "lfloor", "lceil"):
            self.at = closing(self.tokens, start - 1) + 1
            self.check(self.at > start)
            inside = grouped(self.tokens[start : self.at - 1])
            return inside if len(sign) == 1 else Tree("call", (inside,), sign[1:])
        if sign in ("|", "norm"):
            self.bars += 1
            self.check(self.bars < MAX_FUNCTIONS)
            inside = self.sum()
            self.bars -= 1
            self.check(bool(self.take(sign)))
            if inside.kind == "symbol" and re.fullmatch("[A-Z]{2}", inside.parts[0]):
                return inside  # the length of a segment
            return Tree("call", (inside,), "norm" if is_vector(inside) else "abs")
        name = flat(self.tokens[start : start + 1])
        self.check(sign in ("angle", "triangle", "odot") and bool(re.fullmatch(r"\\?\w+", name)))
        self.at += 1
        if self.tokens[start].kind == "run" and (points := self.points(name, least=1)):
            return symbol(f"{sign} {points}")
        if sign == "angle" and len(name) == 3:
            name = min(name, name[::-1])
        return symbol(f"{sign} {name}")

    def function(self, name: str) -> Tree:
        self.functions += 1
        self.check(self.functions < 4 * MAX_FUNCTIONS)
        if name == "sqrt":
            return Tree("call", (self.argument(),), "root")
        power = base = None
        while self.next().kind in ("sup", "sub"):
            token = self.next()
            self.at += 1
            inside = _Expression(token.args[0]).whole()
            power, base = (inside, base) if token.kind == "sup" else (power, inside)
        if power == exact(-1) and re.match("sin|cos|tan|cot|sec|csc", name):
            name, power = f"arc{name}", None
        arguments = self.arguments() if name in ("max", "min", "gcd", "lcm") else (self.argument(),)
        if name == "exp":
            call = Tree("power", (symbol("e"), *arguments))
        else:
            call = Tree("call", (*arguments, base) if base else arguments, name)
        return Tree("power", (call, power)) if power else call

    def argument(self) -> Tree:
        """The argument of a function: a bracket, or the factors up to the next sign or function."""
        if self.next().kind == "group" or self.next().value in ("(", "["):
            return self.base()[0]
        value = self.signed()
        others = ("function", "series", "number")
        while self.starts_factor() and not {self.next().kind, self.next().value} & {
            *others,
            *FUNCTIONS,
        }:
            value = product(value, self.factor())
        return value

    def arguments(self) -> tuple[Tree, ...]:
        start, end = self.at, closing(self.tokens, self.at)
        self.check(end > start and self.next().value in ("(", "lbrace"))
        self.at = end + 1
        parts, _ = split(self.tokens[start + 1 : end], frozenset({","}))
        return tuple(_Expression(part).whole() for part in parts)

    def series(self, name: str) -> Tree:
        """A sum, product, integral or limit: (body, variable, low, high)."""
        low = high = NOTHING
        variable = ""
        while self.next().kind in ("sub", "sup"):
            token = self.next()
            self.at += 1
            inside = token.args[0]
            if token.kind == "sub" and name != "int":
                self.check(len(inside) > 2 and inside[1].value in ("=", "to"))
                variable, inside = flat(inside[:1]), inside[2:]
            bound = _Expression(inside).whole()
            low, high = (low, bound) if token.kind == "sup" else (bound, high)
        if name != "int":
            self.check(bool(variable))
            return Tree("series", (self.term(), symbol(variable), low, high), name)
        rest = [token.value for token in self.tokens[self.at :]]
        end = next((i for i, run in enumerate(rest) if re.fullmatch("d[a-z]?", run)), -1)
        self.check(end > 0 and "".join(rest[end:])[1:2].isalpha())
        body = _Expression(self.tokens[self.at : self.at + end]).whole()
        variable = "".join(rest[end:])[1]
        self.at += end + (1 if len(rest[end]) == 2 else 2)
        return Tree("series", (body, symbol(variable), low, high), name)


def grouped(tokens: Tokens) -> Tree:
    r"""Reads an expression, which may be `a \over b`; raises Unreadable."""
    parts, signs = split(tokens, frozenset({"over", "choose"}))
    trees = tuple(_Expression(part).whole() for part in parts)
    if len(trees) == 1:
        return trees[0]
    if len(trees) > 2:
        raise Unreadable(f"{flat(tokens):.60}")
    return Tree("quotient", trees) if signs == ["over"] else Tree("call", trees, "binom")


def _accented(accent: str, tokens: Tokens) -> Tree:
    name = flat(tokens).replace(" ", "")
    if accent in ("bar", "hat") and re.fullmatch("[A-Z]{2}", name):
        name = "".join(sorted(name))
        return symbol(name if accent == "bar" else f"arc {name}")
    return symbol(f"{accent} {name}")
