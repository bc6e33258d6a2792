"Every notebook runs from top to bottom, through nbdev's own runner"
import os, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).parent.parent

@pytest.mark.limit(200)
@pytest.mark.parametrize('nb', sorted(root.glob('nbs/**/*.ipynb')), ids=lambda f: f.stem)
def test_notebook(nb):
    env = os.environ | dict(OMP_NUM_THREADS='1', MPLBACKEND='Agg', PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
    res = subprocess.run([Path(sys.executable).parent/'nbdev-test', '--file-glob', nb.name, '--n-workers', '0'], cwd=root, env=env, capture_output=True, text=True)
    assert res.returncode==0 and 'Success' in res.stdout, res.stdout[-2000:]+res.stderr[-6000:]
