"""Which programs the code starts, read from its text: nothing is imported or run.

A variable is looked up where it is assigned, a parameter where the function is called, a function's value in
its ``return`` lines. Where that does not lead to a word, the start is told without a program.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

STARTERS = {
    "subprocess": {"run", "Popen", "call", "check_call", "check_output"},
    "asyncio": {"create_subprocess_exec"},
    "shutil": {"which"},
}
"""Functions that take a program, or a command line that begins with one."""
WRAPPERS = {
    "env": set[str](),
    "nsenter": set[str](),
    "prlimit": set[str](),
    "setpriv": {"--pdeathsig"},
    "sudo": set[str](),
    "unshare": {"--propagation"},
}
"""Programs that start another one, with those of their options that take the next word."""
BY_PATH = "/"
"""Stands for a program that is named by its path: a build of ours, the Python of an environment."""
NOTHING = ""
"""Stands for a command line, or a part of one, that may be empty."""
SHELL_OWN = {
    *("!", ".", ":", "[", "[[", "{", "}", "break", "case", "cd", "command", "continue", "do", "done", "echo"),
    *("elif", "else", "esac", "eval", "exec", "exit", "export", "false", "fi", "for", "function", "if", "in"),
    *("local", "printf", "read", "return", "set", "shift", "source", "test", "then", "trap", "true", "type"),
    *("ulimit", "umask", "unset", "until", "wait", "while"),
}
BEFORE_A_COMMAND = {"!", "{", "command", "do", "elif", "else", "eval", "exec", "if", "then", "until", "while"}
_PATHS = {"Path", "with_name", "joinpath", "resolve", "which"}

Named = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Start:
    """A program, at the line that names it; None where the text does not tell which it is."""

    file: str
    line: int
    program: str | None


class Module:
    """One file of code, and what stands where in it."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.name = "." + file.removesuffix(".py").replace("/", ".")
        self.tree = ast.parse(text)
        nodes = list(ast.walk(self.tree))
        self.parents = {child: node for node in nodes for child in ast.iter_child_nodes(node)}
        self.calls = [node for node in nodes if isinstance(node, ast.Call)]
        self.functions = [node for node in nodes if isinstance(node, Named)]
        self.imported = {
            (node.module or "", alias.name)
            for node in nodes
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        self.assigned: dict[tuple[ast.AST | None, str], list[ast.expr]] = {}
        for node in nodes:
            for target, value in _assignments(node):
                if isinstance(target, ast.Attribute):
                    self.assigned.setdefault((None, target.attr), []).append(value)
                elif isinstance(target, ast.Name):
                    self.assigned.setdefault((next(self.around(node)), target.id), []).append(value)

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        """What a node stands in: functions, the innermost first, and then the module."""
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, Named | ast.Lambda | ast.Module):
                yield node

    def owner(self, function: ast.AST) -> str | None:
        """The class that a function is a method of."""
        parent = self.parents.get(function)
        return parent.name if isinstance(parent, ast.ClassDef) else None

    def sees(self, other: "Module", name: str) -> bool:
        """Whether ``name`` of another module is imported; tests import one another without their folder."""
        return self is other or any(
            name == imported and other.name.endswith(f".{module}") for module, imported in self.imported
        )


class Code:
    """The Python files below some folders of a repository."""

    def __init__(self, repository: Path, folders: tuple[str, ...]) -> None:
        paths = [path for folder in folders for path in sorted((repository / folder).rglob("*.py"))]
        self.modules = [Module(path.relative_to(repository).as_posix(), path.read_text()) for path in paths]
        self._known: dict[ast.AST, set[Start]] = {}
        self._calls: dict[str, list[tuple[Module, ast.Call]]] = {}
        self._functions: dict[str, list[tuple[Module, Named]]] = {}
        for module in self.modules:
            for call in module.calls:
                self._calls.setdefault(_name(call), []).append((module, call))
            for function in module.functions:
                self._functions.setdefault(function.name, []).append((module, function))

    @cached_property
    def starts(self) -> set[Start]:
        """Every start of a program."""
        found: set[Start] = set()
        for module in self.modules:
            for call in module.calls:
                if _starts(call):
                    executable = [keyword.value for keyword in call.keywords if keyword.arg == "executable"]
                    is_spread = _name(call) == "create_subprocess_exec"
                    arguments = executable or (call.args if is_spread else call.args[:1])
                    found |= self._command(module, _flat(arguments)) or {
                        Start(module.file, call.lineno, None)
                    }
        return {start for start in found if start.program not in (BY_PATH, NOTHING)}

    def _command(self, module: Module, words: list[ast.expr]) -> set[Start]:
        """What a command line starts: its first word; behind a wrapper or an empty part, the next too."""
        if not words:
            return set()
        found = self._first(module, words[0])
        programs = {start.program for start in found if start.program is not None}
        rest = words[1:]
        if isinstance(words[0], ast.Starred) and (NOTHING in programs or programs & WRAPPERS.keys()):
            return found | self._command(module, rest)
        for wrapper in programs & WRAPPERS.keys():
            while rest and (option := _text(rest[0])).startswith("-"):
                rest = rest[2 if option in WRAPPERS[wrapper] else 1 :]
            found |= self._command(module, rest)
        if programs & {"sh", "bash"} and len(words) > 2 and _text(words[1]) == "-c":
            script = self._script(module, words[2])
            found |= {Start(module.file, words[2].lineno, word) for word in shell_programs(script)}
        return found

    def _first(self, module: Module, node: ast.expr) -> set[Start]:
        """What an expression starts that is a program or a whole command line; looked up once."""
        if node not in self._known:
            self._known[node] = set()  # an end for what refers to itself
            self._known[node] = self._looked_up(module, node)
        return self._known[node]

    def _looked_up(self, module: Module, node: ast.expr) -> set[Start]:
        def told(program: str | None) -> set[Start]:
            return {Start(module.file, node.lineno, program)}

        match node:
            case ast.Constant(value=str(text)):
                return told(BY_PATH if "/" in text else text)
            case ast.List(elts=[]) | ast.Tuple(elts=[]) | ast.Constant(value=None):
                return told(NOTHING)
            case ast.List() | ast.Tuple():
                return self._command(module, _flat(node.elts))
            case ast.JoinedStr() | ast.BinOp(op=ast.Div()) | ast.Attribute(attr="executable"):
                return told(BY_PATH)
            case (
                ast.Starred(value=inner)
                | ast.BinOp(left=inner)
                | ast.ListComp(elt=inner)
                | ast.GeneratorExp(elt=inner)
            ):
                return self._first(module, inner)
            case ast.IfExp(body=one, orelse=other) | ast.BoolOp(values=[one, other]):
                return self._first(module, one) | self._first(module, other)
            case ast.Call() if _name(node) in _PATHS:
                return told(BY_PATH)
            case ast.Call(args=[inner, *_]) if _name(node) in ("str", "list", "tuple"):
                return self._first(module, inner)
            case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="split")):
                return told(text.split()[0])
            case ast.Call():
                return self._returned(module, _name(node))
            case ast.Attribute(attr=name):
                return self._all(module, module.assigned.get((None, name), []))
            case ast.Name(id=name):
                return self._named(module, node, name)
        return told(None)

    def _all(self, module: Module, nodes: list[ast.expr]) -> set[Start]:
        return set[Start]().union(*(self._first(module, node) for node in nodes))

    def _returned(self, module: Module, name: str) -> set[Start]:
        """What functions of that name give, where they can be meant: public methods, functions in sight."""
        found: set[Start] = set()
        for other, function in self._functions.get(name, []):
            is_public_method = other.owner(function) is not None and not name.startswith("_")
            if is_public_method or module.sees(other, name) or _is_fixture(function):
                given = [n for n in ast.walk(function) if isinstance(n, ast.Return | ast.Yield)]
                found |= self._all(other, [n.value for n in given if n.value])
        return found

    def _named(self, module: Module, node: ast.AST, name: str) -> set[Start]:
        """What a variable holds by the innermost function that assigns it or takes it as a parameter."""
        for scope in module.around(node):
            values = module.assigned.get((scope, name), [])
            found = self._all(module, values)
            if isinstance(scope, Named) and name in _parameters(scope):
                return found | self._passed(module, scope, name)
            if values:
                return found
        return self._imported(module, name)

    def _imported(self, module: Module, name: str) -> set[Start]:
        """What a name holds that is imported from the top of another module."""
        for other in self.modules:
            values = other.assigned.get((other.tree, name))
            if values and other is not module and module.sees(other, name):
                return self._all(other, values)
        return set()

    def _passed(self, module: Module, function: Named, name: str) -> set[Start]:
        """What calls give a function for one of its parameters, its default, and the fixture of that name."""
        found = self._returned(module, name) if module.file.startswith("tests/") else set()
        owner = module.owner(function)
        called = owner if owner and function.name == "__init__" else function.name
        parameters = _parameters(function)[1 if owner else 0 :]
        place = parameters.index(name)
        if default := _default(function, name):
            found |= self._first(module, default)
        for other, call in self._calls.get(called, []):
            if other.sees(module, called):
                named = [keyword.value for keyword in call.keywords if keyword.arg == name]
                is_rest = function.args.vararg is not None and function.args.vararg.arg == name
                given = call.args[place:] if is_rest else call.args[place : place + 1]
                found |= self._all(other, named) | self._command(other, _flat(given))
        return found

    def _script(self, module: Module, node: ast.expr) -> str:
        """The text of a shell script that stands here or in a constant of the module."""
        if isinstance(node, ast.Name):
            values = [v for (_, name), vs in module.assigned.items() if name == node.id for v in vs]
            return " ; ".join(_text(value) for value in values)
        return _text(node)


def shell_programs(script: str) -> set[str]:
    """Programs that a shell script starts by name, those within ``$( )`` among them."""
    script = re.sub(r"(?m)^\s*#.*$|\s#\s.*$|\\\n", " ", script)
    found: set[str] = set()
    inner = re.compile(r"\$\(\([^()]*\)\)|\$\(([^()]*)\)")
    while match := inner.search(script):
        found |= shell_programs(match[1] or "")
        script = script.replace(match[0], "$x")
    words = shlex.shlex(script, posix=False, punctuation_chars=";&|()<>\n")
    words.whitespace, words.commenters = " \t", ""
    words.wordchars += "$@%:,+{}[]!\\^#"
    begins = True
    for token in words:
        if set(token) <= set(";&|()\n"):
            begins = True
        elif begins and not re.match(r"\w+\+?=", token):
            found |= {token} - SHELL_OWN
            begins = token in BEFORE_A_COMMAND
    return {word for word in found if re.fullmatch(r"[a-z][a-z0-9.+_-]*", word)}


def _starts(call: ast.Call) -> bool:
    function = call.func
    return (
        bool(call.args)
        and isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.attr in STARTERS.get(function.value.id, set())
    )


def _flat(elements: list[ast.expr]) -> list[ast.expr]:
    """Words of a command line, those of tuples within it in their place."""
    words: list[ast.expr] = []
    for element in elements:
        inner = element.value if isinstance(element, ast.Starred) else None
        words += _flat(inner.elts) if isinstance(inner, ast.Tuple | ast.List) else [element]
    return words


def _assignments(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    match node:
        case ast.Assign(targets=targets, value=value):
            yield from ((target, value) for target in targets)
        case (
            ast.AnnAssign(target=target, value=ast.expr() as value)
            | ast.NamedExpr(target=target, value=value)
        ):
            yield target, value
        case ast.For(target=target, iter=source) | ast.comprehension(target=target, iter=source):
            values = source.elts if isinstance(source, ast.Tuple | ast.List) else [source]
            for value in values:
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    yield from zip(target.elts, value.elts, strict=False)
                else:
                    yield target, value


def _is_fixture(function: Named) -> bool:
    return any("fixture" in ast.unparse(decorator) for decorator in function.decorator_list)


def _parameters(function: Named) -> list[str]:
    of = function.args
    named = [*of.posonlyargs, *of.args, *([of.vararg] if of.vararg else []), *of.kwonlyargs]
    return [parameter.arg for parameter in named]


def _default(function: Named, name: str) -> ast.expr | None:
    of = function.args
    positional = [*of.posonlyargs, *of.args]
    pairs = [
        *zip(reversed(positional), reversed(of.defaults), strict=False),
        *zip(of.kwonlyargs, of.kw_defaults, strict=True),
    ]
    return next((default for parameter, default in pairs if parameter.arg == name), None)


def _name(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
