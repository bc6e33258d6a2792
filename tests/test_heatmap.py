"The store: whole or not at all, and nothing unpickled"
import os, pickle, subprocess, sys, textwrap
from contextlib import suppress
import pytest, torch
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.core import write_whole
from proxy_attention.attribution.heatmap import HeatmapStore, resize_heat

def test_store_against_a_dict():
    rng,ref,store = np.random.default_rng(0), {}, HeatmapStore()
    for _ in range(20):
        idxs,grids = rng.integers(0, 300, 25), rng.random((25,4,5)).astype(np.float16)
        for i,g in zip(idxs, grids): ref.setdefault(int(i), g)
        store.update(idxs, grids)
    assert list(store)==sorted(ref) and all(np.array_equal(store[i].numpy(), ref[i]) for i in ref)
    assert all((i in store)==(i in ref) for i in range(-5, 310))

@pytest.mark.parametrize('content', [b'', b'not a store', pickle.dumps({'a':1})])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path/'x.npz').write_bytes(content)
    with pytest.raises(ValueError, match='is not a heatmap store'): HeatmapStore.load(tmp_path/'x.npz')

def test_killed_while_writing_leaves_the_last_good_one(tmp_path):
    f = HeatmapStore(range(50), torch.rand(50,7,7)).save(tmp_path/'heat.npz')
    code = f"""
        import os, numpy as np
        from proxy_attention.attribution.heatmap import HeatmapStore
        from proxy_attention.core import write_whole
        def write(out):
            out.write(b'half a store'); out.flush(); os.kill(os.getpid(), 9)
        write_whole({str(f)!r}, write)"""
    res = subprocess.run([sys.executable, '-c', textwrap.dedent(code)])
    assert res.returncode==-9 and len(HeatmapStore.load(f))==50

def test_full_disk_leaves_the_last_good_one(tmp_path):
    f = HeatmapStore(range(50), torch.rand(50,7,7)).save(tmp_path/'heat.npz')
    def full(out): raise OSError(28, 'No space left on device')
    with pytest.raises(OSError, match='No space left'): write_whole(f, full)
    assert len(HeatmapStore.load(f))==50 and os.listdir(tmp_path)==['heat.npz']

def test_a_million_items_are_small():
    store = HeatmapStore(np.arange(1_000_000), np.zeros((1_000_000,7,7), np.float16))
    assert store.nbytes/len(store)<=200

@pytest.mark.parametrize('size', [(40,56),(9,8)])
def test_stretched_as_pil_does(size):
    x = torch.rand(4,7)
    want = np.asarray(Image.fromarray(x.numpy()).resize(size[::-1], Image.BILINEAR))
    assert np.abs(resize_heat(x, size).numpy()-want).max()<1e-5

def test_a_damaged_store_is_told(tmp_path):
    "A file that was cut off, or that has lost bytes, is no store: a sentence says so"
    file = HeatmapStore([1,2], torch.rand(2,7,7)).save(tmp_path/'heat.npz')
    whole = file.read_bytes()
    for n in (10, 100, len(whole)//2, len(whole)-5):
        file.write_bytes(whole[:n])
        with pytest.raises(ValueError, match='is not a heatmap store'): HeatmapStore.load(file)
    for i in range(0, len(whole), 11):
        file.write_bytes(whole[:i]+bytes([whole[i]^255])+whole[i+1:])
        with suppress(ValueError): HeatmapStore.load(file)
