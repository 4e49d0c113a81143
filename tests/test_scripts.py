"""Shell scripts: none hands its own arguments to the installation."""

import re
import subprocess
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "scripts").glob("*.sh"))
SOURCING = [path for path in SCRIPTS if path.name != "env.sh" and "scripts/env.sh" in path.read_text()]


@pytest.mark.parametrize("path", SOURCING, ids=lambda path: path.name)
def test_extras_are_given(path):
    line = re.search(r"^source scripts/env\.sh(.*)$", path.read_text(), re.M)
    assert line is not None and re.match(r' (""|[a-z,]+)( #|$)', line[1]), (
        "without an argument env.sh reads the script's"
    )


def test_arguments_of_a_caller_are_refused_as_extras():
    script = f'set -- train.iterations=40; source "{SCRIPTS[0].parent / "env.sh"}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "'train.iterations=40' is no list of extras" in done.stderr


def test_two_slurm_jobs_on_one_machine_meet_at_two_ports(tmp_path):
    """SLURM's commands are stand-ins that print what they are given."""
    for name, text in {"scontrol": "echo node7", "srun": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def line(job, *arguments, **more):
        variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(SCRIPTS[0].parents[1]), **more}
        variables |= {"SLURM_JOB_ID": str(job), "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2"}
        command = ["bash", SCRIPTS[0].with_name("slurm.sh"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=variables).stdout

    def endpoint(job, **more):
        text = line(job, "experiment=x", **more)
        return re.search(r"--rdzv-endpoint node7:(\d+) -m partseg train experiment=x\n", text)[1]

    ports = [int(endpoint(job)) for job in (4711, 4712, 123456789)]
    assert len(set(ports)) == 3 and all(1024 < port < 32768 for port in ports)
    assert endpoint(4711, MASTER_PORT="29501") == "29501"
    assert line(1, "-m", "partseg", "eval", "ckpt=x").endswith(" -m partseg eval ckpt=x\n")
    assert line(1, "tools/benchmark.py", "a=1").endswith(" tools/benchmark.py a=1\n")


def source_env(tmp_path, **environment):
    """PATH after env.sh was sourced, with nothing installed."""
    script = f'source "{SCRIPTS[0].parent / "env.sh"}" ""; echo "$PATH"'
    variables = {"PATH": "/usr/bin:/bin", "partseg_no_install": "1", **environment}
    done = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, check=True)
    return done.stdout.split(":")[0]


def test_an_active_environment_is_used(tmp_path):
    own = str(SCRIPTS[0].parents[1] / ".venv" / "bin")
    assert source_env(tmp_path) == own
    assert source_env(tmp_path, VIRTUAL_ENV=str(tmp_path)) == f"{tmp_path}/bin"
    assert source_env(tmp_path, CONDA_PREFIX=str(tmp_path), CONDA_DEFAULT_ENV="mine") == f"{tmp_path}/bin"
    assert source_env(tmp_path, CONDA_PREFIX=str(tmp_path), CONDA_DEFAULT_ENV="base") == own


@pytest.mark.parametrize("path", [p for p in SCRIPTS if p.name.startswith("reproduce_")], ids=lambda path: path.name)
def test_a_dry_run_installs_nothing(path):
    text = path.read_text()
    assert text.index("partseg_no_install=1") < text.index("source scripts/env.sh")
