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
_DERIVATIVE = r"(?:d(?![_+-])|\\partial).*/(?:d\\?[A-Za-z]|\\partial).*"
# A function that is not known: of all, of one letter, of one token, inverse
_CALL = re.compile(
    r"(?:[fFP]|\\Gamma|\\Phi|\\zeta)\(|(?:[pqQ]|\\phi|\\psi|\\Psi)\([a-z]\)|[ghG]\(.+\)$"
    r"|[fghFG]\^\{.*\}\("
)
_TWO_SCRIPTS = re.compile(r"(?:_\{(\d{1,3})\}|\^\{(\d{1,3})\}){2}")
_OPENING_SIGNS = frozenset(("(", "[", "angle", "triangle", "lfloor", "lceil", "odot"))
_NO_FACTORS = frozenset(("sign", "end", "sup", "sub", "han", "circled"))
_END = Token("end")


def letters(run: str) -> tuple[Tree, ...]:
    """Reads a run of letters in mathematics: a segment, points in order, or a product."""
    if re.fullmatch("[xyz]?d[xyztuvrs]", run):
        return tuple(map(symbol, filter(None, (run[:-2], run[-2:]))))  # a differential
    if run.isupper() and len(run) == 2 and run not in ("IV", "VI", "IX", "XI"):
        return (symbol("".join(sorted(run))),)
    if run.isupper() and len(run) > 1 or run in _WORDS:
        return (symbol(run),)
    if len(run) > 3:
        raise Unreadable(f"the word {run!r} in a formula")
    return tuple(map(symbol, run))


def is_word(run: str) -> bool:
    """Whether a short run, or its letters in another order, is a word."""
    return any(sorted(word) == sorted(run.lower()) for word in _WORDS)


def is_vector(tree: Tree) -> bool:
    """Whether a factor is a vector, so that a cross product is none of numbers."""
    if tree.kind == "symbol":
        return tree.parts[0].startswith(("vec ", "hat ", "mathbb ", "reals"))
    inside = tree.kind in ("sum", "product") and any(map(is_vector, tree.parts))
    return inside or tree.mark == "cross"


def _as_vector(tree: Tree) -> Tree:
    """A capital letter beside a vector and a cross is a vector as well."""
    capital = tree.kind == "symbol" and re.fullmatch("[A-Z]", tree.parts[0])
    return symbol(f"vec {tree.parts[0]}") if capital else tree


class _Expression:
    """Reads tokens by precedence, from `at` on."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens
        self.at = self.functions = self.bars = 0

    def check(self, readable: bool) -> None:
        if not readable:
            rest = flat(self.tokens[self.at :]) or "its end"
            raise Unreadable(f"{flat(self.tokens):.60} from {rest:.30} on")

    def next(self) -> Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else _END

    def take(self, *values: str) -> str:
        """Takes the next token if it is one of these signs, and returns it."""
        token = self.next()
        if token.kind != "sign" or token.value not in values:
            return ""
        self.at += 1
        return token.value

    def scripts(self) -> dict[str, Tokens]:
        """Takes what stands below ("sub") and above ("sup")."""
        scripts = {}
        while (token := self.next()).kind in ("sub", "sup"):
            self.at += 1
            scripts[token.kind] = token.args[0]
        return scripts

    def sum(self) -> Tree:
        terms: list[Tree] = []
        while not terms or self.next().value in ("+", "-"):
            minus = False
            while sign := self.take("+", "-"):
                minus ^= sign == "-"
            term = self.term()
            terms.append(negative(term) if minus else term)
        return terms[0] if len(terms) == 1 else Tree("sum", tuple(terms))

    def term(self) -> Tree:
        value = self.factor()
        levels = 0
        while levels < MAX_CHAIN:
            if sign := self.take("times", "cdot", "*"):
                factor = self.signed()
                if sign == "times" and (is_vector(value) or is_vector(factor)):
                    value, factor = _as_vector(value), _as_vector(factor)
                if not (is_vector(value) and is_vector(factor)):
                    value = product(value, factor)
                    continue
                levels += 1
                crossed = sign == "times"
                vectors = (value, factor) if crossed else sorted((value, factor), key=repr)
                value = Tree("call", tuple(vectors), "cross" if crossed else "dot")
            elif self.take("/", "div"):
                levels += 1
                value = Tree("quotient", (value, self.signed()))
            elif self.starts_factor():
                before = self.tokens[self.at - 1]  # 2^n 3^m, but not 2 3
                ended = before.kind in ("sup", "root", "group") or before.value in ("!", ")", "]")
                self.check(self.next().kind != "number" or ended)
                value = product(value, self.factor())
            else:
                return value
        raise Unreadable(f"more than {MAX_CHAIN} divisions in a row")

    def signed(self) -> Tree:
        return negative(self.factor()) if self.take("-") else self.factor()

    def starts_factor(self) -> bool:
        token = self.next()
        if token.value in ("|", "norm"):
            return not self.bars
        return token.value in _OPENING_SIGNS or token.kind not in _NO_FACTORS

    def factor(self) -> Tree:
        """A factor with its powers; of a run of letters, the last one has them."""
        *before, base = self.run() if self.next().kind == "run" else (self.base(),)
        for _ in range(MAX_FUNCTIONS):
            token = self.next()
            name = base.parts[0] if base.kind == "symbol" else ""
            if token.kind == "sup":
                self.at += 1
                base = Tree("power", (base, grouped(token.args[0])))
            elif token.kind == "sub" and name:
                self.at += 1
                base = symbol(f"{name}_{flat(token.args[0])}")
            elif self.take("%"):
                base = Tree("quotient", (base, number("100")))
            elif mark := self.take("!", "°"):
                self.check(mark != "!" or self.next().value != "!")  # a double factorial
                base = Tree("call", (base,), "factorial" if mark == "!" else "degree")
            elif name and (primes := self.take("'", '"')):
                base = symbol(name + primes.replace('"', "''"))
            else:
                return product(*before, base)
        raise Unreadable(f"more than {MAX_FUNCTIONS} powers in a row")

    def base(self) -> Tree:
        kind, name, args, *_ = self.next()
        self.at += 1
        if kind == "number":
            return self.decimal(name)
        if kind == "group":
            return grouped(args[0])
        if called := self.called():
            return called
        if name == "Delta" and re.fullmatch("[A-Z]{3}|[a-z]", following := self.next().value):
            self.at += 1
            return symbol(f"triangle {following}" if following.isupper() else f"Delta {following}")
        if name == "nabla":
            sign, start = self.take("times", "cdot"), self.at
            self.factor()
            return symbol(f"nabla {sign}{flat(self.tokens[start : self.at])}")
        if kind == "symbol":
            return symbol(name)
        if kind in ("function", "series"):
            return getattr(self, kind)(name)
        if kind == "frac":
            above, below = (flat(part).replace(" ", "") for part in args)
            derivative = f"{above}/{below}"
            if not re.fullmatch(_DERIVATIVE, derivative):
                return Tree("quotient", tuple(map(grouped, args)))
            alone = re.fullmatch(r"(?:d|\\partial)(?:\^\{\d\})?", above)
            return self.operator(derivative) if alone else symbol(derivative)
        if kind in ("binom", "root"):
            self.check(bool(args[0]))
            return Tree("call", tuple(grouped(part) for part in args if part), kind)
        if kind == "table" and "matrix" in name and "v" not in name.lower():
            return Tree("matrix", tuple(tuple(map(grouped, row)) for row in args))
        if kind == "accent":
            label = flat(args[0]).replace(" ", "")
            if name not in ("bar", "hat") or not re.fullmatch("[A-Z]{2}", label):
                return symbol(f"{name} {label}")
            return symbol(("arc " if name == "hat" else "") + "".join(sorted(label)))
        self.check(kind == "sign")
        return self.enclosed(name)

    def called(self) -> Tree | None:
        """The value of a function that is not known, whose name was taken."""
        start = self.at - 1
        if not _CALL.match(flat(self.tokens[start : start + 4])):
            return None
        end = closing(self.tokens, self.at + (self.next().kind == "sup"))
        self.check(end > 0)
        self.at = end + 1
        return symbol(flat(self.tokens[start : self.at]))

    def operator(self, name: str) -> Tree:
        """An operator such as d/dx takes the factors after it along."""
        start = self.at
        while self.starts_factor():
            self.factor()
        return symbol(name + flat(self.tokens[start : self.at]))

    def decimal(self, digits: str) -> Tree:
        r"""A number with its period or the fraction after it: 0.1\overline{6}, 1\frac12, 1 1/2."""
        value, token, start = number(digits), self.next(), self.at
        _, point, places = digits.partition(".")
        ahead = flat(self.tokens[start : start + 3])
        if not point:
            mixed = re.match(r"\\frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+)$", ahead)
            if mixed and (token.kind == "frac" or token.space):
                above, below = (int(n) for n in mixed.groups() if n)
                if 0 < above < below:
                    self.at += 1 if token.kind == "frac" else 3
                    return exact(value.parts[0] + Fraction(above, below))
        elif token.kind == "accent":
            while self.next().kind in ("accent", "number"):
                self.at += 1
            period = re.sub(r"\\[a-z]+\{(\d*)\}", r"\1", flat(self.tokens[start : self.at]))
            self.check(period.isdecimal())
            repeated = Fraction(int(period), 10 ** len(period) - 1) / 10 ** len(places)
            return exact(value.parts[0] + repeated)
        self.check(not point or not re.fullmatch(r"\(\d+\)", ahead))  # 0.1(6)
        return value

    def run(self) -> tuple[Tree, ...]:
        token = self.next()
        self.at += 1
        run, following = token.value, self.next()
        if run in FUNCTIONS and (run not in ("min", "max", "sec") or following.value == "("):
            return (self.function(run),)
        if called := self.called():
            return (called,)
        if run in SPELLED:
            return (symbol(run),)
        if token.text and len(run) > 1:
            raise Unreadable(f"the word {run!r} in a formula")
        if run in ("C", "A", "P") and (count := self.combinations(run)):
            return (count,)
        if run.isupper() and (points := self.points(run)):
            return (symbol(points),)
        if following.kind == "sub" and len(run) > 1:
            return (*letters(run[:-1]), symbol(run[-1]))
        return letters(run)

    def combinations(self, name: str) -> Tree | None:
        """C_{10}^3 chosen, A_5^2 arranged, where both are numbers."""
        scripts = _TWO_SCRIPTS.fullmatch(flat(self.tokens[self.at : self.at + 2]))
        if not scripts or None in scripts.groups() or int(scripts[1]) < int(scripts[2]):
            return None
        self.at += 2
        chosen = Tree("call", tuple(map(number, scripts.groups())), "binom")
        order = Tree("call", (number(scripts[2]),), "factorial")
        return chosen if name == "C" else product(chosen, order)

    def points(self, run: str, least: int = 2) -> str:
        """The name of a segment or figure by points such as A' or B_1; empty for anything else."""
        points, end = list(run), self.at
        for token in self.tokens[end:]:
            if token.kind == "run" and token.value.isupper() and not token.text:
                points += token.value
            elif token.kind == "sub" or token.value in ("'", '"'):
                points[-1] += flat((token,))
            else:
                break
            end += 1
        if len(points) < least or all(len(point) == 1 for point in points):
            return ""
        self.at = end
        if len(points) == 2:
            points.sort()
        return "".join(min(points, points[::-1]) if least == 1 else points)

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
        turned = sign == "angle" and len(name) == 3
        return symbol(f"{sign} {min(name, name[::-1]) if turned else name}")

    def function(self, name: str) -> Tree:
        self.functions += 1
        self.check(self.functions < 4 * MAX_FUNCTIONS)
        if name == "sqrt":
            return Tree("call", (self.argument(),), "root")
        scripts = {kind: grouped(inside) for kind, inside in self.scripts().items()}
        power = scripts.get("sup")
        if power == exact(-1) and re.match("sin|cos|tan|cot|sec|csc", name):
            name, power = f"arc{name}", None
        several = name in ("max", "min", "gcd", "lcm")
        arguments = self.arguments() if several else (self.argument(),)
        base = (scripts["sub"],) if "sub" in scripts else ()
        call = Tree("call", (*arguments, *base), name)
        if name == "exp":
            call = Tree("power", (symbol("e"), *arguments))
        return Tree("power", (call, power)) if power else call

    def argument(self) -> Tree:
        """The argument of a function: a bracket, or the factors up to the next sign or function."""
        if self.next().kind == "group" or self.next().value in ("(", "["):
            return self.base()
        value = self.signed()
        ends = {"function", "series", "number", *FUNCTIONS}
        while self.starts_factor() and ends.isdisjoint((self.next().kind, self.next().value)):
            value = product(value, self.factor())
        return value

    def arguments(self) -> tuple[Tree, ...]:
        start, end = self.at, closing(self.tokens, self.at)
        self.check(end > start and self.next().value in ("(", "lbrace"))
        self.at = end + 1
        return tuple(map(grouped, split(self.tokens[start + 1 : end], frozenset({","}))[0]))

    def series(self, name: str) -> Tree:
        """A sum, product, integral or limit: (body, variable, low, high)."""
        scripts = self.scripts()
        below, above = scripts.get("sub", ()), scripts.get("sup", ())
        if name != "int":
            self.check(len(below) > 2 and below[1].value in ("=", "to"))
            variable, below = flat(below[:1]), below[2:]
        low, high = (grouped(part) if part else NOTHING for part in (below, above))
        if name != "int":
            return Tree("series", (self.term(), symbol(variable), low, high), name)
        rest = [token.value for token in self.tokens[self.at :]]
        end = next((i for i, run in enumerate(rest) if re.fullmatch("d[a-z]?", run)), -1)
        variable = "".join(rest[end:])[1:2]
        self.check(end > 0 and variable.isalpha())
        body = grouped(self.tokens[self.at : self.at + end])
        self.at += end + (1 if len(rest[end]) == 2 else 2)
        return Tree("series", (body, symbol(variable), low, high), name)


def grouped(tokens: Tokens) -> Tree:
    r"""Reads an expression, which may be `a \over b`; raises Unreadable."""
    parts, signs = split(tokens, frozenset({"over", "choose"}))
    if len(parts) == 2:
        above, below = map(grouped, parts)
        over = signs == ["over"]
        return Tree("quotient", (above, below)) if over else Tree("call", (above, below), "binom")
    if not tokens:
        raise Unreadable("an empty group or argument")
    expression = _Expression(tokens)
    tree = expression.sum()
    expression.check(expression.at == len(tokens))
    return tree
