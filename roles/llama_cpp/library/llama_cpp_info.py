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
NVIDIA_SMI = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
AGENTS = ["rocm_agent_enumerator", "/opt/rocm/bin/rocm_agent_enumerator"]
# Since driver 610 nvidia-smi calls it the version of CUDA's user-mode driver.
DRIVER_CUDA = r"CUDA(?: UMD)? Version:\s*(\d+)\.(\d+)"


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


def last_line(text):
    """The last line of an output that is not empty."""
    return ([line.strip() for line in text.splitlines() if line.strip()] or ["no output"])[-1]


def cuda_devices(version, root):
    """Architectures of the NVIDIA GPUs, as in sm89, and what keeps a build from running on them.

    Args:
        version: of the toolkit.
        root: the folder that holds proc and dev.
    """
    loaded = re.search(
        r"^NVRM version:.*?\s(\d+\.\d+[.\d]*)\s", read_text(root / "proc/driver/nvidia/version"), re.M
    )
    if not loaded:
        return [], [
            "the kernel has not loaded NVIDIA's driver: install it for the running kernel, then reboot"
        ]
    status, output = run(NVIDIA_SMI)
    if "Driver/library version mismatch" in output:
        library = re.search(r"NVML library version: (\S+)", output)
        return [], [
            f"the kernel runs NVIDIA's driver {loaded.group(1)} and the installed library is "
            f"{library.group(1) if library else 'another one'}: the driver was updated; reboot the host"
        ]
    if status != 0:
        return [], [f"nvidia-smi exits {status}: {last_line(output)}"]
    problems = []
    boards = list((root / "proc/driver/nvidia/gpus").glob("*/information"))
    minors = re.findall(r"^Device Minor:\s*(\d+)", "\n".join(map(read_text, boards)), re.M)
    nodes = ["nvidiactl", *(f"nvidia{minor}" for minor in sorted(minors))]
    missing = [node for node in nodes if not (root / "dev" / node).exists()]
    if missing:
        problems.append(f"/dev has no {', '.join(missing)}: run nvidia-smi as root, or reboot")
    # Its device is made by a unit of ours before the services start; the module has to be there.
    if not (root / "dev/nvidia-uvm").exists() and run(["modprobe", "--dry-run", "nvidia_uvm"])[0] != 0:
        problems.append("the kernel has no module nvidia_uvm: install the driver for the running kernel")
    cuda = re.search(DRIVER_CUDA, run(["nvidia-smi"])[1])
    major = re.match(r"\d+", version or "")
    if cuda and major and int(major.group()) > int(cuda.group(1)):
        problems.append(
            f"the driver {loaded.group(1)} runs programs of CUDA {'.'.join(cuda.groups())} and older, "
            f"the toolkit is CUDA {version}: install a newer driver, or an older toolkit"
        )
    found = re.findall(r"^(\d+)\.(\d+)\s*$", output, re.M)
    return sorted({f"sm{major}{minor}" for major, minor in found}), problems


def rocm_devices(root):
    """Architectures of the AMD GPUs, as in gfx1151, and what keeps a build from running on them."""
    if not (root / "dev/kfd").exists():
        return [], ["/dev has no kfd: the kernel runs no amdgpu driver with compute support"]
    enumerator = next(filter(None, map(shutil.which, AGENTS)), None)
    if not enumerator:
        return [], ["rocm_agent_enumerator is not installed (package rocminfo)"]
    found = set(re.findall(r"^(gfx\w+)", run([enumerator])[1], re.M)) - {"gfx000"}
    return sorted(found), [] if found else ["rocm_agent_enumerator lists no GPU"]


def vulkan_devices(root):
    """No architectures: a build for Vulkan fits every GPU; and what keeps it from running."""
    return [], [] if list((root / "dev/dri").glob("renderD*")) else ["/dev/dri has no render node"]


def accelerator_of(accelerator, version, root=Path("/")):
    """Architectures of the accelerators in this node, and the problems of driver, devices and runtime."""
    if accelerator == "cuda":
        return cuda_devices(version, root)
    if accelerator == "rocm":
        return rocm_devices(root)
    return vulkan_devices(root) if accelerator == "vulkan" else ([], [])


def compile_for(accelerator, compiler, architectures):
    """What CMake needs to compile for these GPUs, and a command that compiles one small file for them.

    Returns:
        CMake flags, environment variables, and arguments to which the names of source and result are added.
    """
    if accelerator == "cuda" and compiler:
        numbers = [name.removeprefix("sm") for name in architectures]
        flags = [f"-DCMAKE_CUDA_COMPILER={compiler}"]
        if numbers:
            flags.append(f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(numbers)}")
        codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
        return flags, {}, [compiler, *codes, "-x", "cu", "-c"]
    if accelerator == "rocm" and compiler:
        clang = run([compiler, "-l"])[1].strip() + "/clang"
        flags = [f"-DGPU_TARGETS={';'.join(architectures)}"] if architectures else []
        codes = [f"--offload-arch={name}" for name in architectures]
        return (
            flags,
            {"HIPCXX": clang, "HIP_PATH": run([compiler, "-R"])[1].strip()},
            [clang, "-x", "hip", *codes, "-c"],
        )
    return [], {}, []


def name_of_platform(parts, suffix, kept):
    """The platform's name. ``kept`` is that of the build in use, for a node whose GPUs cannot be read now."""
    name = "-".join([*parts, suffix])
    return kept if kept.startswith(name) else name


def platform_of(accelerator, prefix):
    """The node's platform: its name, what it is made of, and what keeps its accelerator from working."""
    flags = cpu_flags(read_text("/proc/cpuinfo"))
    path, version = toolkit(accelerator) if accelerator in TOOLKITS else (None, None)
    architectures, problems = accelerator_of(accelerator, version)
    suffix = "-".join([accelerator + (version or ""), *architectures])
    parts = [os_release(), libc(), platform.machine(), digits(flags)]
    # A driver that fails must not look like another platform: its build would be made without a GPU.
    kept = (
        str(read_manifest(Path(prefix, "current")).get("platform", ""))
        if problems and not architectures
        else ""
    )
    cmake, environment, trial = compile_for(accelerator, path, architectures)
    meminfo = re.search(r"^MemTotal:\s+(\d+) kB", read_text("/proc/meminfo"), re.M)
    return {
        "id": name_of_platform(parts, suffix, kept),
        "cpu_flags": flags,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": int(meminfo.group(1)) * 1024 if meminfo else 0,
        "toolkit": path,
        "toolkit_version": version,
        "devices": architectures,
        "problems": problems,
        "cmake": cmake,
        "environment": environment,
        "trial": trial,
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


def libraries_of(binary):
    """Shared libraries of a binary: by name the file that the loader takes; None where it finds none."""
    found = re.findall(r"^\s*(\S+) => (not found|\S+)", run(["ldd", str(binary)])[1], re.M)
    return {name: None if path == "not found" else path for name, path in found}


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
    # An accelerator's runtime is not linked in: its toolkit may have been removed, or moved.
    built = manifest.get("libraries", {})
    gone = (
        [name for name, path in libraries_of(Path(folder, "bin", binaries[0])).items() if not path]
        if built
        else []
    )
    problems += [
        f"bin/{binaries[0]} needs {name}, which was {built.get(name, 'found')} at its build" for name in gone
    ]
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
    node = platform_of(given["accelerator"], given["prefix"])
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
