"""Interpreters that have imported torch, torchvision and timm and nothing else of note, or what a training needs.

Each piece of code runs in a fork of one such interpreter, which saves the time of these imports.
"""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
BARE = "import torch, torchvision, timm"
TRAINING = f"""
from attnzoo.tools.config.loading import require_mm
require_mm()
import attnzoo.tools.running.evaluation, attnzoo.tools.running.training
import gc, runpy
# What is drawn here and in the tests is the same.
for file in ("quick_draws.py", "quick_mm.py"):
    runpy.run_path({str(_FOLDER)!r} + "/" + file)["replace"]()
import mmengine.runner.runner
mmengine.runner.runner.collect_env()
gc.freeze()
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
# One job after the other, of all threads.
_turn = threading.Lock()


def _server(imports: str) -> Any:
    """The one of this process: a fork of it must not talk to its parent's."""
    key = os.getpid(), imports
    if key not in _servers:
        command = [sys.executable, "-c", _SERVER, imports]
        # A session of its own, to end it with all its forks.
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        _servers[key] = server
        atexit.register(_end, server)
    return _servers[key]


def _end(server: Any) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def run(
    code: str, cwd: Any = None, env: dict[str, str] | None = None, imports: str = BARE, timeout: float = 400
) -> subprocess.CompletedProcess:
    """Run code in a fork of an interpreter that has imported what it needs.

    Args:
        code: What `python -c` would get.
        cwd: The working directory, this process's without.
        env: The whole environment, this process's without; what torch reads when it is imported is this process's.
        imports: `BARE`, `TRAINING` or other lines that the interpreter has run.
        timeout: Seconds.

    Raises:
        subprocess.TimeoutExpired: It takes longer. Then, and after any other error, it is ended with its interpreter.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        out.touch(), err.touch()
        job = dict(code=code, cwd=str(cwd or Path.cwd()), env=dict(env or os.environ), out=str(out), err=str(err))
        with _turn:
            exit_code = _exit_code(imports, job, timeout)
        return subprocess.CompletedProcess(code, exit_code, out.read_text(), err.read_text())


def _exit_code(imports: str, job: dict[str, Any], timeout: float) -> int:
    server = _server(imports)
    try:
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(job["code"], timeout)
        return int(server.stdout.readline())
    except BaseException:
        # A later job would take the exit code of this one for its own.
        _end(_servers.pop((os.getpid(), imports)))
        raise
