"""Read-only Ansible module: the platform of a node, and the llama.cpp builds on it."""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: llama_cpp_info
short_description: Say what platform a node is and which llama.cpp builds stand on it
description:
  - Changes nothing. The platform names what makes a native build reusable on another node.
options:
  prefix:
    description: Folder that holds one folder per build.
    type: path
    required: true
  build:
    description: Build number to look for.
    type: int
    required: true
  accelerator:
    description: What the build computes on.
    type: str
    choices: [cpu, cuda, vulkan, rocm]
    default: cpu
  flags:
    description: CMake flags that the build must have been made with.
    type: list
    elements: str
    required: true
  extra:
    description: What the operator asked for beside the usual; it ends as a few digits in the folder's name.
    type: list
    elements: str
    default: []
  binaries:
    description: Binaries that a build must hold.
    type: list
    elements: str
    required: true
  packages:
    description: Debian packages to look for.
    type: list
    elements: str
    default: []
  activate:
    description: Whether the link current is to point at this build even if it points at another now.
    type: bool
    default: true
  units:
    description: Services that run these binaries.
    type: list
    elements: str
    default: []
"""

# What a compiler may use of a CPU, as /proc/cpuinfo spells it. The other flags there are about the kernel,
# power and virtual machines, and may change with a reboot.
X86_FLAGS = re.compile(
    r"^(mmx|mmxext|pni|ssse3|sse\w*|avx\w*|amx_\w+|fma|fma4|f16c|bmi[12]|abm|adx|aes|vaes|gfni|sha_ni|xop|tbm"
    r"|popcnt|movbe|movdir\w+|pclmulqdq|vpclmulqdq|rdrand|rdseed|rdpid|cx16|lahf_lm|3dnow\w*|clwb|clflushopt"
    r"|cldemote|fsgsbase|serialize|tsxldtrk|xsave\w*|prefetch\w*|hle|rtm|lzcnt|waitpkg|pku|ospke)$"
)

# Older builds print "version: 6751 (01d2bdc2b)", newer ones "version: 1.2 (build 11434, commit 0a1b2c3d)".
VERSION = r"^version: (?:(?P<build>\d+) \(\w+\)|\S+ \(build (?P<newer>\d+), commit \w+\))"

TOOLKITS = {
    "cuda": (["nvcc", "/usr/local/cuda/bin/nvcc"], ["--version"], r"release (\d+\.\d+)"),
    "rocm": (["hipconfig", "/opt/rocm/bin/hipconfig"], ["--version"], r"^(\d+\.\d+)"),
    "vulkan": (["glslc"], ["--version"], r"v?(\d{4}\.\d+|\d+\.\d+)"),
}
DEVICES = {
    "cuda": (["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], r"^(\d+)\.(\d+)", "sm"),
    "rocm": (["/opt/rocm/bin/rocm_agent_enumerator"], r"^gfx(\w+)", "gfx"),
}


def run(command, timeout=30):
    """Exit status and both outputs as one text; (127, reason) where the command cannot be run."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def read_text(path):
    """A file's text; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def os_release():
    """The distribution and its version, as in debian12."""
    values = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', read_text("/etc/os-release"), re.M))
    return values.get("ID", "linux") + values.get("VERSION_ID", "")


def libc():
    """The C library and its version, as in glibc2.36."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION").replace(" ", "")
    except (AttributeError, ValueError, OSError):
        return "libc"


def cpu_flags(cpuinfo):
    """Flags of the first CPU that a native build may depend on, sorted."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.M)
    flags = set(found.group(1).split()) if found else set()
    if platform.machine() in ("x86_64", "i686"):
        flags = {flag for flag in flags if X86_FLAGS.match(flag)}
    return sorted(flags)


def digits(values):
    """Eight hex digits that stand for a list of values."""
    return hashlib.sha256("\n".join(values).encode()).hexdigest()[:8]


def toolkit(accelerator):
    """The accelerator's compiler: path and version, both None where it is missing."""
    names, arguments, pattern = TOOLKITS[accelerator]
    for name in names:
        path = shutil.which(name)
        if path:
            found = re.search(pattern, run([path, *arguments])[1], re.M)
            return path, found.group(1) if found else "unknown"
    return None, None


def devices(accelerator):
    """Architectures of the accelerators in this node, as in sm89."""
    if accelerator not in DEVICES:
        return []
    command, pattern, prefix = DEVICES[accelerator]
    status, output = run(command)
    if status != 0:
        return []
    found = {prefix + "".join(match.groups()) for match in re.finditer(pattern, output, re.M)}
    return sorted(found - {"gfx000"})


def platform_of(accelerator):
    """The node's platform: its name, and what it is made of."""
    flags = cpu_flags(read_text("/proc/cpuinfo"))
    path = version = None
    suffix = accelerator
    architectures = devices(accelerator)
    if accelerator in TOOLKITS:
        path, version = toolkit(accelerator)
        suffix = "-".join([accelerator + (version or ""), *architectures])
    parts = [os_release(), libc(), platform.machine(), digits(flags), suffix]
    meminfo = re.search(r"^MemTotal:\s+(\d+) kB", read_text("/proc/meminfo"), re.M)
    return {
        "id": "-".join(parts),
        "cpu_flags": flags,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": int(meminfo.group(1)) * 1024 if meminfo else 0,
        "toolkit": path,
        "toolkit_version": version,
        "devices": architectures,
    }


def sha256(path):
    """Sha256 of a file as hex digits; None where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            for chunk in iter(lambda: file.read(1 << 20), b""):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()


def read_manifest(folder):
    """The build's manifest; empty where there is none."""
    try:
        manifest = json.loads(read_text(Path(folder, "manifest.json")))
    except ValueError:
        return {}
    return manifest if isinstance(manifest, dict) else {}


def version_of(folder):
    """What llama-server prints as its version, or why it prints nothing."""
    status, output = run([str(Path(folder, "bin", "llama-server")), "--version"])
    found = re.search(VERSION, output, re.M)
    if status == 0 and found:
        return {"build": int(found.group("build") or found.group("newer"))}
    lines = [line for line in output.strip().splitlines() if line]
    return {"build": None, "error": f"exit {status}: {lines[-1] if lines else 'no output'}"}


def problems_of(folder, manifest, build, flags, binaries):
    """Differences between a build's folder and its manifest; each names a file."""
    if not Path(folder).is_dir():
        return ["not installed"]
    if manifest.get("build") != build:
        return [f"manifest.json says build {manifest.get('build')}, not {build}"]
    if manifest.get("cmake_flags") != flags:
        return ["manifest.json says that it was built with other CMake flags"]
    hashes = manifest.get("binaries", {})
    problems = []
    for name in binaries:
        seen = sha256(Path(folder, "bin", name))
        if seen is None:
            problems.append(f"bin/{name} is missing")
        elif seen != hashes.get(name):
            problems.append(f"bin/{name} has sha256 {seen}, the manifest says {hashes.get(name)}")
    if problems or "llama-server" not in binaries:
        return problems
    version = version_of(folder)
    if version["build"] != build:
        said = version.get("error") or f"build {version['build']}"
        problems.append(f"bin/llama-server --version: {said}, not build {build}")
    return problems


def missing_packages(packages):
    """Those of the Debian packages that are not installed; none where there is no dpkg."""
    if not packages or not shutil.which("dpkg-query"):
        return []
    shown = run(["dpkg-query", "-W", "-f=${Package} ${db:Status-Status}\n", *packages])[1]
    installed = {line.split()[0] for line in shown.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


def stale_units(units, prefix, active):
    """Running services whose program comes from ``prefix`` but not from the build that is to be active."""
    if not Path("/run/systemd/system").is_dir():
        return []
    stale = []
    for unit in units:
        pid = run(["systemctl", "show", "--property=MainPID", "--value", unit])[1].strip()
        try:
            program = str(Path(f"/proc/{pid}/exe").readlink())
        except OSError:  # not running, or gone meanwhile
            continue
        # The path of a program that was replaced on disk ends in " (deleted)".
        meant = Path(active).resolve() / "bin" / Path(program.removesuffix(" (deleted)")).name
        if program.startswith(f"{Path(prefix).resolve()}/") and program != str(meant):
            stale.append(unit)
    return stale


def processes_in(folder):
    """Processes that work in a folder: the rest of a build that was interrupted."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = str((process / "cwd").readlink())
        except OSError:  # another user's, or gone
            continue
        if place == folder or place.startswith(folder + "/"):
            found.append(int(process.name))
    return sorted(found)


def free_bytes(path):
    """Bytes free where ``path`` is or would be."""
    path = Path(path)
    status = os.statvfs(next(place for place in (path, *path.parents) if place.exists()))
    return status.f_bavail * status.f_frsize


def main():
    module = AnsibleModule(
        argument_spec={
            "prefix": {"type": "path", "required": True},
            "build": {"type": "int", "required": True},
            "accelerator": {"default": "cpu", "choices": ["cpu", "cuda", "vulkan", "rocm"]},
            "flags": {"type": "list", "elements": "str", "required": True},
            "extra": {"type": "list", "elements": "str", "default": []},
            "binaries": {"type": "list", "elements": "str", "required": True},
            "packages": {"type": "list", "elements": "str", "default": []},
            "activate": {"type": "bool", "default": True},
            "units": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    node = platform_of(given["accelerator"])
    name = f"{given['build']}-{node['id']}"
    if given["extra"]:
        name += "-" + digits(given["extra"])
    folder = str(Path(given["prefix"], name))
    manifest = read_manifest(folder)
    link = Path(given["prefix"], "current")
    current = str(link.resolve()) if link.is_symlink() else None
    active = folder if given["activate"] or current is None else current
    module.exit_json(
        changed=False,
        platform=node,
        name=name,
        folder=folder,
        manifest=manifest,
        problems=problems_of(folder, manifest, given["build"], given["flags"], given["binaries"]),
        current=current,
        missing_packages=missing_packages(given["packages"]),
        stale_units=stale_units(given["units"], given["prefix"], active),
        free_bytes=free_bytes(given["prefix"]),
        building=processes_in(str(Path(given["prefix"]).resolve() / f".build-{name}")),
    )


if __name__ == "__main__":
    main()
