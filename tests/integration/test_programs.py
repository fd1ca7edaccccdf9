"""Every program that is called on the control machine comes with a package that Makefile installs for it.

A tool that happens to be installed here does not hide a missing one: what counts is the package that owns the
program. Every Debian has it (essential, or of priority required), or it is in Makefile's lists for the target
that calls the program, or these packages depend on it, or it is in PRESUPPOSED. Programs that roles call on
nodes are held against the packages that the roles name. What goes over SSH as an argument is left out.
"""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from harness.lab.image import MACHINE_PACKAGES
from tests.integration.called_programs import Code, Start, shell_programs

REPOSITORY = Path(__file__).parents[2]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
PRESUPPOSED = {
    "apt": "brings all the others",
    "ca-certificates": "git and pip fetch over HTTPS",
    "git": "made the checkout",
    "make": "README's first command begins with it",
}
"""What has to be there before README's first command, and why."""
BY_HAND = {"uv": "`make lock` alone, which says that it needs it"}
TARGETS = {
    "benchmarks": "integration",
    "harness": "benchmark",
    "playbooks": "benchmark",
    "roles": "benchmark",
    "tests/browser": "browser",
    "tests/data": "integration",
    "tests/integration": "integration",
    "tests/lab": "lab-test",
    "tests/unit": "unit",
}
"""The target of Makefile that runs a folder's code. Scripts and Makefile run before any package is there."""
BUILT_HERE = {"integration": "llama_cpp"}
"""Role that a target runs on this computer, which installs its own packages."""
ON_NODES = ("harness/monitor/", "harness/router/", "harness/cluster/remote/", "roles/")
ON_CONTROL = ("roles/harness_venv/files/", "roles/lab_node/")
NODE_SYSTEM = [*MACHINE_PACKAGES, "apt"]
"""What a node has before any role: what the lab's machines are made with, and Debian's package manager."""
NEVER_HERE = {"c++": "g++", "cc": "g++", "cmake": "cmake"}
"""Programs of nodes that dpkg need not know here, and the packages that bring them."""
DONE_WITHOUT = {
    "fincore": "a run goes on without it, and does not know how much of a file is cached",
    "modprobe": "comes with a kernel whose drivers are modules",
    "nvidia-smi": "comes with the driver, which the operator brings",
}
"""Programs of nodes that are called where they are there."""
UNTOLD = {
    "harness/lab/preflight.py": 1,  # each key of lab_node_host_packages, which has a test below
    "harness/router/coordinator/engine.py": 1,  # a node's own llama-server, by its path
    "harness/cluster/remote/model_file.py": 2,  # llama-tensor-cache, by its path; Python, as a user
    "roles/llama_cpp/library/llama_cpp_info.py": 1,  # compilers of accelerators, which the operator brings
    "roles/rpc_server/files/rpc_cache.py": 1,  # llama-tensor-cache, by its path on the node
    "roles/rpc_server/library/rpc_server_info.py": 2,  # the node's own rpc-server, by its path
    "tests/integration/test_programs.py": 1,  # each program, when it is looked up here
}
"""How many starts of a file do not name their program in the text, and which programs these are."""

needs_dpkg = pytest.mark.skipif(
    not shutil.which("dpkg-query"), reason="packages are Debian's, and this system has no dpkg"
)


class Package(NamedTuple):
    """What dpkg knows of an installed package."""

    everywhere: bool
    """Whether every Debian has it."""
    depends: tuple[str, ...]


@cache
def installed() -> dict[str, Package]:
    """Installed packages by name; of alternatives in what they depend on, the first."""
    shown = "${Package}\t${Essential}\t${Priority}\t${Pre-Depends}, ${Depends}\n"
    found = {}
    for line in _output("dpkg-query", "-W", "-f", shown).splitlines():
        name, essential, priority, depends = line.split("\t")
        firsts = [re.split(r"[ :|(]", one.strip())[0] for one in depends.split(",")]
        found[name] = Package(essential == "yes" or priority == "required", tuple(filter(None, firsts)))
    return found


@cache
def owner(program: str) -> str | None:
    """The package that owns a program; None where it is not installed."""
    path = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    # A program is known by the name in its package: without /usr on older ones, behind /etc/alternatives.
    names = [path, path.removeprefix("/usr"), str(Path(path).resolve())] if path else []
    lines = (line for name in names for line in _output("dpkg-query", "-S", name).splitlines())
    return next((line.partition(":")[0] for line in lines if not line.startswith("diversion by ")), None)


def with_dependencies(names: Iterable[str]) -> set[str]:
    """Packages, and all that come with them."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        if (name := todo.pop()) not in found:
            found.add(name)
            todo += installed()[name].depends if name in installed() else ()
    return found


def makefile_list(name: str) -> list[str]:
    """Words of a variable of Makefile."""
    found = re.search(rf"^{name} *[:?]?= *((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
    assert found, f"Makefile has no {name}"
    return found[1].replace("\\\n", " ").split()


def target_packages(target: str) -> set[str]:
    """Packages that a target of Makefile installs before it does anything else, by what it is made from."""
    rule = re.search(rf"^{re.escape(target)}:([^#\n]*).*\n((?:\t.*\n)*)", MAKEFILE + "\n", re.MULTILINE)
    for together in re.finditer(r"^([\w-]+(?: [\w-]+)+):([^#\n]*)", MAKEFILE, re.MULTILINE):
        assert target not in together[1].split(), f"Makefile: give {target} a rule of its own"
    if rule is None:
        return set()
    before, recipe = rule[1].split(), rule[2]
    for script in re.findall(r"\bscripts/([\w-]+)", recipe):
        text = (REPOSITORY / "scripts" / script).read_text()
        recipe += "\n".join(re.findall(r"apt-ensure .*", text))
        for made in re.findall(r"\bmake (?:-\w+ )*([\w./ -]*)", text):
            before += made.split()
    found = {name for line in re.findall(r"apt-ensure (.*)", recipe) for name in _words(line)}
    return found.union(*(target_packages(name) for name in before if name != target))


def _words(line: str) -> list[str]:
    """Packages of a line behind apt-ensure, lists of Makefile among them."""
    lists = re.findall(r"\$\((\w+_PACKAGES)\)", line)
    plain = [] if lists else re.findall(r"[a-z][a-z0-9.+-]+", line)
    return [name for one in lists for name in makefile_list(one)] + plain


@cache
def python_starts() -> frozenset[Start]:
    return frozenset(
        Code(REPOSITORY, ("harness", "roles", "playbooks", "scripts", "tests", "benchmarks")).starts
    )


def shell_starts() -> Iterator[Start]:
    """What Makefile's recipes and our scripts call."""
    recipes = "".join(re.findall(r"^\t@?(.*\n)", MAKEFILE, re.MULTILINE)).replace("$$", "$")
    texts = {"Makefile": re.sub(r"\$\(\w+\)", "$x", recipes)}
    for folder in ("scripts", ".ci"):
        for path in sorted((REPOSITORY / folder).iterdir()):
            text = path.read_text() if path.is_file() and path.suffix != ".py" else ""
            if "python" not in text.partition("\n")[0]:
                texts[path.relative_to(REPOSITORY).as_posix()] = text
    for file, text in texts.items():
        own = set(re.findall(r"^(\w+)\(\)", text, re.MULTILINE))
        yield from (Start(file, 1, program) for program in sorted(shell_programs(text) - own))


@cache
def task_starts() -> tuple[tuple[str, Start], ...]:
    """Where (``node`` or ``control``) tasks of roles and playbooks start which program."""
    found = []
    for path in sorted([*REPOSITORY.glob("roles/*/*/*.yml"), *REPOSITORY.glob("playbooks/*.yml")]):
        file = path.relative_to(REPOSITORY).as_posix()
        for task in _tasks(yaml.safe_load(path.read_text())):
            is_here = task.get("delegate_to") == "localhost" or file.startswith(ON_CONTROL)
            command = task.get("ansible.builtin.command", {})
            argv = command.get("argv", command.get("cmd", "")) if isinstance(command, dict) else command
            if argv:
                found.append(("control" if is_here else "node", Start(file, 1, _first_word(argv))))
    return tuple(found)


def _tasks(found: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a YAML file: the tasks are among them."""
    if isinstance(found, dict):
        yield found
    inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    for one in inner:
        yield from _tasks(one)


def _first_word(argv: Any) -> str | None:
    """The program of a task; "/" for one of the environment or by a path, None where it cannot be told."""
    first = str(argv[0] if isinstance(argv, list) else argv).strip()
    if literal := re.match(r"\{\{ *\(?\[ *'([^']*)'", first):
        return literal[1]
    if "{{" not in first:
        return "/" if "/" in first else first.split()[0]
    by_path = r"ansible_playbook_python|models_harness|_command\b|_python\b|_pip\b|_binary\b|_work\b"
    return "/" if re.search(by_path, first) else None


def problems(starts: Iterable[Start], packages: Iterable[str]) -> list[str]:
    """A line for each program that none of these packages brings."""
    allowed = with_dependencies([*packages, *PRESUPPOSED])
    lines = []
    for start in sorted(starts, key=lambda one: (one.file, one.line)):
        program = start.program
        if program is None or program in BY_HAND or (Path(sys.executable).parent / program).exists():
            continue
        package = owner(program)
        if package is None:
            lines.append(f"{start.file}:{start.line}: {program}: no package that is installed here owns it")
        elif not installed()[package].everywhere and package not in allowed:
            lines.append(f"{start.file}:{start.line}: {program}: package {package} is not in the list")
    return lines


def _target(file: str) -> str | None:
    folders = [folder for folder in TARGETS if file.startswith(f"{folder}/")]
    return TARGETS[max(folders, key=len)] if folders else None


def _is_on_node(file: str) -> bool:
    return file.startswith(ON_NODES) and not file.startswith(ON_CONTROL)


def role_packages(role: str) -> set[str]:
    """Packages that a role installs on a node."""
    values = yaml.safe_load((REPOSITORY / "roles" / role / "defaults" / "main.yml").read_text())
    return {name for key in (f"{role}_packages", f"{role}_run_packages") for name in values.get(key, [])}


def _output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def test_code_tells_which_programs_it_starts() -> None:
    assert Counter(start.file for start in python_starts() if start.program is None) == UNTOLD
    untold = [start.file for _, start in task_starts() if start.program is None]
    assert untold == [
        "roles/llama_cpp/tasks/build.yml"
    ]  # the accelerator's compiler, which the operator brings


@needs_dpkg
@pytest.mark.parametrize("target", sorted(set(TARGETS.values())))
def test_programs_come_with_the_packages_of_their_make_target(target: str) -> None:
    starts = [
        start for start in python_starts() if _target(start.file) == target and not _is_on_node(start.file)
    ]
    starts += [start for where, start in task_starts() if where == "control" and target == "benchmark"]
    packages = target_packages(target)
    if role := BUILT_HERE.get(target):
        packages |= role_packages(role)
    assert problems(starts, packages) == []


@needs_dpkg
def test_scripts_need_nothing_that_they_have_yet_to_install() -> None:
    assert problems(shell_starts(), []) == []


@needs_dpkg
def test_programs_of_nodes_come_with_the_packages_of_roles() -> None:
    roles = [path.name for path in (REPOSITORY / "roles").iterdir() if path.is_dir()]
    packages = set(NODE_SYSTEM).union(*(role_packages(role) for role in roles))
    starts = {start for start in python_starts() if _is_on_node(start.file)}
    starts |= {start for where, start in task_starts() if where == "node"}
    script = REPOSITORY / "playbooks/files/collect.sh"
    starts |= {Start("playbooks/files/collect.sh", 1, word) for word in shell_programs(script.read_text())}
    here = [start for start in starts if start.program not in {**NEVER_HERE, **DONE_WITHOUT}]
    assert set(NEVER_HERE.values()) <= packages
    assert problems(here, packages) == []


@needs_dpkg
def test_lab_and_makefile_name_the_same_packages() -> None:
    defaults = yaml.safe_load((REPOSITORY / "roles/lab_node/defaults/main.yml").read_text())
    tools: dict[str, str] = defaults["lab_node_host_packages"]
    assert {tool: owner(tool) for tool in tools} == tools
    listed = set(makefile_list("HOST_PACKAGES")) - {"python3", "python3-venv"}
    assert {package for package in tools.values() if not installed()[package].everywhere} == listed


@needs_dpkg
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("subprocess.run(['curl', '-s'])", "harness/new.py:2: curl: "),
        (
            "argv = ['nosuchtool', '-x']\nsubprocess.Popen(argv)",
            "harness/new.py:2: nosuchtool: no package",
        ),
        ("shutil.which('nosuchtool')", "harness/new.py:2: nosuchtool: no package"),
        ("def ask(*words):\n    subprocess.run(words)\nask('nosuchtool')", "harness/new.py:4: nosuchtool: "),
        ("subprocess.run(['unshare', '--net', 'nosuchtool'])", "harness/new.py:2: nosuchtool: "),
        ("subprocess.run(['bash', '-c', 'cd / && nosuchtool | cat'])", "harness/new.py:2: nosuchtool: "),
    ],
)
def test_program_that_no_package_brings_is_told_with_its_file(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness/new.py").write_text(f"import shutil, subprocess\n{text}\n")
    (told,) = problems(Code(tmp_path, ("harness",)).starts, target_packages("benchmark"))
    assert told.startswith(line)
