"""Interpreters that have imported torch, torchvision and timm and nothing else of note, or what a training needs.

Each piece of code runs in a fork of one such interpreter, which saves the time of these imports.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BARE = "import torch, torchvision, timm"
TRAINING = """
from attnzoo.tools.config.loading import require_mm
require_mm()
import attnzoo.tools.running.evaluation, attnzoo.tools.running.training
"""
# The child leaves the loop, so that it ends as any interpreter does, by its own exit handlers.
_SERVER = """
import json, os, sys
exec(sys.argv[1], {})

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
for descriptor, name in enumerate((os.devnull, job["out"], job["err"])):
    os.dup2(os.open(name, os.O_RDWR), descriptor)
os.chdir(job["cwd"])
os.environ.clear()
os.environ.update(job["env"])
exec(compile(job["code"], "<string>", "exec"), {"__name__": "__main__"})
"""
_servers: dict[tuple[int, str], Any] = {}


def _server(imports: str) -> Any:
    """The one of this process: a fork of it must not talk to its parent's."""
    key = os.getpid(), imports
    if key not in _servers:
        command = [sys.executable, "-c", _SERVER, imports]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        _servers[key] = server
        atexit.register(server.kill)
    return _servers[key]


def run(
    code: str, cwd: Any = None, env: dict[str, str] | None = None, imports: str = BARE
) -> subprocess.CompletedProcess:
    """Run code in a fork of an interpreter that has imported what it needs.

    Args:
        code: What `python -c` would get.
        cwd: The working directory, this process's without.
        env: The whole environment, this process's without; what torch reads when it is imported is this process's.
        imports: `BARE`, `TRAINING` or other lines that the interpreter has run.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        out.touch(), err.touch()
        job = dict(code=code, cwd=str(cwd or Path.cwd()), env=dict(env or os.environ), out=str(out), err=str(err))
        server = _server(imports)
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        exit_code = int(server.stdout.readline())
        return subprocess.CompletedProcess(code, exit_code, out.read_text(), err.read_text())
