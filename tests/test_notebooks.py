"Every notebook runs from top to bottom, through nbdev's own runner and in a process of its own"
import os, subprocess, time
from pathlib import Path
import pytest, warm
from fastcore.nbio import *
from nbdev.test import nbdev_test

root = Path(__file__).parent.parent
pytestmark = pytest.mark.limit(200)

def run(nb):
    return warm.run(nbdev_test, str(nb), n_workers=0, cwd=root,
        env=dict(PATH=f'{warm.bin}{os.pathsep}{os.environ["PATH"]}'), timeout=190)

@pytest.mark.parametrize('nb', sorted(root.glob('nbs/**/*.ipynb')), ids=lambda f: f.relative_to(root/'nbs').with_suffix('').as_posix())
def test_notebook(nb):
    res = run(nb)
    assert res.returncode==0 and 'Success' in res.stdout, res.stdout[-2000:]+res.stderr[-6000:]

def test_a_broken_cell_is_told(tmp_path):
    write_nb(new_nb([mk_cell('x = 1'), mk_cell('import torch\nx/0')]), tmp_path/'broken.ipynb')
    res = run(tmp_path/'broken.ipynb')
    assert res.returncode==1 and 'Success' not in res.stdout
    for o in ('broken.ipynb', 'Executing Cell #2', 'ZeroDivisionError', 'in <module>'): assert o in res.stderr, res.stderr

def test_what_hangs_is_ended():
    began = time.time()
    with pytest.raises(subprocess.TimeoutExpired): warm.run(time.sleep, 50, timeout=1)
    assert time.time()-began<40
