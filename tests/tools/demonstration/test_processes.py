"""What the demo shows of its workers."""

import subprocess
import sys

from attnzoo.tools.demonstration import processes
from attnzoo.tools.demonstration.tasks import TASKS


def test_a_log_that_cannot_be_written_stops_no_worker(tmp_path, monkeypatch):
    """Its output is read on, or it would wait for ever when the pipe is full."""
    code = "print('$' * 100_000); print('last'); import sys; sys.exit(3)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    processes._follow(TASKS[0], process, tmp_path / "no" / "folder.txt")
    assert process.wait(timeout=60) == 3
    process.stdout.close()


def test_progress_lines():
    head = "11/21 11:36:59 - mmengine - INFO - "
    train = (
        "Epoch(train) [2][ 50/150]  base_lr: 1.5e-03 lr: 1.5e-03  eta: 0:11:14  time: 1.4  grad_norm: 2.2  loss: 0.8028"
    )
    assert processes._progress(head + train) == "epoch 2,  50/150  loss 0.803  0:11:14 to go"
    val = "Epoch(val) [2][25/25]    coco/bbox_mAP: 0.6130  coco/bbox_mAP_50: 0.7850  time: 0.1"
    assert processes._progress(head + val) == "held out: coco/bbox_mAP_50: 0.7850"
    assert processes._progress(head + "load from local path") is None
