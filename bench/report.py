"""What was measured, where, and in which file that is told."""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TITLE = "# Results of the bench"


def build(package, binary):
    """Builds `package` in release and returns the path of its `binary`."""
    command = ["cargo", "build", "--release", "--package", package]
    command += ["--message-format", "json-render-diagnostics"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == binary:
            return message["executable"]
    raise RuntimeError(f"{package} has no binary {binary}")


def describe(command, python, seconds):
    """When, where and of what the figures are."""
    command = " ".join([command, *sys.argv[1:]])
    return f"""\
`{command}` on {datetime.date.today()}, {seconds:.0f} s.
manyhands {said("git", "-C", ROOT, "describe", "--always", "--dirty")}, \
{said(python, "--version")}, {said("rustc", "--version")}.
{cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, \
load {os.getloadavg()[0]:.1f} at the end.
Median (p10–p90) over rounds; ratios are ours to the other's, medians of the rounds' own. \
[How to read it](README.md)."""


def said(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write_section(path, title, circumstances, table):
    """Puts a table under its title, and leaves what the file says under others."""
    sections = {}
    if path.exists():
        _, *parts = path.read_text().split("\n## ")
        sections = {name: text for name, _, text in (part.partition("\n") for part in parts)}
    rows = "\n".join(table)
    sections[title] = f"\n{circumstances}\n\n{rows}\n"
    text = "\n".join(f"## {name}\n{text.rstrip()}\n" for name, text in sections.items())
    path.write_text(f"{TITLE}\n\n{text}")
