"""A Slurm of a few lines for tests: `install` writes its commands; arrays run as processes of this machine.

Jobs are files in its folder: `JOB.pid` of a job that was started, `JOB.state` that says what sacct is to answer, which
tests write as well; `scripts/` keeps what was submitted, `calls` what was asked. A file `NAME.fails` makes a command
fail, with what stands in it.
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "squeue", "scancel", "scontrol")
_WRAPPER = '#!/bin/sh\nexec {python} -E -S {program} {folder} {name} "$@"\n'


def install(folder: Path) -> Path:
    """Write the commands to `folder`/bin, which is to stand on PATH."""
    (folder / "bin").mkdir(parents=True)
    (folder / "scripts").mkdir()
    for name in COMMANDS:
        path = folder / "bin" / name
        words = {"python": sys.executable, "program": __file__, "folder": shlex.quote(str(folder)), "name": name}
        path.write_text(_WRAPPER.format(**words))
        path.chmod(0o755)
    return folder / "bin"


def flags(script: str) -> dict[str, str]:
    """The options in a job's script; `yes` for those without a value."""
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, flags=re.MULTILINE)
    return {name: shlex.split(value)[0] if value else "yes" for name, value in found}


def _sbatch(folder, script):
    text = Path(script).read_text()
    number = 100 + len(list((folder / "scripts").iterdir()))
    (folder / "scripts" / f"{number}.sh").write_text(text)
    if not (folder / "holds").exists():
        last = flags(text).get("array", "").partition("%")[0].partition("-")[2]
        for job in [f"{number}_{index}" for index in range(int(last) + 1)] if last else [str(number)]:
            _start(folder, job)
    if (folder / "sbatch.late").exists():  # it was heard, but could not answer
        sys.exit("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    print(f"Submitted batch job {number}")


def _start(folder, job):
    main, _, index = job.partition("_")
    ids = {"SLURM_ARRAY_JOB_ID": main, "SLURM_ARRAY_TASK_ID": index} if index else {}
    environment = {**os.environ, "SLURM_JOB_ID": main, **ids}
    script = f"bash {folder}/scripts/{main}.sh; echo $? > {folder}/{job}.code"
    (folder / f"{job}.code").unlink(missing_ok=True)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    process = subprocess.Popen(["sh", "-c", script], env=environment, start_new_session=True, **quiet)
    (folder / f"{job}.pid").write_text(str(process.pid))


def _srun(folder, *words):
    words, paths = list(words), {}
    names = {"%A": os.environ.get("SLURM_ARRAY_JOB_ID", ""), "%a": os.environ.get("SLURM_ARRAY_TASK_ID", "")}
    names |= {"%j": os.environ["SLURM_JOB_ID"], "%t": "0"}
    while words[0].startswith("-"):
        word = words.pop(0)
        if word in ("--output", "--error"):
            paths[word] = re.sub("%[Aajt]", lambda found: names[found.group()], words.pop(0))
    for number, name in enumerate(("--output", "--error"), start=1):
        os.dup2(os.open(paths[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.execvp(words[0], words)


def _state(folder, job):
    if (said := folder / f"{job}.state").exists():
        return said.read_text()
    if (code := folder / f"{job}.code").exists():
        return "COMPLETED" if code.read_text().strip() == "0" else "FAILED"
    return "RUNNING" if (folder / f"{job}.pid").exists() else "PENDING"


def _jobs(folder):
    return sorted({path.name.rpartition(".")[0] for kind in ("pid", "state") for path in folder.glob(f"*.{kind}")})


def _sacct(folder, *words):
    print("JobID|State|NodeList")
    (asked,) = [word.partition("=")[2].split(",") for word in words if word.startswith("--jobs=")]
    for job in _jobs(folder):
        if job.partition("_")[0] in asked:
            print(f"{job}|{_state(folder, job)}|node7\n{job}.batch|{_state(folder, job)}|node7")


def _squeue(folder, *words):
    for job in _jobs(folder):
        if _state(folder, job) in ("PENDING", "RUNNING"):
            print(f"{job}|{_state(folder, job)}|node7")


def _scancel(folder, *words):
    for job in words:
        if (folder / f"{job}.pid").exists():
            (folder / f"{job}.state").write_text("CANCELLED by 1000")
            _kill(folder, job)


def _scontrol(folder, verb, job):
    assert verb == "requeue"
    # not as a child of the job that asks for it, which is ended first
    subprocess.Popen([sys.executable, "-ES", __file__, str(folder), "restart", job], start_new_session=True)


def _restart(folder, job):
    time.sleep(0.5)
    _kill(folder, job)
    _start(folder, job)


def _kill(folder, job):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int((folder / f"{job}.pid").read_text()), 9)


if __name__ == "__main__":
    place, command = Path(sys.argv[1]), sys.argv[2]
    with (place / "calls").open("a") as calls:
        calls.write(shlex.join(sys.argv[2:]) + "\n")
    if (place / f"{command}.fails").exists():
        sys.exit((place / f"{command}.fails").read_text())
    globals()[f"_{command}"](place, *sys.argv[3:])
