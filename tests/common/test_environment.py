"""What a run records about itself."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from bigrec_hf.common.environment import peak_memory_mib


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peak of a process since its program began")
def test_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it():
    held = np.ones(50_000_000)  # 381 MiB
    program = "from bigrec_hf.common.environment import peak_memory_mib; print(peak_memory_mib())"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0 < int(child.stdout) < 300 < peak_memory_mib()
    assert held[-1] == 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_name_that_is_no_utf_8_does_not_matter():
    rename = "open('/proc/self/comm', 'wb').write(b'\\xd0'); "
    program = f"from bigrec_hf.common.environment import peak_memory_mib; {rename}"
    child = subprocess.run([sys.executable, "-c", program + "print(peak_memory_mib())"], capture_output=True, text=True)
    assert child.returncode == 0 and int(child.stdout) > 0, child.stderr
