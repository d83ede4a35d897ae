# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Cuts the content of a box into tokens.

Step of reading an answer between `spelling` and `parse`. pylatexenc finds macros, braces and
environments; here they become one nested list of tokens that keeps what is set as text and what as
mathematics, and in which each thing has one name. A macro or sign that is not listed makes the
answer unreadable: nothing is skipped. Nesting is limited before anything recurses.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from pylatexenc.latexwalker import LatexWalker, LatexWalkerEndOfStream, LatexWalkerParseError
from pylatexenc.macrospec import LatexContextDb

from rlvlm_jax.rewards.math.spelling import Unreadable

MAX_NESTING = 12  # of brackets, groups and environments
MAX_DIGITS = 1000  # of one number


class Token(NamedTuple):
    """A piece of an answer: `args` are the lists of tokens inside it."""

    kind: str  # number, run (of letters), han, group, table, sup, sub, or a kind of `_TABLE`
    value: str = ""
    args: tuple = ()
    text: bool = False  # set as text, as against mathematics
    space: bool = False  # a blank stands before it


Tokens = tuple[Token, ...]

# --------------------------------------------------------------------------------------------------
# What is known
# --------------------------------------------------------------------------------------------------

_TABLE = """
symbol: alpha beta gamma delta epsilon=varepsilon zeta eta theta=vartheta iota kappa lambda mu nu
  xi rho=varrho sigma=varsigma tau upsilon phi=varphi chi psi omega Gamma Delta Theta Lambda Xi
  Sigma Upsilon Phi Psi Omega Pi pi=textpi infty=infin emptyset=varnothing ell hbar partial nabla
function: sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp max min gcd lcm
series: sum prod int lim
sign: le=leq=leqslant=leqq ge=geq=geqslant=geqq ne=neq approx=simeq=thickapprox=textasciitilde in
  notin sim=backsim cong parallel perp equiv subset subseteq times cdot div pm mp to=rightarrow
  cup=bigcup cap=bigcap to=longrightarrow setminus=backslash lbrace={ rbrace=} langle rangle lfloor
  rfloor lceil rceil prime circ ldots=dots=cdots=dotsc=dotsb therefore because
  Rightarrow=implies=Longrightarrow=Leftrightarrow angle=measuredangle
  triangle=bigtriangleup=vartriangle or=lor=vee and=land=wedge over choose odot checkmark square
  star bmod=mod pmod £=pounds forall exists frown <=lt >=gt |=mid=vert=lvert=rvert %=% _=_ #=#
  norm=lVert=rVert=Vert=| *=ast °=degree=degrees=textdegree ＄=textdollar=$ :=colon [=lbrack
  ]=rbrack
blank: , ; : > / quad qquad thinspace enspace hfill nobreak space medspace
dropped: ! left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr bigm rm
  displaystyle textstyle scriptstyle limits nolimits bf it sf tt bfseries itshape mathstrut hline
  tiny scriptsize nonumber notag allowbreak small footnotesize normalsize large Large LARGE huge
  Huge boldmath thinmuskip negthinspace
text: text textrm textbf textit textsf texttt textnormal textup textmd mbox hbox unit si emph
  mathrm
font: mathbf mathit mathsf mathtt mathnormal boldsymbol bm bold mathcal mathscr mathfrak underline
  operatorname fbox framebox pmb textsc mathop mathord mathrel boxed ensuremath number num
  underbrace overbrace
frac: frac dfrac tfrac cfrac nicefrac sfrac flatfrac
binom: binom dbinom tbinom
root: sqrt surd
accent: vec=overrightarrow bar=overline dot tilde hat=widehat=overarc=wideparen
other: color textcolor tag mathbb=Bbb circled=textcircled overset=stackrel qty=SI=quantity
  hspace=vspace
"""
_MACROS: dict[str, tuple[str, str]] = {"\\": ("sign", "\n"), " ": ("blank", "")}  # kind, one name
for _line in re.sub(r"\n  ", " ", _TABLE.strip()).split("\n"):
    _kind, _, _names = _line.partition(": ")
    for _name, *_others in (re.split(r"(?<!^)=", spelled) for spelled in _names.split()):
        _MACROS |= dict.fromkeys(
            (*_others, *[_name] * (_kind != "sign" or _name not in "<>*°＄")), (_kind, _name)
        )


def names(kind: str) -> frozenset[str]:
    """The macros of one kind, each by one name."""
    return frozenset(name for of_kind, name in _MACROS.values() if of_kind == kind)


SYMBOLS, FUNCTIONS = names("symbol"), names("function") | {"sqrt"}
RELATIONS = frozenset(("=", "<", ">", "le", "ge", "ne", "approx", "in", "notin", "sim", "cong"))
RELATIONS |= {"parallel", "perp", "equiv", "subset", "subseteq"}
LINES = frozenset(("cases", "rcases", "dcases", "array", "aligned", "align", "gathered", "split"))
MATRICES = frozenset(f"{kind}matrix" for kind in ("", "p", "b", "B", "v", "V", "small")) | {"array"}
SPELLED = frozenset(("pi", "theta", "alpha", "beta", "gamma", "lambda", "omega", "sigma", "infty"))


_GROUPING = re.compile(r"[\\{}]")
_BRACKET = re.compile(r"\\(?:begin|end)(?![A-Za-z])|[()\[\]{}]")
_PIECES = re.compile(r"\d+(?:\.\d*)?|\.\d+|[A-Za-z]+|[\u4e00-\u9fff]+|\s+|.", re.DOTALL)
_CONTEXT = LatexContextDb()  # knows no macro: `_tokens` takes the arguments


# --------------------------------------------------------------------------------------------------
# From characters to tokens
# --------------------------------------------------------------------------------------------------


def tokens(text: str) -> Tokens:
    """Cuts the text of a box into tokens; raises Unreadable for what is not listed above."""
    depth = 0
    for bracket in _BRACKET.findall(text):
        depth += bracket[-1] in "([{n" or -1  # the n of \\begin
        if depth > MAX_NESTING:
            raise Unreadable(f"brackets in more than {MAX_NESTING} levels")
    if not _GROUPING.search(text):
        return _lex([("chars", piece) for piece in _PIECES.findall(text)])
    return _lex(_items(text))


Item = tuple[str, Any]
_NOT_CLOSED = "a group or environment that is not closed"


def _items(text: str) -> list[Item]:
    """Nests pylatexenc's tokens: ("chars", piece), ("macro", name), ("group", items), ("table", …).

    They hold what pylatexenc's nodes hold, in half the time.
    """
    walker = LatexWalker(text, latex_context=_CONTEXT, tolerant_parsing=False)
    state = walker.make_parsing_state()
    items, outer, chars, at = [], [], "", 0  # outer: the opening tokens, with the items before them
    try:
        while True:
            token = walker.get_token(at, parsing_state=state)
            at = token.pos + token.len
            chars += token.pre_space
            if token.tok == "char":
                chars += token.arg
                continue
            items += [("chars", piece) for piece in _PIECES.findall(chars)]
            chars = ""
            if token.tok == "macro":
                items.append(("macro", token.arg))
                if token.post_space:
                    items.append(("chars", token.post_space))
            elif token.tok in ("brace_open", "begin_environment"):
                outer.append((token.arg, items))
                items = []
            elif token.tok in ("brace_close", "end_environment"):
                name, before = outer.pop() if outer else ("", [])
                if name != {"}": "{"}.get(token.arg, token.arg):
                    raise Unreadable(_NOT_CLOSED)
                before.append(("group", items) if name == "{" else ("table", (name, items)))
                items = before
            else:
                raise Unreadable("a TeX construct")
    except LatexWalkerEndOfStream as end:
        if outer:
            raise Unreadable(_NOT_CLOSED) from None
        return [*items, *(("chars", piece) for piece in _PIECES.findall(chars + end.final_space))]
    except LatexWalkerParseError:
        raise Unreadable(_NOT_CLOSED) from None


def _lex(items: list[Item], text: bool = False, depth: int = 0) -> Tokens:
    tokens: list[Token] = []
    blank = False
    for token in _lexed(items[::-1], text, depth):
        if token.kind == "blank":
            blank = True
            continue
        before = tokens[-1] if tokens else token
        if blank and _is_point(before) and _is_point(token) and before is not token:
            tokens[-1] = before._replace(value=before.value + token.value)  # A B C
        else:
            tokens.append(token._replace(space=blank))
        blank = False
    return tuple(tokens)


def _is_point(token: Token) -> bool:
    return token.kind == "run" and not token.text and bool(re.fullmatch("[A-Z]+", token.value))


def _lexed(queue: list[Item], text: bool, depth: int) -> Iterator[Token]:
    while queue:
        if queue[-1] == ("macro", "rm"):
            text = True
        yield from _next(queue, text, depth)


def _next(queue: list[Item], text: bool, depth: int) -> list[Token]:
    """Takes one item and its arguments off the end of the queue."""
    if depth > MAX_NESTING:
        raise Unreadable(f"arguments in more than {MAX_NESTING} levels")
    kind, value = queue.pop()
    if kind == "group" and not value:
        return []
    if kind == "group":
        return [Token("group", "", (_lex(value, text, depth + 1),), text)]
    if kind == "table":
        return [_table(*value, depth)]
    if kind == "macro":
        return _macro(value, queue, text, depth)
    if value.isspace():
        return [Token("sign", "\n") if "\n" in value and not depth else Token("blank")]
    if value[0].isdecimal() or (value[0] == "." and len(value) > 1):
        if len(value) > MAX_DIGITS:
            raise Unreadable(f"a number of more than {MAX_DIGITS} digits")
        return [Token("number", value, (), text)]
    if value in ("^", "_"):
        return [_script(value, queue, depth)]
    if "\u4e00" <= value[0] <= "\u9fff":
        return [Token("han", value, (), True)]
    if value.isalpha() and value != "Ω":
        return [Token("run", value, (), text)]
    if not text and value in "@⊕&#\\{}" or ord(value) < 32 or 0xD800 <= ord(value) < 0xE000:
        raise Unreadable(repr(value))
    if not text and not value.isascii() and value not in "°Ω€£¥₹¢＄⟨⟩µ":
        raise Unreadable(repr(value))
    return [Token("sign", {"⟨": "langle", "⟩": "rangle"}.get(value, value), (), text)]


def _argument(queue: list[Item], text: bool, depth: int, whole: bool = False) -> Tokens:
    """Takes the argument of a macro: a group, a sign, one digit or one letter (all if `whole`)."""
    while queue and _is_blank(queue[-1]):
        queue.pop()
    if not queue:
        raise Unreadable("a macro without its argument")
    kind, value = queue[-1]
    if kind == "group":
        queue.pop()
        return _lex(value, text, depth + 1)
    if kind == "chars" and value == "(" and whole:
        return _bracketed(queue, text, depth)
    if kind == "chars" and len(value) > 1 and not (whole and value[0].isdigit()):
        queue[-1:] = [(kind, value[1:]), (kind, value[0])]
    return tuple(t for t in _next(queue, text, depth + 1) if t.kind != "blank")


def _is_blank(item: Item) -> bool:
    kind, value = item
    if kind == "macro":
        return _MACROS.get(value, ("",))[0] in ("blank", "dropped")
    return kind == "chars" and value.isspace()


def _bracketed(queue: list[Item], text: bool, depth: int, closing: str = ")") -> Tokens:
    """Takes what stands between two brackets, the opening one being next."""
    opening = queue.pop()[1]
    items: list[Item] = []
    level = 1
    while queue:
        item = queue.pop()
        level += (item == ("chars", opening)) - (item == ("chars", closing))
        if level == 0:
            return _lex(items, text, depth + 1)
        items.append(item)
    raise Unreadable("a bracket that is not closed")


def _script(sign: str, queue: list[Item], depth: int) -> Token:
    signs = []
    while sign == "^" and queue and queue[-1][1] in ("-", "+"):
        signs += _next(queue, False, depth)
    inside = (*signs, *_argument(queue, False, depth, whole=True))
    if inside and inside[-1].kind == "number":  # cm^2.
        inside = (*inside[:-1], inside[-1]._replace(value=inside[-1].value.rstrip(".")))
    if sign == "_":
        return Token("sub", "", (inside,))
    if all(token.value in ("circ", "°") for token in inside):
        return Token("sign", "°")
    if inside and all(token.value in ("prime", "'") for token in inside):
        return Token("sign", "'" * len(inside) if len(inside) < 2 else '"')
    return Token("sup", "", (inside,))


def _table(name: str, items: list[Item], depth: int) -> Token:
    if name.rstrip("*") not in MATRICES | LINES:
        raise Unreadable(rf"\begin{{{name}}}")
    if name == "array" and items and items[0][0] == "group":
        items = items[1:]
    rows: list[list[list[Item]]] = [[[]]]
    for item in items:
        if item == ("macro", "\\") or item == ("macro", "cr"):
            rows.append([[]])
        elif item == ("chars", "&"):
            rows[-1].append([])
        else:
            rows[-1][-1].append(item)
    cells = [tuple(_lex(cell, False, depth + 1) for cell in row) for row in rows]
    return Token("table", name, tuple(row for row in cells if any(row)))


def _macro(name: str, queue: list[Item], text: bool, depth: int) -> list[Token]:
    if name not in _MACROS:
        raise Unreadable(rf"\{name}")
    kind, same = _MACROS[name]
    if kind == "dropped":
        if name in ("left", "right") and queue and queue[-1][1][:1] == ".":
            queue[-1:] = [("chars", queue[-1][1][1:])] * (len(queue[-1][1]) > 1)
        return []
    if kind in ("blank", "sign", "symbol", "function", "series"):
        if same == "log" and len(queue) > 1 and queue[-1][1] == "_" and queue[-2][0] == "chars":
            base = queue[-2][1]  # \log_23 is the logarithm of 3
            queue[-2:-1] = [("chars", part) for part in (base[1:], base[0]) if part]
        return [Token(kind, same)]
    if kind == "root":
        index = _bracketed(queue, text, depth, "]") if queue and queue[-1][1] == "[" else ()
        whole = name == "surd" or (bool(queue) and queue[-1][1] == "(")
        return [Token("root", "", (_argument(queue, text, depth, whole), index))]
    if kind in ("text", "font") and queue and queue[-1][0] == "group":
        inside = queue.pop()[1][::-1]
        first = tuple(_lexed(inside, text or kind == "text", depth + 1))
        return _bold(name, first, queue)
    first = _argument(queue, text or kind in ("text", "other"), depth)
    if kind in ("text", "font"):
        return _bold(name, first, queue)
    if kind in ("frac", "binom"):
        return [Token(kind, "", (first, _argument(queue, text, depth)))]
    if kind == "accent":
        return [Token("accent", same, (first,))]
    label = flat(first)
    if same == "mathbb":
        return [Token("symbol", "reals" if label == "R" else f"mathbb {label}")]
    if same == "circled" and not (label.isdecimal() and len(label) < 3):
        raise Unreadable(rf"\{name}{{{label}}}")
    if same == "circled":
        return [Token("circled", label)]
    if same == "hspace" and re.fullmatch(r"-?[\d.]*\\?[a-z]+", label):
        return [Token("blank")]
    if (
        (same == "color" or same == "textcolor")
        and re.match("white|transparent|#f|.*!", label.lower())
        or (same == "tag" and not re.fullmatch(r"\d*|\*|[a-z]", label))
        or same == "hspace"
        or (same == "overset" and label != r"\frown")
    ):
        raise Unreadable(rf"\{name}{{{label}}}")
    if same in ("color", "tag"):
        return []
    second = _argument(queue, same == "qty", depth)
    if same == "overset":
        return [Token("accent", "hat", (second,))]
    return [*first, Token("blank"), *second] if same == "qty" else list(second)


def _bold(name: str, tokens: Tokens, queue: list[Item]) -> list[Token]:
    """A bold letter is a vector, a capital before a cross alone; other fonts change nothing."""
    if name == "mathbf" and len(tokens) == 1 and tokens[0].value in ("R", "Z", "N", "Q"):
        return [Token("symbol", "reals" if tokens[0].value == "R" else f"mathbb {tokens[0].value}")]
    bold = name in ("mathbf", "boldsymbol", "bm", "bold") and len(tokens) == 1
    crossed = next((item for item in queue[::-1] if not _is_blank(item)), ()) == ("macro", "times")
    if (
        bold
        and tokens[0].kind == "run"
        and re.fullmatch(f"[a-z{'A-Z' * crossed}]", tokens[0].value)
    ):
        return [Token("accent", "vec", (tokens,))]
    return list(tokens)


def flat(tokens: Tokens) -> str:
    """Writes tokens as one line of text: one spelling for what looks the same."""
    line = ""
    for token in tokens:
        inside = [flat(part) for part in token.args] if token.kind != "table" else []
        if token.kind == "table":
            rows = ("&".join(flat(cell) for cell in row) for row in token.args)
            piece = rf"\begin{{{token.value}}}" + r"\\".join(rows) + r"\end"
        elif token.kind == "group":
            piece = inside[0]
        elif token.kind in ("sup", "sub"):
            piece = f"{'^' if token.kind == 'sup' else '_'}{{{inside[0]}}}"
        elif token.kind in ("number", "run", "han", "circled") or not (
            inside or token.value[0].isalpha()
        ):
            piece = token.value
        else:
            piece = f"\\{token.value or token.kind}" + "".join(f"{{{part}}}" for part in inside)
        glued = line[-1:].isalnum() and piece[:1].isalnum()
        line += " " + piece if glued and token.space else piece
    return line
