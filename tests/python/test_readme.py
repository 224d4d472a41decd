"""The Python of README.md, as it stands there."""
import os
import re
import subprocess
import sys

import gearkv
import pytest

SOURCE = os.environ["GEARKV_SOURCE"]


@pytest.mark.skipif(not gearkv.has_decoder, reason="built without the decoder")
def test_it_runs_and_prints():
    with open(os.path.join(SOURCE, "README.md"), encoding="utf-8") as file:
        programs = re.findall(r"```python\n(.*?)```", file.read(), flags=re.S)
    assert len(programs) == 1
    run = subprocess.run([sys.executable, "-W", "error", "-c", programs[0]], cwd=SOURCE, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "bits per element" in run.stdout and len(run.stdout.splitlines()) >= 2
