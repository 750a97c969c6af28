"""Seeded campaigns of hostile input: each draw runs in a process that may crash or hang without ending the tests."""

import faulthandler
import json
import multiprocessing
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import interpreters

# `make test-hostile` sets both: every draw, and a file that gets one line of JSON a campaign.
WHOLE = os.environ.get("ATTNZOO_CAMPAIGN") == "whole"
REPORT = os.environ.get("ATTNZOO_CAMPAIGN_REPORT")
# The suite draws one in so many, so that a campaign cannot rot.
PART = 50


class Failed(AssertionError):
    """What a draw raises for an outcome that is neither a right result nor one clear refusal."""


def campaign(name: str, draw: Callable[[int], str], draws: int, seconds: float = 60.0) -> None:
    """Call `draw(seed)` for each seed in child processes, and fail with all that went wrong.

    Args:
        name: of the class of input, for the report.
        draw: makes an input from the seed, gives it to the code under test and returns the outcome in a few words,
            such as "accepted" or "refused"; any exception out of it is a failure, and so is the end of its process.
        draws: how many seeds the whole campaign has; the suite runs one in `PART` of them.
        seconds: that one draw may take before it counts as hanging.

    Raises:
        Failed: with the first failures and the seeds to repeat them with.
    """
    seeds = list(range(draws if WHOLE else max(draws // PART, 5)))
    outcomes: Counter[str] = Counter()
    failures: list[tuple[int, str]] = []
    context = multiprocessing.get_context("fork")
    while seeds:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_work, args=(draw, seeds, theirs))
        child.start()
        theirs.close()
        finished = False
        while not finished:
            if not ours.poll(seconds):
                child.kill()
                failures.append((seeds.pop(0), f"hangs: no outcome within {seconds:.0f} s"))
                break
            try:
                kind, text = ours.recv()
            except EOFError:
                child.join()
                failures.append((seeds.pop(0), f"the process ended ({_ended(child.exitcode)})"))
                break
            if kind == "outcome":
                outcomes[text] += 1
            else:
                failures.append((seeds[0], text))
            seeds.pop(0)
            finished = not seeds
        child.join()
        ours.close()
    _report(name, outcomes, failures)
    if failures:
        shown = "\n\n".join(f"seed {seed}: {text}" for seed, text in failures[:10])
        raise Failed(f"{name}: {len(failures)} of {len(failures) + outcomes.total()} draws failed\n{shown}")


def in_own_interpreter(file: str, imports: str = interpreters.BARE) -> None:
    """Run a file that calls `campaign` when it is the main program.

    Autograd may refuse to run in a fork of a process that has used it, as that of the tests has.

    Args:
        file: Its path.
        imports: What its interpreter has run before, as for `interpreters.run`.

    Raises:
        Failed: with what the program said.
    """
    folder = str(Path(__file__).parent)
    code = f"import runpy, sys; sys.path.insert(0, {folder!r}); runpy.run_path({file!r}, run_name='__main__')"
    done = interpreters.run(code, imports=imports, timeout=5400)
    print(done.stdout)
    if done.returncode:
        raise Failed(done.stderr)


def _work(draw: Callable[[int], str], seeds: list[int], connection: Any) -> None:
    faulthandler.disable()  # what crashes here is told by the parent
    for seed in list(seeds):
        try:
            message = ("outcome", draw(seed))
        except BaseException:  # every exception is an outcome to report, SystemExit too
            message = ("failure", traceback.format_exc(limit=-6))
        connection.send(message)
    connection.close()
    # Without the parent's exit handlers.
    os._exit(0)


def _ended(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _report(name: str, outcomes: Counter[str], failures: list[tuple[int, str]]) -> None:
    entry = {"campaign": name, "draws": outcomes.total() + len(failures), **dict(outcomes.most_common())}
    entry["failed"] = len(failures)
    print(json.dumps(entry))
    if REPORT:
        with Path(REPORT).open("a") as file:
            file.write(json.dumps(entry) + "\n")
