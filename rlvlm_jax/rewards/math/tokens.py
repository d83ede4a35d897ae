# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Cuts the content of a box into tokens.

Step of reading an answer between `spelling` and `parse`: first into pieces of text, then into one
nested list of tokens that keeps what is set as text and what as mathematics, and in which each
thing has one name. A macro or sign that is not listed makes the answer unreadable: nothing is
skipped. Nesting is limited before anything recurses.
"""

import re
from typing import NamedTuple

from pylatexenc.latexwalker import LatexWalker
from pylatexenc.macrospec import LatexContextDb

from rlvlm_jax.rewards.math.spelling import Unreadable, depths

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
  star bmod=mod pmod £=£=pounds forall exists frown <=lt >=gt |=mid=vert=lvert=rvert %=% _=_ #=#
  norm=lVert=rVert=Vert=| *=ast °=degree=degrees=textdegree ＄=textdollar=$ :=colon [=lbrack
  ]=rbrack
blank: , ; : > / quad qquad thinspace enspace hfill nobreak space medspace
dropped: ! left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr bigm rm
  displaystyle textstyle scriptstyle limits nolimits bf it sf tt bfseries itshape mathstrut hline
  tiny scriptsize nonumber notag allowbreak small footnotesize normalsize large Large LARGE huge
  Huge boldmath thinmuskip negthinspace qty quantity
text: text textrm textbf textit textsf texttt textnormal textup textmd mbox hbox unit si emph
  mathrm
font: mathbf mathit mathsf mathtt mathnormal boldsymbol bm bold mathcal mathscr mathfrak underline
  operatorname fbox framebox pmb textsc mathop mathord mathrel boxed ensuremath number num
  underbrace overbrace
frac: frac dfrac tfrac cfrac nicefrac sfrac flatfrac
binom: binom dbinom tbinom
root: sqrt surd
accent: vec=overrightarrow bar=overline dot tilde hat=widehat=overarc=wideparen
label: mathbb=Bbb circled=textcircled
"""
_MACROS = {r"\\": ("sign", "\n"), "\\ ": ("blank", "")}  # kind, one name
for _line in _TABLE.strip().replace("\n  ", " ").split("\n"):
    _kind, _, _names = _line.partition(": ")
    for _name, *_others in (spelled.split("=") for spelled in _names.split()):
        if _kind != "sign" or _name.isalpha():
            _others.append(_name)
        _MACROS |= {rf"\{name}": (_kind, _name) for name in _others}


SYMBOLS = frozenset(name for kind, name in _MACROS.values() if kind == "symbol")
FUNCTIONS = frozenset(name for kind, name in _MACROS.values() if kind == "function") | {"sqrt"}
RELATIONS = frozenset(("=", "<", ">", "le", "ge", "ne", "approx", "in", "notin", "sim", "cong"))
RELATIONS |= {"parallel", "perp", "equiv", "subset", "subseteq"}
LINES = frozenset(("cases", "rcases", "dcases", "array", "aligned", "align", "gathered", "split"))
MATRICES = frozenset(f"{kind}matrix" for kind in ("", "p", "b", "B", "v", "V", "small")) | {"array"}
SPELLED = frozenset(("pi", "theta", "alpha", "beta", "gamma", "lambda", "omega", "sigma", "infty"))

_PIECE = re.compile(r"\d+(?:\.\d*)?|\.\d+|[A-Za-z]+|[\u4e00-\u9fff]+|\s+|.", re.DOTALL)
_MATH_SIGN = re.compile(r"[!-~°Ω€£¥₹¢＄](?<![@&#}])")
_TEXT_SIGN = re.compile(r"[^\0-\x1f}\ud800-\udfff]")
_LEAVES = ("number", "run", "han", "circled")
_NO_MACROS = LatexContextDb()


def tokens(text: str) -> Tokens:
    """Cuts the text of a box into tokens; raises Unreadable for what is not listed above."""
    if max(depths(text), default=0) > MAX_NESTING:
        raise Unreadable(f"brackets in more than {MAX_NESTING} levels")
    return _tokens(_pieces(text))


def _pieces(text: str) -> list[str]:
    r"""Cuts text into numbers, letters, blanks, signs, `\name`, `\begin{name}` and `\end{name}`."""
    text += " "  # of a backslash at the end
    walker = LatexWalker(text, latex_context=_NO_MACROS)
    pieces, at = [], 0
    while at < len(text):
        piece = _PIECE.match(text, at)[0]
        if piece == "\\":
            token = walker.get_token(at)
            piece = text[at : at + token.len - len(token.post_space)]
        pieces.append(piece)
        at += len(piece)
    return pieces


def _inside(queue: list[str]) -> list[str]:
    """Takes what stands between two brackets, the opening one being next."""
    opening = queue.pop()
    closing = {"{": "}", "(": ")", "[": "]"}.get(opening) or opening.replace("begin", "end")
    inside, level = [], 1
    while queue:
        piece = queue.pop()
        level += (piece == opening) - (piece == closing)
        if level == 0:
            return inside
        inside.append(piece)
    raise Unreadable("a group, bracket or environment that is not closed")


def _tokens(pieces: list[str], text: bool = False, depth: int = 0) -> Tokens:
    return _without_blanks(_lex(pieces, text, depth))


def _without_blanks(tokens: list[Token]) -> Tokens:
    """The token after a blank says so; A B C is one run of letters."""
    joined: list[Token] = []
    blank = False
    for token in tokens:
        if blank and joined and _is_point(joined[-1]) and _is_point(token):
            joined[-1] = joined[-1]._replace(value=joined[-1].value + token.value)
        elif token.kind != "blank":
            joined.append(token._replace(space=blank))
        blank = token.kind == "blank"
    return tuple(joined)


def _is_point(token: Token) -> bool:
    return token.kind == "run" and not token.text and bool(re.fullmatch("[A-Z]+", token.value))


def _lex(pieces: list[str], text: bool, depth: int) -> list[Token]:
    """Makes tokens of pieces, the blanks too."""
    queue, tokens = pieces[::-1], []
    while queue:
        text = text or queue[-1] == r"\rm"
        tokens += _next(queue, text, depth)
    return tokens


def _next(queue: list[str], text: bool, depth: int) -> list[Token]:
    """Takes one piece and its arguments off the end of the queue."""
    if depth > MAX_NESTING:
        raise Unreadable(f"arguments in more than {MAX_NESTING} levels")
    if queue[-1] == "{":
        inside = _inside(queue)
        return [Token("group", "", (_tokens(inside, text, depth + 1),), text)] if inside else []
    if queue[-1].startswith(r"\begin{"):
        return [_table(queue, depth)]
    piece = queue.pop()
    if piece[0] == "\\":
        return _macro(piece, queue, text, depth)
    if piece.isspace():
        return [Token("sign", "\n") if "\n" in piece and not depth else Token("blank")]
    if re.search(r"\d", piece):
        if len(piece) > MAX_DIGITS:
            raise Unreadable(f"a number of more than {MAX_DIGITS} digits")
        return [Token("number", piece, (), text)]
    if piece in ("^", "_"):
        return [_script(piece, queue, depth)]
    if "\u4e00" <= piece[0] <= "\u9fff":
        return [Token("han", piece, (), True)]
    if piece.isalpha() and piece != "Ω":
        return [Token("run", piece, (), text)]
    if not (_TEXT_SIGN if text else _MATH_SIGN).fullmatch(piece):
        raise Unreadable(repr(piece))
    return [Token("sign", piece, (), text)]


def _argument(queue: list[str], text: bool, depth: int, whole: bool = False) -> list[Token]:
    """Takes the argument of a macro: a group, a sign, one digit or one letter (all if `whole`)."""
    while queue and _is_blank(queue[-1]):
        queue.pop()
    if not queue:
        raise Unreadable("a macro without its argument")
    piece = queue[-1]
    if piece == "{" or (piece == "(" and whole):
        return _lex(_inside(queue), text, depth + 1)
    if piece[0] != "\\" and not (whole and piece[0].isdigit()):
        queue[-1:] = [rest for rest in (piece[1:], piece[0]) if rest]
    return _next(queue, text, depth + 1)


def _is_blank(piece: str) -> bool:
    return piece.isspace() or _MACROS.get(piece, ("",))[0] in ("blank", "dropped")


def _script(sign: str, queue: list[str], depth: int) -> Token:
    signs = []
    while sign == "^" and queue and queue[-1] in ("-", "+"):
        signs += _next(queue, False, depth)
    inside = _without_blanks(signs + _argument(queue, False, depth, whole=True))
    if inside and inside[-1].kind == "number":  # cm^2.
        inside = (*inside[:-1], inside[-1]._replace(value=inside[-1].value.rstrip(".")))
    if sign == "_":
        return Token("sub", "", (inside,))
    if all(token.value in ("circ", "°") for token in inside):
        return Token("sign", "°")
    if all(token.value in ("prime", "'") for token in inside):
        return Token("sign", "'" if len(inside) == 1 else '"')
    return Token("sup", "", (inside,))


def _table(queue: list[str], depth: int) -> Token:
    name = queue[-1][len(r"\begin{") : -1]
    if name.rstrip("*") not in MATRICES | LINES:
        raise Unreadable(queue[-1])
    rows: list[list[list[str]]] = [[[]]]
    level = 0
    for piece in _inside(queue):
        level += piece.startswith(("{", r"\begin{")) - piece.startswith(("}", r"\end{"))
        if level == 0 and piece in (r"\\", r"\cr"):
            rows.append([[]])
        elif level == 0 and piece == "&":
            rows[-1].append([])
        else:
            rows[-1][-1].append(piece)
    cells = [tuple(_tokens(cell, False, depth + 1) for cell in row) for row in rows]
    return Token("table", name, tuple(row for row in cells if any(row)))


def _macro(piece: str, queue: list[str], text: bool, depth: int) -> list[Token]:
    if piece not in _MACROS:
        raise Unreadable(piece)
    kind, name = _MACROS[piece]
    if kind == "dropped":
        return []
    if kind in ("blank", "sign", "symbol", "function", "series"):
        return [Token(kind, name)]
    if kind == "root":
        index = _tokens(_inside(queue), text, depth + 1) if queue[-1:] == ["["] else ()
        whole = name == "surd" or queue[-1:] == ["("]
        return [Token("root", "", (_without_blanks(_argument(queue, text, depth, whole)), index))]
    argument = _argument(queue, text or kind in ("text", "label"), depth)
    first = _without_blanks(argument)
    label = flat(first)
    bold = len(argument) == 1 and name in ("mathbf", "boldsymbol", "bm", "bold")
    if name == "mathbb" or (bold and name == "mathbf" and label in ("R", "Z", "N", "Q")):
        return [Token("symbol", "reals" if label == "R" else f"mathbb {label}")]
    if kind in ("text", "font"):
        # a bold letter is a vector, a capital before a cross alone; other fonts change nothing
        ahead = next((piece for piece in reversed(queue) if not _is_blank(piece)), "")
        letter = "[A-Za-z]" if ahead == r"\times" else "[a-z]"
        vector = bold and re.fullmatch(letter, label)
        return [Token("accent", "vec", (first,))] if vector else argument
    if kind in ("frac", "binom"):
        return [Token(kind, "", (first, _without_blanks(_argument(queue, text, depth))))]
    if kind == "accent":
        return [Token("accent", name, (first,))]
    if not re.fullmatch(r"\d{1,2}", label):
        raise Unreadable(f"{piece}{{{label}}}")
    return [Token("circled", label)]


def flat(tokens: Tokens) -> str:
    """Writes tokens as one line of text: one spelling for what looks the same."""
    line = ""
    for token in tokens:
        if token.kind == "table":
            rows = ("&".join(map(flat, row)) for row in token.args)
            piece = rf"\begin{{{token.value}}}" + r"\\".join(rows) + r"\end"
        elif token.kind == "group":
            piece = flat(token.args[0])
        elif token.args or (token.kind not in _LEAVES and token.value[0].isalpha()):
            name = {"sup": "^", "sub": "_"}.get(token.kind, f"\\{token.value or token.kind}")
            piece = name + "".join(f"{{{flat(part)}}}" for part in token.args)
        else:
            piece = token.value
        glued = line[-1:].isalnum() and piece[:1].isalnum()
        line += " " + piece if glued and token.space else piece
    return line
