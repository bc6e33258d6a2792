"Every notebook runs from top to bottom, through nbdev's own runner"
import os, subprocess, sys
from pathlib import Path
import pytest

@pytest.mark.limit(400)
def test_notebooks():
    env = os.environ | dict(OMP_NUM_THREADS='1', MPLBACKEND='Agg', PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
    res = subprocess.run([Path(sys.executable).parent/'nbdev-test', '--n-workers', '2', '--do-print', '--timing'], cwd=Path(__file__).parent.parent, env=env, capture_output=True, text=True)
    print(res.stdout[-4000:])
    assert res.returncode==0, res.stderr[-6000:]
