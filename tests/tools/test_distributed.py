"""Two processes on the CPU."""

import json
import subprocess
import sys

from tools_helpers import ENVIRONMENT, SEGMENTOR, write_config

from attnzoo.tools.checkpoint import load_checkpoint


def torchrun(folder, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += map(str, arguments)
    # mmengine leaves a folder `.dist_test` where it runs.
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=400, cwd=folder)


def test_train_and_test_by_torchrun(data, tmp_path):
    config = write_config(tmp_path / "two.py", SEGMENTOR, data, epochs=1)
    done = torchrun(
        tmp_path, "-m", "attnzoo.tools.train", config, "--launcher", "pytorch", "--work-dir", tmp_path / "w"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = tmp_path / "w" / "epoch_1.pth"
    # Eight images, two a step and process.
    assert load_checkpoint(checkpoint)["meta"]["iter"] == 2
    assert done.stdout.count("trained 1 epochs, 2 iterations") == 1
    assert "mIoU" in next((tmp_path / "w").glob("*/*.log")).read_text()
    assert not list(tmp_path.rglob("*.tmp*"))

    out = tmp_path / "metrics.json"
    arguments = [config, checkpoint, "--launcher", "pytorch", "--work-dir", tmp_path / "t", "--out", out]
    done = torchrun(tmp_path, "-m", "attnzoo.tools.test", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 0 < json.loads(out.read_text())["mIoU"] <= 100
