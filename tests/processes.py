"""Two processes on the CPU, with a module to run in each."""

import socket
import subprocess
import sys
from pathlib import Path

import interpreters
from tools_helpers import ENVIRONMENT


def torchrun(folder: Path, *words: object) -> subprocess.CompletedProcess:
    """Run a module in two processes by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += map(str, words)
    # mmengine leaves a folder `.dist_test` where it runs.
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=400, cwd=folder)


RANKS = """
import os, runpy, signal, sys
module, *arguments = {words!r}
children = set()
for rank in range(2):
    child = os.fork()
    if not child:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    children.add(child)
codes = []
while children:
    child, status = os.wait()
    children.remove(child)
    codes.append(os.waitstatus_to_exitcode(status))
    for other in children if codes[-1] else ():
        os.kill(other, signal.SIGKILL)
sys.exit(any(codes))
"""


def ranks(folder: Path, *words: object) -> subprocess.CompletedProcess:
    """Run a module in two processes as torchrun does, without the time that their imports take."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    group = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    env = {**ENVIRONMENT, **group, "TORCHELASTIC_RUN_ID": "none"}
    code = RANKS.format(words=[str(word) for word in words])
    return interpreters.run(code, cwd=folder, env=env, imports=interpreters.TRAINING)
